"""Radiographs from files of a user: JPEG, PNG or DICOM to the gray 8-bit pixels that a run evaluated.

Whatever the format, pixels take the way of the training images: shrunk once by the dataset script, kept as a
gray JPEG of quality 95, decoded by torchvision. So a JPEG of MIMIC-CXR-JPG gives here, bit for bit, what
`run_classification.py` evaluated, and the same picture as PNG nearly so.

DICOM files become what MIMIC-CXR-JPG holds (Johnson et al. 2019, arXiv:1901.07042): the lowest value is
subtracted, the result divided by its highest and truncated to 0..255; MONOCHROME1 is inverted, so that air is
dark; the histogram is equalised as by OpenCV. The authors did so with the stored values and left out the
window that a header may ask for. Here the header's rescaling, and its VOI look-up table or window, come
first, as other collections need them; `use_window=False` is the published procedure to the letter.

Of a header nothing is read that names a patient: only the few tags that the pixels need, and the view.
"""

import functools
import glob
import io
import logging
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from PIL import ImageOps
from PIL import UnidentifiedImageError
from torchvision.io import ImageReadMode
from torchvision.io import decode_jpeg

from cxr.sources import dataset_module

if TYPE_CHECKING:
    import pydicom

SUFFIXES = (".jpg", ".jpeg", ".png", ".dcm", ".dicom")
JPEG_MAGIC, PNG_MAGIC, DICOM_MAGIC = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"DICM"
DICOM_PREAMBLE = 128  # bytes before the magic
JPEG_QUALITY = 95  # the dataset script's, and that of MIMIC-CXR-JPG
# Packed pixels that pydicom unpacks only with a package beside it.
PACKAGES = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
TAGS = (
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "NumberOfFrames"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *("ViewPosition", "ViewCodeSequence", "CodeMeaning"),
)


class BadRadiographError(ValueError):
    """A file cannot be read as one gray image; the message says why, in one line, without the file's name."""


@dataclass(frozen=True, kw_only=True)
class Radiograph:
    pixels: torch.Tensor  # (1, H, W) uint8, air dark
    view_position: str = ""  # of a DICOM header, such as PA, AP or LL; "" where the file says nothing


def find_radiographs(names: Iterable[str]) -> tuple[list[Path], list[str]]:
    """Returns the files that `names` stand for, each once, and the names that stand for none.

    A name is a file, of any suffix; a folder, which is searched with all below it for SUFFIXES and for DICOM
    files without one; or a pattern such as "p10/**/*.dcm", expanded here as not every shell does it. The
    order is that of the names, within one of them sorted.
    """
    found: dict[str, Path] = {}
    missing = []
    for name in names:
        # A name may have brackets in it and be no pattern. Path.glob takes no absolute ones.
        is_pattern = not os.path.lexists(name)
        matches = sorted(glob.glob(name, recursive=True)) if is_pattern else [name]  # noqa: PTH207
        paths = [path for match in matches for path in _files_of(Path(match))]
        if not paths:
            missing.append(name)
        for path in paths:
            found.setdefault(os.path.abspath(path), path)  # noqa: PTH100 (not resolved: a link has its own name)
    return list(found.values()), missing


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    return sorted(file for file in files if _is_radiograph(file))


def _is_radiograph(path: Path) -> bool:
    """Whether a file in a folder is meant: by its suffix or, where that says nothing, by its first bytes."""
    if path.name.startswith(".") or path.name == "DICOMDIR":  # macOS puts a ._name.jpg beside a name.jpg
        return False
    if path.suffix.lower() in SUFFIXES:
        return True
    if path.suffix.strip(".0123456789"):  # the name of an exported file is often a UID: 1.2.840.10008
        return False
    try:
        return _read_head(path)[DICOM_PREAMBLE:] == DICOM_MAGIC
    except OSError:
        return False


def _read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(DICOM_PREAMBLE + len(DICOM_MAGIC))


def read_radiograph(path: str | Path, *, shortest_side: int, use_window: bool = True) -> Radiograph:
    """Reads a JPEG, PNG or DICOM file, which its content tells, with at most `shortest_side` pixels aside.

    `use_window` is about DICOM: see above. Raises BadRadiographError for a file that is none of these, is
    damaged, or holds several images or colour.
    """
    path = Path(path)
    try:
        head = _read_head(path)
        view_position = ""
        if head.startswith(JPEG_MAGIC):
            content = dataset_module().shrink_jpeg(str(path), shortest_side)
        elif head.startswith(PNG_MAGIC):
            content = _shrink(_read_png(path), shortest_side)
        elif head[DICOM_PREAMBLE:] == DICOM_MAGIC:
            gray, view_position = read_dicom(path, use_window=use_window)
            content = _shrink(Image.fromarray(gray), shortest_side)
        else:
            raise BadRadiographError("neither JPEG, PNG nor DICOM" if head else "empty")
        return Radiograph(pixels=_decode(content), view_position=view_position)
    except BadRadiographError:
        raise
    except dataset_module().IMAGE_ERRORS as error:
        raise BadRadiographError(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:300] or type(error).__name__


def _decode(jpeg: bytes) -> torch.Tensor:
    """Returns (1, H, W) uint8, as `cxr.data.ChestXrays` decodes."""
    try:
        return decode_jpeg(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8), mode=ImageReadMode.GRAY)
    except RuntimeError as error:
        raise BadRadiographError(f"damaged JPEG ({_one_line(error)})") from error


