"""Radiographs from files: JPEG, PNG or DICOM to upright gray 8-bit pixels, shrunk; all files are read here.

Whatever the format, pixels take the way of the training images: shrunk once, kept as a gray JPEG of quality
95. So a JPEG of MIMIC-CXR-JPG gives, bit for bit, what `run_classification.py` evaluates, and the same
picture as PNG nearly so.

DICOM files become what MIMIC-CXR-JPG holds (Johnson et al. 2019, arXiv:1901.07042): the lowest value is
subtracted, the result divided by its highest and truncated to 0..255; MONOCHROME1 is inverted, so that air is
dark; the histogram is equalised as by OpenCV. The authors did so with the stored values and left out the
window that a header may ask for. Here the header's rescaling, and its VOI look-up table or window, come
first, as other collections need them; `use_window=False` is the published procedure to the letter.

Of a header nothing is read that names a patient: only the few tags that the pixels need, and the view.
"""

import contextlib
import functools
import io
import logging
import os
import re
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING
from typing import BinaryIO

import numpy as np
from PIL import ExifTags
from PIL import Image
from PIL import ImageOps
from PIL import UnidentifiedImageError

from .errors import DatasetError

if TYPE_CHECKING:
    import pydicom

# The JPEG decoder may halve a side only while it stays this much above the final one: 2544 pixels are decoded
# at an eighth for 256. On 120 radiographs of NIH ChestX-ray14 that agrees with full decoding and Lanczos to
# 46 to 49 dB in the mean, before compression; twice as much gains 6 dB, at 0.8 of the speed.
DRAFT_OVERSAMPLING = 1.2
# The start of a segment of a JPEG. Among the pixels, 0xff stands before a stuffed zero or a restart marker.
JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
END_OF_IMAGE = b"\xff\xd9"
SUFFIXES = (".jpg", ".jpeg", ".png", ".dcm", ".dicom")
JPEG_MAGIC, PNG_MAGIC, DICOM_MAGIC = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"DICM"
DICOM_PREAMBLE = 128  # bytes before the magic
JPEG_QUALITY = 95  # of shrunk images, and of MIMIC-CXR-JPG
# Packed pixels that pydicom unpacks only with a package beside it.
PACKAGES = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
# What is read of a DICOM header.
TAGS = (
    "Rows Columns SamplesPerPixel PhotometricInterpretation PlanarConfiguration BitsAllocated BitsStored "
    "HighBit PixelRepresentation NumberOfFrames RescaleSlope RescaleIntercept ModalityLUTSequence "
    "VOILUTSequence WindowCenter WindowWidth VOILUTFunction PixelData FloatPixelData DoubleFloatPixelData "
    "ExtendedOffsetTable ExtendedOffsetTableLengths ViewPosition ViewCodeSequence CodeMeaning"
)


@contextlib.contextmanager
def refuse_bad_files() -> Iterator[None]:
    """Turns what Pillow and the system raise for a file into a DatasetError of one line, without its name."""
    try:
        yield
    except DatasetError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DatasetError(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:300] or type(error).__name__


def open_jpeg(file: BinaryIO) -> Image.Image:
    try:
        return Image.open(file, formats=["JPEG"])
    except UnidentifiedImageError as error:
        raise OSError("no JPEG image of 8 bits a channel") from error


@refuse_bad_files()
def check_jpeg(path: str) -> None:
    """Raises DatasetError if the file does not begin or end as a JPEG does."""
    with Path(path).open("rb") as file:
        with open_jpeg(file) as image:
            try:  # as datasets does where it decodes the file
                if ExifTags.Base.Orientation in image.getexif():
                    ImageOps.exif_transpose(image)
            except Exception as error:  # of any kind: Pillow takes the EXIF of a file as sound
                raise OSError(f"it cannot be turned as its EXIF says: {error}") from error
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        if not file.read().rstrip(b"\x00\xff\r\n ").endswith(END_OF_IMAGE):  # some writers pad the end
            raise OSError("no end-of-image marker: the file is cut off")


