"""Images of an evaluation that were in the training are found by their ids and by their pixels."""

import argparse
import dataclasses
import json
import shutil

import pytest
import run_classification
import run_mae_pretrain
from cxr.data.images import load_images
from cxr.external.overlap import find_overlap
from cxr.external.overlap import find_trainings
from cxr.external.overlap import overlap_in_words
from cxr.external.subject import load_subject
from cxr.run_folder.record import Sample
from cxr.sharing.card import dataset_name
from cxr.sharing.card import derived_from
from cxr.sharing.card import describe_origin
from manifest_roots import manifest_rows
from manifest_roots import write_manifest
from tiny_runs import QUICK
from tiny_runs import TINY_VIT
from tiny_runs import run_main

from mimic_cxr_dataset.label_rule import LabelRule


@pytest.fixture(scope="module")
def runs(sample_root, tmp_path_factory):
    """A pretraining on all images, and a classifier of some that started from it."""
    folder = tmp_path_factory.mktemp("overlap")
    flags = [*QUICK, "--max_train_steps=1", f"--data_dir={sample_root}", f"--cache_dir={folder / 'cache'}"]
    run_main(run_mae_pretrain, folder / "mae", *TINY_VIT, *flags)
    start = f"--model_name_or_path={folder / 'mae'}"
    run_main(run_classification, folder / "run", *flags, start, "--max_train_samples=20")
    return folder


def load(runs, root):
    options = {"on_bad_image": "error", "num_proc": 1, "shows_progress": False, "needs": ()}
    side = subject_of(runs).classifier.shortest_side
    return load_images(root, LabelRule(), shortest_side=side, cache_dir=runs / "cache", **options)


def edit_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")


def subject_of(runs, run="run"):
    return load_subject(str(runs / run / "model"), device="cpu", hub_dir=None, revision="main")


def test_images_of_all_trainings_are_found_by_ids_and_pixels(runs, sample_root):
    images = load(runs, sample_root)
    found = find_overlap(subject_of(runs), sample_root, images["train"])
    of_run = Sample.read(runs / "run" / "samples.json").num_images
    assert of_run == 20 < len(images["train"])  # the pretraining has seen the others
    assert found.num_same_ids == found.num_same_pixels == len(images["train"])
    assert len(find_trainings(runs / "run")) == 2
    found = find_overlap(subject_of(runs), sample_root, images["test"])
    assert (found.same_name, found.num_same_ids, found.num_same_pixels) == (True, 0, 0)


def test_images_of_a_published_start_are_said_not_to_be_compared(runs, sample_root):
    subject = subject_of(runs)
    first = subject.history[0].model_copy(
        update={"base_model": "microsoft/rad-dino", "base_model_revision": "0" * 40}
    )
    subject = dataclasses.replace(subject, history=[first, *subject.history[1:]])
    found = find_overlap(subject, sample_root, load(runs, sample_root)["test"])
    (said,) = [line for line in overlap_in_words(found, num_images=1) if "started from" in line]
    assert "`microsoft/rad-dino`" in said and "MIMIC-CXR among them" in said and "not compared" in said


def test_equal_pixels_are_found_under_other_ids(runs, sample_root):
    images = load(runs, sample_root)["train"]
    renamed = dataclasses.replace(images, rows=images.rows.assign(dicom_id=range(len(images))))
    found = find_overlap(subject_of(runs), sample_root, renamed)
    assert found.num_same_ids == 0 and found.num_same_pixels == len(images)
    said = " ".join(overlap_in_words(found, num_images=len(images)))
    assert said.count("WARNING") == 2 and "have the pixels of training images" in said


def test_without_the_cache_pixels_are_not_compared_and_this_is_said(runs, sample_root):
    images = load(runs, sample_root)["train"]
    shutil.copytree(runs / "run", runs / "moved")
    args = runs / "moved" / "args.json"
    text = args.read_text(encoding="utf-8").replace(str(runs / "cache"), str(runs / "nowhere"))
    args.write_text(text, encoding="utf-8")
    found = find_overlap(subject_of(runs, "moved"), sample_root, images)
    assert found.num_same_ids == len(images) and found.num_same_pixels is None
    assert "their pixels were not compared" in overlap_in_words(found, num_images=20)[-1]
    assert not list((runs / "nowhere").rglob("*.arrow"))  # nothing was shrunk for it


