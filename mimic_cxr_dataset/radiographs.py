"""Reads all image files: turns JPEG, PNG and DICOM into upright, gray, shrunk images of 8 bits.

Files of every format are treated like the training images: shrunk once and kept as a gray JPEG of quality 95.
So a JPEG of MIMIC-CXR-JPG gives, bit for bit, what `run_classification.py` evaluates; the same image as PNG
gives nearly that. dicom.py holds what only DICOM needs.

A property of a file that changes the meaning of its pixels is applied, or the file is refused with a
DatasetError, or used with a warning; docs/reading-files.md lists the properties.
"""

import contextlib
import io
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags
from PIL import Image
from PIL import ImageOps
from PIL import UnidentifiedImageError

from .dicom import read_dicom
from .errors import DatasetError
from .errors import one_line
from .gray_levels import equalize
from .gray_levels import few_levels
from .gray_levels import scale_to_8_bits
from .jpeg_end import check_end
from .jpeg_end import leads_to_end

# The JPEG decoder may halve the size while it stays at least this many times the final size: 2544 pixels are
# decoded at an eighth for 256. On 120 radiographs of NIH ChestX-ray14, the PSNR against full decoding and
# Lanczos is 46 to 49 dB in the mean, before compression; a factor of 2.4 gains 6 dB, at 0.8 of the speed.
DRAFT_OVERSAMPLING = 1.2
SUFFIXES = (".jpg", ".jpeg", ".png", ".dcm", ".dicom")
IN_TREE = re.compile(r"\bfiles/p\d+/p\d+/s\d+/[^/]+\.jpg$")  # the path of an image of MIMIC-CXR-JPG
JPEG_MAGIC, PNG_MAGIC, DICOM_MAGIC = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"DICM"
DICOM_PREAMBLE = 128  # bytes before the magic
PIXELS_VERSION = 1  # raise it with each change that gives other pixels: cached ones are then made anew
JPEG_QUALITY = 95  # of shrunk images, and of MIMIC-CXR-JPG
# Pixel formats of a PNG, as Pillow names them. It cuts those of NEVER_WHOLE to 8 bits; for NEVER_TRANSPARENT
# it compares the transparent value with pixels that it has already scaled.
GRAY_OF_16_BITS = "I;16B"
NEVER_WHOLE, NEVER_TRANSPARENT = ("RGB;16B", "RGBA;16B", "LA;16B"), ("L;2", "L;4", GRAY_OF_16_BITS)
WINDOWS_GAMMA = 1 / 2.2  # of nearly every PNG that states a gamma
ENCODING_OF_SCREENS = (b"sRGB", b"Gamma 2.2")  # names in a colour profile that changes nothing
NOT_SQUARE = "the image's pixels are not square, but are used as if they were"
# A pixel is coloured if its channels differ by more than COLOUR_SPREAD; an image, if the share of such pixels
# is above COLOURED_SHARE.
COLOUR_SPREAD, COLOURED_SHARE = 32, 0.01


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files are read, where the file itself does not decide it. The defaults suit MIMIC-CXR-JPG."""

    use_window: bool = True  # apply the VOI look-up table or window of a DICOM header
    equalizes: bool = True  # equalise the histogram of DICOM files and of images of more than 8 bits
    equalizes_8_bits: bool = False  # equalise the histogram of other images


@dataclass(frozen=True, kw_only=True)
class ShrunkRadiograph:
    content: bytes  # a gray JPEG
    view_position: str = ""  # from a DICOM header, such as PA, AP or LL; "" if unknown
    is_equalized: bool = False  # whether reading equalised it; the file may have been equalised before
    warnings: tuple[str, ...] = ()  # what may be wrong with the image


@contextlib.contextmanager
def refuse_bad_files() -> Iterator[None]:
    """Turns errors of Pillow and the system into a one-line DatasetError without the file's name."""
    try:
        yield
    except (DatasetError, MemoryError):
        raise
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DatasetError(one_line(error)) from error
    except Exception as error:  # Pillow checks little of a file: a damaged one can raise anything
        raise DatasetError(f"unreadable ({type(error).__name__}: {one_line(error)})") from error


def open_jpeg(file: BinaryIO) -> Image.Image:
    try:
        image = Image.open(file, formats=["JPEG"])
    except UnidentifiedImageError as error:
        raise OSError("not a JPEG image of 8 bits per channel") from error
    if (num_images := getattr(image, "n_frames", 1)) > 1:
        raise DatasetError(f"JPEG with {num_images} images, expected one")
    return image


def read_orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 (upright) if it is missing or damaged."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, struct.error):
        return 1


def find_image(path: str) -> str | None:
    """Returns the path or, in MIMIC-CXR-JPG's tree, it with another of the SUFFIXES; None without a file."""
    is_of_tree = IN_TREE.search(path) is not None  # a manifest names each file
    paths = [path.removesuffix(".jpg") + suffix for suffix in SUFFIXES] if is_of_tree else [path]
    return next((path for path in paths if os.path.isfile(path)), None)  # noqa: PTH113 - any text


