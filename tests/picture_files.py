"""Makes PNG and JPEG files of one soft image, with the chunks, colours and bit depths that a test needs."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import ExifTags
from PIL import Image
from PIL import ImageCms

from mimic_cxr_dataset.radiographs import Reading
from mimic_cxr_dataset.radiographs import shrink_radiograph

GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6  # the colour types of a PNG
SRGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
OTHER_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def soft_picture(height: int = 80, width: int = 60) -> np.ndarray:
    """Returns (H, W) uint8 with all values from 0 to 255, whose histogram is not equalised."""
    rows, columns = np.mgrid[:height, :width]
    waves = np.sin(12 * rows / height) + np.cos(8 * columns / width) + rows / height
    soft = (waves - waves.min()) / np.ptp(waves)
    return np.rint(255 * soft**2).astype(np.uint8)


def png_block(name: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def encode_png(
    pixels: np.ndarray, colours: int = GRAY, *, depth: int = 8, before: bytes = b"", after: bytes = b""
) -> bytes:
    """Returns a PNG of whole numbers (H, W) or (H, W, channels), with chunks before and after its pixels."""
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    height, width, _ = pixels.shape
    bits = np.unpackbits(pixels.astype(">u2")[..., None].view(np.uint8), axis=-1)[..., 16 - depth :]
    rows = np.packbits(bits.reshape(height, -1), axis=1)
    filtered = np.insert(rows, 0, 0, axis=1)  # each row begins with its filter's number; 0 is no filter
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    data = png_block(b"IDAT", zlib.compress(filtered.tobytes()))
    return b"\x89PNG\r\n\x1a\n" + png_block(b"IHDR", header) + before + data + after + png_block(b"IEND")


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def encode(image: Image.Image | np.ndarray, file_format: str = "JPEG", **options) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    quality = {"quality": 95} if file_format in ("JPEG", "MPO") else {}
    image.save(buffer := io.BytesIO(), format=file_format, **(quality | options))
    return buffer.getvalue()


def read_pixels(
    path: Path, shortest_side: int | None = None, **reading: bool
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns the pixels (H, W) uint8 that `shrink_radiograph` makes from a file, and the warnings."""
    shrunk = shrink_radiograph(path, shortest_side, Reading(**reading))
    with Image.open(io.BytesIO(shrunk.content)) as image:
        assert (image.format, image.mode) == ("JPEG", "L")
        return np.asarray(image), shrunk.warnings


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Returns the mean absolute difference in gray levels; JPEG alone causes about 1 in a soft image."""
    assert found.shape == expected.shape
    return float(np.abs(found.astype(int) - expected).mean())