def test_a_model_without_its_run_folder_is_compared_by_name_only(runs, sample_root, tmp_path):
    shutil.copytree(runs / "run" / "model", tmp_path / "pushed")
    subject = load_subject(str(tmp_path / "pushed"), device="cpu", hub_dir=None, revision="main")
    found = find_overlap(subject, sample_root, load(runs, sample_root)["train"])
    assert (found.same_name, found.num_same_ids, found.num_same_pixels) == (True, None, None)
    assert "training images are not known" in overlap_in_words(found, num_images=20)[-1]


def test_images_of_a_training_on_several_folders_are_found_too(runs, sample_root, tmp_path):
    shutil.copytree(runs / "run", tmp_path / "run")
    name = dataset_name(sample_root)
    edit_json(tmp_path / "run" / "args.json", other_data_dirs=[str(tmp_path / "padchest")])
    ids = Sample.read(runs / "run" / "samples.json").dicom_ids
    prefixed = [*(f"{name}/{one}" for one in ids), "padchest/1/2"]
    edit_json(tmp_path / "run" / "samples.json", dicom_ids=prefixed, num_images=len(prefixed))
    (training, *_) = find_trainings(tmp_path / "run")
    assert [(one.data_dir, one.dicom_ids) for one in training] == [
        (sample_root, ids),
        (tmp_path / "padchest", ["1/2"]),
    ]
    config = tmp_path / "run" / "model" / "config.json"
    stages = json.loads(config.read_text(encoding="utf-8"))["training_history"]
    edit_json(config, training_history=[one | {"dataset": "nih, synthetic-radiographs"} for one in stages])
    subject = load_subject(str(tmp_path / "run" / "model"), device="cpu", hub_dir=None, revision="main")
    found = find_overlap(subject, sample_root, load(runs, sample_root)["train"])
    assert found.same_name and found.num_same_ids >= len(ids)
    assert found.num_same_pixels is None  # those of padchest are not here


def test_collections_of_other_names_with_the_same_images_are_found(runs, sample_root, tmp_path):
    images, subject = load(runs, sample_root)["test"], subject_of(runs)
    rows = manifest_rows(4)
    nih = write_manifest(tmp_path / "own name", rows, name="NIH ChestX-ray14")
    rsna = write_manifest(tmp_path / "rsna", rows, name="RSNA", derived_from="NIH ChestX-ray14")
    small = write_manifest(tmp_path / "small", rows, name="ChestMNIST", derived_from="NIH ChestX-ray14")
    origins = {}
    for root in (nih, rsna):
        data = {"dataset": dataset_name(root), "derived_from": [*filter(None, [derived_from(root)])]}
        trained = dataclasses.replace(subject, history=[subject.history[0].model_copy(update=data)])
        found = {other: find_overlap(trained, other, images) for other in (nih, rsna, small, sample_root)}
        assert {other for other, one in found.items() if one.same_name} == {root}
        origins[root] = {other for other, one in found.items() if one.same_origin}
        assert all({*one.same_origin} <= {"nih-chestx-ray14"} for one in found.values())
        said = overlap_in_words(found[small], num_images=9)[0]
        assert said.startswith(
            "WARNING: these images are also in nih-chestx-ray14, on which the model was trained"
        )
    assert origins == {nih: {rsna, small}, rsna: {nih, small}}


def test_a_training_keeps_from_which_collections_its_images_are(sample_root, tmp_path):
    rsna = write_manifest(tmp_path, manifest_rows(4), name="RSNA", derived_from="NIH ChestX-ray14")
    args = argparse.Namespace(model_name_or_path=None, labeler="negbio", hub_dir=None)
    for data_dir, others in ((rsna, []), (sample_root, [rsna])):
        args.data_dir, args.other_data_dirs = data_dir, others
        assert describe_origin(args).derived_from == ["nih-chestx-ray14"]


def test_earlier_trainings_whose_images_are_not_known_are_said(runs, sample_root, tmp_path):
    shutil.copytree(runs / "run", tmp_path / "run")
    edit_json(tmp_path / "run" / "args.json", model_name_or_path="somebody/mae")
    subject = load_subject(str(tmp_path / "run" / "model"), device="cpu", hub_dir=None, revision="main")
    found = find_overlap(subject, sample_root, load(runs, sample_root)["test"])
    assert found.num_unknown_trainings == 1
    assert "The images of 1 earlier training are not known" in " ".join(overlap_in_words(found, num_images=9))
    unsaid = dataclasses.replace(subject, history=[])
    found = find_overlap(unsaid, sample_root, load(runs, sample_root)["test"])
    assert found.same_name is None
    assert "does not say on which collections" in overlap_in_words(found, num_images=9)[0]
