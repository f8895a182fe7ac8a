"""The label rule of several findings, and the radiologist's labels."""

import numpy as np
import pandas as pd
import pytest
from mimic_roots import build
from mimic_roots import patients
from mimic_roots import write_root
from mimic_tables import refusal
from mimic_tables import write_csv

from mimic_cxr_dataset.choices import CHEXPERT5
from mimic_cxr_dataset.choices import LABELS
from mimic_cxr_dataset.choices import MASKED
from mimic_cxr_dataset.choices import SMOOTH
from mimic_cxr_dataset.label_rule import LabelRule
from mimic_cxr_dataset.label_rule import parse_uncertain
from mimic_cxr_dataset.labels import index_images
from mimic_cxr_dataset.labels import read_radiologist
from mimic_cxr_dataset.tables import read_images

NO_FINDING, DEVICES = "No Finding", "Support Devices"
# The labels of a study, and what Edema, No Finding and Support Devices are with blank negative and exclude.
BLANKS = [
    ({}, (0, 0, 0), (MASKED, MASKED, MASKED)),
    ({NO_FINDING: 1}, (0, 1, 0), (0, 1, MASKED)),
    ({NO_FINDING: 1, DEVICES: 1}, (0, 1, 1), (0, 1, 1)),
    ({DEVICES: 1}, (0, 0, 1), (MASKED, 0, 1)),
    ({"Fracture": 1}, (0, 0, 0), (MASKED, 0, MASKED)),
    ({"Edema": 0}, (0, 0, 0), (0, MASKED, MASKED)),
    ({"Edema": 1, NO_FINDING: 1}, (1, 1, 0), (1, 1, MASKED)),
    ({"Fracture": -1}, (0, 0, 0), (MASKED, MASKED, MASKED)),
]


def root_of(tmp_path, studies, *, split="train", **options):
    """Writes a folder with one image per study; `studies` are dicts of labels."""
    images = patients(len(studies), split=split)
    labels = {image["study"]: of_study for image, of_study in zip(images, studies)}
    return write_root(tmp_path, images, labels=labels, draw=False, **options)


def codes_of(root, names, **options):
    """The codes of `names` by study, and None for studies that are left out."""
    rows, _ = index_images(root, task="findings", **options)
    found = dict(zip(rows["study_id"], rows[list(names)].itertuples(index=False, name=None)))
    return [found.get(study) for study in read_images(root)["study_id"]]


@pytest.mark.parametrize("blank", ["negative", "exclude"])
def test_a_blank_is_negative_or_masked_unless_no_finding_decides_it(tmp_path, blank):
    root = root_of(tmp_path, [case[0] for case in BLANKS])
    found = codes_of(root, ("Edema", NO_FINDING, DEVICES), blank=blank)
    expected = [case[1 if blank == "negative" else 2] for case in BLANKS]
    if blank == "exclude":
        expected[0] = None  # all 14 labels are masked: there is nothing to learn from
    assert found == expected


def test_an_uncertain_label_counts_by_the_policy_of_its_finding(tmp_path):
    root = root_of(tmp_path, [{"Edema": -1, "Pneumonia": -1, "Fracture": 0}])
    cases = {
        "negative": (0, 0),
        "positive": (1, 1),
        "exclude": (MASKED, MASKED),
        "smooth": (SMOOTH, SMOOTH),
        "mix": (1, 0),
        "Edema=exclude,Pneumonia=smooth": (MASKED, SMOOTH),
        "exclude,Edema=positive": (1, MASKED),
    }
    for uncertain, expected in cases.items():
        assert codes_of(root, ("Edema", "Pneumonia"), uncertain=uncertain) == [expected], uncertain


def test_smooth_counts_as_positive_outside_of_training(tmp_path):
    for split in ("validate", "test"):
        root = root_of(tmp_path / split, [{"Edema": -1}], split=split)
        assert codes_of(root, ("Edema",), uncertain="smooth") == [(1,)]


def test_a_policy_per_finding_also_rules_a_task_with_one_label(tmp_path):
    root = root_of(tmp_path, [{"Edema": -1}, {"Pneumonia": -1}, {"Fracture": -1}])
    rows, exclusions = index_images(root, uncertain="Edema=positive,Pneumonia=exclude")
    assert rows["label"].tolist() == [1, 0]
    assert exclusions.loc["train", "uncertain"] == 1


def test_images_without_any_known_label_are_left_out_with_the_reason(tmp_path):
    root = root_of(tmp_path, [{"Edema": -1}, {}, {"Edema": 1}])
    options = {"uncertain": "exclude", "blank": "exclude", "findings": ("Edema",)}
    rows, exclusions = index_images(root, task="findings", **options)
    assert rows["Edema"].tolist() == [1]
    assert exclusions.loc["train", ["uncertain", "other labels", "kept"]].tolist() == [1, 1, 1]


def test_the_label_of_an_image_says_whether_any_finding_is_positive(tmp_path):
    root = root_of(tmp_path, [{NO_FINDING: 1}, {"Edema": 1}, {"Edema": -1}, {NO_FINDING: 1, DEVICES: 1}])
    assert index_images(root, task="findings")[0]["label"].tolist() == [0, 1, 0, 1]
    assert index_images(root, task="findings", uncertain="smooth")[0]["label"].tolist() == [0, 1, 1, 1]
    only = index_images(root, task="findings", findings=(NO_FINDING,))[0]
    assert only["label"].tolist() == only[NO_FINDING].tolist() == [1, 0, 0, 1]


