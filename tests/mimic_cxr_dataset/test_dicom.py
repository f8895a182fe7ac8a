"""Each DICOM attribute that changes what a pixel means: applied, refused with the reason, or warned about."""

import io

import numpy as np
import pydicom
import pytest
from dicom_files import write_dicom
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence

from mimic_cxr_dataset.dicom import read_dicom
from mimic_cxr_dataset.errors import DatasetError
from mimic_cxr_dataset.gray_levels import scale_to_8_bits

ROWS, COLUMNS = np.mgrid[:80, :60]
WAVES = np.sin(ROWS / 9) + np.cos(COLUMNS / 7) + ROWS / 40
GRAY = np.rint(255 * (WAVES - WAVES.min()) / np.ptp(WAVES)).astype(np.uint8)
DEEP = GRAY.astype(np.uint16) * 16  # 12 bits
BORDER = np.pad(np.zeros((60, 40), dtype=bool), 10, constant_values=True)
JPEG = "1.2.840.10008.1.2.4.50"


def table(descriptor: list[int], entries: list[int] | bytes) -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", descriptor)
    item.add_new("LUTData", "OW" if isinstance(entries, bytes) else "US", entries)
    return Sequence([item])


def coded(meaning: str) -> Sequence:
    item = Dataset()
    item.CodeMeaning = meaning
    return Sequence([item])


def packed(values: np.ndarray) -> bytes:
    Image.fromarray(values).save(buffer := io.BytesIO(), format="JPEG", quality=95)
    return buffer.getvalue()


def read(folder, values, **tags):
    return read_dicom(write_dicom(folder / "a.dcm", values, valid=False, **tags), equalizes=False)


