"""An image is shrunk once: labels, views and policies are a choice in memory."""

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cxr.data.images import load_images
from cxr.errors import UserError
from dicom_files import write_dicom
from manifest_roots import draw_images
from manifest_roots import manifest_rows
from manifest_roots import write_manifest
from PIL import Image

from mimic_cxr_dataset.label_rule import LabelRule
from mimic_cxr_dataset.labels import index_images
from mimic_cxr_dataset.mimic_cxr_dataset import MimicCxr


@pytest.fixture
def root(sample_root, tmp_path):
    """A collection whose files may be removed."""
    return shutil.copytree(sample_root, tmp_path / "root")


def load(root: Path, cache_dir: Path, on_bad_image: str = "error", **options: str) -> dict:
    plumbing = {"shortest_side": 40, "num_proc": 1, "shows_progress": True, "on_bad_image": on_bad_image}
    return load_images(root, LabelRule(**options), cache_dir=cache_dir, **plumbing)


def bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_other_labels_open_no_file_and_add_nothing_even_when_the_originals_are_gone(root, tmp_path):
    cache = tmp_path / "cache"
    load(root, cache, view="all")
    before = bytes_below(cache)
    shutil.rmtree(root / "files")
    for options in (
        {},
        {"task": "pleural_effusion"},
        {"task": "findings", "uncertain": "smooth"},
        {"labeler": "chexpert", "uncertain": "exclude"},
        {"view": "lateral", "uncertain": "positive"},
    ):
        splits = load(root, cache, **options)
        expected, _ = index_images(root, **options)
        for split, images in splits.items():
            of_split = expected[expected["split"] == split]
            assert images["dicom_id"] == of_split["dicom_id"].tolist()
            assert images["label"] == of_split["label"].tolist()
            assert len(images.read(range(len(images)))) == len(of_split)
    assert bytes_below(cache) <= 1.01 * before


def test_pixels_are_those_of_the_loading_script(root, tmp_path):
    splits = load(root, tmp_path / "cache")
    builder = MimicCxr(config_name="finding", data_dir=str(root), cache_dir=str(tmp_path), image_size=40)
    builder.download_and_prepare()
    for split, images in splits.items():
        expected = builder.as_dataset(split=split).with_format("arrow")[:]
        assert images["dicom_id"] == expected["dicom_id"].to_pylist()
        contents = [image["bytes"].as_py() for image in expected["image"]]
        assert images.read(range(len(images))) == contents


def test_all_views_shrink_only_the_groups_that_are_not_there_yet(root, tmp_path):
    cache = tmp_path / "cache"
    load(root, cache)
    made = {path: path.stat().st_mtime_ns for path in cache.rglob("*.arrow")}
    images = load(root, cache, view="all")["train"]
    assert set(images["view_position"]) > {"AP", "PA"}
    assert made and all(path.stat().st_mtime_ns == when for path, when in made.items())


def test_changed_label_table_is_noticed_and_needs_no_new_pixels(root, tmp_path):
    before = load(root, tmp_path / "cache")["train"]
    shutil.rmtree(root / "files")
    path = next(root.glob("*negbio.csv*"))
    table = pd.read_csv(path)
    table[[name for name in table if name not in ("subject_id", "study_id")]] = 0.0
    table.to_csv(path, index=False)
    after = load(root, tmp_path / "cache")["train"]
    assert sum(before["label"]) > 0 == sum(after["label"]) and before["dicom_id"] == after["dicom_id"]


def test_bad_images_are_listed_counted_refused_and_shrunk_when_they_are_repaired(root, tmp_path, caplog):
    cache, whole = tmp_path / "cache", load(root, tmp_path / "other")["train"]
    paths = sorted(map(Path, index_images(root)[0].query("split == 'train'")["path"]))
    missing, damaged = paths[0], paths[1]
    kept = {path: path.read_bytes() for path in (missing, damaged)}
    missing.unlink()
    damaged.write_bytes(kept[damaged][:500])
    caplog.set_level("INFO")
    left = load(root, cache, on_bad_image="skip")["train"]
    assert set(whole["dicom_id"]) - set(left["dicom_id"]) == {missing.stem, damaged.stem}
    assert "bad images skipped: 2 (1 damaged)" in caplog.text
    with pytest.raises(UserError, match=r"found 2 of \d+ images missing or damaged.*--on_bad_image skip"):
        load(root, cache)
    for path, content in kept.items():
        path.write_bytes(content)
        os.utime(path)
    assert load(root, cache)["train"]["dicom_id"] == whole["dicom_id"]
    assert "were replaced" in caplog.text


