"""CheXpert: train.csv with labels from reports, valid.csv and, if there, test_labels.csv by radiologists."""

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd

from cxr.choices import LABELS
from cxr.data.images import user_errors
from cxr.errors import UserError
from cxr.importing.manifest_table import Facts
from cxr.importing.manifest_table import Imported
from cxr.importing.manifest_table import Options
from cxr.importing.manifest_table import cut_split
from cxr.importing.manifest_table import find_file
from cxr.importing.manifest_table import find_images
from cxr.importing.manifest_table import locate_file
from cxr.importing.manifest_table import only_found
from mimic_cxr_dataset.csv_files import parse_values
from mimic_cxr_dataset.csv_files import read_csv

FACTS = Facts(
    name="CheXpert",
    license="Stanford University Dataset Research Use Agreement",
    citation="Irvin et al., CheXpert, AAAI 2019",
    address="https://stanfordaimi.azurewebsites.net (search for CheXpert)",
    layout="train.csv, valid.csv, perhaps test_labels.csv, and the folders of images that they name",
    published={"train images": 223_414, "validation images": 234, "test images": 668, "patients": 65_240},
)
OPTIONAL = ("Frontal/Lateral", "AP/PA")  # test_labels.csv has neither
# The end of a path: the same in train.csv, whatever the folder above is named, and on the disk.
PLACE = re.compile(r"(patient\d+)/(study\d+)/(view\d+_(frontal|lateral)\.\w+)$")
COUNTS_WITHOUT_TEST = {"train and validation images": 223_414, "test images": 234, "patients": 64_740}
WITHOUT_TEST = (
    "test_labels.csv is not there: the test split is CheXpert's valid.csv, and the validation split is cut "
    "from train.csv by patient"
)


def read(source: Path, options: Options) -> Imported:
    """Reads the tables; uncertain labels stay -1. Raises UserError."""
    tables = {"train": find_file(source, FACTS, "train.csv"), "valid": find_file(source, FACTS, "valid.csv")}
    test = locate_file(source, "test_labels.csv")
    splits = {"train": "train", "valid": "test" if test is None else "validation", "test": "test"}
    if test is not None:
        tables["test"] = test
    parts = [_read_table(path, splits[name]) for name, path in tables.items()]
    rows = pd.concat(parts, ignore_index=True)
    facts, said, used = FACTS, (), ()
    if test is None:
        facts = replace(FACTS, published=COUNTS_WITHOUT_TEST)
        share = options.validation_share
        rows["split"] = cut_split(rows["split"], rows["subject_id"], "validation", share, seed=options.seed)
        said, used = (WITHOUT_TEST,), ("validation_share",)
    rows["path"] = find_images(rows["image_id"], source, FACTS, name_of=_place)
    rows, notes = only_found(rows, source)
    return Imported(facts=facts, rows=rows, notes=(*notes, *said), used=used)


def _place(path: str) -> str | None:
    found = PLACE.search(path.replace("\\", "/"))
    return found[0] if found else None


def _read_table(path: Path, split: str) -> pd.DataFrame:
    with user_errors():
        table = parse_values(path, read_csv(path, ["Path", *LABELS], optional=OPTIONAL), list(LABELS))
    places = table["Path"].map(PLACE.search)
    if places.isna().any():
        line = places.index[places.isna()][0]
        raise UserError(
            f"{path}, line {line}: found a path that does not end like patient1/study1/view1_frontal.jpg; "
            "use the table as published"
        )
    patient, study, place = (places.map(lambda found, part=part: found[part]) for part in (1, 2, 0))
    is_lateral = places.map(lambda found: found[4] == "lateral")
    codes = table["AP/PA"] if "AP/PA" in table else pd.Series("", index=table.index)
    rows = pd.DataFrame({"image_id": place, "subject_id": patient})
    rows["study_id"] = patient + "/" + study
    rows["view_position"] = codes.where(codes.isin(["AP", "PA"]), "FRONTAL").mask(is_lateral, "LATERAL")
    return rows.assign(split=split, **{name: table[name].astype("Int8") for name in LABELS})
