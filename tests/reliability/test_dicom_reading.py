"""DICOM files of all kinds: read as by a second reading that is written here, warned about, or refused."""

import io
import itertools
import math
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import write_dicom
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import UID

from mimic_cxr_dataset.dicom import read_dicom
from mimic_cxr_dataset.errors import DatasetError
from mimic_cxr_dataset.radiographs import shrink_radiograph

pytestmark = pytest.mark.slow
SHIPPED = sorted(
    path for path in (Path(pydicom.__file__).parent / "data" / "test_files").rglob("*") if path.is_file()
)
CHOICES = list(itertools.product([True, False], [True, False]))  # window of the header, equalised
BIG_ENDIAN, IMPLICIT, EXPLICIT = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
RLE, JPEG = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.50"


# A second reading, from PS3.3 and in the image domain: every pixel goes through every step ------------------


def independent(path: Path, *, use_window: bool, equalizes: bool) -> np.ndarray:
    """Returns the pixels (H, W) uint8 of a sound radiograph; a header that it does not understand raises."""
    header = pydicom.dcmread(path)
    for element in list(header):
        if element.is_empty:
            del header[element.tag]
    num_bits = header.BitsAllocated
    words = pydicom.pixels.pixel_array(header, correct_unused_bits=False)
    words = words.astype(np.int64) % 2**num_bits  # as they lie in the file
    words = words.reshape(header.Rows, header.Columns)
    stored = as_integers(words >> (header.HighBit + 1 - header.BitsStored), header.BitsStored, header)
    whole = as_integers(words, num_bits, header)

    is_padding = np.zeros(words.shape, dtype=bool)
    if "PixelPaddingValue" in header:
        ends = [header.PixelPaddingValue, header.get("PixelPaddingRangeLimit", header.PixelPaddingValue)]
        low, high = sorted(int(as_integers(np.array(end), num_bits, header)) for end in ends)
        is_padding = ((stored >= low) & (stored <= high)) | ((whole >= low) & (whole <= high))
    image = ~is_padding

    values, keeps_values = (
        stored.astype(np.float64),
        header.BitsStored == 8 and not header.PixelRepresentation,
    )
    if "ModalityLUTSequence" in header:
        values, keeps_values = from_table(values, header.ModalityLUTSequence[0], header), False
    elif header.get("RescaleSlope", 1) != 1 or header.get("RescaleIntercept", 0) != 0:
        values = values * float(header.get("RescaleSlope", 1)) + float(header.get("RescaleIntercept", 0))
        keeps_values = False
    if use_window and "VOILUTSequence" in header:
        values, keeps_values = from_table(values, header.VOILUTSequence[0], header), False
    elif use_window and ("WindowCenter" in header or "WindowWidth" in header):
        center, width = (float(first(header[name].value)) for name in ("WindowCenter", "WindowWidth"))
        values, keeps_values = (
            windowed(values, center, width, first(header.get("VOILUTFunction", "LINEAR"))),
            False,
        )

    gray = np.zeros(words.shape, dtype=np.uint8)
    if keeps_values and not equalizes:
        gray[image] = stored[image]
    else:
        above = values[image] - values[image].min()
        assert above.max() > 0, "constant"
        gray[image] = (above * 255 / above.max()).astype(np.uint8)
    if header.PhotometricInterpretation == "MONOCHROME1":
        gray[image] = 255 - gray[image]
    if equalizes:
        gray[image] = equalized_as_opencv(gray[image])
    return gray


def as_integers(words: np.ndarray, num_bits: int, header: Dataset) -> np.ndarray:
    values = words % 2**num_bits
    return (
        np.where(values >= 2 ** (num_bits - 1), values - 2**num_bits, values)
        if header.PixelRepresentation
        else values
    )


def first(value):
    return value[0] if isinstance(value, pydicom.multival.MultiValue) else value


