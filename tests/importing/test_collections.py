"""Each collection is read as published: its splits, labels and views; what differs or lacks is said."""

import json
import re
from pathlib import Path

import import_dataset
import numpy as np
import pandas as pd
import pytest
from collection_files import draw
from collection_files import medmnist_arrays
from collection_files import write_chexpert
from collection_files import write_nih
from collection_files import write_padchest
from collection_files import write_rsna
from collection_files import write_vindr
from collection_files import write_vindr_of_kaggle
from cxr.choices import LABELS
from cxr.data.images import load_images
from cxr.errors import UserError
from cxr.importing import label_maps
from cxr.importing.label_maps import rename
from cxr.importing.manifest_table import cut_split
from import_runs import labels_of
from import_runs import run
from import_runs import write_own_table
from mimic_tables import write_csv
from PIL import Image

from mimic_cxr_dataset.label_rule import LabelRule
from mimic_cxr_dataset.manifest import check_label_names

LABEL_MAPS = {
    "nih": label_maps.NIH,
    "pneumoniamnist": label_maps.PNEUMONIAMNIST,
    "chestmnist": label_maps.CHESTMNIST,
    "vindr": label_maps.VINDR,
    "rsna": label_maps.RSNA,
    "padchest": label_maps.PADCHEST,
}
PAGE = Path(__file__).parents[2] / "docs" / "collections.md"


def test_nih_has_its_official_split_and_validation_by_patient(tmp_path, capsys):
    findings = ["Mass|Effusion", "Nodule", "No Finding", "Infiltration"] * 6
    manifest = run("nih", write_nih(tmp_path / "nih", findings, num_test=4), tmp_path / "out")
    assert manifest["split"].value_counts().to_dict() == {"train": 18, "test": 4, "validation": 2}
    assert (manifest.groupby("subject_id")["split"].nunique() == 1).all()
    first = manifest.loc["00000001_000.png"]
    assert (first["Lung Lesion"], first["Pleural Effusion"], first["Infiltration"]) == ("1", "1", "0")
    assert first["view_position"] == "PA" and Path(first["path"]).is_file()
    assert manifest.loc["00000001_001.png", "Lung Lesion"] == "1"
    assert not {"Lung Opacity", "Fracture", "Support Devices"} & {*manifest}  # not annotated
    out = capsys.readouterr().out
    assert "images: 24, published: 112,120" in out and "test images: 4, published: 25,596" in out
    said = json.loads((tmp_path / "out" / "collection.json").read_text(encoding="utf-8"))
    assert said["name"] == "NIH ChestX-ray14" and said["equalized"] is False and said["citation"]


def test_nih_of_2017_and_lost_images_are_read_and_the_lost_are_counted(tmp_path, capsys):
    root = write_nih(tmp_path / "nih", ["No Finding", "Hernia"] * 4, num_test=2, old=True)
    next(root.rglob("00000001_000.png")).unlink()
    manifest = run("nih", root, tmp_path / "out", "--keep_labels")
    assert len(manifest) == 7 and {"Mass", "Nodule", "Pleural Thickening"} <= {*manifest}
    assert "Note: 1 of 8 images have no file and were left out" in " ".join(capsys.readouterr().out.split())


def test_samples_of_a_collection_are_nested_and_by_patient(tmp_path):
    root = write_nih(tmp_path / "nih", ["No Finding"] * 40, num_test=8)
    small = run("nih", root, tmp_path / "small", "--max_images", 11)
    large = run("nih", root, tmp_path / "large", "--max_images", 20)
    assert len(small) == 10 and len(large) == 20 and {*small.index} < {*large.index}
    assert (small.groupby("subject_id").size() == 2).all()


def test_balanced_images_are_half_of_a_label_and_half_normal(tmp_path, capsys):
    root = write_nih(
        tmp_path / "nih", ["Pneumonia|Mass", "No Finding", "Hernia", "No Finding"] * 6, num_test=8
    )
    manifest = run("nih", root, tmp_path / "out", "--balance", "Pneumonia")
    assert manifest["Pneumonia"].tolist().count("1") == 6 and len(manifest) == 12
    assert "only a sample is kept" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--balance Edemas: found the labels"):
        run("nih", root, tmp_path / "other", "--balance", "Edemas")


