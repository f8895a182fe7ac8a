"""The tables of MIMIC-CXR-JPG: which images are taken, with which label, and why the others are left out."""

from pathlib import Path

import pandas as pd
import pytest
from mimic_roots import LABELS
from mimic_roots import NO_ROW
from mimic_roots import patients
from mimic_roots import write_root
from mimic_tables import refusal
from mimic_tables import write_csv

from mimic_cxr_dataset import choices
from mimic_cxr_dataset import tables
from mimic_cxr_dataset.labels import REASONS
from mimic_cxr_dataset.labels import index_images

VIEW, ROW, UNC, OTHER = "view", "no label row", "uncertain", "other labels"
# labels of the study; outcome under uncertain negative, positive, exclude for finding, for pleural effusion
RULES = [
    ({}, (0, 0, 0), (OTHER, OTHER, OTHER)),
    ({"No Finding": 1.0}, (0, 0, 0), (0, 0, 0)),
    ({"No Finding": 1.0, "Support Devices": 1.0}, (1, 1, 1), (0, 0, 0)),
    ({"No Finding": 1.0, "Edema": -1.0}, (0, 1, UNC), (0, 0, 0)),
    ({"Pleural Effusion": 1.0}, (1, 1, 1), (1, 1, 1)),
    ({"Pleural Effusion": 1.0, "No Finding": 1.0}, (1, 1, 1), (1, 1, 1)),
    ({"Pleural Effusion": 0.0}, (0, 0, 0), (OTHER, OTHER, OTHER)),
    ({"Pleural Effusion": -1.0}, (0, 1, UNC), (OTHER, 1, UNC)),
    ({"Pleural Effusion": -1.0, "No Finding": 1.0}, (0, 1, UNC), (0, 1, UNC)),
    ({"Pleural Effusion": -1.0, "Fracture": 1.0}, (1, 1, 1), (OTHER, 1, UNC)),
    ({"Edema": -1.0}, (0, 1, UNC), (OTHER, OTHER, OTHER)),
    ({"Edema": -1.0, "Fracture": 1.0}, (1, 1, 1), (OTHER, OTHER, OTHER)),
    ({"Edema": 0.0, "Fracture": 0.0}, (0, 0, 0), (OTHER, OTHER, OTHER)),
    (NO_ROW, (ROW, ROW, ROW), (ROW, ROW, ROW)),
]


@pytest.mark.parametrize("task", ["finding", "pleural_effusion"])
@pytest.mark.parametrize("uncertain", ["negative", "positive", "exclude"])
def test_every_label_rule_gives_the_label_or_the_reason_of_the_table(tmp_path, task, uncertain):
    images = patients(len(RULES))
    labels = {image["study"]: rule[0] for image, rule in zip(images, RULES)}
    write_root(tmp_path, images, labels=labels, draw=False)
    rows, exclusions = index_images(tmp_path, task=task, uncertain=uncertain)
    got = dict(zip(rows["study_id"], rows["label"]))
    column = ["negative", "positive", "exclude"].index(uncertain)
    expected = [(rule[1] if task == "finding" else rule[2])[column] for rule in RULES]
    assert [got.get(image["study"]) for image in images] == [e if e in (0, 1) else None for e in expected]
    for reason in (ROW, UNC, OTHER):
        assert exclusions.loc["train", reason] == expected.count(reason)
    assert exclusions.loc["train", "kept"] == len(got)


def test_a_study_without_a_label_row_is_left_out_of_a_pretraining_too(tmp_path):
    images = patients(2)
    root = write_root(tmp_path, images, labels={images[0]["study"]: NO_ROW}, draw=False)
    kept, exclusions = index_images(root, keeps_unlabelled=True)
    assert len(kept) == 1 and exclusions.loc["train", ROW] == 1


def test_each_of_the_13_findings_alone_is_a_finding(tmp_path):
    images = patients(13)
    labels = {image["study"]: {name: 1.0} for image, name in zip(images, choices.FINDINGS, strict=True)}
    rows, _ = index_images(write_root(tmp_path, images, labels=labels, draw=False))
    assert rows["label"].tolist() == [1] * 13
    assert "No Finding" not in choices.FINDINGS


def test_view_keeps_its_codes_and_all_keeps_missing_and_rare_ones(tmp_path):
    codes = ["AP", "PA", "LATERAL", "LL", "", "XTABLE LATERAL", "AP AXIAL"]
    write_root(tmp_path, [{"view": code} for code in codes], draw=False)
    kept = {view: index_images(tmp_path, view=view)[0]["view_position"] for view in tables.VIEWS}
    kept = {view: positions.tolist() for view, positions in kept.items()}
    assert kept == {"frontal": ["AP", "PA"], "lateral": ["LATERAL", "LL"], "all": codes}
    assert index_images(tmp_path, view="lateral")[1].loc["train", VIEW] == 5


def test_labeler_chooses_the_table(tmp_path):
    write_root(tmp_path, [{}], draw=False)
    values = ["1.0" if name == "Edema" else "" for name in LABELS]
    header = ["subject_id", "study_id", *LABELS]
    write_csv(tmp_path / "mimic-cxr-2.0.0-chexpert.csv.gz", header, [[10000001, 50000001, *values]])
    assert index_images(tmp_path)[0]["label"].tolist() == [0]
    assert index_images(tmp_path, labeler="chexpert")[0]["label"].tolist() == [1]


def test_every_exclusion_row_adds_up_and_the_order_is_that_of_the_metadata(tmp_path):
    images = patients(20) + patients(2, split="validate", start=20) + patients(3, split="test", start=22)
    rows, exclusions = index_images(write_root(tmp_path, images))
    left_out = exclusions[list(REASONS)].sum(axis=1)
    assert (exclusions["images"] == left_out + exclusions["kept"]).all()
    assert exclusions["images"].to_dict() == {"train": 20, "validation": 2, "test": 3}
    assert rows["dicom_id"].is_monotonic_increasing
    assert all(Path(path).is_file() for path in rows["path"])


@pytest.mark.parametrize(("ext", "version"), [(".csv", "2.0.0"), (".csv.gz", "2.1.0"), (".csv", "2.1.0")])
def test_unpacked_and_newer_tables_index_alike(tmp_path, ext, version):
    images = patients(4)
    packed, _ = index_images(write_root(tmp_path / "a", images, draw=False))
    other, _ = index_images(write_root(tmp_path / "b", images, ext=ext, version=version, draw=False))
    pd.testing.assert_frame_equal(packed.drop(columns="path"), other.drop(columns="path"))


@pytest.mark.parametrize(("written", "read"), [("21800506", "21800506"), ("2180-05-06", "21800506")])
def test_a_study_date_that_was_saved_again_is_the_same_date(tmp_path, written, read):
    root = write_root(tmp_path / "root", patients(4), dates=[written, f"{read}.0", "", written])
    assert tables.read_images(root)["study_date"].tolist() == [read, read, "", read]


def test_a_study_date_in_another_order_is_refused(tmp_path):
    root = write_root(tmp_path / "root", patients(4), dates=["06/05/2180"] * 4)
    refusal(lambda: tables.read_images(root), "line 2: StudyDate is '06/05/2180'; expected YYYYMMDD")
