"""Manifests: any collection with its own labels, text ids and image files is read rightly, or refused."""

import pytest
from manifest_roots import draw_images
from manifest_roots import manifest_rows
from manifest_roots import write_manifest
from mimic_roots import build
from mimic_tables import refusal

from mimic_cxr_dataset.choices import LABELS
from mimic_cxr_dataset.choices import MASKED
from mimic_cxr_dataset.errors import DatasetError
from mimic_cxr_dataset.label_rule import LabelRule
from mimic_cxr_dataset.labels import index_images
from mimic_cxr_dataset.labels import label_images
from mimic_cxr_dataset.labels import labels_of_collection
from mimic_cxr_dataset.labels import read_labels
from mimic_cxr_dataset.radiographs import find_image
from mimic_cxr_dataset.tables import read_images


def labels_of(root, **options):
    kept, _ = index_images(root, **options)
    return dict(zip(kept["dicom_id"], kept["label"]))


def test_ids_are_text_splits_and_views_are_named_freely_and_paths_lead_anywhere(tmp_path):
    rows = manifest_rows(4)
    rows[0] |= {"subject_id": "0007", "split": "validate", "view_position": " lateral "}
    rows[1] |= {"path": "/elsewhere/b.png"}
    images = read_images(write_manifest(tmp_path, rows))
    assert images["subject_id"].tolist()[0] == "0007"
    assert images["split"].tolist()[0] == "validation" and images["view_position"].tolist()[0] == "LATERAL"
    assert images["path"].tolist()[:2] == [str(tmp_path / "images/000.jpg"), "/elsewhere/b.png"]


def test_finding_is_1_where_any_label_but_no_finding_is_1(tmp_path):
    rows = manifest_rows(4, **dict.fromkeys(["Edema", "Hernia", "Pleural Effusion"], 0))
    rows = [{**row, "No Finding": ""} for row in rows]
    rows[0]["No Finding"] = rows[1]["Hernia"] = 1
    rows[2]["Edema"] = -1
    root = write_manifest(tmp_path, rows)
    assert list(labels_of(root).values()) == [0, 1, 0, 0]
    assert list(labels_of(root, uncertain="positive").values()) == [0, 1, 1, 0]


def test_an_image_that_is_not_normal_and_has_none_of_the_findings_is_left_out(tmp_path):
    rows = manifest_rows(4, **dict.fromkeys(["No Finding", "Edema", "Hernia", "Pleural Effusion"], 0))
    rows[0]["No Finding"] = rows[1]["Hernia"] = 1
    rows[2]["Edema"] = -1
    kept, exclusions = index_images(write_manifest(tmp_path, rows))
    assert kept["label"].tolist() == [0, 1]
    assert exclusions["other labels"].sum() == 2


def test_findings_are_the_labels_of_the_collection_in_order_of_mimic_then_the_others(tmp_path):
    rows = manifest_rows(4, Alien=0)
    kept, _ = index_images(write_manifest(tmp_path, rows), task="findings")
    names = ("Edema", "No Finding", "Pleural Effusion", "Hernia", "Alien")
    rule = LabelRule(task="findings", collection=labels_of_collection(tmp_path))
    assert rule.label_names == names and {*names} <= {*kept}
    assert not {*LABELS} - {*names} & {*kept}
    assert LabelRule(task="findings", findings=("Alien",), collection=names).label_names == ("Alien",)


def test_a_file_with_another_suffix_is_not_the_file_of_the_manifest(tmp_path):
    (tmp_path / "a.png").touch()
    assert find_image(str(tmp_path / "a.jpg")) is None
    assert find_image(str(tmp_path / "a.png")) == str(tmp_path / "a.png")


def test_labels_belong_to_an_image_and_not_to_its_study(tmp_path):
    rows = manifest_rows(4, study_id="s", subject_id="p", split="train")
    found = labels_of(write_manifest(tmp_path, rows), task="findings", findings=("Edema",))
    assert list(found.values()) == [1, 1, 0, 0]


def test_without_the_column_no_finding_an_image_is_normal_if_a_label_is_0_and_none_1_or_uncertain(tmp_path):
    rows = manifest_rows(5)
    values = [(1, 0), (0, 0), (0, ""), (0, -1), ("", "")]
    for row, (effusion, edema) in zip(rows, values):
        del row["No Finding"], row["Hernia"]
        row |= {"Pleural Effusion": effusion, "Edema": edema}
    root = write_manifest(tmp_path, rows)
    assert list(labels_of(root, task="pleural_effusion").values()) == [1, 0, 0]
    assert "No Finding" not in LabelRule(task="findings", collection=labels_of_collection(root)).label_names
    assert read_labels(root, "negbio", ["No Finding"], images=None)["No Finding"].notna().sum() == 2


