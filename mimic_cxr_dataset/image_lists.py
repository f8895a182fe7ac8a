"""Lists of images in a cache folder, NAME_SPLIT.csv, and what is said about them."""

from pathlib import Path

import pandas as pd

# Images left out, images used with a warning, and images that have the pixels of another one, with a hash of
# the pixels as the reason.
BAD_IMAGES, DOUBTFUL_IMAGES, SAME_PIXELS = "bad_images", "doubtful_images", "same_pixels"
LIST_COLUMNS = ("dicom_id", "path", "reason")
MOST_REASONS = 3  # in a message


def listing_of(folder: Path, kind: str, split: str) -> Path:
    return folder / f"{kind}_{split}.csv"


def read_listing(folder: Path, kind: str, split: str) -> pd.DataFrame:
    """Returns a list of images of a cache folder, with LIST_COLUMNS; empty if there is none."""
    path = listing_of(folder, kind, split)
    if not path.is_file():
        return pd.DataFrame(columns=LIST_COLUMNS, dtype=str)
    return pd.read_csv(path, dtype=str, keep_default_na=False)  # "NA" may be an id


def describe_doubtful(doubtful: pd.DataFrame, listing: Path, split: str) -> str:
    """Returns in words how many images are used with a warning, and why."""
    reasons = doubtful["reason"].value_counts()
    named = ", ".join(f'{count:,} "{reason}"' for reason, count in reasons[:MOST_REASONS].items())
    more = f" and {len(reasons) - MOST_REASONS} more reasons" * (len(reasons) > MOST_REASONS)
    num_images = doubtful["dicom_id"].nunique()
    return f"{split}: images used with a warning: {num_images:,} ({named}{more}), see {listing}"
