"""The sample has MIMIC-CXR-JPG's layout, bytes that depend on the arguments alone, and true labels."""

import dataclasses
import gzip
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import make_sample_data as sample
import numpy as np
import pandas as pd
import pytest
from cxr.choices import FINDINGS
from cxr.choices import LABELS
from cxr.synthetic.exposure import draw_image
from cxr.synthetic.hospital import RACES
from cxr.synthetic.hospital import hospital_tables
from cxr.synthetic.plan import OTHER_VIEWS
from cxr.synthetic.plan import POSITIVE_FRACTION
from cxr.synthetic.plan import Study
from cxr.synthetic.plan import date_and_time
from cxr.synthetic.plan import plan_images
from cxr.synthetic.radiologist import read_study
from PIL import Image
from refused import refused

NUM_IMAGES = 80
FRONTAL = ("AP", "PA")
RADIOLOGIST = "mimic-cxr-2.1.0-test-set-labeled.csv"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample") / "cxr"
    return sample.make_sample_data(folder, num_images=NUM_IMAGES, image_size=64)


def read_csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def read_table(root: Path, name: str) -> pd.DataFrame:
    return read_csv(root / f"mimic-cxr-2.0.0-{name}.csv.gz")


def plan_studies(seed: int) -> list[Study]:
    """The studies of a sample of the default size."""
    images = plan_images(600, image_size=64, seed=seed)
    return list({image.study.number: image.study for image in images}.values())


def read_images(root: Path) -> pd.DataFrame:
    """One row per labelled image: metadata, split and NegBio labels."""
    splits = read_table(root, "split")[["dicom_id", "split"]]
    images = read_table(root, "metadata").merge(splits)
    return images.merge(read_table(root, "negbio"), on=["subject_id", "study_id"])


def image_path(root: Path, row) -> Path:
    subject, study = row.subject_id, row.study_id
    return root / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{study}" / f"{row.dicom_id}.jpg"


def tree_hashes(root: Path) -> dict[str, str]:
    paths = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_tree_has_exactly_the_files_of_its_tables_at_the_published_paths(root):
    metadata = read_table(root, "metadata")
    expected = {image_path(root, row) for row in metadata.itertuples()}
    assert len(expected) == NUM_IMAGES
    assert {path for path in root.rglob("*") if path.suffix == ".jpg"} == expected
    others = {path.name for path in root.iterdir()}
    tables = {f"mimic-cxr-2.0.0-{name}.csv.gz" for name in ("metadata", "split", "negbio", "chexpert")}
    tables |= {"mimic-cxr-2.1.0-test-set-labeled.csv", "hosp"}
    assert others == {"files", "README.txt", "sample-findings.json.gz", "sample-version.txt", *tables}
    assert {path.name for path in (root / "hosp").iterdir()} == {"patients.csv.gz", "admissions.csv.gz"}
    for row in metadata.itertuples():
        assert re.fullmatch(r"([0-9a-f]{8}-){4}[0-9a-f]{8}", row.dicom_id)
        assert re.fullmatch(r"1\d{7}", row.subject_id)
        assert re.fullmatch(r"5\d{7}", row.study_id)


def test_tables_have_the_published_columns(root):
    columns = ["dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition"]
    columns += ["Rows", "Columns", "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning"]
    columns += ["ViewCodeSequence_CodeMeaning", "PatientOrientationCodeSequence_CodeMeaning"]
    assert list(read_table(root, "metadata").columns) == columns
    assert list(read_table(root, "split").columns) == ["dicom_id", "study_id", "subject_id", "split"]
    for labeler in ("negbio", "chexpert"):
        assert list(read_table(root, labeler).columns) == ["subject_id", "study_id", *LABELS]
        assert not read_table(root, labeler).duplicated("study_id").any()
    radiologist = ["Airspace Opacity" if name == "Lung Opacity" else name for name in LABELS]
    assert list(read_csv(root / RADIOLOGIST).columns) == ["study_id", *sorted(radiologist)]
    patients, admissions = (read_csv(root / "hosp" / f"{name}.csv.gz") for name in ("patients", "admissions"))
    columns = ["subject_id", "gender", "anchor_age", "anchor_year", "anchor_year_group", "dod"]
    assert list(patients.columns) == columns
    columns = ["subject_id", "hadm_id", "admittime", "dischtime", "deathtime", "admission_type", "race"]
    assert list(admissions.columns) == columns


def test_images_are_gray_jpegs_whose_size_is_in_the_table(root):
    shapes = set()
    for row in read_table(root, "metadata").itertuples():
        with Image.open(image_path(root, row)) as image:
            assert (image.format, image.mode) == ("JPEG", "L")
            assert (image.height, image.width) == (int(row.Rows), int(row.Columns))
            assert min(image.size) == 64
            assert np.asarray(image).std() > 30  # a picture, not a blank
            shapes.add(image.size)
    assert len(shapes) > 5


