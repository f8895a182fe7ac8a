"""The loading script on small handmade MIMIC-CXR-JPG trees: rows, caching, errors."""

import csv
import gzip
import io
import logging
import shutil
import stat
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from mimic_roots import build
from mimic_roots import image_paths
from mimic_roots import new_builder
from mimic_roots import patients
from mimic_roots import write_root
from mimic_tables import refusal
from mimic_tables import write_csv
from PIL import Image

from mimic_cxr_dataset import choices
from mimic_cxr_dataset import mimic_cxr_dataset as mimic
from mimic_cxr_dataset.errors import DatasetError
from mimic_cxr_dataset.labels import REASONS
from mimic_cxr_dataset.labels import index_images

FOLDER = Path(__file__).parents[2] / "mimic_cxr_dataset"
NIH_ROOT = Path(__file__).parents[3] / "shared" / "data" / "nih-cxr"
HAS_SCRIPTS = int(datasets.__version__.split(".")[0]) < 4  # later releases use the class, not load_dataset


@pytest.fixture
def root(tmp_path):
    """20 train, 2 validation and 3 test images; the even ones show a finding."""
    images = patients(20) + patients(2, split="validate", start=20) + patients(3, split="test", start=22)
    labels = {image["study"]: {"Edema": 1.0} for image in images[::2]}
    return write_root(tmp_path / "root", images, labels=labels)


def load(root, tmp_path, name="finding", **options):
    if not HAS_SCRIPTS:
        pytest.skip("datasets 4 and later do not run loading scripts")
    cache = str(tmp_path / "cache")
    options = {"cache_dir": cache, "trust_remote_code": True, **options}
    return datasets.load_dataset(str(FOLDER), name, data_dir=str(root), **options)


# Datasets ---------------------------------------------------------------------------------------------------


def test_class_gives_gray_images_labels_and_ids_on_any_release_of_datasets(root, tmp_path):
    dataset = build(root, tmp_path).as_dataset()
    assert {split: len(dataset[split]) for split in dataset} == {"train": 20, "validation": 2, "test": 3}
    row = dataset["train"][0]
    assert (row["image"].mode, row["image"].size) == ("L", (40, 48))
    assert (row["label"], row["subject_id"], row["study_id"]) == (1, 10000001, 50000001)
    assert row["view_position"] == "PA" and row["dicom_id"].startswith("00000000-")
    assert dataset["train"].features["label"].names == ["No Finding", "Finding"]
    assert dataset["train"]["label"][:4] == [1, 0, 1, 0]
    assert sorted(dataset["train"]["dicom_id"]) == dataset["train"]["dicom_id"][:]


def test_class_streams_the_same_rows_on_any_release_of_datasets(root, tmp_path):
    builder = build(root, tmp_path, image_size=20)
    stream = list(builder.as_streaming_dataset()["train"])
    assert [row["dicom_id"] for row in stream] == builder.as_dataset(split="train")["dicom_id"][:]
    assert {row["image"].size for row in stream} == {(20, 24)}


def test_load_dataset_equals_the_class_with_one_and_two_processes(root, tmp_path):
    options = {"name": "pleural_effusion", "image_size": 20, "view": "all"}
    ours = build(root, tmp_path / "class", **options).as_dataset(split="train")
    for num_proc in (None, 2):
        theirs = load(root, tmp_path / f"cache{num_proc}", num_proc=num_proc, split="train", **options)
        assert theirs.features["label"].names == ["No Finding", "Pleural Effusion"]
        assert theirs.data.table.equals(ours.data.table)


def test_load_dataset_streams_with_workers_that_share_the_rows(root, tmp_path):
    stream = load(root, tmp_path, streaming=True, split="train", image_size=20)
    assert stream.num_shards == 3
    assert [row["label"] for row in stream] == [1, 0] * 10
    assert not any((tmp_path / "cache").rglob("*.arrow"))


def test_absent_and_emptied_splits_are_left_out_and_no_image_left_is_one_line_with_the_reasons(tmp_path):
    images = patients(3) + patients(2, split="test", start=3, view="LL")
    root = write_root(tmp_path / "root", images)
    assert list(build(root, tmp_path).as_dataset()) == ["train"]
    assert list(build(root, tmp_path, view="all").as_dataset()) == ["train", "test"]
    write_root(root, images[:3])
    refusal(lambda: build(root, tmp_path, view="lateral"), root, "no image is left", "3 view")