def read_orientation(image: Image.Image) -> int:
    """EXIF's Orientation, 1 (upright) where there is none or it is garbage."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, struct.error):
        return 1


def leads_to_end(content: bytes) -> bool:
    """Whether a JPEG leads from segment to segment to its end marker.

    Pillow does without, and so with a damaged segment that claims to go on behind it; torchvision does not.
    """
    position = 2
    while marker := JPEG_MARKER.search(content, position):
        if marker[0] == END_OF_IMAGE:
            return True
        length = int.from_bytes(content[marker.end() : marker.end() + 2], "big")
        position = marker.end() + length
    return False


@refuse_bad_files()
def shrink_jpeg(path: str, image_size: int) -> bytes:
    """The file as a gray JPEG with shortest side `image_size`; one that is not larger keeps its size.

    Raises DatasetError, which does not name the file, for one that is no JPEG, is damaged or too large.
    """
    content = Path(path).read_bytes()
    with open_jpeg(io.BytesIO(content)) as image:
        scale, size = _scale(image, image_size)
        drafted = None
        if scale < 1:
            # The decoder leaves out the frequencies that 1/2, 1/4 or 1/8 of the size does not need.
            drafted = image.draft("L", tuple(round(side * scale * DRAFT_OVERSAMPLING) for side in image.size))
        image.decodermaxblock = len(content)  # all at once; pieces of 64 KiB take 6 % longer
        image.load()
        orientation = read_orientation(image)
        if scale >= 1 and image.mode == "L" and orientation == 1 and leads_to_end(content):
            return content
        image = image.convert("L")
    if scale < 1:
        # 3,057 pixels at an eighth are 383, of which the last is an eighth full: the box ends where they do.
        box = None if drafted is None else drafted[1]
        image = image.resize(size, Image.Resampling.LANCZOS, box=box)
    # As datasets does where it reads the original. Of the EXIF, only this is kept: other tags may be garbage.
    image.info = {}
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return _encode(ImageOps.exif_transpose(image))


def _scale(image: Image.Image, shortest_side: int) -> tuple[float, tuple[int, int]]:
    scale = shortest_side / min(image.size)
    return scale, tuple(max(1, round(side * scale)) for side in image.size)


def _encode(gray: Image.Image) -> bytes:
    buffer = io.BytesIO()
    gray.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


@refuse_bad_files()
def shrink_radiograph(path: str | Path, shortest_side: int, *, use_window: bool = True) -> tuple[bytes, str]:
    """Returns a JPEG, PNG or DICOM file, which its content tells, as a gray JPEG, and the view it names.

    Its shortest side is at most `shortest_side` pixels; the view is that of a DICOM header, such as PA, AP or
    LL, "" where the file says nothing. `use_window` is about DICOM: see above. Raises DatasetError, which
    does not name the file, for one that is none of these, is damaged, or holds several images or colour.
    """
    path = Path(path)
    head = read_head(path)
    if head.startswith(JPEG_MAGIC):
        return shrink_jpeg(str(path), shortest_side), ""
    if head.startswith(PNG_MAGIC):
        image, view_position = _read_png(path), ""
    elif head[DICOM_PREAMBLE:] == DICOM_MAGIC:
        pixels, view_position = read_dicom(path, use_window=use_window)
        image = Image.fromarray(pixels)
    else:
        raise DatasetError("neither JPEG, PNG nor DICOM" if head else "empty")
    scale, size = _scale(image, shortest_side)
    return _encode(image.resize(size, Image.Resampling.LANCZOS) if scale < 1 else image), view_position


def read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(DICOM_PREAMBLE + len(DICOM_MAGIC))


def _read_png(path: Path) -> Image.Image:
    """One with more than 8 bits is scaled from its lowest to its highest value: there is no header to ask."""
    try:
        image = Image.open(path, formats=["PNG"])
    except UnidentifiedImageError as error:  # whose message is the path
        raise DatasetError("damaged PNG") from error
    with image:
        image.load()
        if image.mode.startswith(("I", "F")):
            return Image.fromarray(scale_to_8_bits(np.asarray(image)))
        image = image.convert("L")
        image.info = {}  # of the EXIF only the orientation counts, as in the dataset script
        return ImageOps.exif_transpose(image)


def read_dicom(path: Path, *, use_window: bool = True) -> tuple[np.ndarray, str]:
    """Returns the equalised pixels (H, W) uint8 at full size, and the view position, "" where unknown.

    Raises DatasetError for what is not one gray image, or is packed in a way that needs a package.
    """
    try:
        pydicom = _pydicom()
        header = pydicom.dcmread(path, specific_tags=TAGS.split())
        _check_header(header)
        values = header.pixel_array
        if use_window:
            values = pydicom.pixels.apply_modality_lut(values, header)
            values = pydicom.pixels.apply_voi_lut(values, header)
        gray = scale_to_8_bits(values)
        if header.PhotometricInterpretation == "MONOCHROME1":
            gray = 255 - gray
        return equalize(gray), _view_position(header)
    except (DatasetError, MemoryError):
        raise
    except Exception as error:  # of any kind: pydicom takes a header as sound
        raise DatasetError(f"unreadable DICOM ({_one_line(error)})") from error


@functools.cache
def _pydicom() -> ModuleType:
    """pydicom, silenced: it would quote what it finds wrong in a header."""
    import pydicom.pixels  # here, as only those with DICOM files need it

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="pydicom")
    return pydicom


def _check_header(header: "pydicom.Dataset") -> None:
    if not any(name in header for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise DatasetError("DICOM without an image")
    frames = int(header.get("NumberOfFrames") or 1)
    if frames != 1:
        raise DatasetError(f"DICOM with {frames} frames, expected one image")
    colours = header.PhotometricInterpretation
    if header.get("SamplesPerPixel", 1) != 1 or colours not in ("MONOCHROME1", "MONOCHROME2"):
        raise DatasetError(f"DICOM in {colours}, expected a gray radiograph")
    if header.Rows * header.Columns > 2 * Image.MAX_IMAGE_PIXELS:  # as Pillow does
        raise DatasetError(f"DICOM of {header.Rows:,} x {header.Columns:,} pixels, which is absurd")
    syntax = header.file_meta.TransferSyntaxUID
    is_packed = syntax.is_compressed and syntax.is_encapsulated
    if is_packed and not _pydicom().pixels.get_decoder(syntax).is_available:
        raise DatasetError(f"DICOM packed as {syntax.name}, which needs more packages: {PACKAGES}")


def _view_position(header: "pydicom.Dataset") -> str:
    position = str(header.get("ViewPosition") or "").strip().upper()
    if position:
        return position[:16]
    meanings = [str(code.get("CodeMeaning", "")) for code in header.get("ViewCodeSequence") or []]
    return "LATERAL" if any("lateral" in meaning.lower() for meaning in meanings) else ""


def scale_to_8_bits(values: np.ndarray) -> np.ndarray:
    """Returns `values` (H, W) as uint8: less the lowest, divided by the highest that is left, truncated.

    Raises DatasetError where all are the same, or some are NaN or infinite.
    """
    values = values.astype(np.float64)
    values -= values.min()
    peak = values.max()
    if not np.isfinite(peak):
        raise DatasetError("NaN or infinite pixels")
    if peak == 0:
        raise DatasetError("all pixels are the same")
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