@pytest.mark.slow
def test_same_seed_gives_same_bytes_for_any_number_of_processes(tmp_path):
    # In a process of its own, as pool workers import the script that started them.
    sizes = ["--num_images", "12", "--image_size", "32"]
    for name, *options in (["one", "1"], ["two", "2"], ["other", "1", "--seed", "1"]):
        command = [sys.executable, sample.__file__, str(tmp_path / name), *sizes, "--num_proc", *options]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert f"run_classification.py --data_dir {tmp_path / name}" in output
    assert tree_hashes(tmp_path / "one") == tree_hashes(tmp_path / "two")
    one, other = tree_hashes(tmp_path / "one"), tree_hashes(tmp_path / "other")
    assert set(one.values()) & set(other.values()) == {one["sample-version.txt"]}


def test_every_view_code_and_label_value_occurs(root):
    views = read_table(root, "metadata").ViewPosition
    assert set(views) == {*FRONTAL, *OTHER_VIEWS}
    assert 0.7 < views.isin(FRONTAL).mean() < 0.9
    labels = read_table(root, "negbio")[list(LABELS)]
    assert set(labels.to_numpy().ravel()) == {"1.0", "0.0", "-1.0", ""}
    assert set(labels["No Finding"]) == {"1.0", ""}
    assert ((labels["No Finding"] == "1.0") & (labels["Support Devices"] == "1.0")).any()


def test_a_train_study_has_no_label_row_and_the_labelers_disagree_on_few(root):
    negbio, chexpert = (read_table(root, name).set_index("study_id") for name in ("negbio", "chexpert"))
    splits = read_table(root, "split")
    assert set(splits[~splits.study_id.isin(negbio.index)].split) == {"train"}
    assert list(negbio.index) == list(chexpert.index)
    assert 0 < (negbio != chexpert).any(axis=1).mean() < 0.3


def test_radiologist_reads_every_test_study_and_no_other(root):
    splits, table = read_table(root, "split"), read_csv(root / RADIOLOGIST)
    assert list(table.study_id) == sorted(set(splits[splits.split == "test"].study_id))
    assert set(table.drop(columns="study_id").to_numpy().ravel()) == {"1.0", "0.0", "-1.0", ""}


def test_radiologist_differs_from_the_labelers_on_a_few_percent_of_each_finding():
    theirs, ours = [], []
    for seed in range(6):
        studies = [study for study in plan_studies(seed) if study.split == "test"]
        theirs += [study.negbio for study in studies]
        ours += [read_study(study, seed=seed) for study in studies]
    theirs, ours = pd.DataFrame(theirs)[list(FINDINGS)], pd.DataFrame(ours)[list(FINDINGS)]
    assert len(ours) > 300
    assert abs((ours == "-1.0").any(axis=1).mean() - 226 / 687) < 0.06
    differs = (ours == "1.0") != (theirs == "1.0")
    assert (differs.mean() < 0.05).all() and differs.to_numpy().mean() > 0.01
    assert ((ours == "1.0") & (theirs == "")).to_numpy().any()  # sees one more
    assert ((ours == "") & (theirs == "1.0")).to_numpy().any()  # misses one


def test_to_the_radiologist_no_finding_is_nothing_but_devices(root):
    table = read_csv(root / RADIOLOGIST)
    names = ["Airspace Opacity" if name == "Lung Opacity" else name for name in FINDINGS]
    abnormal = table[names].drop(columns="Support Devices").isin(["1.0", "-1.0"]).any(axis=1)
    assert ((table["No Finding"] == "1.0") == ~abnormal).all()
    study = next(study for study in plan_studies(0) if list(study.drawn) == ["Support Devices"])
    assert read_study(study, seed=0)["No Finding"] == "1.0"


@pytest.mark.parametrize("seed", range(3))
def test_hospital_has_five_of_six_patients_with_sensible_ages_at_every_study(seed):
    studies = plan_studies(seed)
    patients, admissions = hospital_tables(studies, seed=seed)
    subjects = {study.subject_id for study in studies}
    assert patients.subject_id.is_monotonic_increasing and patients.subject_id.is_unique
    assert set(patients.subject_id) < subjects
    assert abs(len(patients) / len(subjects) - 5 / 6) < 0.08
    assert min(patients.gender.value_counts(normalize=True)[["F", "M"]]) > 0.4
    assert patients.anchor_age.between(18, 91).all()
    births = patients.set_index("subject_id").eval("anchor_year - anchor_age")
    ages = np.array(
        [
            int(date_and_time(study, seed=seed)[0][:4]) - births[study.subject_id]
            for study in studies
            if study.subject_id in births
        ]
    )
    assert ages.min() >= 18 and ages.max() <= 91
    assert min(np.histogram(ages, bins=[18, 40, 60, 80, 120])[0]) > 20
    assert admissions.hadm_id.is_unique and admissions.hadm_id.between(20_000_000, 29_999_999).all()
    assert (admissions.admittime < admissions.dischtime).all()
    races = admissions.groupby("subject_id").race
    assert set(races.groups) < set(patients.subject_id)  # some were never admitted
    assert races.size().max() > 2 and 0.1 < (races.nunique() > 1).mean() < 0.3
    assert set(admissions.race) == set(RACES)