def test_images_that_are_replaced_under_the_same_paths_are_shrunk_again(root, tmp_path, caplog):
    paths = index_images(root)[0]["path"]
    before = load(root, tmp_path / "cache")["train"].read([0])
    for path in paths:  # keep the time
        times = Path(path).stat()
        with Image.open(path) as image:
            image.transpose(Image.Transpose.ROTATE_180).save(path, quality=80)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = load(root, tmp_path / "cache")["train"].read([0])
    assert after != before
    assert "Image files were replaced (frontal views): shrinking all images of these views" in caplog.text
    caplog.clear()
    assert load(root, tmp_path / "cache")["train"].read([0]) == after and "replaced" not in caplog.text


def test_test_images_with_the_pixels_of_training_images_are_said_at_each_start(tmp_path, caplog):
    rows = manifest_rows(8)
    root = write_manifest(tmp_path / "root", rows)
    draw_images(root, rows)
    of_train = next(row for row in rows if row["split"] == "train")
    for split in ("validation", "test"):
        copy = next(row for row in rows if row["split"] == split)
        shutil.copy(root / of_train["path"], root / copy["path"])
    for _ in range(2):
        caplog.clear()
        load(root, tmp_path / "cache")
        assert (
            "frontal: validation and test images with the pixels of a training image: 2; results"
            in caplog.text
        )
        (listing,) = tmp_path.rglob("same_pixels_*.csv")
        assert f"see {listing}" in caplog.text and len(pd.read_csv(listing)) == 3


def test_header_with_another_view_and_other_doubts_are_said_at_each_start(root, tmp_path, caplog):
    path = Path(index_images(root)[0]["path"].iloc[0])
    with Image.open(path) as image:
        values = np.asarray(image)
    write_dicom(path.with_suffix(".dcm"), values, ViewPosition="LL", BurnedInAnnotation="YES")
    path.unlink()
    for _ in range(2):
        caplog.clear()
        load(root, tmp_path / "cache")
        assert '1 "the table says frontal, the header says LL"' in caplog.text
        assert '1 "the header says that text is burned into the image"' in caplog.text


def test_bad_image_with_an_id_that_looks_like_a_missing_value_is_left_out(tmp_path):
    rows = manifest_rows(8)
    rows[0]["image_id"], rows[2]["image_id"] = "NA", "null"
    root = write_manifest(tmp_path / "root", rows)
    draw_images(root, rows)
    (root / rows[0]["path"]).write_bytes(b"")
    (root / rows[2]["path"]).unlink()
    images = load(root, tmp_path / "cache", on_bad_image="skip")["train"]
    assert images["dicom_id"] == ["image 001", "image 003"]


def test_damaged_files_of_a_view_without_a_good_image_are_counted_as_damaged(root, tmp_path, caplog):
    paths = [Path(path) for path in index_images(root, view="lateral")[0]["path"]]
    for path in paths:
        path.write_bytes(b"")
    paths[0].unlink()
    caplog.set_level("INFO")
    load(root, tmp_path / "cache", view="all", on_bad_image="skip")
    missing, damaged, kept = map(int, caplog.messages[-1].split()[-3:])  # the totals
    assert (missing, damaged) == (1, len(paths) - 1) and kept > 0


def test_bad_image_that_the_labels_do_not_need_stops_no_run(root, tmp_path):
    needed = set(index_images(root, task="pleural_effusion")[0]["path"])
    unneeded = next(path for path in index_images(root)[0]["path"] if path not in needed)
    Path(unneeded).unlink()
    load(root, tmp_path / "cache", on_bad_image="skip")
    assert load(root, tmp_path / "cache", task="pleural_effusion")["train"]


def test_group_without_a_good_image_is_left_out_and_no_image_at_all_is_an_error(root, tmp_path):
    for path in index_images(root, view="lateral")[0]["path"]:
        Path(path).unlink()
    whole, cache = load(root, tmp_path / "cache"), tmp_path / "cache"
    images = load(root, cache, view="all", on_bad_image="skip")["train"]
    assert set(whole["train"]["dicom_id"]) <= set(images["dicom_id"])
    assert not {"LATERAL", "LL"} & set(images["view_position"])
    with pytest.raises(UserError, match=r"--view lateral: found no good image of this view"):
        load(root, cache, view="lateral", on_bad_image="skip")
