"""Reads a manifest: manifest.csv, which lists the images of any collection with their splits and labels.

README.md explains the columns. The image files may lie anywhere; nothing is copied.
"""

# One import per line: the loader of `datasets` 3 reads "import a, b" as one package named "a, b".
import functools
import logging
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd

from .choices import LABELS
from .choices import MANIFEST_FILE
from .collection import read_collection
from .csv_files import PATIENT_IDS
from .csv_files import differs_from_first
from .csv_files import parse_numbers
from .csv_files import parse_values
from .csv_files import read_csv
from .csv_files import reject
from .errors import DatasetError

# A fixed name, because `datasets` imports this file under a name that contains a hash.
logger = logging.getLogger("mimic_cxr_dataset")

IDS = ("image_id", *PATIENT_IDS)
COLUMNS = ("image_id", "path", *PATIENT_IDS, "view_position", "split")
SPLITS = {"train": "train", "validation": "validation", "validate": "validation", "test": "test"}
MAX_LABELS, MAX_LABEL_LENGTH, MAX_ID_LENGTH = 100, 40, 200
MAX_VIEW_LENGTH = 40
NORMAL = ("normal", "no finding", "no findings", "negative", "healthy")  # other spellings of No Finding
# Names that tables of images or of predictions have for something else.
NOT_LABELS = {*COLUMNS, "dicom_id", "image", "label", "labels", "outcome", "position", "group", "procedure"}
NOT_LABELS |= {"study_date", "scanner", "sex", "age", "race", "is_known_patient", "probability"}
NOT_LABELS |= {"decision", "warning", "error", "heat_map", "chexpert5", "mix"}


def has_manifest(root: Path) -> bool:
    return (root / MANIFEST_FILE).is_file()


def read_manifest(root: Path) -> pd.DataFrame:
    """Returns every image in the order of the manifest, with the columns of `tables.read_images`.

    Raises DatasetError if a value is wrong, or a patient is in two splits.
    """
    path = root / MANIFEST_FILE
    table = read_csv(path, list(COLUMNS))
    check_rows(path, table)
    table["split"] = table["split"].map(SPLITS)
    table["view_position"] = table["view_position"].str.strip().str.upper()
    table["path"] = [os.path.join(root, name) for name in table["path"]]  # noqa: PTH118 - Path takes seconds
    images = table.rename(columns={"image_id": "dicom_id"}).assign(procedure="", study_date="")
    return images.reset_index(drop=True)


def check_rows(path: Path, table: pd.DataFrame, *, called: dict[str, str] | None = None) -> None:
    """Raises DatasetError for the first line of `path` that cannot be in a manifest; `table` has COLUMNS.

    It may lack view_position, which an import may read later. `called` has the names of columns in the file,
    where they are others.
    """

    def check(bad: pd.Series | np.ndarray, column: str, expected: str) -> None:
        reject(bad, path, table[column], expected, called=(called or {}).get(column))

    check(table["path"].str.strip() == "", "path", "the path of a file")
    check(table["path"].str.contains("::|[\r\n]"), "path", "a path without '::', on one line")
    check(table["path"].map(os.path.normpath).duplicated(), "path", "one row per file")
    for column in IDS:
        is_id = table[column].str.fullmatch(f"[!-~]([ -~]{{0,{MAX_ID_LENGTH - 2}}}[!-~])?").astype(bool)
        expected = f"1 to {MAX_ID_LENGTH} letters, digits and signs of ASCII, without a space at the ends"
        check(~is_id, column, expected)
    check(table["image_id"].duplicated(), "image_id", "one row per image")
    if "view_position" in table:
        views = table["view_position"].str.strip().str.upper()  # as they are used
        is_view = (views.str.len() <= MAX_VIEW_LENGTH) & views.map(str.isprintable)
        check(~is_view, "view_position", f"at most {MAX_VIEW_LENGTH} printable characters")
    check(~table["split"].isin(list(SPLITS)), "split", "train, validation or test")
    check(differs_from_first(table, "subject_id", within="study_id"), "subject_id", "one patient per study")
    splits = table.assign(split=table["split"].map(SPLITS))
    check(differs_from_first(splits, "split", within="subject_id"), "split", "each patient in one split")


