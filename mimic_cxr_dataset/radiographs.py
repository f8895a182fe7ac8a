"""Radiographs from files: JPEG, PNG or DICOM to upright gray 8-bit pixels, shrunk; all files are read here.

Whatever the format, pixels take the way of the training images: shrunk once, kept as a gray JPEG of quality
95. So a JPEG of MIMIC-CXR-JPG gives, bit for bit, what `run_classification.py` evaluates, and the same
picture as PNG nearly so. What is peculiar to DICOM stands in dicom.py.

A property of a file that changes what its pixels mean is applied, or the file is refused by a DatasetError,
or it is used with a warning; docs/using-a-model.md lists them.
"""

import contextlib
import io
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
PIXELS_VERSION = 1  # raise it with each change that gives other pixels: cached ones are then made anew
JPEG_QUALITY = 95  # of shrunk images, and of MIMIC-CXR-JPG
# How pixels lie in a PNG, as Pillow says it: those that it cuts to 8 bits, and those of which it compares the
# value that is transparent with pixels that it has scaled.
GRAY_OF_16_BITS = "I;16B"
NEVER_WHOLE, NEVER_TRANSPARENT = ("RGB;16B", "RGBA;16B", "LA;16B"), ("L;2", "L;4", GRAY_OF_16_BITS)
WINDOWS_GAMMA = 1 / 2.2  # of nearly every PNG that names one
ENCODING_OF_SCREENS = (b"sRGB", b"Gamma 2.2")  # in a colour profile that changes nothing
NOT_SQUARE = "the picture's pixels are not square, but used as if they were"
# A pixel has a colour where its channels lie so far apart, and a picture where so many of its pixels do.
COLOUR_SPREAD, COLOURED_SHARE = 32, 0.01


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the one who reads decides; a file says the rest. The defaults are the way of MIMIC-CXR-JPG."""

    use_window: bool = True  # the VOI look-up table or window of a DICOM header
    equalizes: bool = True  # the histogram of DICOM files, and of pictures of more than 8 bits
    equalizes_8_bits: bool = False  # that of other pictures


@dataclass(frozen=True, kw_only=True)
class ShrunkRadiograph:
    content: bytes  # a gray JPEG
    view_position: str = ""  # of a DICOM header, such as PA, AP or LL; "" where the file says nothing
    is_equalized: bool = False  # by the reading; the file may hold what was before
    warnings: tuple[str, ...] = ()  # of what may be wrong with it


@contextlib.contextmanager
def refuse_bad_files() -> Iterator[None]:
    """Turns what Pillow and the system raise for a file into a DatasetError of one line, without its name."""
    try:
        yield
    except (DatasetError, MemoryError):
        raise
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DatasetError(one_line(error)) from error
    except Exception as error:  # of any kind: Pillow takes much of a file as sound
        raise DatasetError(f"unreadable ({type(error).__name__}: {one_line(error)})") from error


def open_jpeg(file: BinaryIO) -> Image.Image:
    try:
        image = Image.open(file, formats=["JPEG"])
    except UnidentifiedImageError as error:
        raise OSError("no JPEG image of 8 bits a channel") from error
    if (num_images := getattr(image, "n_frames", 1)) > 1:
        raise DatasetError(f"JPEG with {num_images} images, expected one")
    return image


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


def find_image(path: str) -> str | None:
    """Returns the path, or the same with another of the SUFFIXES; None where no file is there."""
    stem = path.removesuffix(".jpg")
    return next((stem + suffix for suffix in SUFFIXES if Path(stem + suffix).is_file()), None)


@refuse_bad_files()
def is_jpeg(path: str | Path) -> bool:
    """Whether the file begins as a JPEG does. Raises DatasetError where it cannot be read."""
    return read_head(Path(path)).startswith(JPEG_MAGIC)


@refuse_bad_files()
def check_jpeg(path: str | Path) -> tuple[str, ...]:
    """Returns the warnings of a JPEG that stays as it is.

    Raises DatasetError, which does not name the file, for one that is no JPEG, is damaged, or is constant.
    """
    content = Path(path).read_bytes()
    if not content[-4096:].rstrip(b"\x00\xff\r\n ").endswith(END_OF_IMAGE):  # some writers pad the end
        raise OSError("no end-of-image marker: the file is cut off")
    with open_jpeg(io.BytesIO(content)) as image:
        try:  # as datasets does where it decodes the file
            if ExifTags.Base.Orientation in image.getexif():
                ImageOps.exif_transpose(image)
        except Exception as error:  # of any kind: Pillow takes the EXIF of a file as sound
            raise OSError(f"it cannot be turned as its EXIF says: {error}") from error
    with open_jpeg(io.BytesIO(content)) as image:
        warned = _describe(image)
        image.draft(None, (1, 1))  # an eighth of its size is enough to look at
        _check_not_constant(_to_gray(image, warned), content)
    return tuple(warned)


@refuse_bad_files()
def shrink_radiograph(
    path: str | Path, shortest_side: int | None, reading: Reading | None = None
) -> ShrunkRadiograph:
    """Returns a JPEG, PNG or DICOM file, which its content tells, with shortest side `shortest_side`.

    One that is not larger, and any where that is None, keeps its size. Raises DatasetError, which does not
    name the file, for one that is none of these, is damaged or constant, or holds several images.
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
    if path.is_fifo():  # to open it would wait for who writes
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
            # The decoder leaves out the frequencies that 1/2, 1/4 or 1/8 of the size does not need.
            drafted = image.draft(
                None, tuple(round(side * scale * DRAFT_OVERSAMPLING) for side in image.size)
            )
        image.decodermaxblock = len(content)  # all at once; pieces of 64 KiB take 6 % longer
        gray = _to_gray(image, warned)
        _check_not_constant(gray, content)
        orientation = read_orientation(image)
        is_ready = scale >= 1 and image.mode == "L" and orientation == 1 and not equalizes
    if is_ready and leads_to_end(content):
        return ShrunkRadiograph(content=content, warnings=tuple(warned))
    if equalizes:
        gray = Image.fromarray(equalize(np.asarray(gray)))
    if scale < 1:
        # 3,057 pixels at an eighth are 383, of which the last is an eighth full: the box ends where they do.
        box = None if drafted is None else drafted[1]
        gray = gray.resize(size, Image.Resampling.LANCZOS, box=box)
    content = _encode(_turn_upright(gray, orientation))
    return ShrunkRadiograph(content=content, is_equalized=equalizes, warnings=tuple(warned))


