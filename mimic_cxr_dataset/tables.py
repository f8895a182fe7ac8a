"""Reads which images a data folder has: from the tables of MIMIC-CXR-JPG, or from a manifest."""

# One import per line: the loader of `datasets` 3 reads "import a, b" as one package named "a, b".
import logging
import os
from pathlib import Path

import pandas as pd

from .choices import VIEWS
from .csv_files import PATIENT_IDS
from .csv_files import differs_from_first
from .csv_files import parse_ids
from .csv_files import read_csv
from .csv_files import reject
from .errors import DatasetError
from .manifest import has_manifest
from .manifest import read_manifest

# A fixed name, because `datasets` imports this file under a name that contains a hash.
logger = logging.getLogger("mimic_cxr_dataset")

SAVED_DATE = r"^(\d{4})-?(\d{2})-?(\d{2})(?:\.0)?$"
DESCRIPTIONS = {"PerformedProcedureStepDescription": "procedure", "StudyDate": "study_date"}
SPLITS = {"train": "train", "validate": "validation", "test": "test"}  # published name -> ours


def resolve_root(data_dir: str | Path | None) -> Path:
    """Returns the absolute path of data_dir. Raises DatasetError if it is not a folder."""
    tables = "the mimic-cxr-2.0.0-*.csv[.gz] tables"
    expected = f"expected the MIMIC-CXR-JPG folder, which holds files/ and {tables}, or one with manifest.csv"
    if not data_dir:
        raise DatasetError(f"No data_dir given: {expected}.")
    # Not Path.resolve(): the cache keeps image paths, and a link stays valid when the data moves elsewhere.
    # Not Path.expanduser(): it raises a RuntimeError if ~name is not a user.
    path = os.path.abspath(os.path.expanduser(data_dir))  # noqa: PTH100, PTH111
    if "::" in path:  # `datasets` puts its own class in place of Path here
        raise DatasetError(
            f"data_dir {path} contains '::', at which `datasets` would split it: rename the folder, or "
            "give a link to it."
        )
    root = Path(path)
    if not root.is_dir():
        found = "not a folder" if root.exists() else "missing"
        raise DatasetError(f"data_dir {root} is {found}: {expected}.")
    return root


def locate_csv(data_dir: str | Path, table: str) -> Path | None:
    """Returns the path of a table ("metadata", "split", "negbio" or "chexpert"), None if there is none."""
    root = resolve_root(data_dir)
    # v2.1.0 kept the names of v2.0.0. The .csv comes first: the user may have edited it.
    names = [f"mimic-cxr-{v}-{table}{ext}" for v in ("2.0.0", "2.1.0") for ext in (".csv", ".csv.gz")]
    return next((root / name for name in names if (root / name).is_file()), None)


def find_csv(data_dir: str | Path, table: str) -> Path:
    path = locate_csv(data_dir, table)
    if path is None:
        root = resolve_root(data_dir)
        missing = root / f"mimic-cxr-2.0.0-{table}.csv.gz"
        below = next((path for path in root.glob(f"*/mimic-cxr-2.?.0-{table}.csv*")), None)
        advice = f"A subfolder has it: use {below.parent}." if below else "Download it, or correct data_dir."
        raise DatasetError(
            f"{missing} is missing, and so is {missing.stem}: data_dir must hold the tables of MIMIC-CXR-JPG "
            f"(https://physionet.org/content/mimic-cxr-jpg/), or manifest.csv. {advice}"
        )
    return path