def _shrink(image: Image.Image, shortest_side: int) -> bytes:
    """What the dataset script's `shrink_jpeg` makes of a JPEG, of a gray image that was none."""
    scale = shortest_side / min(image.size)
    if scale < 1:
        size = tuple(max(1, round(side * scale)) for side in image.size)
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _read_png(path: Path) -> Image.Image:
    """One with more than 8 bits is scaled from its lowest to its highest value: there is no header to ask."""
    try:
        image = Image.open(path, formats=["PNG"])
    except UnidentifiedImageError as error:  # whose message is the path
        raise BadRadiographError("damaged PNG") from error
    with image:
        image.load()
        if image.mode.startswith(("I", "F")):
            return Image.fromarray(scale_to_8_bits(np.asarray(image)))
        image = image.convert("L")
        image.info = {}  # of the EXIF only the orientation counts, as in the dataset script
        return ImageOps.exif_transpose(image)


def read_dicom(path: Path, *, use_window: bool = True) -> tuple[np.ndarray, str]:
    """Returns the equalised pixels (H, W) uint8 at full size, and the view position, "" where unknown.

    Raises BadRadiographError for what is not one gray image, or is packed in a way that needs a package.
    """
    try:
        header = _pydicom().dcmread(path, specific_tags=list(TAGS))
        _check_header(header)
        values = header.pixel_array
        if use_window:
            values = _apply_window(values, header)
        gray = scale_to_8_bits(values)
        if header.PhotometricInterpretation == "MONOCHROME1":
            gray = 255 - gray
        return equalize(gray), _view_position(header)
    except (BadRadiographError, MemoryError):
        raise
    except Exception as error:  # of any kind: pydicom takes a header as sound
        raise BadRadiographError(f"unreadable DICOM ({_one_line(error)})") from error


@functools.cache
def _pydicom() -> ModuleType:
    """pydicom, silenced: it would quote what it finds wrong in a header."""
    import pydicom  # here, as only those with DICOM files need it

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="pydicom")
    return pydicom


def _check_header(header: "pydicom.Dataset") -> None:
    if not any(name in header for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise BadRadiographError("DICOM without an image")
    frames = int(header.get("NumberOfFrames") or 1)
    if frames != 1:
        raise BadRadiographError(f"DICOM with {frames} frames, expected one image")
    if header.get("SamplesPerPixel", 1) != 1 or header.PhotometricInterpretation not in (
        "MONOCHROME1",
        "MONOCHROME2",
    ):
        raise BadRadiographError(f"DICOM in {header.PhotometricInterpretation}, expected a gray radiograph")
    if header.Rows * header.Columns > 2 * Image.MAX_IMAGE_PIXELS:  # as Pillow does
        raise BadRadiographError(f"DICOM of {header.Rows:,} x {header.Columns:,} pixels, which is absurd")
    syntax = header.file_meta.TransferSyntaxUID
    if syntax.is_compressed and syntax.is_encapsulated:
        from pydicom.pixels import get_decoder

        if not get_decoder(syntax).is_available:
            raise BadRadiographError(f"DICOM packed as {syntax.name}, which needs more packages: {PACKAGES}")


def _apply_window(values: np.ndarray, header: "pydicom.Dataset") -> np.ndarray:
    from pydicom.pixels import apply_modality_lut
    from pydicom.pixels import apply_voi_lut

    values = apply_modality_lut(values, header)
    return apply_voi_lut(values, header)


def _view_position(header: "pydicom.Dataset") -> str:
    position = str(header.get("ViewPosition") or "").strip().upper()
    if position:
        return position[:16]
    meanings = [str(code.get("CodeMeaning", "")) for code in header.get("ViewCodeSequence") or []]
    return "LATERAL" if any("lateral" in meaning.lower() for meaning in meanings) else ""


def scale_to_8_bits(values: np.ndarray) -> np.ndarray:
    """Returns `values` (H, W) as uint8: less the lowest, divided by the highest that is left, truncated.

    Raises BadRadiographError where all are the same, or some are no numbers.
    """
    values = values.astype(np.float64)
    values -= values.min()
    peak = values.max()
    if not np.isfinite(peak):
        raise BadRadiographError("pixels that are no finite numbers")
    if peak == 0:
        raise BadRadiographError("all pixels are the same")
    values *= 255
    values /= peak
    return values.astype(np.uint8)


def equalize(gray: np.ndarray) -> np.ndarray:
    """Returns `gray` (H, W) uint8 with its histogram equalised as by OpenCV's equalizeHist, to the bit.

    The darkest value that occurs becomes 0, the others their rank among the rest. Pillow's rounds otherwise.
    """
    counts = np.bincount(gray.ravel(), minlength=256)
    darkest = int(np.flatnonzero(counts)[0])
    others = gray.size - counts[darkest]
    if others == 0:
        return gray.copy()
    counts[darkest] = 0
    table = np.rint(np.cumsum(counts).astype(np.float32) * (np.float32(255) / np.float32(others)))
    return table.astype(np.uint8)[gray]


def describe_view(view_position: str, *, trained_view: str) -> str | None:
    """Returns a warning where a header names another view than the model has seen; None where all is well.

    `trained_view` is frontal, lateral or all, as the dataset script's option `view`.
    """
    known = dataset_module().VIEWS[trained_view]
    if not view_position or known is None or view_position in known:
        return None
    return f"the header says view {view_position}; the model was trained on {trained_view} ones"