@pytest.mark.parametrize("task", ["finding", "pleural_effusion", "findings"])
def test_image_whose_labels_are_all_blank_has_no_label_and_only_a_pretraining_keeps_it(task, tmp_path):
    rows = manifest_rows(4, view_position="PA", split="train")
    rows[2] |= dict.fromkeys(["No Finding", "Edema", "Hernia", "Pleural Effusion"], "")
    root = write_manifest(tmp_path, rows)
    kept, exclusions = index_images(root, task=task)
    assert "image 002" not in [*kept["dicom_id"]] and exclusions.loc["train", "no label row"] == 1
    for_pretraining, exclusions = index_images(root, task=task, keeps_unlabelled=True)
    unlabelled = for_pretraining[for_pretraining["dicom_id"] == "image 002"]
    assert unlabelled["label"].tolist() == [MASKED] and exclusions.loc["train", "no label row"] == 0
    assert (unlabelled[[name for name in LABELS if name in unlabelled]] == MASKED).all(axis=None)
    assert for_pretraining.drop(unlabelled.index)["dicom_id"].tolist() == kept["dicom_id"].tolist()


def test_without_the_column_no_finding_a_blank_stays_unknown(tmp_path):
    rows = manifest_rows(4, **{"Edema": 0, "Pleural Effusion": ""})
    for row in rows:
        del row["No Finding"], row["Hernia"]
    kept, _ = index_images(write_manifest(tmp_path, rows), task="findings", blank="exclude")
    assert kept["Edema"].tolist() == [0] * 4 and kept["Pleural Effusion"].tolist() == [MASKED] * 4


def test_label_columns_are_those_of_collection_json_or_else_those_that_look_so(tmp_path, caplog):
    rows = manifest_rows(4, age=34, sex="F", Mass="", Hernia2="1.0")
    root = write_manifest(tmp_path, rows)
    expected = ("Edema", "No Finding", "Pleural Effusion", "Hernia", "Hernia2")
    assert labels_of_collection(root) == expected
    assert "not used: age, sex, Mass" in caplog.text
    assert "are used as labels: Hernia, Hernia2; if one is not a label" in caplog.text
    write_manifest(tmp_path, rows, labels=["Hernia", "Edema"])
    assert labels_of_collection(root) == ("Edema", "Hernia")


def test_mix_and_chexpert5_apply_to_the_findings_that_the_collection_has():
    rule = LabelRule(task="findings", collection=("Edema", "Hernia"), uncertain="mix")
    assert rule.policies == {"Edema": "positive", "Hernia": "negative", "No Finding": "negative"}
    names = ("Cardiomegaly", "Edema")
    refusal(
        lambda: LabelRule(task="findings", findings=("chexpert5",), collection=names),
        "no column 'Atelectasis' in manifest.csv, which has Cardiomegaly, Edema",
    )


