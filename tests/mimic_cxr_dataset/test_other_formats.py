"""A dataset from PNG and DICOM files: where there is no JPEG they are read, refused or doubted."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dicom_files import write_dicom
from mimic_roots import build
from mimic_roots import image_paths
from mimic_roots import new_builder
from mimic_roots import patients
from mimic_roots import write_root
from PIL import Image

from mimic_cxr_dataset.errors import DatasetError

NUM_IMAGES = 10


@pytest.fixture
def root(tmp_path):
    """Ten training images, of which two are PNG and three DICOM; one of the latter is of a hand."""
    root = write_root(tmp_path / "root", [*patients(NUM_IMAGES), *patients(1, split="test", start=20)])
    (root / "collection.json").write_text('{"equalized": false}', encoding="utf-8")
    for number, path in enumerate(image_paths(root)[:5]):
        pixels = np.asarray(Image.open(path))
        path.unlink()
        if number < 2:
            Image.fromarray(pixels).save(path.with_suffix(".png"))
        else:
            tags = {"BodyPartExamined": "HAND"} if number == 4 else {}
            write_dicom(path.with_suffix(".dcm"), pixels, **tags)
    return root


def pixels_of(dataset) -> list[np.ndarray]:
    return [np.asarray(example["image"], dtype=float) for example in dataset]


@pytest.mark.parametrize("num_proc", [None, 2])
@pytest.mark.parametrize("image_size", [None, 20])
def test_same_pictures_as_png_and_dicom_make_nearly_the_same_dataset(root, tmp_path, image_size, num_proc):
    jpegs = write_root(tmp_path / "jpegs", [*patients(NUM_IMAGES), *patients(1, split="test", start=20)])
    options = {"image_size": image_size, "num_proc": num_proc}
    expected = build(jpegs, tmp_path, **options).as_dataset(split="train")
    found = build(root, tmp_path, **options).as_dataset(split="train")
    assert found["dicom_id"] == expected["dicom_id"] and len(found) == NUM_IMAGES
    for one, other in zip(pixels_of(found), pixels_of(expected), strict=True):
        assert one.shape == other.shape and np.abs(one - other).mean() < 2


def test_stream_reads_them_too(root, tmp_path, caplog):
    stream = new_builder(root, tmp_path, image_size=20).as_streaming_dataset(split="train")
    assert len(list(stream)) == NUM_IMAGES
    assert caplog.text.count("is used with a warning: the header says body part HAND.") == 1


def test_warnings_are_counted_and_listed_beside_the_split(root, tmp_path, caplog):
    builder = build(root, tmp_path, image_size=20)
    listed = pd.read_csv(Path(builder._output_dir, "doubtful_images_train.csv"))
    assert listed["reason"].tolist() == ["the header says body part HAND"]
    assert listed["path"][0].endswith(".dcm")
    said = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert any(
        'train: images used with a warning: 1, most often "the header says body' in one for one in said
    )


@pytest.mark.parametrize("bad", ["constant", "no picture"])
def test_bad_ones_fall_under_on_bad_image(root, tmp_path, bad):
    path = next(root.glob("files/*/*/*/*.dcm"))
    if bad == "constant":
        write_dicom(path, np.full((48, 40), 7, dtype=np.uint8))
    else:
        path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DatasetError, match=r"is a bad image \(.*\): replace it, or leave such images out"):
        build(root, tmp_path, image_size=20)
    builder = build(root, tmp_path, image_size=20, on_bad_image="skip")
    assert len(builder.as_dataset(split="train")) == NUM_IMAGES - 1
    listed = pd.read_csv(Path(builder._output_dir, "bad_images_train.csv"))
    assert listed["path"].tolist() == [str(path)]


def test_jpeg_goes_before_another_format_of_the_same_image(root, tmp_path):
    path = image_paths(root)[0]
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path.with_suffix(".png"))
    found = build(root, tmp_path).as_dataset(split="train")
    assert np.array_equal(pixels_of(found)[5], np.asarray(Image.open(path)))
