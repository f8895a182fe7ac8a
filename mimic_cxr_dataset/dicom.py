"""Reads DICOM radiographs: what the header says about the pixels is applied, refused, or causes a warning.

The steps are those of MIMIC-CXR-JPG (Johnson et al. 2019, arXiv:1901.07042): subtract the lowest value, scale
the highest to 255 and truncate; invert MONOCHROME1, so that air is dark; equalise the histogram, for models
that were trained on equalised images. The authors did this with the stored values and ignored the window of
the header. Here the header's modality look-up table or rescaling, then its VOI look-up table or window, are
applied first, because other collections need them; `use_window=False` skips the VOI step. Pixels that the
header declares as padding are ignored in all steps and become black. All steps depend on the stored value
alone, so they are computed once for each of at most 65,536 values. docs/reading-files.md lists the attributes
of PS3.3 and how each is treated. No attribute that identifies a patient is read.
"""

import functools
import io
import logging
import warnings
from collections.abc import MutableSequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING
from typing import Annotated
from typing import Any
from typing import Literal

import numpy as np
from PIL import Image
from PIL import UnidentifiedImageError
from pydantic import BaseModel
from pydantic import ConfigDict
from pydantic import Field
from pydantic import ValidationError

from .errors import DatasetError
from .errors import one_line
from .gray_levels import count_levels
from .gray_levels import equalization_table
from .gray_levels import few_levels
from .gray_levels import look_up
from .gray_levels import scale_to_8_bits
from .jpeg_end import check_end

if TYPE_CHECKING:
    import pydicom

# What pydicom needs for the kinds of compressed pixels that it does not decompress by itself.
PACKAGES = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
FRAME_MAGIC = (b"\xff\xd8", b"\xff\x4f\xff\x51")  # the first bytes of a frame: JPEG or JPEG-LS, JPEG 2000
WITHOUT_WINDOW = "predict.py and serve.py ignore it with --dicom_window none"
OVERLAYS = [0x60000000 + (group << 16) for group in range(0, 0x20, 2)]  # a file may have sixteen
OVERLAY_ROWS, OVERLAY_BIT = 0x0010, 0x0102
MODALITIES = ("CR", "DX", "RG")
CHEST = ("CHEST", "THORA", "TORA", "LUNG")  # in THORAX, TORAX, PORT CHEST, CHESTABDOMEN
# Attributes that always cause a warning.
NOT_APPLIED = {
    "ShutterShape": "display shutter",
    "PresentationLUTSequence": "presentation look-up table",
    "RedPaletteColorLookupTableDescriptor": "palette",
}
ALTERNATIVES = ("WindowCenter", "WindowWidth", "VOILUTFunction")  # may have several values
NOT_SQUARE = ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing")