def from_table(values: np.ndarray, item: Dataset, header: Dataset) -> np.ndarray:
    length, lowest, _ = item.LUTDescriptor
    length = length % 2**16 or 2**16
    data, is_little = item.LUTData, UID(header.file_meta.TransferSyntaxUID).is_little_endian
    if isinstance(data, bytes) and len(data) == 2 * length:
        entries = np.frombuffer(data, dtype="<u2" if is_little else ">u2")
    elif isinstance(data, bytes):
        assert is_little and length <= len(data) <= length + 1
        entries = np.frombuffer(data, dtype="u1")[:length]
    elif len(data) == length:
        entries = np.array(data) % 2**16
    else:
        assert len(data) == math.ceil(length / 2)
        entries = np.array([byte for word in data for byte in (word % 256, word // 256 % 256)])[:length]
    return entries[np.clip(np.rint(values).astype(np.int64) - lowest, 0, length - 1)].astype(np.float64)


def windowed(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if function == "LINEAR_EXACT":
        return np.clip((values - center) / width + 0.5, 0, 1)
    assert function == "LINEAR" and width >= 1
    if width == 1:
        return np.where(values > center - 0.5, 1.0, 0.0)
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def equalized_as_opencv(gray: np.ndarray) -> np.ndarray:
    """equalizeHist: the darkest level becomes 0, another its share of the pixels that are not the darkest."""
    levels, counts = np.unique(gray, return_counts=True)
    if len(levels) == 1:
        return gray
    scale = np.float32(255) / np.float32(counts[1:].sum())
    new = dict(zip(levels, np.rint(np.concatenate([[0], np.cumsum(counts[1:])]).astype(np.float32) * scale)))
    return np.vectorize(new.get, otypes=[np.uint8])(gray)


# What pydicom ships -----------------------------------------------------------------------------------------


def true_reason(path: Path) -> str | None:
    """The pattern that a refusal must fit, from the file alone; None where it must be read."""
    content = path.read_bytes()
    if not content:
        return "^empty$"
    if content[:3] == b"\xff\xd8\xff" or content[:8] == b"\x89PNG\r\n\x1a\n":
        return None
    if content[128:132] != b"DICM":
        return "^neither JPEG, PNG nor DICOM$"
    header = pydicom.dcmread(path)
    if "FloatPixelData" in header or "DoubleFloatPixelData" in header:
        return "floating point"
    if "PixelData" not in header:
        return "without an image"
    try:
        frames = int(header.get("NumberOfFrames") or 1)
    except ValueError:  # one file says 1A
        return "^DICOM with 1A frames, expected one$"
    if frames > 1:
        return f"^DICOM with {frames} frames, expected one$"
    if header.get("SamplesPerPixel", 1) > 1 or not str(header.get("PhotometricInterpretation")).startswith(
        "MONOCHROME"
    ):
        named = header.get("PhotometricInterpretation", "unknown colours")
        return f"^DICOM in {named}, expected a gray radiograph$"
    if "SharedFunctionalGroupsSequence" in header:
        return "functional groups"
    if header.BitsAllocated not in (8, 16):
        return f"^DICOM with BitsAllocated {header.BitsAllocated}: input should be 8 or 16$"
    syntax = header.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and not is_unpacked_here(header):
        return f"^DICOM compressed as {re.escape(syntax.name)}, which needs more packages: pip install "
    size = header.Rows * header.Columns * header.BitsAllocated // 8
    excess = len(header.PixelData) - size
    if not syntax.is_encapsulated and not 0 <= excess < size // header.Rows:
        return rf"^DICOM with {len(header.PixelData):,} bytes of pixels, expected {size:,}$"
    try:
        pydicom.pixels.pixel_array(header)
    except RuntimeError:
        return "^unreadable DICOM .*Image size .* exceeds limit"  # one file claims so, within its JPEG 2000
    return None


def is_unpacked_here(header: Dataset) -> bool:
    syntax = header.file_meta.TransferSyntaxUID
    decoder = pydicom.pixels.get_decoder(syntax)
    of_12_bits = syntax == pydicom.uid.JPEGExtended12Bit and header.BitsStored > 8
    return decoder.is_available and not (of_12_bits and decoder.available_plugins == ("pillow",))


def compare(path: Path, **options: bool) -> str:
    """Returns how a file was read: refused, warned, equal or, which must not be, silently different."""
    try:
        found, _, warned = read_dicom(path, **options)
    except DatasetError as error:
        assert "\n" not in str(error) and str(path.parent) not in str(error) and "Doe" not in str(error)
        return f"refused: {error}"
    assert not any("Doe" in text for text in warned)
    if warned:  # the picture may be another then: that is what a warning says
        return "warned"
    return "equal" if np.array_equal(found, independent(path, **options)) else "different"


@pytest.mark.parametrize("use_window, equalizes", CHOICES)
def test_file_that_pydicom_ships_is_read_as_by_the_second_reading_or_refused_with_the_true_reason(
    use_window, equalizes
):
    assert len(SHIPPED) > 150
    outcomes, wrong = Counter(), []
    for path in SHIPPED:
        expected = true_reason(path)
        try:
            if path.read_bytes()[128:132] == b"DICM":
                found, _, _ = read_dicom(path, use_window=use_window, equalizes=equalizes)
                assert expected is None, (path.name, expected)
                same = np.array_equal(found, independent(path, use_window=use_window, equalizes=equalizes))
                assert same, path.name
            else:
                shrink_radiograph(path, 64)
            outcomes["read"] += 1
        except DatasetError as error:
            assert "\n" not in str(error) and path.name not in str(error)
            outcomes["refused"] += 1
            if expected is None and "makes all its values" in str(error):  # by the second reading, too
                with pytest.raises(AssertionError, match="constant"):
                    independent(path, use_window=use_window, equalizes=equalizes)
            elif expected is None or not re.search(expected, str(error)):
                wrong.append((path.name, expected, str(error)))
    assert not wrong, "\n".join(map(str, wrong))
    assert outcomes["read"] >= 30 and outcomes["refused"] >= 100


# Mutated headers --------------------------------------------------------------------------------------------


def soft_picture() -> np.ndarray:
    rows, columns = np.mgrid[:40, :30]
    waves = np.sin(rows / 5) + np.cos(columns / 4) + rows / 30
    return np.rint(255 * (waves - waves.min()) / np.ptp(waves)).astype(np.uint8)


GRAY = soft_picture()
DEEP = GRAY.astype(np.uint16) * 16
ELEMENTS = {
    "Rows": ["US", [0, 1, 20, 39, 41, 80, 65535]],
    "Columns": ["US", [0, 1, 15, 29, 31, 60, 65535]],
    "SamplesPerPixel": ["US", [0, 1, 3]],
    "PhotometricInterpretation": ["CS", ["MONOCHROME1", "MONOCHROME2", "RGB", "PALETTE COLOR", ""]],
    "BitsAllocated": ["US", [1, 8, 12, 16, 32]],
    "BitsStored": ["US", [0, 1, 8, 10, 12, 14, 16, 17]],
    "HighBit": ["US", [0, 7, 9, 11, 13, 15, 16]],
    "PixelRepresentation": ["US", [0, 1, 2]],
    "NumberOfFrames": ["IS", ["0", "1", "2", "-1", "98765", ""]],
    "RescaleSlope": ["DS", ["1", "-1", "0", "2.5", "", "nan", "98765"]],
    "RescaleIntercept": ["DS", ["0", "-1024", "", "1e300", "98765"]],
    "WindowCenter": ["DS", ["2048", "100", "40000", "", "-5", "nan", ["1000", "3000"]]],
    "WindowWidth": ["DS", ["4096", "1", "0.5", "0", "-3", "", "200", ["500", "50"]]],
    "VOILUTFunction": ["CS", ["LINEAR", "LINEAR_EXACT", "SIGMOID", "CUBIC", ""]],
    "PixelPaddingValue": ["US", [0, 255, 4080, 65535, 1200]],
    "PixelPaddingRangeLimit": ["US", [0, 100, 4095, 65535]],
    "PresentationLUTShape": ["CS", ["IDENTITY", "INVERSE", "", "OTHER"]],
    "Modality": ["CS", ["CR", "CT", "", "DX"]],
    "BodyPartExamined": ["CS", ["CHEST", "HAND", ""]],
    "PatientOrientation": ["CS", [["L", "F"], ["L", "H"], ["F", "R"], "L", ""]],
    "PixelSpacing": ["DS", [["0.1", "0.1"], ["0.1", "0.2"], "", ["0", "0"], ["98765", "1"]]],
    "PixelAspectRatio": ["IS", [["1", "1"], ["2", "1"], "7"]],
    "BurnedInAnnotation": ["CS", ["NO", "YES"]],
}
BASES = {
    "8 bits": {"values": GRAY},
    "12 bits": {"values": DEEP},
    "8 bits, window": {"values": GRAY, "WindowCenter": 120, "WindowWidth": 100},
    "12 bits, window": {"values": DEEP, "WindowCenter": [2000, 100], "WindowWidth": [1500, 10]},
    "inverted": {"values": DEEP, "PhotometricInterpretation": "MONOCHROME1"},
    "rescaled": {"values": DEEP, "RescaleSlope": "0.5", "RescaleIntercept": "-1000"},
    "padded": {"values": DEEP, "PixelPaddingValue": 0},
    "signed": {"values": (DEEP.astype(np.int16) - 2048).view(np.uint16) & 0xFFF, "PixelRepresentation": 1},
    "VOI table": {"values": DEEP, "VOILUTSequence": "table"},
    "modality table": {"values": DEEP, "ModalityLUTSequence": "table"},
    "implicit": {"values": DEEP, "written": IMPLICIT},
    "JPEG": {"values": GRAY, "syntax": JPEG},
    "RLE": {"values": DEEP, "written": RLE},
}
DESCRIPTORS = [
    [4096, 0, 8],
    [4096, 0, 12],
    [4096, 100, 16],
    [0, 0, 12],
    [256, 0, 8],
    [4096, 0],
    [4096, 0, 40],
]
TABLES = {  # the entries of 4,096
    "falling": [4095 - i for i in range(4096)],
    "of 8 bits": [i >> 4 for i in range(4096)],
    "packed": np.array([i >> 4 for i in range(4096)], dtype=np.uint8).view("<u2").tolist(),
    "constant": [7] * 4096,
    "cut off": list(range(100)),
}


def write_base(path: Path, base: dict, descriptor: list[int], entries: list[int]) -> None:
    options = {name: value for name, value in base.items() if name not in ("values", "written")}
    table = Dataset()
    table.add_new("LUTDescriptor", "US", descriptor)
    table.add_new("LUTData", "US", entries)
    options = {name: Sequence([table]) if value == "table" else value for name, value in options.items()}
    if "syntax" in options:
        Image.fromarray(base["values"]).save(buffer := io.BytesIO(), format="JPEG", quality=95)
        options["PixelData"] = encapsulate([buffer.getvalue()])
    write_dicom(path, base["values"], PatientName="Doe^Jane", **options)
    if "written" in base:
        header = pydicom.dcmread(path)
        if base["written"] == RLE:
            header.compress(RLE)
        else:
            header.file_meta.TransferSyntaxUID = base["written"]
        header.save_as(path, implicit_vr=base["written"] == IMPLICIT, little_endian=True)


def mutate(path: Path, changes: list[tuple[str, int]]) -> None:
    header = pydicom.dcmread(path)
    for name, number in changes:
        kind, values = ELEMENTS[name]
        if number == len(values):
            header.pop(name, None)
        else:
            header.add_new(name, kind, values[number % len(values)])
    header.save_as(path)
    path.write_bytes(path.read_bytes().replace(b"98765", b"wrong"))  # pydicom writes numbers alone


def decide(path: Path, **options: bool) -> str:
    """As `compare`; where the second reading fails, the file must have been refused or warned about."""
    try:
        return compare(path, **options)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        return f"only ours read it: {error!r}"


def test_mutated_header_never_gives_another_picture_without_a_warning(tmp_path):
    changes = st.lists(
        st.sampled_from(sorted(ELEMENTS)).flatmap(
            lambda name: st.tuples(st.just(name), st.integers(0, len(ELEMENTS[name][1])))
        ),
        min_size=1,
        max_size=4,
    )
    outcomes, path = Counter(), tmp_path / "a.dcm"
    mode = pydicom.config.settings.writing_validation_mode

    @settings(
        max_examples=2000,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(
        st.sampled_from(sorted(BASES)),
        st.sampled_from(DESCRIPTORS),
        st.sampled_from(sorted(TABLES)),
        changes,
        st.sampled_from(CHOICES),
        st.integers(0, 12),
    )
    def check(base, descriptor, table, changes, choice, damage):
        write_base(path, BASES[base], descriptor, TABLES[table])
        mutate(path, changes)
        if damage in (1, 2):  # in the header, or at the end
            content = bytearray(path.read_bytes())
            place = random.Random(str((changes, descriptor))).randrange(140, 500)
            content = content[:-place] if damage == 1 else content[:place] + b"\xff" + content[place + 1 :]
            path.write_bytes(content)
        use_window, equalizes = choice
        outcome = decide(path, use_window=use_window, equalizes=equalizes)
        outcomes[outcome.partition(":")[0]] += 1
        assert outcome.startswith(("equal", "warned", "refused")), (base, table, descriptor, changes, outcome)

    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    try:
        check()
    finally:
        pydicom.config.settings.writing_validation_mode = mode
    assert outcomes["equal"] > 200 and outcomes["refused"] > 200 and outcomes["warned"] > 50, outcomes