def read_images(data_dir: str | Path) -> pd.DataFrame:
    """Returns every image in the order of the metadata, or of a manifest.

    The columns are dicom_id, subject_id, study_id, view_position, split and path, and also `procedure` and
    `study_date`, which are "" if the metadata lack them, as those of a collection may. The ids of patients
    and studies are whole numbers; in a manifest they are text.
    """
    root = resolve_root(data_dir)
    if has_manifest(root):
        return read_manifest(root)
    path, split_path = find_csv(data_dir, "metadata"), find_csv(data_dir, "split")
    columns = ["dicom_id", *PATIENT_IDS, "ViewPosition"]
    images = parse_ids(path, read_csv(path, columns, optional=tuple(DESCRIPTIONS)))
    # Paths are built from ids: this check keeps them inside the folder.
    is_hex = images["dicom_id"].str.fullmatch("[0-9a-f-]{1,64}").astype(bool)
    reject(~is_hex, path, images["dicom_id"], "at most 64 hexadecimal digits and dashes")
    reject(images["dicom_id"].duplicated(), path, images["dicom_id"], "one row per image")
    is_other = differs_from_first(images, "subject_id", within="study_id")
    reject(is_other, path, images["subject_id"], "one patient per study")

    table = parse_ids(split_path, read_csv(split_path, ["dicom_id", "split"], optional=PATIENT_IDS))
    reject(~table["split"].isin(list(SPLITS)), split_path, table["split"], " or ".join(SPLITS))
    reject(table["dicom_id"].duplicated(), split_path, table["dicom_id"], "one row per image")
    position = pd.Index(table["dicom_id"]).get_indexer(images["dicom_id"])
    lost = images.index[position == -1]
    if len(lost):
        raise DatasetError(
            f"{split_path} lacks {len(lost):,} images of {path.name}, the first is in line {lost[0]} there: "
            "download both tables again."
        )
    if len(table) > len(images):
        # Not an error: the user may have kept only some lines of the metadata. But it may also be cut off.
        logger.warning(
            f"{path} lacks {len(table) - len(images):,} images of {split_path.name}: they are not used."
        )
    table = table.iloc[position]  # one row per image, in the order of `images`
    for column in table.columns.intersection(PATIENT_IDS):
        is_other = table[column].to_numpy() != images[column].to_numpy()
        reject(is_other, split_path, table[column], f"the same as in {path.name}")
    images["split"] = table["split"].map(SPLITS).to_numpy()
    is_other = differs_from_first(images, "split", within="subject_id")
    reject(is_other, split_path, table["split"], "each patient in one split")
    images["view_position"] = images.pop("ViewPosition").str.strip()
    for column, name in DESCRIPTIONS.items():
        images[name] = images.pop(column) if column in images else ""
    # A program that has saved the table again may have written 2180-05-06 or 21800506.0.
    dates = images["study_date"].str.strip().str.replace(SAVED_DATE, r"\1\2\3", regex=True)
    is_date = dates.str.fullmatch(r"(\d{8})?").astype(bool)
    reject(~is_date, path, images["study_date"].rename("StudyDate"), "YYYYMMDD")
    images["study_date"] = dates
    images["path"] = _published_paths(images, root)
    return images.reset_index(drop=True)


def read_study_splits(data_dir: str | Path, *, images: pd.DataFrame) -> pd.DataFrame:
    """Returns `subject_id` and `split` of every study, also of studies whose images the metadata lack."""
    path = find_csv(data_dir, "split")
    table = parse_ids(path, read_csv(path, ["split"], optional=PATIENT_IDS))
    if not {*PATIENT_IDS} <= {*table}:
        table = images[[*PATIENT_IDS, "split"]]
    else:
        table["split"] = table["split"].map(SPLITS)
    return table.drop_duplicates("study_id").set_index("study_id")


def _published_paths(images: pd.DataFrame, root: Path) -> pd.Series:
    """Where each image's JPEG is in the tree as published."""
    subject, study = images["subject_id"].astype(str), images["study_id"].astype(str)
    folder = f"{root}/files/p" + subject.str[:2] + "/p" + subject + "/s" + study + "/"
    return folder + images["dicom_id"] + ".jpg"


def group_images(images: pd.DataFrame) -> pd.Series:
    """The group of each image, in which its pixels are cached: frontal, lateral or other."""
    groups = {code: view for view in ("frontal", "lateral") for code in VIEWS[view]}
    return images["view_position"].map(groups).fillna("other")