Size = Annotated[int, Field(ge=1, le=65535)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class PixelHeader(BaseModel):
    """The attributes of DICOM PS3.3 that define gray pixels, under their standard names.

    `shift` is the number of unused bits below the stored ones in a word of BitsAllocated bits.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    Rows: Size
    Columns: Size
    BitsAllocated: Literal[8, 16]
    BitsStored: Annotated[int, Field(ge=1)]
    HighBit: int
    PixelRepresentation: Literal[0, 1]
    PixelPaddingValue: int | None = None
    PixelPaddingRangeLimit: int | None = None
    RescaleSlope: Finite = 1.0
    RescaleIntercept: Finite = 0.0
    WindowCenter: Finite | None = None
    WindowWidth: Finite | None = None
    VOILUTFunction: Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"] = "LINEAR"

    @property
    def shift(self) -> int:
        return self.HighBit + 1 - self.BitsStored

    def as_numbers(self, words: np.ndarray, num_bits: int) -> np.ndarray:
        """Returns the lowest `num_bits` of each word as int64, signed where PixelRepresentation is 1."""
        values = words.astype(np.int64) & ((1 << num_bits) - 1)
        return values - (values >> (num_bits - 1) << num_bits) if self.PixelRepresentation else values


def read_dicom(
    path: Path, *, use_window: bool = True, equalizes: bool = True
) -> tuple[np.ndarray, str, list[str]]:
    """Returns the pixels (H, W) uint8 at full size, the view ("" if unknown) and the warnings.

    Raises DatasetError if the file is not a single gray image, or a package for its compression is missing.
    """
    try:
        header = _pydicom().dcmread(path, specific_tags=list(TAGS))
        _check_kind(header)
        fields = _read_fields(header)
        warned = _describe(header)
        words = _read_words(header, fields, warned)
        gray = _to_gray(words, header, fields, warned, use_window=use_window, equalizes=equalizes)
        return gray, _view_position(header), warned
    except (DatasetError, MemoryError):
        raise
    except Exception as error:  # pydicom does not check headers: a damaged one can raise anything
        raise DatasetError(f"unreadable DICOM ({one_line(error)})") from error


def read_view(path: str | Path) -> str:
    """Returns the view that the header says, "" if unknown, without reading pixels. Raises DatasetError."""
    try:
        tags = ["ViewPosition", "ViewCodeSequence"]
        return _view_position(_pydicom().dcmread(path, stop_before_pixels=True, specific_tags=tags))
    except Exception as error:  # as in `read_dicom`
        raise DatasetError(f"unreadable DICOM ({one_line(error)})") from error


@functools.cache
def _pydicom() -> ModuleType:
    """Imports pydicom and silences it, because its warnings quote values of the header."""
    import pydicom.pixels  # not at the top: only DICOM files need it

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="pydicom")
    return pydicom


# The header -------------------------------------------------------------------------------------------------


def _value(header: "pydicom.Dataset", name: str | int) -> Any:
    """Returns the value of an attribute, several values as a list, None if it is absent or empty."""
    value = header.get(name)
    if isinstance(value, MutableSequence):
        value = list(value)
    if isinstance(value, str):
        value = value.strip()
    return None if value in (None, "", []) else value


def _first(value: Any) -> Any:
    """Returns the first of several windows, which are alternatives (PS3.3 C.11.2.1.2)."""
    return value[0] if isinstance(value, list) else value


def _check_kind(header: "pydicom.Dataset") -> None:
    if "FloatPixelData" in header or "DoubleFloatPixelData" in header:
        raise DatasetError("DICOM with pixels in floating point, expected whole numbers")
    if "PixelData" not in header:
        raise DatasetError("DICOM without an image")
    if (frames := _value(header, "NumberOfFrames") or 1) != 1:
        raise DatasetError(f"DICOM with {frames} frames, expected one")
    colours = _value(header, "PhotometricInterpretation") or "unknown colours"
    if (_value(header, "SamplesPerPixel") or 1) != 1 or colours not in ("MONOCHROME1", "MONOCHROME2"):
        raise DatasetError(f"DICOM in {colours}, expected a gray radiograph")
    if any(f"{kind}FunctionalGroupsSequence" in header for kind in ("Shared", "PerFrame")):
        raise DatasetError("DICOM with functional groups, expected a plain radiograph")


def _read_fields(header: "pydicom.Dataset") -> PixelHeader:
    found = {name: _value(header, name) for name in PixelHeader.model_fields}
    found |= {name: _first(found[name]) for name in ALTERNATIVES}
    found = {name: value for name, value in found.items() if value is not None}
    try:
        fields = PixelHeader.model_validate(found)
    except ValidationError as error:
        problem = error.errors()[0]
        name, message = problem["loc"][0], problem["msg"]
        what = f"{name} {str(found[name])[:40]}" if name in found else f"no {name}"
        raise DatasetError(f"DICOM with {what}: {message[:1].lower()}{message[1:]}") from error
    if not fields.BitsStored <= fields.HighBit + 1 <= fields.BitsAllocated:
        raise DatasetError(
            f"DICOM with BitsStored {fields.BitsStored}, HighBit {fields.HighBit} and BitsAllocated "
            f"{fields.BitsAllocated}, which contradict each other"
        )
    if fields.Rows * fields.Columns > 2 * Image.MAX_IMAGE_PIXELS:  # as Pillow does
        raise DatasetError(f"DICOM of {fields.Rows:,} x {fields.Columns:,} pixels, which is too large")
    return fields


def _describe(header: "pydicom.Dataset") -> list[str]:
    """Returns warnings about a header whose image may differ from those that models were trained on."""
    modality, shape = _value(header, "Modality"), _value(header, "PresentationLUTShape")
    warned = [] if modality in (None, *MODALITIES) else [f"the header says modality {str(modality)[:16]}"]
    regions = _value(header, "AnatomicRegionSequence") or []
    parts = [_value(header, "BodyPartExamined"), *(_value(region, "CodeMeaning") for region in regions)]
    others = [part for part in map(str, filter(None, parts)) if not any(w in part.upper() for w in CHEST)]
    if others:
        warned.append(f"the header says body part {others[0][:16]}")
    if _value(header, "PresentationIntentType") == "FOR PROCESSING":
        warned.append("the header says FOR PROCESSING: raw detector values, not an image for viewing")
    colours = _value(header, "PhotometricInterpretation")
    if (colours, shape) in (("MONOCHROME1", "IDENTITY"), ("MONOCHROME2", "INVERSE")):
        warned.append(
            f"{header.PhotometricInterpretation} is used, but PresentationLUTShape {shape} contradicts it"
        )
    warned += [f"the header's {what} is not applied" for name, what in NOT_APPLIED.items() if name in header]
    if any(group + OVERLAY_ROWS in header for group in OVERLAYS):
        warned.append("the header's overlay is not drawn")
    if _value(header, "BurnedInAnnotation") == "YES":
        warned.append("the header says that text is burned into the image")
    for name in NOT_SQUARE:
        sides = _value(header, name)
        if isinstance(sides, list) and len(sides) == 2 and abs(sides[0] - sides[1]) > 0.01 * abs(sides[1]):
            warned.append(f"the pixels are not square ({name}), but are used as if they were")
            break
    return warned + _describe_orientation(_value(header, "PatientOrientation"))


def _describe_orientation(directions: Any) -> list[str]:
    """Returns a warning unless rows point to the left or posterior (L, P) and columns to the feet (F)."""
    if not isinstance(directions, list) or len(directions) != 2 or not all(directions):
        return []
    along_row, along_column = (direction[0] for direction in directions)
    if along_column == "H":
        return ["the header says that the image is upside down"]
    if along_column != "F":
        return ["the header says that the image lies on its side"]
    return ["the header says that the image is mirrored"] if along_row == "R" else []


def _view_position(header: "pydicom.Dataset") -> str:
    position = str(_value(header, "ViewPosition") or "").upper()
    if position:
        return position[:16]
    meanings = [str(_value(code, "CodeMeaning")) for code in _value(header, "ViewCodeSequence") or []]
    return "LATERAL" if any("lateral" in meaning.lower() for meaning in meanings) else ""


# The pixels -------------------------------------------------------------------------------------------------


def _read_words(header: "pydicom.Dataset", fields: PixelHeader, warned: list[str]) -> np.ndarray:
    """Returns the words of the pixels (H, W), uint8 or uint16, with all BitsAllocated bits."""
    syntax = header.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
        _check_packed(header, fields)
    else:
        _check_length(header.PixelData, fields, warned)
    words = _pydicom().pixels.pixel_array(header, correct_unused_bits=False)
    if words.ndim != 2:
        raise DatasetError(f"DICOM with {len(words)} frames, expected one")
    native = words.astype(words.dtype.newbyteorder("="), copy=False)
    return native.view(f"u{native.itemsize}")


def _check_length(content: bytes, fields: PixelHeader, warned: list[str]) -> None:
    row = fields.Columns * fields.BitsAllocated // 8
    expected = fields.Rows * row
    excess = len(content) - expected - expected % 2
    if excess > 0 and len(content) >= 2 * expected:
        raise DatasetError(f"DICOM with {len(content) // expected} frames, expected one")
    if len(content) < expected or excess >= row:
        raise DatasetError(f"DICOM with {len(content):,} bytes of pixels, expected {expected:,}")
    if excess > 0:
        warned.append(f"{excess} extra bytes follow the pixels, less than a row")


def _check_packed(header: "pydicom.Dataset", fields: PixelHeader) -> None:
    """Raises DatasetError if compressed pixels cannot be decompressed or contradict the header."""
    pydicom, syntax = _pydicom(), header.file_meta.TransferSyntaxUID
    try:
        decoder = pydicom.pixels.get_decoder(syntax)
    except NotImplementedError:
        raise DatasetError(f"DICOM compressed as {syntax.name}, which is not supported") from None
    # pydicom counts Pillow as a decoder of this syntax, but Pillow decodes it at 8 bits only.
    is_too_deep = syntax == pydicom.uid.JPEGExtended12Bit and fields.BitsStored > 8
    if not decoder.is_available or (is_too_deep and decoder.available_plugins == ("pillow",)):
        raise DatasetError(f"DICOM compressed as {syntax.name}, which needs more packages: {PACKAGES}")
    fragments = list(pydicom.encaps.generate_fragments(header.PixelData))[1:]  # the first is the offset table
    is_rle = syntax == pydicom.uid.RLELossless  # which has one fragment per frame
    frames = len(fragments) if is_rle else sum(part.startswith(FRAME_MAGIC) for part in fragments)
    if frames > 1:
        raise DatasetError(f"DICOM with {frames} frames, expected one")
    content = b"".join(fragments)
    if content.startswith(FRAME_MAGIC[0]):
        check_end(content)
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG", "JPEG2000"]) as packed:
            size = packed.size
    except UnidentifiedImageError:  # a kind that Pillow does not know, such as JPEG-LS
        size = None
    if size not in (None, (fields.Columns, fields.Rows)):
        raise DatasetError(
            f"DICOM of {size[0]} x {size[1]} pixels, but its header says {fields.Columns} x {fields.Rows}"
        )
    if fields.shift:
        raise DatasetError(f"compressed DICOM with HighBit {fields.HighBit}, expected BitsStored - 1")


def _to_gray(
    words: np.ndarray,
    header: "pydicom.Dataset",
    fields: PixelHeader,
    warned: list[str],
    *,
    use_window: bool,
    equalizes: bool,
) -> np.ndarray:
    counts = count_levels(words, 1 << fields.BitsAllocated)
    found = np.flatnonzero(counts)  # the words that occur; the arrays below have one entry per such word
    found = found[~_is_padding(found, fields)]
    if len(found) == 0:
        raise DatasetError("all pixels are padding")
    _check_bits(found, header, fields)
    stored = fields.as_numbers(found >> fields.shift, fields.BitsStored)
    if len(stored) == 1:
        raise DatasetError("all pixels are the same")
    values = _apply_modality(stored, header, fields, warned)
    shown = _apply_voi(values, header, fields, warned) if use_window else values
    is_8_bit = fields.BitsStored == 8 and not fields.PixelRepresentation and shown is stored
    gray = stored.astype(np.uint8) if is_8_bit and not equalizes else scale_to_8_bits(shown)
    if header.PhotometricInterpretation == "MONOCHROME1":
        gray = 255 - gray
    warned += few_levels(len(np.unique(gray)))
    if equalizes:
        of_gray = np.bincount(gray, weights=counts[found], minlength=256).astype(np.int64)
        gray = equalization_table(of_gray)[gray]
    table = np.zeros(1 << fields.BitsAllocated, dtype=np.uint8)  # padding is black
    table[found] = gray
    return look_up(table, words)


def _is_padding(words: np.ndarray, fields: PixelHeader) -> np.ndarray:
    """Returns which words are padding, by their stored bits or, as some writers do it, by all their bits."""
    if fields.PixelPaddingValue is None:
        return np.zeros(words.shape, dtype=bool)
    ends = [fields.PixelPaddingValue, fields.PixelPaddingRangeLimit]
    ends = np.array([end for end in ends if end is not None])
    low, high = np.sort(fields.as_numbers(ends, fields.BitsAllocated))[[0, -1]]  # a -1 may stand for 65535
    whole = fields.as_numbers(words, fields.BitsAllocated)
    stored = fields.as_numbers(words >> fields.shift, fields.BitsStored)
    return ((low <= whole) & (whole <= high)) | ((low <= stored) & (stored <= high))


def _check_bits(words: np.ndarray, header: "pydicom.Dataset", fields: PixelHeader) -> None:
    """Raises DatasetError if bits outside the stored ones are set, unless they may hold an overlay."""
    outside = words & ~(((1 << fields.BitsStored) - 1) << fields.shift)
    whole = fields.as_numbers(words, fields.BitsAllocated)
    stored = fields.as_numbers(words >> fields.shift, fields.BitsStored)
    is_clean = (outside == 0) | (whole == stored << fields.shift)  # the sign may fill the bits above
    if not is_clean.all() and not any(_value(header, group + OVERLAY_BIT) for group in OVERLAYS):
        raise DatasetError(
            f"DICOM with bits set outside the stored ones (BitsStored {fields.BitsStored}, "
            f"HighBit {fields.HighBit})"
        )


def _apply_modality(
    stored: np.ndarray, header: "pydicom.Dataset", fields: PixelHeader, warned: list[str]
) -> np.ndarray:
    """Returns the measured values: applies the modality look-up table or the rescaling (PS3.3 C.11.1)."""
    if tables := _value(header, "ModalityLUTSequence"):
        values = _look_up(stored, tables[0], header, warned)
    elif (fields.RescaleSlope, fields.RescaleIntercept) != (1, 0):
        values = stored * fields.RescaleSlope + fields.RescaleIntercept
    else:
        return stored
    if np.ptp(values) == 0:
        raise DatasetError("DICOM whose modality look-up table or rescaling makes all pixels the same")
    return values


def _apply_voi(
    values: np.ndarray, header: "pydicom.Dataset", fields: PixelHeader, warned: list[str]
) -> np.ndarray:
    """Returns the values to show: applies the VOI look-up table or the window (PS3.3 C.11.2)."""
    center, width, function = fields.WindowCenter, fields.WindowWidth, fields.VOILUTFunction
    if tables := _value(header, "VOILUTSequence"):
        what, shown = "VOI look-up table", _look_up(values, tables[0], header, warned)
    elif center is None and width is None:
        return values
    else:
        what, narrowest = f"WindowCenter {center} with WindowWidth {width}", int(function == "LINEAR")
        if center is None or width is None or width <= 0 or width < narrowest:
            raise DatasetError(f"DICOM with {what}, which is not a valid window; {WITHOUT_WINDOW}")
        shown = _apply_window(values, center=center, width=width, function=function)
    if np.ptp(shown) == 0:
        raise DatasetError(
            f"DICOM whose {what} makes all its values, {values.min():g} to {values.max():g}, the same; "
            f"{WITHOUT_WINDOW}"
        )
    return shown


def _apply_window(values: np.ndarray, *, center: float, width: float, function: str) -> np.ndarray:
    """Returns values in [0, 1] by the formulas of PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if function == "LINEAR_EXACT":
        return np.clip((values - center) / width + 0.5, 0, 1)
    if width == 1:
        return (values > center - 0.5).astype(np.float64)
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def _look_up(
    values: np.ndarray, item: "pydicom.Dataset", header: "pydicom.Dataset", warned: list[str]
) -> np.ndarray:
    """Returns the look-up table's entries for `values`; values outside it get its first or last entry."""
    descriptor, data = _value(item, "LUTDescriptor"), _value(item, "LUTData")
    if not isinstance(descriptor, list) or len(descriptor) != 3 or data is None:
        raise DatasetError("DICOM with a look-up table without LUTDescriptor or LUTData")
    num_entries, first, num_bits = descriptor
    num_entries = num_entries % 65536 or 65536
    if not isinstance(data, bytes):  # numbers: the byte order of the file does not matter
        data = (np.atleast_1d(data) % 65536).astype("<u2").tobytes()
    elif not header.file_meta.TransferSyntaxUID.is_little_endian and item["LUTData"].VR == "OW":
        data = np.frombuffer(data, dtype=">u2").astype("<u2").tobytes()
    kinds = {2 * num_entries: "<u2", num_entries + num_entries % 2: "u1", num_entries: "u1"}
    if len(data) not in kinds:
        raise DatasetError(f"DICOM with a look-up table of {len(data):,} bytes for {num_entries:,} entries")
    entries = np.frombuffer(data, dtype=kinds[len(data)])[:num_entries].astype(np.int64)
    if entries.max() >> num_bits:
        warned.append(f"a look-up table has entries above its {num_bits} bits")
    return entries[np.clip(np.rint(values).astype(np.int64) - first, 0, num_entries - 1)]


# All attributes that are read from a header.
TAGS = (
    *PixelHeader.model_fields,
    *NOT_APPLIED,
    *NOT_SQUARE,
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *("SamplesPerPixel", "PlanarConfiguration", "PhotometricInterpretation", "NumberOfFrames"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("ModalityLUTSequence", "VOILUTSequence"),
    "PresentationLUTShape",
    "PresentationIntentType",
    "Modality",
    "BodyPartExamined",
    "AnatomicRegionSequence",
    "BurnedInAnnotation",
    "PatientOrientation",
    "ViewPosition",
    "ViewCodeSequence",
    *(group + element for group in OVERLAYS for element in (OVERLAY_ROWS, OVERLAY_BIT)),
)