def read_manifest_labels(root: Path, columns: list[str]) -> pd.DataFrame:
    """Returns dicom_id, subject_id, study_id, and `columns` as 1, 0, -1 or NaN, of each image with a label.

    An image all of whose labels are blank has no row, as a study of MIMIC-CXR-JPG that was not labelled.
    Where the manifest has no column No Finding, it is 1 if some finding is 0, and the others are 0 or blank;
    otherwise it is NaN.
    """
    path, names = root / MANIFEST_FILE, list(read_label_names(root))
    table = parse_values(path, read_csv(path, [*IDS, *names]), names)
    table = table.rename(columns={"image_id": "dicom_id"})
    table = table[table[names].notna().any(axis=1)]
    if "No Finding" not in names:
        is_normal = (table[names] == 0).any(axis=1) & ~table[names].isin((1, -1)).any(axis=1)
        table = table.assign(**{"No Finding": np.where(is_normal, 1.0, np.nan).astype("float32")})
    return table[["dicom_id", *PATIENT_IDS, *columns]].reset_index(drop=True)


def read_label_names(root: Path) -> tuple[str, ...]:
    """Returns the label columns of the manifest: those of LABELS first, then the others.

    collection.json names them, else they are all columns of LABELS, and each other column that has labels
    only. Raises DatasetError.
    """
    path = root / MANIFEST_FILE
    names = read_collection(root).labels
    if names is None:
        changed = path.stat()
        return _guess_label_names(path, (changed.st_mtime_ns, changed.st_size))
    return check_label_names(root / "collection.json", names)


@functools.lru_cache(maxsize=8)
def _guess_label_names(path: Path, changed: tuple[int, int]) -> tuple[str, ...]:
    """Returns the columns that have labels. `changed` is a key: a file that has changed is read again."""
    table = read_csv(path, None).drop(columns=list(COLUMNS), errors="ignore")
    names = [name for name in table if name in LABELS or _has_labels(table[name])]
    if others := [name for name in table if name not in names]:
        logger.warning(f"{path}: columns that are not labels are not used: {', '.join(others)[:300]}")
    if guessed := [name for name in names if name not in LABELS]:
        logger.warning(
            f"{path}: columns of 1, 0, -1 or blank are used as labels: {', '.join(guessed)[:300]}; if one is "
            "not a label, list the labels in collection.json"
        )
    return check_label_names(path, names)


def _has_labels(values: pd.Series) -> bool:
    texts = pd.Series(values.unique())
    texts = texts[texts.str.strip() != ""]
    return len(texts) > 0 and bool(np.isin(parse_numbers(texts), (1, 0, -1)).all())


def label_name(name: str) -> str:
    """Returns the name of a class or a column as one of LABELS if it is one of them, else as it is."""
    words = re.sub(r"[\s_-]+", " ", name.strip())
    known = {label.lower(): label for label in LABELS} | dict.fromkeys(NORMAL, "No Finding")
    return known.get(words.lower(), words)


def check_label_names(path: Path, names: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """Returns the names in order. Raises DatasetError for a name that cannot be that of a label.

    A label of ours in another spelling would be one of its own: an image with "Normal" would have a finding.
    """
    for name in names:
        if (ours := label_name(name)) in LABELS and ours != name:
            raise DatasetError(f"{path}: found a label named {name!r}, expected {ours!r}: rename it")
        is_bad = not name.isprintable() or name != name.strip() or {*",=;"} & {*name}
        if is_bad or name in NOT_LABELS or not 1 <= len(name) <= MAX_LABEL_LENGTH:
            raise DatasetError(
                f"{path}: found a label named {name!r:.60}, expected 1 to {MAX_LABEL_LENGTH} letters without "
                "comma, semicolon and =, and not the name of another column of our tables: rename it"
            )
    if len(names) > MAX_LABELS or len({*names}) < len(names):
        raise DatasetError(
            f"{path}: found {len(names)} labels, {len({*names})} of them different, expected at most "
            f"{MAX_LABELS} different ones: choose some in collection.json"
        )
    ours = [name for name in LABELS if name in names]
    return (*ours, *(name for name in names if name not in ours))