def test_balance_takes_a_blank_label_for_not_positive_in_each_split(tmp_path):
    kinds = [(1, ""), ("", 1), ("", 1), ("", 1)]  # (Pneumonia, No Finding)
    rows = [[f"{n}.png", "train" if n < 12 else "test", *kinds[n % 4]] for n in range(20)]
    table = write_own_table(tmp_path / "own", ["path", "split", "Pneumonia", "No Finding"], rows)
    flags = ["--split_column", "split", "--label_columns", "Pneumonia", "No Finding"]
    whole = run("table", table, tmp_path / "whole", *flags)
    manifest = run("table", table, tmp_path / "out", *flags, "--balance", "Pneumonia")
    for split, part in manifest.groupby("split"):
        num_ill = (whole.loc[whole["split"] == split, "Pneumonia"] == "1").sum()
        assert (part["Pneumonia"] == "1").sum() == num_ill
        assert (part["No Finding"] == "1").sum() == num_ill


@pytest.mark.parametrize("collection", LABEL_MAPS)
def test_kept_labels_have_names_that_a_manifest_may_have(collection):
    names = list(dict.fromkeys(rename(LABEL_MAPS[collection], keeps_labels=True).values()))
    assert check_label_names(Path("manifest.csv"), names) and len(names) == len(LABEL_MAPS[collection])


def test_chexpert_keeps_uncertain_and_blank_labels_and_takes_radiologists_labels_as_test(tmp_path):
    manifest = run("chexpert", write_chexpert(tmp_path / "chexpert"), tmp_path / "out")
    assert manifest["split"].value_counts().to_dict() == {"train": 24, "validation": 4, "test": 4}
    train = manifest.loc["patient00001/study1/view1_frontal.jpg"]
    assert (train["Edema"], train["Pneumonia"], train["Fracture"]) == ("-1", "1", "")
    views = manifest.groupby("split")["view_position"].unique().map(sorted).to_dict()
    assert views["train"] == ["AP", "LATERAL"] and views["test"] == ["FRONTAL", "LATERAL"]
    assert {*labels_of(manifest)} == {*LABELS}


def test_two_sizes_of_chexpert_in_one_folder_are_refused(tmp_path):
    write_chexpert(tmp_path / "chexpert")
    write_chexpert(tmp_path / "chexpert" / "small")
    with pytest.raises(ValueError, match="expected one file of each image"):
        run("chexpert", tmp_path / "chexpert", tmp_path / "out")


def test_chexpert_without_test_labels_has_valid_as_test_and_says_so(tmp_path, capsys):
    root = write_chexpert(tmp_path / "chexpert", has_test=False)
    manifest = run("chexpert", root, tmp_path / "out", "--validation_share", 0.25)
    assert manifest["split"].value_counts().to_dict() == {"train": 18, "validation": 6, "test": 4}
    out = capsys.readouterr().out
    assert "the test split is CheXpert's valid.csv" in out.replace("\n", " ")
    assert "test images: 4, published: 234" in out and "patients: 14, published: 64,740" in out
    for lost in (root / "train").glob("patient0000[1-5]/*/*"):
        lost.unlink()
    rest = run("chexpert", root, tmp_path / "rest", "--validation_share", 0.25)
    assert len(rest) < len(manifest) and rest["split"].equals(manifest.loc[rest.index, "split"])


@pytest.mark.parametrize("name", ["pneumoniamnist", "pneumoniamnist_64", "chestmnist_128"])
def test_medmnist_has_its_official_splits_and_pixels(name, tmp_path):
    kind, _, side = name.partition("_")
    arrays = medmnist_arrays(kind, (9, 3, 4), side=int(side or 28))
    np.savez(tmp_path / f"{name}.npz", **arrays)
    manifest = run("medmnist", tmp_path / f"{name}.npz", tmp_path / "out")
    assert manifest["split"].value_counts().to_dict() == {"train": 9, "test": 4, "validation": 3}
    with Image.open(tmp_path / "out" / manifest.loc["val000002", "path"]) as image:
        assert (np.asarray(image) == arrays["val_images"][2]).all()
    if kind == "pneumoniamnist":
        assert manifest["Pneumonia"].astype(int).tolist() == [
            *arrays["train_labels"][:, 0], *arrays["val_labels"][:, 0], *arrays["test_labels"][:, 0]
        ]  # fmt: skip
    else:
        labels = arrays["test_labels"][1]  # mass is column 4, nodule 5
        assert manifest.loc["test000001", "Lung Lesion"] == str(max(labels[4], labels[5]))


