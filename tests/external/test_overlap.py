"""Images of an evaluation that were in the training are found by their ids and by their pixels."""

import dataclasses
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
    assert "only the names" in overlap_in_words(found, num_images=20)[-1]