# A change of the second row, and what the message says.
WRONG = {
    "image twice": ({"image_id": "image 000"}, "line 3: wrong image_id; expected one row per image"),
    "file twice": ({"path": "images/000.jpg"}, "line 3: wrong path; expected one row per file"),
    "file twice in other words": ({"path": "./images/../images/000.jpg"}, "expected one row per file"),
    "no image id": ({"image_id": ""}, "line 3: wrong image_id; expected 1 to 200 letters"),
    "other letters": ({"image_id": "ä"}, "line 3: wrong image_id; expected 1 to 200 letters"),
    "space after it": ({"subject_id": "p000 "}, "wrong subject_id; expected 1 to 200 letters"),
    "no patient": ({"subject_id": " "}, "line 3: wrong subject_id; expected 1 to 200 letters"),
    "no path": ({"path": ""}, "line 3: wrong path; expected the path of a file"),
    "path of a chain": ({"path": "a::b"}, "line 3: wrong path; expected a path without '::'"),
    "long view": ({"view_position": "x" * 41}, "line 3: view_position is 'xxx"),
    "unprintable view": ({"view_position": "PA\u00a0ERECT"}, "expected at most 40 printable characters"),
    "no split": ({"split": ""}, "line 3: split is ''; expected train, validation or test"),
    "two splits": ({"subject_id": "p000", "split": "test"}, "line 3: split is 'test'; expected each patient"),
    "two patients": ({"study_id": "s000"}, "line 3: wrong subject_id; expected one patient per study"),
    "value": ({"Edema": 0.5}, "line 3: Edema is '0.5'; expected 1.0, 0.0, -1.0 or blank"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_value_is_refused_in_one_line_with_its_line_and_without_ids(name, tmp_path):
    change, message = WRONG[name]
    rows = manifest_rows(8)
    rows[1] |= change
    root = write_manifest(tmp_path, rows)
    found = refusal(lambda: index_images(root, task="findings"), root / "manifest.csv", message)
    assert "image 000" not in found and "p000" not in found


@pytest.mark.parametrize("column", ["image_id", "path", "subject_id", "study_id", "view_position", "split"])
def test_missing_column_is_named(column, tmp_path):
    rows = manifest_rows(4)
    for row in rows:
        del row[column]
    refusal(lambda: read_images(write_manifest(tmp_path, rows)), "manifest.csv has no column", column)


@pytest.mark.parametrize("name", ["label", "position", "a,b", "a=b", "x" * 41])
def test_label_that_a_table_or_a_flag_could_not_hold_is_refused(name, tmp_path):
    root = write_manifest(tmp_path, manifest_rows(4, **{name: 1}))
    refusal(lambda: labels_of_collection(root), "found a label named", "rename it")


@pytest.mark.parametrize(
    ("name", "ours"),
    [("No finding", "No Finding"), ("normal", "No Finding"), ("pleural_effusion", "Pleural Effusion")],
)
def test_another_spelling_of_a_label_is_refused_because_it_would_be_another_label(name, ours, tmp_path):
    root = write_manifest(tmp_path, manifest_rows(4, **{name: 1}))
    message = f"found a label named {name!r}, expected {ours!r}: rename it"
    refusal(lambda: index_images(root, task="finding"), message)


def test_task_that_the_collection_has_no_labels_for_is_refused(tmp_path):
    rows = [{name: row[name] for name in [*row][:6]} | {"Edema": 1} for row in manifest_rows(4)]
    root = write_manifest(tmp_path, rows)
    refusal(lambda: index_images(root, task="pleural_effusion"), "no column 'Pleural Effusion'", "has Edema")
    write_manifest(tmp_path, rows, labels=[])
    assert labels_of(root) == {}
    assert {*labels_of(root, keeps_unlabelled=True).values()} == {MASKED}  # enough for pretraining
    refusal(lambda: build(root, tmp_path, "finding"), "no column of a finding", "has no labels")
    write_manifest(tmp_path, [{**row, "No Finding": 1} for row in rows], labels=["No Finding"])
    refusal(lambda: build(root, tmp_path, "finding"), "no column of a finding", "has No Finding")
    write_manifest(tmp_path, rows, labels=[])
    refusal(lambda: index_images(root, task="findings"), "no column of labels")


def test_loading_script_reads_every_format_and_gives_text_ids_and_the_collections_license(tmp_path):
    rows = manifest_rows(12)
    root = write_manifest(tmp_path / "root", rows, name="Ours", license="CC0", citation="Us", equalized=False)
    draw_images(root, rows)
    builder = build(root, tmp_path, "findings", image_size=32)
    dataset = builder.as_dataset()
    assert {split: len(of_split) for split, of_split in dataset.items()} == {
        "train": 6,
        "validation": 3,
        "test": 3,
    }
    first = dataset["train"][0]
    assert first["subject_id"] == "p000" and first["dicom_id"] == "image 000"
    assert first["labels"] == {"Edema": 1, "No Finding": 0, "Pleural Effusion": 1, "Hernia": 0}
    assert builder.info.license == "CC0" and builder.info.description.startswith("Ours, findings, labels of")
    (root / rows[1]["path"]).unlink()
    with pytest.raises(DatasetError, match=r"1 of 12 images are missing, the first is .*001.png: download"):
        build(root, tmp_path / "other", image_size=32)


def test_changed_manifest_gives_another_cache(tmp_path):
    rows = manifest_rows(12)
    root = write_manifest(tmp_path / "root", rows)
    draw_images(root, rows)
    before = build(root, tmp_path, image_size=32).as_dataset(split="train")["label"][:]
    rows[2]["Hernia"] = rows[2]["Pleural Effusion"] = 1
    write_manifest(root, rows)
    after = build(root, tmp_path, image_size=32).as_dataset(split="train")["label"][:]
    assert list(before) != list(after)


def test_label_images_takes_the_images_and_labels_of_a_manifest(tmp_path):
    root = write_manifest(tmp_path, manifest_rows(8))
    images, rule = read_images(root), LabelRule(collection=labels_of_collection(root))
    kept, exclusions = label_images(
        images, read_labels(root, rule.labeler, rule.columns, images=images), rule
    )
    assert len(kept) == 8 and exclusions["kept"].sum() == 8