def test_hospital_tables_have_their_columns_even_without_a_patient():
    patients, admissions = hospital_tables([], seed=0)
    assert "anchor_age" in patients and "race" in admissions
    assert len(patients) == len(admissions) == 0


def test_no_patient_is_in_two_splits_and_some_have_several_studies_and_images(root):
    splits = read_table(root, "split")
    assert (splits.groupby("subject_id").split.nunique() == 1).all()
    assert splits.groupby("subject_id").study_id.nunique().max() > 1
    assert splits.groupby("study_id").dicom_id.nunique().max() > 1


@pytest.mark.parametrize("num_images", [12, 60, 120, 600])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_split_has_both_labels_of_both_tasks_among_frontal_images(num_images, seed):
    images = plan_images(num_images, image_size=64, seed=seed)
    assert len({image.dicom_id for image in images}) == len(images) == num_images
    for split, share in {"train": 0.7, "validate": 0.13, "test": 0.17}.items():
        mine = [image for image in images if image.study.split == split]
        assert abs(len(mine) / num_images - share) < 0.05
        labels = [image.study.negbio for image in mine if image.view in FRONTAL and image.study.negbio]
        positive = [any(label[name] == "1.0" for name in FINDINGS) for label in labels]
        assert set(positive) == {True, False}
        assert any(label["Pleural Effusion"] == "1.0" for label in labels)
        assert any(label["No Finding"] == "1.0" and label["Pleural Effusion"] != "1.0" for label in labels)
        if len(labels) > 40:
            assert abs(np.mean(positive) - POSITIVE_FRACTION) < 0.08


def test_labels_follow_from_what_was_drawn(root):
    with gzip.open(root / "sample-findings.json.gz", "rt", encoding="utf-8") as file:
        drawn = json.load(file)
    assert set(drawn) == set(read_table(root, "metadata").dicom_id)
    for row in read_images(root).to_dict("records"):
        positive = {name for name in FINDINGS if row[name] == "1.0"}
        assert {entry["finding"] for entry in drawn[row["dicom_id"]]} == positive
        for entry in drawn[row["dicom_id"]]:
            x0, y0, x1, y1 = entry["box"]
            assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1


@pytest.mark.parametrize("finding", FINDINGS)
@pytest.mark.parametrize("view", ["PA", "LATERAL"])
def test_every_finding_changes_the_image_inside_its_boxes_more_than_outside(finding, view):
    images = plan_images(60, image_size=96, seed=0)
    planned = next(image for image in images if image.study.negbio and not image.study.drawn)
    planned = dataclasses.replace(planned, view=view)
    healthy, _ = draw_image(planned, seed=0)
    planned = dataclasses.replace(planned, study=dataclasses.replace(planned.study, drawn={finding: 1.0}))
    ill, boxes = draw_image(planned, seed=0)
    change = np.abs(np.asarray(ill, dtype=float) - np.asarray(healthy, dtype=float))
    inside = np.zeros(change.shape, dtype=bool)
    for entry in boxes:
        x0, y0, x1, y1 = np.multiply(entry["box"], [planned.width, planned.height] * 2)
        inside[round(y0) : round(y1), round(x0) : round(x1)] = True
    assert change[inside].mean() > 1.3 * change[~inside].mean()


def test_a_large_image_is_drawn_small_and_enlarged_to_its_full_size():
    planned = plan_images(12, image_size=1600, seed=0)[0]
    image, _ = draw_image(planned, seed=0)
    assert min(image.size) == 1600


def test_full_or_impossible_output_folder_is_refused_with_one_line(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep me", encoding="utf-8")
    assert f"{tmp_path} is not an empty folder" in refused(sample.main, [tmp_path], capsys)
    assert "cannot be written (Not a directory)" in refused(
        sample.main, [tmp_path / "mine.txt" / "below"], capsys
    )
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("options", [["--num_images", "3"], ["--image_size", "8"], ["--num_images", "many"]])
def test_impossible_sizes_are_refused_with_one_line(tmp_path, capsys, options):
    assert refused(sample.main, [tmp_path / "new", *options], capsys)
    assert not any(tmp_path.iterdir())


def test_interrupted_run_leaves_nothing_under_the_final_name(tmp_path, monkeypatch):
    draw, drawn = draw_image, []

    def interrupted(planned, *, seed):
        drawn.append(planned)
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return draw(planned, seed=seed)

    monkeypatch.setattr(sample, "draw_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sample.make_sample_data(tmp_path / "cxr", num_images=12, image_size=32)
    assert len(drawn) == 4
    assert not any(tmp_path.iterdir())