def _read_png(path: Path, reading: Reading) -> tuple[Image.Image, bool, list[str]]:
    """Returns the gray image, whether it was equalised here, and warnings.

    One with more than 8 bits is scaled from its lowest to its highest value: there is no header to ask.
    """
    content = path.read_bytes()
    try:
        image = Image.open(io.BytesIO(content), formats=["PNG"])
    except UnidentifiedImageError as error:  # whose message is a number
        raise DatasetError("damaged PNG") from error
    with image:
        if (num_images := getattr(image, "n_frames", 1)) > 1:
            raise DatasetError(f"PNG with {num_images} images, expected one")
        coding = image.tile[0][3] if image.tile else ""  # of the pixels in the file
        if coding in NEVER_WHOLE or (coding in NEVER_TRANSPARENT and "transparency" in image.info):
            raise DatasetError(
                f"PNG of {content[24]} bits with colours or transparency, expected gray alone, or 8 bits"
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
    """The blocks before the pixels by their names. Pillow's `info` mixes them with texts of any name."""
    blocks, position = {}, len(PNG_MAGIC)
    while (name := content[position + 4 : position + 8]) not in (b"", b"IDAT"):
        length = int.from_bytes(content[position : position + 4], "big")
        blocks[name] = content[position + 8 : position + 8 + length]
        position += 12 + length
    return blocks


def _describe(image: Image.Image, blocks: dict[bytes, bytes] | None = None) -> list[str]:
    """Returns warnings of what would change the picture on a screen and is not applied; `blocks`: a PNG's."""
    blocks = blocks or {}
    across, down = image.info.get("jfif_density", (1, 1))
    if b"pHYs" in blocks:
        across, down = struct.unpack(">II", blocks[b"pHYs"][:8])
    is_square = 0 in (across, down) or abs(across - down) <= 0.01 * down
    return _describe_brightness(image, blocks) + ([] if is_square else [NOT_SQUARE])


def _describe_brightness(image: Image.Image, blocks: dict[bytes, bytes]) -> list[str]:
    if "icc_profile" in image.info:
        profile = image.info["icc_profile"] or b""  # of one that is damaged, Pillow makes None
        text = profile.replace(b"\x00", b"")  # it may have two bytes a letter
        if b"linear" in text.lower() or not any(name in text for name in ENCODING_OF_SCREENS):
            return ["the picture's colour profile is not applied"]
    gamma = int.from_bytes(blocks.get(b"gAMA", b""), "big") / 100_000 or WINDOWS_GAMMA
    if b"cICP" in blocks or (b"sRGB" not in blocks and abs(gamma - WINDOWS_GAMMA) > 0.02):
        return ["the picture's gamma is not applied"]
    return []


def _to_gray(image: Image.Image, warned: list[str]) -> Image.Image:
    """Returns an opened image of 8 bits as gray."""
    image.load()
    gray = image
    if image.has_transparency_data:
        gray = image.convert("RGBA")
        if gray.getextrema()[3][0] < 255:
            warned.append("transparent parts of the picture are black")
            gray = Image.alpha_composite(Image.new("RGBA", image.size, "black"), gray)
    if gray.mode != "L":
        colours = gray.convert("RGB")
        spread = np.ptp(np.asarray(colours.reduce(max(1, min(image.size) // 128))), axis=2)
        if np.mean(spread > COLOUR_SPREAD) > COLOURED_SHARE:
            warned.append("the picture has colours, which become gray")
        gray = gray.convert("L")
    return gray


def _check_not_constant(gray: Image.Image, content: bytes | None = None) -> None:
    """Raises DatasetError where all pixels are the same; `content` is the JPEG that was decoded in part."""
    darkest, brightest = gray.getextrema()
    if darkest == brightest and content is not None:
        with open_jpeg(io.BytesIO(content)) as whole:
            darkest, brightest = whole.convert("L").getextrema()
    if darkest == brightest:
        raise DatasetError("all pixels are the same")


def _turn_upright(gray: Image.Image, orientation: int) -> Image.Image:
    """As datasets turns the original. Of the EXIF only this is kept, as the rest may be garbage."""
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
