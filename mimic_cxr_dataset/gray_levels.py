"""Gray levels: scales them to 8 bits, equalises the histogram, and tells whether it is equalised.

The new level of a pixel depends on its old level alone: it is computed once per level, then looked up.
"""

import numpy as np

from .errors import DatasetError

# Measured on 602 radiographs of NIH ChestX-ray14, shrunk to 256 pixels: all are farther than this from a
# uniform histogram (median 0.24); if they are equalised before shrinking, all but 5 are nearer (median 0.01).
LARGEST_DISTANCE_OF_EQUALIZED = 0.07
NUM_BORDER_LEVELS = 16  # black borders: equalising keeps them at 0, shrinking and JPEG spread them a little
FEWEST_LEVELS = 16
ROWS_AT_ONCE = 32


def scale_to_8_bits(levels: np.ndarray) -> np.ndarray:
    """Returns numbers of any shape as uint8: subtracts the lowest, scales the highest to 255 and truncates.

    MIMIC-CXR-JPG was made in this way. Raises DatasetError if all numbers are the same, or one is NaN or
    infinite.
    """
    scaled = levels.astype(np.float64)
    scaled -= scaled.min()
    peak = scaled.max()
    if not np.isfinite(peak):
        raise DatasetError("NaN or infinite pixels")
    if peak == 0:
        raise DatasetError("all pixels are the same")
    scaled *= 255
    scaled /= peak
    return scaled.astype(np.uint8)


def few_levels(num_levels: int) -> list[str]:
    """Returns a warning if an image has so few gray levels that it was probably damaged earlier."""
    return [f"the image has only {num_levels} gray levels"] if num_levels <= FEWEST_LEVELS else []


def equalization_table(counts: np.ndarray) -> np.ndarray:
    """Returns the new value of each gray level, (256,) uint8, given the number of its pixels, (256,).

    Equals OpenCV's equalizeHist bit for bit: the darkest level that occurs becomes 0, each other level its
    rank among the remaining pixels. Pillow's ImageOps.equalize rounds differently.
    """
    counts = counts.copy()
    darkest = int(np.flatnonzero(counts)[0])
    counts[darkest] = 0
    others = counts.sum()
    if others == 0:
        return np.arange(256, dtype=np.uint8)
    ranks = np.cumsum(counts).astype(np.float32) * (np.float32(255) / np.float32(others))
    return np.rint(ranks).astype(np.uint8)


def count_levels(pixels: np.ndarray, num_levels: int = 256) -> np.ndarray:
    """Returns how many pixels have each level, (num_levels,); `pixels` (H, W) are whole numbers from 0."""
    return sum(np.bincount(rows.ravel(), minlength=num_levels) for rows in _split(pixels))


def look_up(table: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Returns `table[pixels]`; `pixels` (H, W) are whole numbers below the length of the table."""
    found = np.empty(pixels.shape, dtype=table.dtype)
    for rows, result in zip(_split(pixels), _split(found)):
        np.take(table, rows, out=result, mode="clip")  # "raise" would make a copy
    return found


def _split(pixels: np.ndarray) -> list[np.ndarray]:
    """Returns blocks of rows, whose 64-bit indices fit into the processor's cache: 3 times as fast."""
    return [pixels[first : first + ROWS_AT_ONCE] for first in range(0, len(pixels), ROWS_AT_ONCE)]


def equalize(gray: np.ndarray) -> np.ndarray:
    """Returns `gray` (H, W) uint8 with its histogram equalised."""
    return look_up(equalization_table(count_levels(gray)), gray)


def distance_from_uniform(gray: np.ndarray) -> float:
    """Returns the Kolmogorov-Smirnov distance, 0 to 1, of the histogram of uint8 `gray` from a uniform one.

    Pixels of the darkest NUM_BORDER_LEVELS levels do not count.
    """
    counts = count_levels(gray)[NUM_BORDER_LEVELS:]
    share = np.cumsum(counts) / max(1, counts.sum())
    return float(abs(share - np.arange(1, len(counts) + 1) / len(counts)).max())


def looks_equalized(gray: np.ndarray) -> bool:
    """Returns whether the histogram of uint8 `gray` is near enough to uniform to have been equalised."""
    return distance_from_uniform(gray) <= LARGEST_DISTANCE_OF_EQUALIZED
