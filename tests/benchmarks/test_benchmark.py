"""The benchmark's figures come from work that was done, and its errors are one line."""

import itertools
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import benchmark
import gpu
import pandas as pd
import pytest
import reading
import training
from cxr.errors import UserError
from make_sample_data import make_sample_data
from originals import repeat_images

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run_script(name: str, *flags: str) -> None:
    done = subprocess.run([sys.executable, str(BENCHMARKS / name), *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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


def test_speed_is_images_by_seconds_of_reading_alone(monkeypatch):
    clock = itertools.count(0.0, 0.25)  # a quarter of a second from one look to the next
    monkeypatch.setattr(reading.time, "perf_counter", lambda: next(clock))

    def prepare(images):
        next(clock)  # takes time, which does not count
        return reading.each(lambda image: next(clock), images)

    monkeypatch.setitem(reading.SIDES, "decoder: fake", prepare)
    assert reading.measure_side("decoder: fake", [Path("a.jpg")] * 3) == 3 / 1.0


def test_figures_are_those_of_the_sides_that_they_name(originals, monkeypatch, tmp_path):
    rates = {
        "ours: shrink": 60.0,
        "ours: loader": 2000.0,
        "ours: loader, RandAugment": 1500.0,
        "ours: loader, mixing": 1100.0,
        "example: originals": 15.0,
        "example: cached": 400.0,
        "decoder: whole, Lanczos": 20.0,
        "decoder: an eighth": 64.0,
        "decoder: cached": 6000.0,
    }
    monkeypatch.setattr(reading, "take_turns", lambda sides, rounds: {name: rates[name] for name in sides})
    measured = reading.measure_data(Namespace(data_dir=originals, num_images=2, rounds=1), tmp_path)
    shrink, loader = measured["shrink"], measured["loader"]
    assert (shrink["ratio_to_example"], shrink["ratio_to_full_decode"]) == (4.0, 3.0)
    assert (loader["ratio_to_example_originals"], loader["ratio_to_example_cached"]) == (2000 / 15, 5.0)
    assert shrink["decoder_floor_images_per_second"] == 64.0
    assert loader["rand_augment_images_per_second"] == 1500
    assert (loader["mixing_images_per_second"], loader["ratio_of_mixing"]) == (1100, 0.55)
    assert loader["decoder_floor_images_per_second"] == 6000
    assert shrink["lowest_psnr_db"] > 30


def test_the_medians_of_both_sides_are_compared(originals, monkeypatch, tmp_path):
    of_turns = {"ours": [[30.0, 1.0], [90.0, 30.0]], "trainer": [[20.0, 20.0], [10.0, 500.0]]}
    for side, name in (("ours", "train_ours"), ("trainer", "train_with_trainer")):
        turns = iter({"images_per_second": rates, "peak_memory_gib": None} for rates in of_turns[side])
        monkeypatch.setattr(training, name, lambda *args, turns=turns: next(turns))
    flags = {"command": "train", "data_dir": originals, "batch_size": 2, "steps": 2, "rounds": 2}
    flags |= {"config_name": "vit-mae-tiny", "mixed_precision": "no", "torch_compile": False}
    measured = training.measure_training(Namespace(**flags), tmp_path)
    assert (measured["images_per_second"], measured["trainer_images_per_second"]) == (30.0, 20.0)
    assert measured["ratio_to_trainer"] == 1.5


@pytest.mark.slow
@pytest.mark.timing
def test_the_decoder_beats_the_loader_and_that_the_example_on_the_same_cache(measured_data):
    for part in ("shrink", "loader"):
        measured = measured_data[part]
        assert measured["decoder_floor_images_per_second"] > measured["images_per_second"]
    assert measured_data["loader"]["ratio_to_example_cached"] > 1.5


@pytest.mark.slow
def test_reading_of_dicom_files_is_timed_with_one_process_and_with_two(tmp_path):
    path = tmp_path / "dicom.json"
    flags = ["--num_files", "1", "--rounds", "1", "--num_workers", "2"]
    run_script("benchmark.py", "dicom", *flags, "--json", str(path))
    measured = json.loads(path.read_text(encoding="utf-8"))
    one, two = measured["one_process_images_per_second"], measured["images_per_second"]
    assert one > 0 and measured["ratio_to_one_process"] == pytest.approx(two / one)


def test_small_images_are_refused_in_one_line(sample_root, tmp_path):
    flags = [f"--data_dir={sample_root}", f"--json={tmp_path / 'data.json'}"]
    with pytest.raises(
        UserError, match=r"^--data_dir .* expected originals with a shortest side above 256.*$"
    ):
        benchmark.main(["data", *flags])
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
    assert measured["model"] == model
    assert measured["images_per_second"] > 0 and measured["trainer_images_per_second"] > 0


@pytest.mark.slow
def test_gpu_rows_are_measured_some_per_call_until_none_is_missing(tmp_path):
    path = tmp_path / "smoke.json"
    for num_rows in (1, 3):
        run_script("gpu.py", "--smoke", f"--rows={2 * num_rows - 1}", f"--json={path}")
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        assert len(rows) == num_rows and not [row for row in rows if "error" in row]
        assert len(path.with_suffix(".md").read_text(encoding="utf-8").splitlines()) == 2 + num_rows
    for row in rows[:2]:
        assert row["images_per_second"] > 0 and row["milliseconds"]
        assert row["loss"] == pytest.approx(row["plain_loss"], rel=1e-3)


def test_gpu_results_of_another_commit_are_not_mixed_and_a_row_that_takes_too_long_is_noted(
    tmp_path, monkeypatch
):
    path = tmp_path / "gpu.json"
    flags = ["--smoke", f"--json={path}"]

    def take_too_long(command, seconds):
        raise subprocess.TimeoutExpired(command, seconds)

    monkeypatch.setattr(gpu, "measure", take_too_long)
    gpu.main(flags)
    [row] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert row["error"] == "not done in 9 minutes"
    monkeypatch.setattr(gpu, "commit", lambda: "another")
    with pytest.raises(UserError, match="expected another; use another --json"):
        gpu.main(flags)


@pytest.mark.slow
def test_baseline_reads_the_images_of_the_list(originals, tmp_path):
    listed = tmp_path / "images.txt"
    listed.write_text("\n".join(map(str, sorted(originals.glob("files/*/*/*/*.jpg")))), encoding="utf-8")
    flags = ["--batch_size=2", "--steps=1", "--windows=2", "--image_size=32", f"--images={listed}"]
    run_script("trainer_baseline.py", *flags, f"--json={tmp_path / 'trainer.json'}")
    speeds = json.loads((tmp_path / "trainer.json").read_text(encoding="utf-8"))["images_per_second"]
    assert len(speeds) == 2
    assert min(speeds) > 0