PLAIN = scale_to_8_bits(DEEP)
SCALED = DEEP.astype(np.float64) * 255 / 4080
# What the pixels must be, to one gray level.
APPLIED = {
    "RescaleSlope, RescaleIntercept": (DEEP, {"RescaleSlope": 2, "RescaleIntercept": -5}, PLAIN),
    "RescaleSlope below 0": (DEEP, {"RescaleSlope": -1, "RescaleIntercept": 0}, 255 - SCALED),
    "RescaleSlope alone": (DEEP, {"RescaleSlope": -1}, 255 - SCALED),
    "RescaleSlope and others empty": (
        DEEP,
        dict.fromkeys(("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"), ""),
        PLAIN,
    ),
    "ModalityLUTSequence of 12 bits in 16": (
        DEEP,
        {"ModalityLUTSequence": table([4096, 0, 12], list(range(4095, -1, -1)))},
        255 - SCALED,
    ),
    "VOILUTSequence of 8 bits in 16": (
        DEEP,
        {"VOILUTSequence": table([4096, 0, 8], [i >> 4 for i in range(4096)])},
        PLAIN,
    ),
    "VOILUTSequence of 8 bits in bytes": (
        DEEP,
        {"VOILUTSequence": table([4096, 0, 8], bytes(i >> 4 for i in range(4096)))},
        PLAIN,
    ),
    "VOILUTSequence of 65,536 entries": (
        DEEP,
        {"VOILUTSequence": table([0, 0, 16], list(range(65536)))},
        PLAIN,
    ),
    "VOILUTSequence that begins above the values": (
        DEEP,
        {"VOILUTSequence": table([2048, 2048, 16], list(range(2048)))},
        np.clip(DEEP.astype(float) - 2048, 0, None) * 255 / 2032,
    ),
    "WindowCenter, WindowWidth": (
        DEEP,
        {"WindowCenter": 2048, "WindowWidth": 1000},
        np.clip((DEEP - 2047.5) / 999 + 0.5, 0, 1) * 255,
    ),
    "several windows: the first": (
        DEEP,
        {"WindowCenter": [2048, 7], "WindowWidth": [1000, 7]},
        np.clip((DEEP - 2047.5) / 999 + 0.5, 0, 1) * 255,
    ),
    "VOILUTFunction LINEAR_EXACT": (
        DEEP,
        {"WindowCenter": 2000, "WindowWidth": 1000, "VOILUTFunction": "LINEAR_EXACT"},
        np.clip((DEEP - 2000.0) / 1000 + 0.5, 0, 1) * 255,
    ),
    "VOILUTFunction SIGMOID": (
        DEEP,
        {"WindowCenter": 2000, "WindowWidth": 1000, "VOILUTFunction": "SIGMOID"},
        scale_to_8_bits(1 / (1 + np.exp(-4 * (DEEP - 2000.0) / 1000))),
    ),
    "PhotometricInterpretation MONOCHROME1": (
        DEEP,
        {"PhotometricInterpretation": "MONOCHROME1"},
        255 - SCALED,
    ),
    "PixelRepresentation 1": (
        (DEEP.astype(np.int16) - 2048).view(np.uint16) & 0xFFF,
        {"PixelRepresentation": 1},
        PLAIN,
    ),
    "PixelRepresentation 1, the sign in all bits": (
        (DEEP.astype(np.int16) - 2048).view(np.uint16),
        {"PixelRepresentation": 1},
        PLAIN,
    ),
    "HighBit 15 with 12 BitsStored": (DEEP << 4, {"HighBit": 15}, PLAIN),
    "8 BitsStored keep their values": (GRAY // 2 + 60, {}, GRAY // 2 + 60),
    "PixelPaddingValue 65535": (
        np.where(BORDER, 65535, DEEP).astype(np.uint16),
        {"PixelPaddingValue": 65535, "BitsStored": 16, "HighBit": 15},
        np.where(BORDER, 0, np.pad(scale_to_8_bits(DEEP[10:-10, 10:-10]), 10)),
    ),
    "PixelPaddingValue in all bits of a word": (
        np.where(BORDER, 65535, DEEP).astype(np.uint16),
        {"PixelPaddingValue": 65535},
        np.where(BORDER, 0, np.pad(scale_to_8_bits(DEEP[10:-10, 10:-10]), 10)),
    ),
    "PixelPaddingRangeLimit, MONOCHROME1": (
        np.where(BORDER, 4090 + COLUMNS % 5, DEEP // 2).astype(np.uint16),
        {
            "PixelPaddingValue": 4090,
            "PixelPaddingRangeLimit": 4095,
            "PhotometricInterpretation": "MONOCHROME1",
        },
        np.where(BORDER, 0, 255 - np.pad(scale_to_8_bits(DEEP[10:-10, 10:-10]), 10)),
    ),
}


@pytest.mark.parametrize("name", APPLIED)
def test_attribute_is_applied(name, tmp_path):
    values, tags, expected = APPLIED[name]
    found, _, warned = read(tmp_path, values, **tags)
    assert np.abs(found.astype(float) - expected).max() <= 1 and not warned


def test_padding_takes_no_part_in_the_histogram(tmp_path):
    values = np.where(BORDER, 65535, DEEP).astype(np.uint16)
    tags = {"PixelPaddingValue": 65535, "BitsStored": 16, "HighBit": 15}
    framed, _, _ = read_dicom(write_dicom(tmp_path / "a.dcm", values, **tags))
    alone, _, _ = read_dicom(write_dicom(tmp_path / "b.dcm", DEEP[10:-10, 10:-10].copy()))
    assert np.array_equal(framed[10:-10, 10:-10], alone) and not framed[BORDER].any()


REFUSED = {
    "NumberOfFrames": (np.stack([GRAY, GRAY]), {"NumberOfFrames": 2}, "^DICOM with 2 frames, expected one$"),
    "three frames, not told": (np.stack([GRAY] * 3), {}, "^DICOM with 3 frames, expected one$"),
    "two JPEG frames, not told": (
        GRAY,
        {"syntax": JPEG, "PixelData": encapsulate([packed(GRAY), packed(255 - GRAY)], has_bot=False)},
        "^DICOM with 2 frames, expected one$",
    ),
    "two JPEG frames with their offsets, not told": (
        GRAY,
        {"syntax": JPEG, "PixelData": encapsulate([packed(GRAY), packed(255 - GRAY)])},
        "^DICOM with 2 frames, expected one$",
    ),
    "JPEG of another size": (
        GRAY,
        {"syntax": JPEG, "PixelData": encapsulate([packed(GRAY.T)])},
        "^DICOM of 80 x 60 pixels, but its header says 60 x 80$",
    ),
    "JPEG that is cut off and filled up": (
        GRAY,
        {"syntax": JPEG, "PixelData": encapsulate([packed(GRAY)[:-600] + bytes(600)])},
        "^no end-of-image marker: the file is cut off$",
    ),
    "JPEG of 12 bits": (
        GRAY,
        {"syntax": "1.2.840.10008.1.2.4.51", "BitsAllocated": 16, "BitsStored": 12, "HighBit": 11},
        "^DICOM compressed as JPEG Extended.*, which needs more packages: pip install ",
    ),
    "packed pixels with HighBit 15": (
        DEEP,
        {"syntax": JPEG, "PixelData": encapsulate([packed(GRAY)]), "HighBit": 15},
        "^compressed DICOM with HighBit 15, expected BitsStored - 1$",
    ),
    "bits beyond BitsStored": (
        DEEP,
        {"BitsStored": 10, "HighBit": 9},
        r"outside the stored ones \(BitsStored 10, HighBit 9\)",
    ),
    "HighBit below BitsStored": (DEEP, {"HighBit": 8}, "HighBit 8.*contradict each other"),
    "BitsAllocated 32": (
        DEEP,
        {"BitsAllocated": 32},
        "BitsAllocated 32: input should be 8 or 16",
    ),
    "no BitsStored": (DEEP, {"BitsStored": None}, "^DICOM with no BitsStored: "),
    "pixels cut off": (DEEP, {"Rows": 90}, "^DICOM with 9,600 bytes of pixels, expected 10,800$"),
    "colours": (np.stack([GRAY] * 3, axis=-1), {}, "^DICOM in RGB, expected a gray radiograph$"),
    "functional groups": (
        DEEP,
        {"SharedFunctionalGroupsSequence": Sequence([Dataset()])},
        "^DICOM with functional groups, expected a plain radiograph$",
    ),
    "window outside of the values": (
        DEEP,
        {"WindowCenter": 40000, "WindowWidth": 100},
        "WindowCenter 40000.*0 to 4080, the same; .*ignore it with --dicom_window none$",
    ),
    "WindowWidth 0.5": (
        DEEP,
        {"WindowCenter": 2000, "WindowWidth": 0.5},
        "WindowWidth 0.5, which is not a valid window; .* ignore it with --dicom_window none$",
    ),
    "WindowCenter alone": (DEEP, {"WindowCenter": 2000}, "not a valid window; .*--dicom_window none"),
    "VOILUTFunction unknown": (DEEP, {"VOILUTFunction": "CUBIC"}, "VOILUTFunction CUBIC"),
    "VOILUTSequence of one value": (
        DEEP,
        {"VOILUTSequence": table([4096, 0, 8], [9] * 4096)},
        "VOI look-up table makes all its values, 0 to 4080, the same; .*--dicom_window none",
    ),
    "look-up table cut off": (
        DEEP,
        {"ModalityLUTSequence": table([4096, 0, 12], [1, 2])},
        "look-up table of 4 bytes for 4,096 entries",
    ),
    "RescaleSlope 0": (DEEP, {"RescaleSlope": 0}, "rescaling makes all pixels the same"),
    "constant": (0 * GRAY + 9, {}, "^all pixels are the same$"),
    "padding alone": (0 * GRAY, {"PixelPaddingValue": 0}, "^all pixels are padding$"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_file_is_refused_with_the_true_reason(name, tmp_path):
    values, tags, reason = REFUSED[name]
    with pytest.raises(DatasetError, match=reason) as error:
        read(tmp_path, values, **tags)
    assert "\n" not in str(error.value)


WARNED = {
    "Modality": ({"Modality": "CT"}, "modality CT"),
    "BodyPartExamined": ({"BodyPartExamined": "HAND"}, "body part HAND"),
    "AnatomicRegionSequence": ({"AnatomicRegionSequence": coded("Knee")}, "body part Knee"),
    "PresentationIntentType": ({"PresentationIntentType": "FOR PROCESSING"}, "FOR PROCESSING"),
    "PresentationLUTShape": ({"PresentationLUTShape": "INVERSE"}, "PresentationLUTShape INVERSE contradicts"),
    "PresentationLUTSequence": (
        {"PresentationLUTSequence": Sequence([Dataset()])},
        "presentation look-up table is not applied",
    ),
    "ShutterShape": ({"ShutterShape": "CIRCULAR"}, "display shutter is not applied"),
    "PixelAspectRatio": ({"PixelAspectRatio": [2, 1]}, "not square"),
    "PixelSpacing": ({"PixelSpacing": [0.1, 0.2]}, "not square"),
    "BurnedInAnnotation": ({"BurnedInAnnotation": "YES"}, "text is burned into"),
    "PatientOrientation, upside down": ({"PatientOrientation": ["R", "H"]}, "upside down"),
    "PatientOrientation, on its side": ({"PatientOrientation": ["F", "L"]}, "on its side"),
    "PatientOrientation, mirrored": ({"PatientOrientation": ["R", "F"]}, "mirrored"),
    "bytes after the pixels": ({"PixelData": DEEP.tobytes() + b"1234"}, "4 extra bytes follow the pixels"),
}
SILENT = {
    "chest": {"Modality": "DX", "BodyPartExamined": "PORT CHEST", "PatientOrientation": ["L", "F"]},
    "square pixels": {"PixelSpacing": [0.143, 0.143], "PixelAspectRatio": [1, 1]},
    "presentation": {"PresentationIntentType": "FOR PRESENTATION", "PresentationLUTShape": "IDENTITY"},
}


@pytest.mark.parametrize("name", WARNED)
def test_file_is_used_with_a_warning(name, tmp_path):
    tags, expected = WARNED[name]
    found, _, (warning,) = read(tmp_path, DEEP, **tags)
    assert expected in warning and np.array_equal(found, PLAIN)


@pytest.mark.parametrize("name", SILENT)
def test_sound_header_gives_no_warning(name, tmp_path):
    assert read(tmp_path, DEEP, **SILENT[name])[2] == []


def test_few_gray_levels_are_warned_about(tmp_path):
    assert read(tmp_path, GRAY // 25 * 25)[2] == ["the image has only 11 gray levels"]


def test_overlay_in_the_upper_bits_is_masked_and_warned_about(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", DEEP | (BORDER.astype(np.uint16) << 12))
    with pytest.raises(DatasetError, match="bits set outside the stored ones"):
        read_dicom(path)
    header = pydicom.dcmread(path)
    header.add_new(0x60000010, "US", 80)  # OverlayRows
    header.add_new(0x60000102, "US", 12)  # OverlayBitPosition
    header.save_as(path)
    found, _, warned = read_dicom(path, equalizes=False)
    assert np.array_equal(found, PLAIN) and warned == ["the header's overlay is not drawn"]