def test_exclusion_table_is_logged_and_survives_the_cache(root, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        first = build(root, tmp_path, view="frontal").as_dataset(split="train")
    table = next(record.getMessage() for record in caplog.records if "kept" in record.getMessage())
    assert "no label row" in table and "missing file" in table and "validation" in table
    caplog.clear()
    again = build(root, tmp_path).as_dataset(split="train")
    assert first.info.description == again.info.description == table
    assert not caplog.records
    assert len({len(line) for line in table.splitlines()[1:]}) == 1  # aligned


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
@pytest.mark.parametrize("image_size", [None, 20, 1000])
def test_colour_jpegs_become_gray(root, tmp_path, mode, image_size):
    path = image_paths(root)[0]
    pixels = np.full((48, 40, 3), (200, 100, 50), dtype="uint8")
    pixels[24:] //= 2
    Image.fromarray(pixels).convert(mode).save(path)
    image = build(root, tmp_path, image_size=image_size).as_dataset(split="train")[0]["image"]
    assert image.mode == "L"
    assert abs(int(np.asarray(image).mean()) - 93) <= 6  # of lumas 124 and 62


# Cache ------------------------------------------------------------------------------------------------------


def test_changed_table_under_the_same_path_is_noticed(root, tmp_path):
    assert build(root, tmp_path).as_dataset(split="train")["label"][1] == 0
    path = root / "mimic-cxr-2.0.0-negbio.csv.gz"
    rows = list(csv.reader(io.StringIO(gzip.decompress(path.read_bytes()).decode("utf-8"))))
    rows[2][rows[0].index("Fracture")] = "1.0"
    write_csv(path, rows[0], rows[1:])
    assert build(root, tmp_path).as_dataset(split="train")["label"][1] == 1


def test_configs_and_options_live_side_by_side_and_are_reused(root, tmp_path):
    options = [{}, {"image_size": 20}, {"uncertain": "exclude"}, {"labeler": "chexpert"}, {"view": "all"}]
    folders = [build(root, tmp_path, **option)._output_dir for option in options]
    folders.append(build(root, tmp_path, "pleural_effusion")._output_dir)
    assert len(set(folders)) == 6
    stamps = {folder: Path(folder).stat().st_mtime_ns for folder in folders}
    spelled_out = {"labeler": "negbio", "view": "frontal", "uncertain": "negative", "image_size": None}
    assert build(root, tmp_path, **spelled_out)._output_dir == folders[0]
    assert {folder: Path(folder).stat().st_mtime_ns for folder in folders} == stamps


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.py")))
def test_change_of_any_file_of_the_package_makes_another_cache(root, tmp_path, monkeypatch, name):
    before = new_builder(root, tmp_path).cache_dir
    shutil.copytree(FOLDER, tmp_path / "package")
    monkeypatch.setattr(mimic, "__file__", str(tmp_path / "package" / "mimic_cxr_dataset.py"))
    assert new_builder(root, tmp_path).cache_dir == before
    with (tmp_path / "package" / name).open("a") as file:
        file.write("# changed")
    assert new_builder(root, tmp_path).cache_dir != before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_cache_is_private_and_the_users_own_folder_is_left_as_it_is(root, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o755)
    damage_jpeg(image_paths(root)[3], "text")
    folder = Path(build(root, tmp_path, on_bad_image="skip", image_size=20, num_proc=2)._output_dir)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    private = [path for path in folder.iterdir() if path.suffix in (".arrow", ".csv")]
    assert len(private) == 5 and {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o755


def test_shrunk_dataset_keeps_bytes_and_needs_no_image_file_afterwards(root, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:  # where the current folder has files of the same name
        patch.chdir(image_paths(root)[0].parent)
        build(root, tmp_path, image_size=20)
    shutil.rmtree(root / "files")
    dataset = build(root, tmp_path, image_size=20).as_dataset(split="train")
    assert dataset[3]["image"].size == (20, 24)
    assert dataset.cast_column("image", datasets.Image(decode=False))[0]["image"]["bytes"]


def test_relative_data_dir_still_finds_its_images_from_another_folder(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root.parent)
    dataset = build("root", tmp_path).as_dataset(split="train")
    monkeypatch.chdir("/")
    assert dataset[0]["image"].size == (40, 48)


def test_what_a_killed_run_left_behind_does_not_get_into_the_next(root, tmp_path):
    builder = new_builder(root, tmp_path, on_bad_image="skip")
    left = Path(builder._output_dir + ".incomplete")
    left.mkdir(parents=True)
    (left / "bad_images_train.77.part").write_text("0,a,b,missing file\n", encoding="utf-8")
    (left / "mimic_cxr_dataset-train-00003-00000-of-NNNNN.arrow").write_bytes(b"junk")
    builder.download_and_prepare()
    assert len(builder.as_dataset(split="train")) == 20
    files = {path.name for path in Path(builder._output_dir).iterdir()} - {"LICENSE", "dataset_info.json"}
    assert files == {f"mimic_cxr_dataset-{split}.arrow" for split in ("train", "validation", "test")}


# Bad input --------------------------------------------------------------------------------------------------


def test_absent_data_dir_says_what_is_expected(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    nowhere = tmp_path / "nowhere"
    refusal(lambda: mimic.MimicCxr(data_dir=str(nowhere)), nowhere, "missing", "files/")
    refusal(lambda: index_images(tmp_path / "file"), tmp_path / "file", "not a folder")
    refusal(lambda: build("", tmp_path), "No data_dir given", "MIMIC-CXR-JPG folder")
    refusal(lambda: index_images("~no_such_user_here/cxr"), "~no_such_user_here", "missing")


def test_data_dir_that_datasets_would_cut_in_two_is_refused_and_a_link_to_it_is_read(root, tmp_path):
    renamed = root.rename(tmp_path / "mimic::jpg")
    advice = "rename the folder, or give a link to it"
    refusal(lambda: load(renamed, tmp_path), renamed, "'::'", advice, kind=ValueError)
    (tmp_path / "link").symlink_to(renamed)
    assert len(load(tmp_path / "link", tmp_path, image_size=20)["train"]) == 20


WRONG_OPTIONS = [
    ("labeler", "radgraph", "'negbio' or 'chexpert'"),
    ("view", "AP", "'frontal' or 'lateral' or 'all'"),
    ("uncertain", "ignore", "one of mix, negative, positive, exclude, smooth"),
    ("on_bad_image", "warn", "'error' or 'skip'"),
    *(("image_size", value, "a whole number of pixels from 1") for value in (0, "256", 25.6)),
]


@pytest.mark.parametrize(("name", "value", "valid"), WRONG_OPTIONS)
def test_unknown_option_value_lists_the_valid_ones(root, tmp_path, name, value, valid):
    refusal(lambda: build(root, tmp_path, **{name: value}), f"{name}={value!r}", valid)


def test_load_dataset_passes_our_errors_through(root, tmp_path):
    refusal(lambda: load(root, tmp_path, view="AP"), "view='AP'", "'frontal'", kind=ValueError)
    (root / "mimic-cxr-2.0.0-split.csv.gz").write_bytes(b"")
    refusal(lambda: load(root, tmp_path), "mimic-cxr-2.0.0-split.csv.gz", kind=ValueError)
    refusal(lambda: load(root, tmp_path, "no_such_config"), "finding", "pleural_effusion", kind=ValueError)


def cut_in_half(content):
    return content[: len(content) // 2]


def unpack_and_cut_in_a_line(content):
    text = gzip.decompress(content)
    return text[: text.rindex(b",")]


DAMAGES = (cut_in_half, unpack_and_cut_in_a_line, lambda _: b"", lambda _: b"\x00\xff\xfe\x80" * 50)


@pytest.mark.parametrize("table", ["metadata", "split", "negbio"])
def test_unreadable_or_absent_table_is_named(root, tmp_path, table):
    path = root / f"mimic-cxr-2.0.0-{table}.csv.gz"
    sound = path.read_bytes()
    for damage in DAMAGES:
        path.write_bytes(damage(sound))
        refusal(lambda: index_images(root), path)
    path.unlink()
    refusal(lambda: build(root, tmp_path), path, "physionet.org")


def test_missing_images_are_counted_in_one_line_before_anything_is_shrunk(root, tmp_path):
    paths = image_paths(root)
    paths[4].unlink()
    paths[9].unlink()
    refusal(lambda: build(root, tmp_path), "2 of 25 images are missing", paths[4], 'on_bad_image="skip"')


def damage_jpeg(path, how):
    content = path.read_bytes()
    damaged = {"cut off": content[: len(content) * 2 // 3], "empty": b"", "text": b"<html>busy</html>"}
    path.write_bytes(damaged[how])


@pytest.mark.parametrize("how", ["cut off", "empty", "text"])
@pytest.mark.parametrize("image_size", [None, 20])
@pytest.mark.parametrize("num_proc", [None, 2])
def test_damaged_image_is_one_line_with_its_path(root, tmp_path, how, image_size, num_proc):
    path = image_paths(root)[13]
    damage_jpeg(path, how)
    with pytest.raises(DatasetError, match='on_bad_image="skip"') as error:
        build(root, tmp_path, image_size=image_size, num_proc=num_proc)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert error.value.__cause__ is None or num_proc is None


@pytest.mark.parametrize("image_size", [None, 20])
@pytest.mark.parametrize("num_proc", [None, 2])
def test_skip_leaves_bad_images_out_and_lists_them(root, tmp_path, caplog, image_size, num_proc):
    paths = image_paths(root)
    damage_jpeg(paths[17], "cut off")
    damage_jpeg(paths[2], "text")
    paths[6].unlink()
    paths[24].unlink()
    builder = build(root, tmp_path, on_bad_image="skip", image_size=image_size, num_proc=num_proc)
    dataset = builder.as_dataset()
    assert {split: len(dataset[split]) for split in dataset} == {"train": 17, "validation": 2, "test": 2}
    listed = pd.read_csv(Path(builder._output_dir) / "bad_images_train.csv")
    assert listed["path"].tolist() == [str(paths[number]) for number in (2, 6, 17)]
    assert listed["reason"].tolist()[1] == "missing file"
    assert len(pd.read_csv(Path(builder._output_dir) / "bad_images_test.csv")) == 1
    assert not (Path(builder._output_dir) / "bad_images_validation.csv").exists()
    assert "bad images skipped: 3 (2 damaged)" in caplog.text
    assert str(Path(builder._output_dir) / "bad_images_train.csv") in caplog.text
    total = dataset["train"].info.description.splitlines()[-1].split()
    assert total == ["total", "25", "0", "0", "0", "0", "2", "2", "21"]
    assert not list(Path(builder._output_dir).glob("*.part"))


def test_skip_survives_a_worker_whose_images_are_all_bad_but_not_a_split_of_them(root, tmp_path):
    for path in image_paths(root)[7:20]:
        damage_jpeg(path, "text")
    dataset = build(root, tmp_path, on_bad_image="skip", image_size=20, num_proc=2).as_dataset(split="train")
    assert len(dataset) == len(list(dataset)) == 7
    for path in image_paths(root)[20:22]:
        damage_jpeg(path, "text")
    refusal(lambda: build(root, tmp_path, on_bad_image="skip"), root, "validation")


def test_repaired_images_come_back_with_a_forced_rebuild(root, tmp_path):
    path = image_paths(root)[3]
    content = path.read_bytes()
    damage_jpeg(path, "cut off")
    assert len(build(root, tmp_path, on_bad_image="skip").as_dataset(split="train")) == 19
    path.write_bytes(content)
    builder = new_builder(root, tmp_path, on_bad_image="skip")
    builder.download_and_prepare(download_mode="force_redownload")
    assert len(builder.as_dataset(split="train")) == 20
    assert not (Path(builder._output_dir) / "bad_images_train.csv").exists()


def test_stream_skips_bad_images_with_a_warning_only(root, tmp_path, caplog):
    paths = image_paths(root)
    damage_jpeg(paths[2], "cut off")
    paths[6].unlink()
    builder = new_builder(root, tmp_path, on_bad_image="skip")
    assert len(list(builder.as_streaming_dataset(split="train"))) == 18
    assert str(paths[2]) in caplog.text and str(paths[6]) in caplog.text
    builder = new_builder(root, tmp_path)
    refusal(lambda: list(builder.as_streaming_dataset(split="train")), paths[2])


# The card and real images -----------------------------------------------------------------------------------


def test_description_is_text_before_the_dataset_is_prepared(root, tmp_path):
    assert new_builder(root, tmp_path).info.description.startswith("finding, labels by negbio, view frontal")


def test_card_is_valid_and_explains_every_option_and_config():
    from huggingface_hub import DatasetCard

    card = DatasetCard.load(FOLDER / "README.md")
    assert [info["config_name"] for info in card.data.to_dict()["dataset_info"]] == list(choices.TASKS)
    for word in (*choices.CHOICES, "image_size", "streaming", *REASONS):
        if word != "task":
            assert word in card.text
    for values in choices.CHOICES.values():
        assert all(f"`{value}`" in card.text for value in values)


@pytest.mark.skipif(not NIH_ROOT.is_dir(), reason="no real X-rays beside the repository")
def test_real_radiographs_load_with_the_published_split_sizes(tmp_path):
    dataset = build(NIH_ROOT, tmp_path, image_size=64, num_proc=2).as_dataset()
    assert {split: len(dataset[split]) for split in dataset} == {"train": 408, "validation": 92, "test": 102}
    assert {row["image"].size for row in dataset["test"]} == {(64, 64)}
    subjects = [set(dataset[split]["subject_id"]) for split in dataset]
    assert sum(map(len, subjects)) == len(set.union(*subjects))
