"""The benchmark's figures come from work that was done, and its errors are one line."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from make_sample_data import make_sample_data
from originals import repeat_images

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run_script(name: str, *flags: str, expected_status: int = 0) -> subprocess.CompletedProcess:
    """In a process of its own, as `data` keeps to one core."""
    done = subprocess.run([sys.executable, str(BENCHMARKS / name), *flags], capture_output=True, text=True)
    assert done.returncode == expected_status, done.stderr
    return done


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Synthetic radiographs that are larger than the cache's 256 pixels."""
    return make_sample_data(tmp_path_factory.mktemp("benchmark") / "originals", num_images=16, image_size=512)


@pytest.fixture(scope="module")
def measured_data(originals, tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("measured") / "data.json"
    flags = ["--data_dir", str(originals), "--num_images", "4", "--rounds", "1"]
    run_script("benchmark.py", "data", *flags, "--json", str(path))
    return json.loads(path.read_text(encoding="utf-8"))


def test_ratios_are_those_of_the_images_per_second_beside_them(measured_data):
    shrink, loader = measured_data["shrink"], measured_data["loader"]
    for ratio, ours, theirs in (
        (
            shrink["ratio_to_example"],
            shrink["images_per_second"],
            shrink["example_images_per_second"],
        ),
        (
            loader["ratio_to_example_originals"],
            loader["images_per_second"],
            loader["example_originals_images_per_second"],
        ),
        (
            loader["ratio_to_example_cached"],
            loader["images_per_second"],
            loader["example_cached_images_per_second"],
        ),
    ):
        assert ratio == pytest.approx(ours / theirs)
    assert measured_data["machine"]["cores"] >= 1


def test_nothing_is_faster_than_the_decoder(measured_data):
    for part in ("shrink", "loader"):
        measured = measured_data[part]
        assert measured["decoder_floor_images_per_second"] > measured["images_per_second"]


def test_the_loader_beats_the_example_on_the_same_cache(measured_data):
    assert measured_data["loader"]["ratio_to_example_cached"] > 1.5


def test_small_images_are_refused_in_one_line(sample_root, tmp_path):
    done = run_script(
        "benchmark.py",
        "data",
        "--data_dir",
        str(sample_root),
        "--json",
        str(tmp_path / "data.json"),
        expected_status=2,
    )
    assert done.stderr.count("\n") == 1
    assert "expected originals of more than 256 pixels" in done.stderr
    assert not (tmp_path / "data.json").exists()


def test_repeated_images_are_new_patients_of_a_valid_tree(sample_root, tmp_path):
    root = repeat_images(sample_root, tmp_path / "repeated", num_train_images=100)
    tables = {
        name: pd.read_csv(root / f"mimic-cxr-2.0.0-{name}.csv.gz", dtype=str)
        for name in ("metadata", "split", "negbio")
    }
    metadata, split = tables["metadata"], tables["split"]
    assert metadata["dicom_id"].is_unique
    assert sorted(metadata["dicom_id"]) == sorted(split["dicom_id"])
    assert split.groupby("subject_id")["split"].nunique().max() == 1
    assert tables["negbio"]["study_id"].is_unique
    training = split[split["split"] == "train"]["dicom_id"]
    frontal = metadata["ViewPosition"].isin(["AP", "PA"]) & metadata["dicom_id"].isin(training)
    assert (frontal & metadata["study_id"].isin(tables["negbio"]["study_id"])).sum() >= 100
    for row in metadata.itertuples():
        folder = root / f"files/p{row.subject_id[:2]}/p{row.subject_id}/s{row.study_id}"
        assert (folder / f"{row.dicom_id}.jpg").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "model"), [("step", "resnet-18"), ("step", "vit-mae-tiny"), ("train", "vit-mae-tiny")]
)
def test_training_is_measured_on_both_sides(command, model, originals, tmp_path):
    flags = ["--rounds=1", "--windows=1", "--steps=2", "--batch_size=2", f"--config_name={model}"]
    path = tmp_path / "measured.json"
    run_script("benchmark.py", command, *flags, f"--data_dir={originals}", f"--json={path}")
    measured = json.loads(path.read_text(encoding="utf-8"))[command]
    ratio = measured["images_per_second"] / measured["trainer_images_per_second"]
    assert measured["ratio_to_trainer"] == pytest.approx(ratio)
    assert measured["trainer_images_per_second"] > 0


def test_baseline_reads_the_images_of_the_list(originals, tmp_path):
    listed = tmp_path / "images.txt"
    listed.write_text("\n".join(map(str, sorted(originals.glob("files/*/*/*/*.jpg")))), encoding="utf-8")
    flags = ["--batch_size=2", "--steps=1", "--windows=2", "--image_size=32", f"--images={listed}"]
    run_script("trainer_baseline.py", *flags, f"--json={tmp_path / 'trainer.json'}")
    speeds = json.loads((tmp_path / "trainer.json").read_text(encoding="utf-8"))["images_per_second"]
    assert len(speeds) == 2
    assert min(speeds) > 0
