"""Writes tables in the form of MIMIC-CXR-JPG, with any rows or with the published number of rows."""

import csv
import gzip
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cxr.choices import LABELERS
from cxr.choices import LABELS

from mimic_cxr_dataset.errors import DatasetError

NUM_IMAGES, NUM_STUDIES, NUM_PATIENTS = 377_110, 227_835, 65_379


def refusal(call, *parts, kind=DatasetError) -> str:
    """Returns the message of the error that a call must raise: one short line that contains `parts`."""
    with pytest.raises(kind) as error:
        call()
    message = str(error.value)
    assert len(message) < 1000 and "\n" not in message, message
    for part in parts:
        assert str(part) in message, message
    return message


def encode_csv(rows: list[list]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8")


def write_csv(path: Path, header: list[str], rows: list[list]) -> None:
    content = encode_csv([header, *rows])
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_manifest_of_published_number_of_rows(root: Path) -> None:
    """Writes the same number of images, studies and patients as a manifest with 14 labels and one more."""
    rng = np.random.default_rng(0)
    study = np.arange(NUM_IMAGES) * NUM_STUDIES // NUM_IMAGES
    subject = study * NUM_PATIENTS // NUM_STUDIES
    names = pd.Series(range(NUM_IMAGES)).astype(str)
    rows = pd.DataFrame({"image_id": "i" + names, "path": "images/" + names + ".png"})
    rows = rows.assign(subject_id=[f"p{one}" for one in subject], study_id=[f"s{one}" for one in study])
    rows["view_position"] = rng.choice(["AP", "PA", "LATERAL"], NUM_IMAGES)
    rows["split"] = np.where(subject % 130 == 0, "validation", np.where(subject % 130 == 1, "test", "train"))
    values = {name: rng.choice(["1", "0", "-1", ""], NUM_IMAGES) for name in (*LABELS, "Hernia")}
    rows.assign(**values).to_csv(root / "manifest.csv", index=False)


def write_published_number_of_rows(root: Path) -> None:
    rng = np.random.default_rng(0)
    study = np.arange(NUM_IMAGES) * NUM_STUDIES // NUM_IMAGES
    subject = 10_000_000 + study * NUM_PATIENTS // NUM_STUDIES
    dicom = [f"{number:08x}-00000000-00000000-00000000-00000000" for number in range(NUM_IMAGES)]
    ids = pd.DataFrame({"dicom_id": dicom, "subject_id": subject, "study_id": 50_000_000 + study})
    splits = np.where(subject % 130 == 0, "validate", np.where(subject % 130 == 1, "test", "train"))
    views = rng.choice(["AP", "PA", "LATERAL", "LL"], NUM_IMAGES, p=[0.39, 0.255, 0.255, 0.1])
    ids.assign(ViewPosition=views).to_csv(root / "mimic-cxr-2.0.0-metadata.csv.gz", index=False)
    ids.assign(split=splits).to_csv(root / "mimic-cxr-2.0.0-split.csv.gz", index=False)
    labels = ids[["subject_id", "study_id"]].drop_duplicates()
    for labeler in LABELERS:
        shares = {"1.0": 0.06, "0.0": 0.1, "-1.0": 0.04, "": 0.8}
        values = {name: rng.choice(list(shares), len(labels), p=list(shares.values())) for name in LABELS}
        labels.assign(**values).to_csv(root / f"mimic-cxr-2.0.0-{labeler}.csv.gz", index=False)