@refuse_bad_files()
def is_jpeg(path: str | Path) -> bool:
    """Returns whether the file begins like a JPEG. Raises DatasetError if it cannot be read."""
    return read_head(Path(path)).startswith(JPEG_MAGIC)


@refuse_bad_files()
def check_jpeg(path: str | Path) -> tuple[str, ...]:
    """Returns the warnings of a JPEG that is used without shrinking.

    Raises DatasetError, which does not name the file, if it is no JPEG, damaged, or all pixels are the same.
    """
    content = Path(path).read_bytes()
    check_end(content)
    with open_jpeg(io.BytesIO(content)) as image:
        try:  # as `datasets` does when it decodes the file
            if ExifTags.Base.Orientation in image.getexif():
                ImageOps.exif_transpose(image)
        except Exception as error:  # Pillow does not check EXIF: a damaged one can raise anything
            raise OSError(f"it cannot be rotated as its EXIF says: {error}") from error
    with open_jpeg(io.BytesIO(content)) as image:
        warned = _describe(image)
        image.draft(None, (1, 1))  # decodes at an eighth of the size, which is enough for the checks
        _check_not_constant(_to_gray(image, warned), content)
    return tuple(warned)


@refuse_bad_files()
def shrink_radiograph(
    path: str | Path, shortest_side: int | None, reading: Reading | None = None
) -> ShrunkRadiograph:
    """Reads a JPEG, PNG or DICOM file, told by its content, and shrinks it to shortest side `shortest_side`.

    Images are never enlarged; None keeps the size. Raises DatasetError, which does not name the file, if it
    has another format, is damaged, holds several images, or all its pixels are the same.
    """
    path, reading = Path(path), reading or Reading()
    head = read_head(path)
    if head.startswith(JPEG_MAGIC):
        return _shrink_jpeg(path, shortest_side, equalizes=reading.equalizes_8_bits)
    if head.startswith(PNG_MAGIC):
        image, is_equalized, warned = _read_png(path, reading)
        view_position = ""
    elif head[DICOM_PREAMBLE:] == DICOM_MAGIC:
        is_equalized = reading.equalizes
        pixels, view_position, warned = read_dicom(
            path, use_window=reading.use_window, equalizes=is_equalized
        )
        image = Image.fromarray(pixels)
    else:
        raise DatasetError("neither JPEG, PNG nor DICOM" if head else "empty")
    scale, size = _scale(image, shortest_side)
    return ShrunkRadiograph(
        content=_encode(image.resize(size, Image.Resampling.LANCZOS) if scale < 1 else image),
        view_position=view_position,
        is_equalized=is_equalized,
        warnings=tuple(warned),
    )


def read_head(path: Path) -> bytes:
    if path.is_fifo():  # opening it would wait for a writer
        raise DatasetError("a pipe, expected a file")
    with path.open("rb") as file:
        return file.read(DICOM_PREAMBLE + len(DICOM_MAGIC))


def _shrink_jpeg(path: Path, shortest_side: int | None, *, equalizes: bool) -> ShrunkRadiograph:
    content = path.read_bytes()
    with open_jpeg(io.BytesIO(content)) as image:
        warned = _describe(image)
        scale, size = _scale(image, shortest_side)
        drafted = None
        if scale < 1 and not equalizes:
            # The decoder skips the frequencies that 1/2, 1/4 or 1/8 of the size does not need.
            drafted = image.draft(
                None, tuple(round(side * scale * DRAFT_OVERSAMPLING) for side in image.size)
            )
        image.decodermaxblock = len(content)  # reads the file at once; blocks of 64 KiB take 6 % longer
        gray = _to_gray(image, warned)
        check_end(content)
        _check_not_constant(gray, content)
        orientation = read_orientation(image)
        is_ready = scale >= 1 and image.mode == "L" and orientation == 1 and not equalizes
    if is_ready and leads_to_end(content):
        return ShrunkRadiograph(content=content, warnings=tuple(warned))
    if equalizes:
        gray = Image.fromarray(equalize(np.asarray(gray)))
    if scale < 1:
        # 3,057 pixels at an eighth are 383, of which the last is only partly covered: the box ends at 382.1.
        box = None if drafted is None else drafted[1]
        gray = gray.resize(size, Image.Resampling.LANCZOS, box=box)
    content = _encode(_turn_upright(gray, orientation))
    return ShrunkRadiograph(content=content, is_equalized=equalizes, warnings=tuple(warned))