def test_vindr_counts_two_of_three_radiologists_and_joins_the_test_consensus(tmp_path):
    manifest = run("vindr", write_vindr(tmp_path / "vindr"), tmp_path / "out")
    fracture = manifest["Fracture"].astype(int)
    assert fracture.iloc[:3].tolist() == [1, 0, 0]
    assert manifest["No Finding"].iloc[:3].tolist() == ["0", "1", "1"]
    assert manifest["split"].value_counts().to_dict() == {"train": 9, "test": 4, "validation": 1}
    assert manifest.loc[manifest["split"] == "test", "COPD"].tolist() == ["1"] * 4


def test_vindr_of_kaggle_counts_radiologists_and_not_boxes(tmp_path, capsys):
    manifest = run("vindr", write_vindr_of_kaggle(tmp_path / "vindr"), tmp_path / "out")
    assert manifest["Cardiomegaly"].tolist() == ["1"] * 2 + ["0"] * 8
    assert {*manifest["Calcification"]} == {"0"} and "Edema" not in manifest
    out = capsys.readouterr().out
    assert "test is cut from the training images" in out.replace("\n", " ")
    assert out.count(", published: ") == 1 and "images: 10, published: 15,000" in out


def test_rsna_tells_normal_from_other_abnormalities_and_reads_the_view_of_the_header(tmp_path):
    manifest = run("rsna", write_rsna(tmp_path / "rsna"), tmp_path / "out")
    assert manifest[["No Finding", "Lung Opacity", "Other Abnormality"]].iloc[:3].values.tolist() == [
        ["0", "1", ""], ["0", "0", "1"], ["1", "0", "0"]
    ]  # fmt: skip
    assert {*manifest["view_position"]} == {"AP"}
    said = json.loads((tmp_path / "out" / "collection.json").read_text(encoding="utf-8"))
    assert said["derived_from"] == "NIH ChestX-ray14"
    (tmp_path / "rsna" / "stage_2_train_images" / f"{manifest.index[5]}.dcm").write_bytes(b"no DICOM")
    with pytest.raises(ValueError, match=r"unreadable DICOM .*; download it again"):
        run("rsna", tmp_path / "rsna", tmp_path / "other")
    assert manifest["split"].value_counts().to_dict() == {"train": 9, "test": 2, "validation": 1}


def test_padchest_maps_terms_and_leaves_out_what_has_no_label_or_view(tmp_path, capsys):
    labels = ["['normal']", "['nodule', 'pacemaker', 'NSG tube']", "['callus rib fracture', 'gynecomastia']"]
    labels += ["['unchanged']", "", "[' pleural effusion', 'unchanged']"] + ["['normal']"] * 6
    projections = ["PA", "L", "AP_horizontal", "PA", "PA", "AP", "UNK", *["PA"] * 5]
    manifest = run("padchest", write_padchest(tmp_path / "padchest", labels, projections), tmp_path / "out")
    out = " ".join(capsys.readouterr().out.split())
    assert len(manifest) == 9
    assert "left out: 2 images without labels or with the label exclude, and 1 of a projection" in out
    assert "images: 12, published: 160,868" in out  # the table, before anything is left out
    assert manifest["view_position"].tolist()[:4] == ["PA", "LATERAL", "AP", "AP"]
    positive = [[name for name in labels_of(manifest) if row[name] == "1"] for _, row in manifest.iterrows()]
    assert positive[:4] == [
        ["No Finding"], ["Lung Lesion", "Support Devices"], ["Fracture", "Other Abnormality"],
        ["Pleural Effusion"],
    ]  # fmt: skip


def test_padchest_joins_the_terms_below_a_finding_in_its_hierarchy(tmp_path):
    labels = ["['hydropneumothorax']", "[' empyema', 'air bronchogram']", "['miliary opacities']"]
    labels += ["['supra aortic elongation', 'COPD signs']", "['exclude', 'pneumonia']"] + ["['normal']"] * 5
    root = write_padchest(tmp_path / "padchest", labels, ["PA"] * 10)
    for number, flags in enumerate(((), ("--keep_labels",))):
        manifest = run("padchest", root, tmp_path / f"{number}", *flags)
        positive = [
            [name for name in labels_of(manifest) if row[name] == "1"] for _, row in manifest.iterrows()
        ]
        assert len(manifest) == 9  # without the excluded report
        assert {name.lower() for name in positive[0]} == {"pleural effusion", "pneumothorax"}
        if not flags:
            assert {*positive[1]} == {"Consolidation", "Pleural Effusion"} and positive[2] == ["Lung Opacity"]
            assert {*positive[3]} == {"Aortic Elongation", "COPD"}


