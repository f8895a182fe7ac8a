"""VinDr-CXR: DICOM files; three radiologists for each training image, their consensus for each test image.

A label of a training image is that of the majority. Kaggle's edition, without labels of the test images, is
read as well: its table has a row for each finding that a radiologist marked.
"""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from cxr.data.images import user_errors
from cxr.errors import UserError
from cxr.importing import label_maps
from cxr.importing.manifest_table import Facts
from cxr.importing.manifest_table import Imported
from cxr.importing.manifest_table import Options
from cxr.importing.manifest_table import cut_missing_splits
from cxr.importing.manifest_table import find_file
from cxr.importing.manifest_table import find_images
from cxr.importing.manifest_table import lacking
from cxr.importing.manifest_table import locate_file
from cxr.importing.manifest_table import only_found
from cxr.importing.manifest_table import shares_for
from mimic_cxr_dataset.csv_files import parse_values
from mimic_cxr_dataset.csv_files import read_csv
from mimic_cxr_dataset.csv_files import reject

FACTS = Facts(
    name="VinDr-CXR",
    license="PhysioNet Credentialed Health Data License 1.5.0",
    citation="Nguyen et al., VinDr-CXR, Scientific Data 2022",
    address="https://physionet.org/content/vindr-cxr/",
    layout="annotations/image_labels_train.csv and image_labels_test.csv, train/ and test/ with DICOM files; "
    "or train.csv and train/ of the Kaggle edition",
    equalized=False,
    published={"images": 18_000, "train and validation images": 15_000, "test images": 3_000},
)
TRAIN, TEST, OF_KAGGLE = "image_labels_train.csv", "image_labels_test.csv", "train.csv"
NUM_RADIOLOGISTS, MAJORITY = 3, 2
RENAMED = {"Other disease": "Other diseases"}  # a column of the test table
NOTE = "patients are not published: each image counts as a patient of its own"


def read(source: Path, options: Options) -> Imported:
    """Reads the collection; validation is cut from its training images. Raises UserError."""
    if path := locate_file(source, TRAIN):
        tables = {"train": _majority(path), "test": _consensus(find_file(source, FACTS, TEST))}
        facts, notes = FACTS, (NOTE,)
    elif path := locate_file(source, OF_KAGGLE):
        tables = {"train": _majority_of_boxes(path)}
        facts = replace(FACTS, published={"images": 15_000})
        notes = (NOTE, "Kaggle's edition has no labels of test images: test is cut from the training images")
    else:
        raise lacking(source, f"no {TRAIN}", FACTS)
    labels = pd.concat([table.assign(split=split) for split, table in tables.items()])
    split = labels.pop("split").reset_index(drop=True)
    ids = labels.index.to_series().reset_index(drop=True)
    paths = find_images(ids, source, FACTS, name_of=lambda path: Path(path).stem)
    rows = pd.DataFrame({"image_id": ids, "path": paths, "subject_id": ids, "study_id": ids})
    rows = rows.assign(view_position="PA", split=cut_missing_splits(split, ids, options))
    columns = label_maps.rename(label_maps.VINDR, keeps_labels=options.keep_labels)
    columns = {label: ours for label, ours in columns.items() if label in labels}
    labels = label_maps.join_columns(labels, columns).reset_index(drop=True).astype("Int8")
    rows, lost = only_found(rows.join(labels), source)
    used = (*shares_for(split), "keep_labels")
    return Imported(facts=facts, rows=rows, notes=(*notes, *lost), used=used)


def _majority(path: Path) -> pd.DataFrame:
    """Returns the labels by image_id, from a row for each radiologist. Raises UserError."""
    names = list(label_maps.VINDR)
    with user_errors():
        table = _parse_marks(path, read_csv(path, ["image_id", "rad_id", *names]))
    of_image = table.groupby("image_id")
    if (wrong := of_image["rad_id"].nunique() != NUM_RADIOLOGISTS).any():
        raise UserError(
            f"{path}: found {wrong.sum():,} images without {NUM_RADIOLOGISTS} different radiologists, "
            "expected none; use the table as published"
        )
    return ((table[names] == 1).groupby(table["image_id"]).sum() >= MAJORITY).astype(float)


def _parse_marks(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Returns the table with labels as 0 or 1. Raises DatasetError for others, also for a blank."""
    for name in label_maps.VINDR:
        texts = table[name]
        table = parse_values(path, table, [name])
        reject(~table[name].isin((0, 1)), path, texts, "0 or 1")
    return table


def _consensus(path: Path) -> pd.DataFrame:
    """Returns the labels by image_id, from a row for each image. Raises UserError."""
    names = list(label_maps.VINDR)
    with user_errors():
        table = read_csv(path, ["image_id"], optional=(*names, *RENAMED)).rename(columns=RENAMED)
        if missing := [name for name in names if name not in table]:
            raise UserError(f"{path}: found no column {missing[0]!r}; use the table as published")
        table = _parse_marks(path, table)
    return (table.set_index("image_id")[names] == 1).astype(float)


def _majority_of_boxes(path: Path) -> pd.DataFrame:
    """Returns the labels by image_id, from a row for each finding that a radiologist marked."""
    with user_errors():
        table = read_csv(path, ["image_id", "class_name", "rad_id"])
    if not (known := table["class_name"].isin(list(label_maps.VINDR))).all():
        found = table.loc[~known, "class_name"].iloc[0]
        raise UserError(f"{path}: found the class {found!r:.60}; use the table as published")
    votes = table.groupby(["image_id", "class_name"])["rad_id"].nunique().unstack(fill_value=0)
    return (votes >= MAJORITY).astype(float)