def test_findings_are_learned_in_one_order_however_they_are_named():
    assert LabelRule(task="findings").label_names == LABELS
    assert LabelRule(task="findings", findings=("chexpert5",)).label_names == CHEXPERT5
    named = LabelRule(task="findings", findings=("Edema", "chexpert5", NO_FINDING, "Edema")).label_names
    assert named == tuple(sorted((*CHEXPERT5, NO_FINDING)))


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"findings": ("Edma",)}, ("findings", "'Edma'", "did you mean 'Edema'")),
        ({"findings": ("Q",)}, ("'Q'", *LABELS)),
        ({"uncertain": "smoth"}, ("uncertain='smoth'", "expected one of mix, negative")),
        ({"uncertain": "edema=positive"}, ("'edema=positive'", "did you mean 'Edema'")),
        ({"uncertain": "Edema=sometimes"}, ("'sometimes'", "positive")),
        ({"uncertain": "Edema=positive,Edema=negative"}, ("two policies for Edema",)),
        ({"uncertain": "positive,exclude"}, ("'exclude'", "FINDING=POLICY")),
        ({"uncertain": ""}, ("uncertain=''", "expected one of")),
        ({"blank": "positive"}, ("blank='positive'", "'negative' or 'exclude'")),
        ({"task": "finding", "blank": "exclude"}, ("blank='exclude'", "expected 'findings'")),
        ({"task": "finding", "findings": ("Edema",)}, ("findings=", "expected 'findings'")),
        ({"task": "pleural_effusion", "uncertain": "smooth"}, ("found smooth", "expected 'findings'")),
        ({"task": "finding", "uncertain": "Edema=smooth"}, ("found smooth", "expected 'findings'")),
    ],
)
def test_wrong_options_are_refused_in_one_line(options, parts):
    refusal(lambda: LabelRule(**{"task": "findings", **options}), *parts)


def test_mix_is_the_usual_choice_for_chexpert():
    positive = {name for name, policy in parse_uncertain("mix").items() if policy == "positive"}
    assert positive == {"Atelectasis", "Edema"}
    assert set(parse_uncertain("mix").values()) == {"positive", "negative"}


def test_the_loading_script_gives_a_number_per_finding_or_none(tmp_path):
    images = patients(4)
    studies = [{"Edema": 1}, {"Edema": -1}, {"Edema": 0}, {NO_FINDING: 1}]
    labels = {image["study"]: of_study for image, of_study in zip(images, studies)}
    root = write_root(tmp_path / "root", images, labels=labels)
    options = {"blank": "exclude", "findings": ["Edema", DEVICES]}
    builder = build(root, tmp_path, "findings", uncertain="smooth", **options)
    rows = builder.as_dataset(split="train")
    assert [row["labels"]["Edema"] for row in rows] == pytest.approx([1.0, 0.7, 0.0, 0.0])
    assert [row["labels"][DEVICES] for row in rows] == [None] * 4
    assert "label" not in rows.column_names


# The radiologist --------------------------------------------------------------------------------------------

HEADER = ["study_id", *sorted({*LABELS, "Airspace Opacity"} - {"Lung Opacity"})]


def write_radiologist(root, studies, *, header=HEADER):
    """Writes the table of v2.1.0; `studies` are dicts of labels by study."""
    rows = [[study, *(values.get(name, "") for name in header[1:])] for study, values in studies.items()]
    write_csv(root / "mimic-cxr-2.1.0-test-set-labeled.csv", header, rows)


def test_the_radiologists_labels_have_the_patients_of_the_split_table(tmp_path):
    root = root_of(tmp_path, [{}, {}, {}], split="test")
    write_radiologist(root, {50000002: {"Airspace Opacity": 1, "Edema": -1}, 50000001: {NO_FINDING: 1}})
    found = read_radiologist(root, images=read_images(root))
    assert found["study_id"].tolist() == [50000002, 50000001]
    assert found["subject_id"].tolist() == [10000002, 10000001]
    assert found["Lung Opacity"].iloc[0] == 1 and found["Edema"].iloc[0] == -1
    assert np.isnan(found["Fracture"]).all() and found["No Finding"].iloc[1] == 1


def test_without_the_radiologists_table_there_are_no_such_labels(tmp_path):
    root = root_of(tmp_path, [{}], split="test")
    assert read_radiologist(root, images=read_images(root)) is None


def test_a_study_whose_images_the_metadata_lack_is_known_from_the_split_table(tmp_path):
    root = root_of(tmp_path, [{}, {}], split="test", ext=".csv")
    write_radiologist(root, {50000001: {}, 50000002: {}})
    path = root / "mimic-cxr-2.0.0-metadata.csv"
    pd.read_csv(path).iloc[:1].to_csv(path, index=False)
    found = read_radiologist(root, images=read_images(root))
    assert found["subject_id"].tolist() == [10000001, 10000002]


@pytest.mark.parametrize(
    ("studies", "header", "parts"),
    [
        ({50000009: {}}, HEADER, ("line 2", "wrong study_id", "test split")),
        ({50000001: {"Edema": 2}}, HEADER, ("line 2", "Edema is '2'", "1.0, 0.0, -1.0 or blank")),
        ({50000001: {}}, ["study_id", *LABELS], ("no column 'Airspace Opacity'",)),
        ({50000001: {}}, ["study", *HEADER[1:]], ("no column 'study_id'",)),
        ({"x": {}}, HEADER, ("wrong study_id", "a whole number")),
    ],
)
def test_a_wrong_table_of_the_radiologist_is_refused_in_one_line(tmp_path, studies, header, parts):
    root = root_of(tmp_path, [{}], split="test")
    write_radiologist(root, studies, header=header)
    refusal(lambda: read_radiologist(root, images=read_images(root)), "test-set-labeled.csv", *parts)


def test_a_study_of_another_split_is_refused(tmp_path):
    root = root_of(tmp_path, [{}], split="train")
    write_radiologist(root, {50000001: {}})
    refusal(lambda: read_radiologist(root, images=read_images(root)), "line 2", "test split")