@pytest.mark.parametrize("num_inverted", [0, 2])
def test_images_of_padchest_that_may_be_negatives_are_said(num_inverted, tmp_path, capsys):
    root = write_padchest(tmp_path / "padchest", ["['normal']"] * 10, ["PA"] * 10, inverted=num_inverted)
    run("padchest", root, tmp_path / "out")
    out = " ".join(capsys.readouterr().out.split())
    assert ("Note: 2 images of the table are MONOCHROME1; their PNGs are read" in out) == bool(num_inverted)


def test_folder_has_a_label_for_each_class_and_splits_by_name_or_by_patient(tmp_path):
    for split in ("train", "val", "test"):
        for name in ("NORMAL", "PNEUMONIA"):
            for number in range(2):
                draw(tmp_path / "chest" / split / name / f"person{number}_{split}.jpeg")
    manifest = run("folder", tmp_path / "chest", tmp_path / "out", "--name", "Mine", "--view", "AP")
    assert manifest["split"].value_counts().to_dict() == {"train": 4, "validation": 4, "test": 4}
    assert labels_of(manifest) == ["No Finding", "Pneumonia"] and {*manifest["view_position"]} == {"AP"}
    classes = tmp_path / "classes"
    for number in range(20):
        draw(classes / ("normal", "Alien")[number % 2] / f"person{number // 4}_{number}.png")
    flags = ("--subject_pattern", r"person(\d+)")
    manifest = run("folder", classes, tmp_path / "own", *flags)
    assert {*manifest["subject_id"]} == {"0", "1", "2", "3", "4"} and labels_of(manifest) == [
        "Alien",
        "No Finding",
    ]
    assert (manifest.groupby("subject_id")["split"].nunique() == 1).all()
    assert {*manifest["split"]} == {"train", "validation", "test"}


def test_folders_below_a_class_are_said_and_those_of_splits_or_masks_are_refused(tmp_path, capsys):
    for number in range(14):
        draw(tmp_path / "own" / "normal" / f"person{number % 7}" / f"{number}.png")
    assert len(run("folder", tmp_path / "own", tmp_path / "out")) == 14
    out = " ".join(capsys.readouterr().out.split())
    assert "have its label, too: normal/person0 (2), normal/person1 (2)," in out
    assert "normal/person4 (2) and 2 more folders." in out
    for place, expected in (
        ("normal/Test", "the folders of classes in those of splits"),
        ("normal/lung masks", "radiographs and no masks"),
        ("infection_mask", "radiographs and no masks"),
    ):
        draw(tmp_path / "own" / place / "1.png")
        with pytest.raises(UserError, match=f"found images in {place}, expected {expected}; move them"):
            run("folder", tmp_path / "own", tmp_path / "other")
        (tmp_path / "own" / place / "1.png").unlink()


def test_collection_has_the_name_of_the_new_folder_if_no_other_is_given(tmp_path):
    rows = [[f"{n}.png", 1] for n in range(10)]
    table = write_own_table(tmp_path / "own", ["path", "Edema"], rows)
    for flags, name in (((), "clinic v1.2"), (("--name", "Ours"), "Ours")):
        out = tmp_path / f"out{len(flags)}" / "clinic v1.2"
        run("table", table, out, "--label_columns", "Edema", *flags)
        assert json.loads((out / "collection.json").read_text(encoding="utf-8"))["name"] == name


