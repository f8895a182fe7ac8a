"""What is done to gray levels: scaling to 8 bits, equalising the histogram, and telling whether it was done.

Each is a function of the level alone, so it is worked out once for the levels and looked up for the pixels.
"""

import numpy as np

from .errors import DatasetError

# All 602 radiographs of NIH ChestX-ray14 that were tried, shrunk to 256 pixels, lie farther than this from a
# uniform histogram (median 0.24) and, where they were equalised before, all but 5 nearer (median 0.01).
LARGEST_DISTANCE_OF_EQUALIZED = 0.07
NUM_BORDER_LEVELS = 16  # black borders, which equalising leaves alone, as shrinking and JPEG smear them
FEWEST_LEVELS = 16
ROWS_AT_ONCE = 32


def scale_to_8_bits(levels: np.ndarray) -> np.ndarray:
    """Returns numbers of any shape as uint8: less the lowest, divided by the highest that is left, truncated.

    As MIMIC-CXR-JPG was made. Raises DatasetError where all are the same, or some are NaN or infinite.
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
    """Returns a warning where a picture has so few gray levels that something was wrong with it before."""
    return [f"the picture has only {num_levels} gray levels"] if num_levels <= FEWEST_LEVELS else []


def equalization_table(counts: np.ndarray) -> np.ndarray:
    """Returns what each gray level becomes (256,) uint8, from how many pixels have it, (256,).

    As by OpenCV's equalizeHist, to the bit: the darkest level that occurs becomes 0, the others their rank
    among the rest. Pillow's rounds otherwise.
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
    """Returns how many of the whole numbers `pixels` (H, W) have each level from 0 on, (num_levels,)."""
    return sum(np.bincount(rows.ravel(), minlength=num_levels) for rows in _split(pixels))


def look_up(table: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Returns `table[pixels]`, of whole numbers (H, W) that the table has."""
    found = np.empty(pixels.shape, dtype=table.dtype)
    for rows, result in zip(_split(pixels), _split(found)):
        np.take(table, rows, out=result, mode="clip")  # "raise" would make a copy
    return found


def _split(pixels: np.ndarray) -> list[np.ndarray]:
    """In blocks of rows whose indices, of 64 bits, stay in the processor's cache: 3 times as fast."""
    return [pixels[first : first + ROWS_AT_ONCE] for first in range(0, len(pixels), ROWS_AT_ONCE)]


def equalize(gray: np.ndarray) -> np.ndarray:
    """Returns `gray` (H, W) uint8 with its histogram equalised."""
    return look_up(equalization_table(count_levels(gray)), gray)


def distance_from_uniform(gray: np.ndarray) -> float:
    """Returns Kolmogorov and Smirnov's distance of the levels in uint8 `gray` from equally many of each.

    Of 0 to 1. Pixels of the darkest NUM_BORDER_LEVELS do not count.
    """
    counts = count_levels(gray)[NUM_BORDER_LEVELS:]
    share = np.cumsum(counts) / max(1, counts.sum())
    return float(abs(share - np.arange(1, len(counts) + 1) / len(counts)).max())


def looks_equalized(gray: np.ndarray) -> bool:
    """Whether the histogram of uint8 `gray` was equalised, as far as it tells."""
    return distance_from_uniform(gray) <= LARGEST_DISTANCE_OF_EQUALIZED