def _read_png(path: Path, reading: Reading) -> tuple[Image.Image, bool, list[str]]:
    """Returns the gray image, whether it was equalised here, and the warnings.

    An image of more than 8 bits is scaled from its lowest to its highest value, as no header says otherwise.
    """
    content = path.read_bytes()
    try:
        image = Image.open(io.BytesIO(content), formats=["PNG"])
    except UnidentifiedImageError as error:  # its message only names a buffer
        raise DatasetError("damaged PNG") from error
    with image:
        if (num_images := getattr(image, "n_frames", 1)) > 1:
            raise DatasetError(f"PNG with {num_images} images, expected one")
        coding = image.tile[0][3] if image.tile else ""  # of the pixels in the file
        if coding in NEVER_WHOLE or (coding in NEVER_TRANSPARENT and "transparency" in image.info):
            raise DatasetError(
                f"PNG of {content[24]} bits with colours or transparency, expected plain gray, or 8 bits"
            )
        image.load()
        warned = _describe(image, _png_blocks(content))
        if coding == GRAY_OF_16_BITS:
            gray, equalizes = Image.fromarray(scale_to_8_bits(np.asarray(image))), reading.equalizes
        else:
            gray, equalizes = _to_gray(image, warned), reading.equalizes_8_bits
            _check_not_constant(gray)
        orientation = read_orientation(image)
    warned += few_levels(np.count_nonzero(gray.histogram()))
    if equalizes:
        gray = Image.fromarray(equalize(np.asarray(gray)))
    return _turn_upright(gray, orientation), equalizes, warned


def _png_blocks(content: bytes) -> dict[bytes, bytes]:
    """Returns the chunks before the pixels by name. Pillow's `info` mixes them with texts of any name."""
    blocks, position = {}, len(PNG_MAGIC)
    while (name := content[position + 4 : position + 8]) not in (b"", b"IDAT"):
        length = int.from_bytes(content[position : position + 4], "big")
        blocks[name] = content[position + 8 : position + 8 + length]
        position += 12 + length
    return blocks


def _describe(image: Image.Image, blocks: dict[bytes, bytes] | None = None) -> list[str]:
    """Returns warnings about properties that viewers apply, but not this module; `blocks`: a PNG's chunks."""
    blocks = blocks or {}
    across, down = image.info.get("jfif_density", (1, 1))
    if b"pHYs" in blocks:
        across, down = struct.unpack(">II", blocks[b"pHYs"][:8])
    is_square = 0 in (across, down) or abs(across - down) <= 0.01 * down
    return _describe_brightness(image, blocks) + ([] if is_square else [NOT_SQUARE])


def _describe_brightness(image: Image.Image, blocks: dict[bytes, bytes]) -> list[str]:
    if "icc_profile" in image.info:
        profile = image.info["icc_profile"] or b""  # Pillow returns None for a damaged profile
        text = profile.replace(b"\x00", b"")  # letters may have two bytes
        if b"linear" in text.lower() or not any(name in text for name in ENCODING_OF_SCREENS):
            return ["the image's colour profile is not applied"]
    gamma = int.from_bytes(blocks.get(b"gAMA", b""), "big") / 100_000 or WINDOWS_GAMMA
    if b"cICP" in blocks or (b"sRGB" not in blocks and abs(gamma - WINDOWS_GAMMA) > 0.02):
        return ["the image's gamma is not applied"]
    return []


def _to_gray(image: Image.Image, warned: list[str]) -> Image.Image:
    """Returns an opened 8-bit image in gray."""
    image.load()
    gray = image
    if image.has_transparency_data:
        gray = image.convert("RGBA")
        if gray.getextrema()[3][0] < 255:
            warned.append("transparent parts of the image are drawn black")
            gray = Image.alpha_composite(Image.new("RGBA", image.size, "black"), gray)
    if gray.mode != "L":
        colours = gray.convert("RGB")
        spread = np.ptp(np.asarray(colours.reduce(max(1, min(image.size) // 128))), axis=2)
        if np.mean(spread > COLOUR_SPREAD) > COLOURED_SHARE:
            warned.append("the image has colours, which become gray")
        gray = gray.convert("L")
    return gray


def _check_not_constant(gray: Image.Image, content: bytes | None = None) -> None:
    """Raises DatasetError if all pixels are the same; `content` is the JPEG if `gray` is a part of it."""
    darkest, brightest = gray.getextrema()
    if darkest == brightest and content is not None:
        with open_jpeg(io.BytesIO(content)) as whole:
            darkest, brightest = whole.convert("L").getextrema()
    if darkest == brightest:
        raise DatasetError("all pixels are the same")


def _turn_upright(gray: Image.Image, orientation: int) -> Image.Image:
    """Turns an image upright as `datasets` does; ignores the rest of the EXIF, which may be damaged."""
    gray.info = {}
    gray.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(gray)


def _scale(image: Image.Image, shortest_side: int | None) -> tuple[float, tuple[int, int]]:
    scale = 1.0 if shortest_side is None else shortest_side / min(image.size)
    return scale, tuple(max(1, round(side * scale)) for side in image.size)


def _encode(gray: Image.Image) -> bytes:
    buffer = io.BytesIO()
    gray.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