def test_flag_without_effect_on_the_collection_is_said(tmp_path, capsys):
    def notes(*command):
        run(*command)
        out = " ".join(capsys.readouterr().out.split())
        return {name for name in import_dataset.UNUSED if f"Note: --{name} has no effect: " in out}

    shares = ("--test_share", 0.3, "--validation_share", 0.2)
    np.savez(tmp_path / "pneumoniamnist.npz", **medmnist_arrays("pneumoniamnist", (9, 3, 4)))
    everything = ("--keep_labels", *shares)
    assert notes("medmnist", tmp_path, tmp_path / "small", *everything) == {*import_dataset.UNUSED}
    root = write_nih(tmp_path / "nih", ["No Finding", "Hernia"] * 6, num_test=4)
    assert notes("nih", root, tmp_path / "nih-out", *everything) == {"test_share"}
    for has_test, unused in ((True, {"test_share", "validation_share"}), (False, {"test_share"})):
        root = write_chexpert(tmp_path / f"chexpert{has_test}", has_test=has_test)
        assert notes("chexpert", root, tmp_path / f"out{has_test}", *shares) == unused
    rows = [[f"{n}.png", "test" if n < 4 else "train", 1] for n in range(20)]
    table = write_own_table(tmp_path / "own", ["path", "part", "Edema"], rows)
    split = ("--label_columns", "Edema", "--split_column", "part")
    assert notes("table", table, tmp_path / "mine", *split, *shares) == {"test_share"}
    assert notes("table", table, tmp_path / "cut", "--label_columns", "Edema", *shares) == set()


def test_sample_that_leaves_a_split_without_images_says_so(tmp_path, capsys):
    root = write_nih(tmp_path / "nih", ["No Finding"] * 40, num_test=8)
    manifest = run("nih", root, tmp_path / "out", "--max_images", 4)
    out = " ".join(capsys.readouterr().out.split())
    for split in ("train", "validation", "test"):
        assert (f"the {split} split has no image" in out) == (split not in {*manifest["split"]})
    assert len({*manifest["split"]}) < 3
    with pytest.raises(UserError, match="--max_images 1: found 2 images of the first patient"):
        run("nih", root, tmp_path / "other", "--max_images", 1)


def test_folder_of_classes_beside_splits_is_refused_and_hidden_files_are_not_images(tmp_path):
    for name in ("train/a/1.png", "test/a/2.png", "val/a/3.png", "__MACOSX/train/._1.png"):
        draw(tmp_path / "own" / name)
    assert len(run("folder", tmp_path / "own", tmp_path / "out")) == 3
    draw(tmp_path / "own" / "more" / "a" / "4.png")
    with pytest.raises(ValueError, match="found more beside test, expected only folders of splits"):
        run("folder", tmp_path / "own", tmp_path / "other")


def test_unused_columns_of_a_table_may_have_no_name_and_several_lines(tmp_path):
    rows = [[f"{n}.png", 2 if n == 9 else 1, 'a\nreport, of "two" lines', "", ""] for n in range(10)]
    table = write_own_table(tmp_path / "own", ["path", "Edema", "report", "", ""], rows)
    with pytest.raises(ValueError, match="line 20: Edema is '2'"):
        run("table", table, tmp_path / "out", "--label_columns", "Edema")
    table.write_text(table.read_text(encoding="utf-8").replace("png,2", "png,1"), encoding="utf-8")
    assert len(run("table", table, tmp_path / "out", "--label_columns", "Edema")) == 10


def test_ids_of_a_table_are_stripped_and_errors_name_the_table(tmp_path):
    rows = [[f"{n}.png", f"p{n // 2}" + " " * (n % 2), 1] for n in range(10)]
    table = write_own_table(tmp_path / "own", ["path", "who", "Edema"], rows)
    manifest = run("table", table, tmp_path / "out", "--subject_column", "who", "--label_columns", "Edema")
    assert manifest["subject_id"].nunique() == 5
    table = write_own_table(tmp_path / "own", ["path", "who", "a=b"], rows)
    with pytest.raises(UserError, match=re.escape(f"{table}: found a label named 'a=b'")):
        run("table", table, tmp_path / "other", "--label_columns", "a=b")


def test_images_of_a_table_without_a_label_are_kept_and_counted(tmp_path, capsys):
    rows = [[f"{n}.png", 1, 0] if n % 5 else [f"{n}.png", "", ""] for n in range(20)]
    table = write_own_table(tmp_path / "own", ["path", "Edema", "Fracture"], rows)
    assert len(run("table", table, tmp_path / "out", "--label_columns", "Edema", "Fracture")) == 20
    assert "4 images have no label: only a pretraining uses" in " ".join(capsys.readouterr().out.split())


def test_files_that_are_not_used_and_classes_without_a_normal_one_are_said(tmp_path, capsys):
    for name in ("Pneumonia", "No_Pneumonia"):
        for number in range(10):
            draw(tmp_path / "classes" / name / f"{number}.png")
    for number in range(6):
        draw(tmp_path / "classes" / "Pneumonia" / f"{number}.tif")
    (tmp_path / "classes" / "Pneumonia" / "1.2.840").write_bytes(b"")
    run("folder", tmp_path / "classes", tmp_path / "out")
    out = " ".join(capsys.readouterr().out.split())
    assert "files that are not used: 6 .tif, 1 .840; if they are images, save them as" in out
    assert "no class is named normal, no finding" in out


def test_out_is_refused_where_no_manifest_could_be_read(tmp_path):
    draw(tmp_path / "classes" / "Pneumonia" / "a.png")
    with pytest.raises(UserError, match=r"OUT .*a::b: found '::' in its path, expected none"):
        run("folder", tmp_path / "classes", tmp_path / "a::b")


def test_folder_may_be_named_from_the_folder_above(tmp_path, monkeypatch):
    draw(tmp_path / "own" / "normal" / "1.png")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ValueError, match="found no image, expected SOURCE/CLASS/image"):
        run("folder", Path(), tmp_path / "empty")
    for number in range(2, 9):
        draw(tmp_path / "own" / "normal" / f"{number}.png")
    assert len(run("folder", Path("../own"), tmp_path / "out")) == 8


def test_table_whose_images_are_elsewhere_says_where_it_looked(tmp_path):
    table = write_own_table(tmp_path / "own", ["path", "Edema"], [[f"{n}.png", 1] for n in range(5)])
    flags = ["--label_columns", "Edema", "--images_dir", tmp_path]
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}: found none of the 5 images")):
        run("table", table, tmp_path / "out", *flags)


def test_table_takes_the_columns_that_flags_name(tmp_path):
    rows = [[f"{n}.png", f"p{n // 2}", "val" if n < 4 else "train", n % 2, "", "x"] for n in range(20)]
    for name, *_ in rows:
        draw(tmp_path / "pictures" / name)
    write_csv(tmp_path / "labels.csv", ["file", "who", "part", "edema", "Alien", "other"], rows)
    flags = ["--images_dir", tmp_path / "pictures", "--path_column", "file", "--subject_column", "who"]
    flags += ["--split_column", "part", "--label_columns", "edema", "Alien"]
    manifest = run("table", tmp_path / "labels.csv", tmp_path / "out", *flags)
    assert labels_of(manifest) == ["Edema", "Alien"] and {*manifest["Alien"]} == {""}
    assert manifest.loc["3.png", ["subject_id", "split", "Edema"]].tolist() == ["p1", "validation", "1"]
    assert manifest["split"].value_counts().to_dict() == {"train": 12, "validation": 4, "test": 4}


# What is wrong with a small NIH folder, and what the message says.
def test_an_imported_collection_is_a_data_folder(tmp_path):
    manifest = run("rsna", write_rsna(tmp_path / "rsna"), tmp_path / "out")
    options = {"shortest_side": 32, "cache_dir": tmp_path / "cache", "num_proc": 1, "shows_progress": True}
    splits = load_images(tmp_path / "out", LabelRule(task="findings"), on_bad_image="error", **options)
    assert sum(map(len, splits.values())) == len(manifest)
    assert splits["train"].label_names == ("Lung Opacity", "No Finding", "Other Abnormality")


def test_cut_splits_depend_on_the_seed_and_the_patients_alone():
    subjects = pd.Series([f"p{number // 3}" for number in range(300)])
    train = pd.Series("train", index=subjects.index)
    first, again, other = (cut_split(train, subjects, "test", 0.2, seed=seed) for seed in (0, 0, 1))
    assert first.equals(again) and not first.equals(other)
    assert (first == "test").sum() == 60 and (first.groupby(subjects).nunique() == 1).all()


def test_the_page_shows_how_each_label_is_mapped():
    page = PAGE.read_text(encoding="utf-8")
    lines = page.split("| MIMIC-CXR-JPG | NIH")[1].splitlines()[2:16]
    cells = {
        name: others for name, *others in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    }
    assert {*cells} == {*LABELS}
    for place, collection in enumerate(("nih", "vindr", "padchest")):
        for name in LABELS:
            theirs = {label for label, ours in LABEL_MAPS[collection].items() if ours == name}
            shown = cells[name][place]
            assert bool(shown) == bool(theirs)
            assert collection == "padchest" or {*filter(None, shown.split(", "))} == theirs  # it abbreviates
    text = " ".join(page.split())
    assert all(ours in text for label_map in LABEL_MAPS.values() for ours in label_map.values())
