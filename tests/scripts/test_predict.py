"""Predictions, end to end: the probabilities are those of the run, and bad files are listed."""

import csv
import io
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import predict
import pytest
import run_classification
from cxr.inference import radiographs
from dicom_files import write_dicom
from PIL import Image
from refused import refused
from tiny_runs import QUICK
from tiny_runs import TINY_RESNET
from tiny_runs import TINY_VIT
from tiny_runs import run_main
from transformers import pipeline

from mimic_cxr_dataset.labels import index_images
from mimic_cxr_dataset.radiographs import shrink_radiograph

MODELS = {"vit": TINY_VIT, "resnet": TINY_RESNET}


@pytest.fixture(scope="module")
def runs(sample_root, tmp_path_factory):
    """Runs with a test split: a ViT that saw the default size, a ResNet that saw another."""
    folder = tmp_path_factory.mktemp("predict")
    flags = [*QUICK, "--max_train_steps=6", "--evaluate_test", f"--data_dir={sample_root}"]
    run_main(run_classification, folder / "vit", *TINY_VIT, *flags)
    run_main(run_classification, folder / "resnet", *TINY_RESNET, *flags, "--cache_image_size=50")
    return folder


@pytest.fixture(scope="module")
def test_images(sample_root):
    """dicom_id -> path of the images in predictions_test.csv."""
    images, _ = index_images(sample_root)
    images = images[images["split"] == "test"]
    return dict(zip(images["dicom_id"], images["path"]))


@pytest.fixture
def picture(test_images):
    return np.asarray(Image.open(next(iter(test_images.values()))).convert("L"))


def run_predict(capsys, *argv) -> tuple[int, list[dict[str, str]], str]:
    """Calls the script on the CPU; returns its status, the rows on standard output, and what it said."""
    try:
        predict.main([*map(str, argv), "--device=cpu"])
        status = 0
    except SystemExit as ended:
        status = ended.code
    out, said = capsys.readouterr()
    return status, list(csv.DictReader(io.StringIO(out))), said


def measured(run) -> dict[str, float]:
    with (run / "predictions_test.csv").open(encoding="utf-8", newline="") as file:
        return {row["dicom_id"]: float(row["probability"]) for row in csv.DictReader(file)}


@pytest.mark.parametrize("model", MODELS)
def test_original_files_have_the_probabilities_of_the_runs_evaluation(model, runs, test_images, capsys):
    status, rows, _ = run_predict(capsys, runs / model / "model", *test_images.values(), "--batch_size=7")
    found = {Path(row["path"]).stem: float(row["probability"]) for row in rows}
    expected = measured(runs / model)
    assert status == 0 and found.keys() == expected.keys() and len(set(expected.values())) > 5
    assert max(abs(found[name] - expected[name]) for name in expected) < 1e-5


@pytest.mark.parametrize("model", MODELS)
def test_plain_pipeline_gives_the_same_probability_for_the_shrunk_image(
    model, runs, test_images, tmp_path, capsys
):
    folder = runs / model / "model"
    size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["cache_image_size"]
    classify = pipeline("image-classification", model=str(folder), device="cpu")
    paths = list(test_images.values())[:6]
    _, rows, _ = run_predict(capsys, folder, *paths)
    for path, row in zip(paths, rows):
        (tmp_path / "a.jpg").write_bytes(shrink_radiograph(path, size).content)
        scores = {entry["label"]: entry["score"] for entry in classify(str(tmp_path / "a.jpg"))}
        assert scores["Finding"] == pytest.approx(float(row["probability"]), abs=1e-5)


@pytest.mark.parametrize("equalize", ["auto", "yes", "no"])
def test_same_picture_has_nearly_the_same_probability_in_every_format(
    equalize, runs, picture, tmp_path, capsys
):
    Image.fromarray(picture).save(tmp_path / "a.jpg", quality=95)
    Image.fromarray(picture).save(tmp_path / "b.png")
    write_dicom(tmp_path / "c.dcm", picture)
    _, rows, _ = run_predict(capsys, runs / "vit" / "model", tmp_path, f"--equalize={equalize}")
    probabilities = [float(row["probability"]) for row in rows]
    assert len(rows) == 3 and np.ptp(probabilities) < 0.02
    assert all(bool(row["warning"]) == (equalize == "yes") for row in rows)  # the sample is not equalised


def test_decisions_are_at_the_stored_threshold(runs, test_images, capsys):
    folder = runs / "vit" / "model"
    threshold = json.loads((folder / "config.json").read_text(encoding="utf-8"))["decision_threshold"]
    _, rows, said = run_predict(capsys, folder, *test_images.values())
    for row in rows:
        assert row["decision"] == ("Finding" if float(row["probability"]) >= threshold else "No Finding")
    assert f"; threshold {threshold:.4g})" in said and "no decision_threshold" not in said


def test_bad_files_are_listed_and_the_others_continue(runs, test_images, tmp_path, capsys):
    good = next(iter(test_images.values()))
    (tmp_path / "bad.png").write_text("no picture", encoding="utf-8")
    names = [tmp_path / "bad.png", good, tmp_path / "*.dcm"]
    status, rows, said = run_predict(capsys, runs / "vit" / "model", *names)
    assert status == 1
    assert [row["path"] for row in rows] == [str(tmp_path / "bad.png"), good, str(tmp_path / "*.dcm")]
    assert [bool(row["probability"]) for row in rows] == [False, True, False]
    expected = ["neither JPEG, PNG nor DICOM", "", "no such file, or none that matches"]
    assert [row["error"] for row in rows] == expected
    assert "3 files: 1 predicted (" in said and "2 refused" in said
    assert f"  1 refused: neither JPEG, PNG nor DICOM (first {tmp_path / 'bad.png'})" in said
    assert run_predict(capsys, runs / "vit" / "model", tmp_path)[0] == 1  # bad ones alone


def test_lateral_view_in_a_header_is_warned_about_and_predicted(runs, picture, tmp_path, capsys):
    write_dicom(tmp_path / "a.dcm", picture, ViewPosition="LL", PatientName="Doe^Jane", PatientID="S3cret")
    write_dicom(tmp_path / "b.dcm", picture, ViewPosition="PA")
    status, rows, said = run_predict(capsys, runs / "vit" / "model", tmp_path)
    assert status == 0 and all(row["probability"] for row in rows)
    warning = "the header says view LL; the model was trained on frontal views"
    assert [row["warning"] for row in rows] == [warning, ""]
    assert "2 predicted" in said and f"  1 warning: {warning} (first {tmp_path / 'a.dcm'})" in said
    assert "Doe" not in said and "S3cret" not in said


def test_window_of_a_header_can_be_left_out(runs, picture, tmp_path, capsys):
    write_dicom(tmp_path / "a.dcm", picture, WindowCenter=100, WindowWidth=40)
    probabilities = [
        run_predict(capsys, runs / "vit" / "model", tmp_path, *flags)[1][0]["probability"]
        for flags in ([], ["--dicom_window=header"], ["--dicom_window=none"])
    ]
    assert probabilities[0] == probabilities[1] != probabilities[2]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_output_file_has_the_rows_and_is_private(suffix, runs, test_images, tmp_path, capsys):
    paths, output = list(test_images.values())[:3], tmp_path / f"out.{suffix}"
    _, expected, _ = run_predict(capsys, runs / "vit" / "model", *paths)
    status, on_terminal, said = run_predict(capsys, runs / "vit" / "model", *paths, f"--output={output}")
    assert (status, on_terminal) == (0, []) and f"3 files in {output}: 3 predicted" in said
    text = output.read_text(encoding="utf-8")
    if suffix == "jsonl":
        rows = [json.loads(line) for line in text.splitlines()]
        rows = [{**row, "probability": repr(row["probability"])} for row in rows]
    else:
        rows = list(csv.DictReader(io.StringIO(text)))
    assert rows == expected and list(rows[0]) == ["path", "probability", "decision", "warning", "error"]
    assert list(tmp_path.iterdir()) == [output]
    if sys.platform != "win32":
        assert stat.S_IMODE(output.stat().st_mode) == 0o600


@pytest.mark.parametrize("step", ["shrink_radiograph", "plot_heat_map"])
def test_any_exception_of_one_file_is_its_row_and_the_others_continue(
    step, runs, test_images, tmp_path, capsys, monkeypatch
):
    def failing(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError("a fault of ours")
        return real(*args, **options)

    calls, module = [], radiographs if step == "shrink_radiograph" else predict.heatmaps
    real = getattr(module, step)
    monkeypatch.setattr(module, step, failing)
    paths = list(test_images.values())[:3]
    flags = ["--num_workers=1", f"--heatmap={tmp_path}"]
    status, rows, said = run_predict(capsys, runs / "vit" / "model", *paths, *flags)
    assert status == 1 and [bool(row["error"]) for row in rows] == [False, True, False]
    assert "RuntimeError: a fault of ours" in rows[1]["error"] and "RuntimeError: a fault of ours (" in said
    assert [bool(row["heat_map"]) for row in rows] == [True, False, True]


@pytest.mark.slow
def test_name_that_the_terminal_cannot_print_is_spelled_out(runs, picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "Röntgen.png")
    command = [sys.executable, predict.__file__, str(runs / "vit" / "model"), str(tmp_path), "--device=cpu"]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "R\\xf6ntgen.png,0." in done.stdout


@pytest.mark.parametrize("model", MODELS)
def test_heat_maps_are_private_pictures_that_the_table_names(model, runs, picture, tmp_path, capsys):
    for name in ("a/x.png", "b/x.png", "b/x.y$z_{.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / name)
    (tmp_path / "b" / "bad.png").write_bytes(b"")
    maps = tmp_path / "maps"
    argv = [runs / model / "model", tmp_path / "a", tmp_path / "b", f"--heatmap={maps}"]
    status, rows, _ = run_predict(capsys, *argv)
    named = [row["heat_map"] for row in rows if row["heat_map"]]
    assert status == 1 and len(set(named)) == 3
    assert sorted(named) == sorted(map(str, maps.iterdir()))
    for path in map(Path, named):
        assert min(Image.open(path).size) > 300
        assert sys.platform == "win32" or stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Path(rows[0]["heat_map"]).name.startswith("x-")


def test_absent_threshold_is_said_once(runs, picture, tmp_path, capsys):
    model = shutil.copytree(runs / "vit" / "model", tmp_path / "model")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    del config["decision_threshold"]
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in "ab":
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    _, _, said = run_predict(capsys, model, tmp_path / "a.png", tmp_path / "b.png", "--batch_size=1")
    assert said.count("no decision_threshold") == 1 and "; threshold 0.5)" in said


WRONG = {
    "no image": (["{model}", "{empty}"], "found no image in {empty}; expected"),
    "no model": (["{empty}/model", "{image}"], "error: model {empty}/model: found no such folder"),
    "output of another kind": (["{model}", "{image}", "--output=a.txt"], "found a.txt, expected a name"),
    "output on a folder": (
        ["{model}", "{image}", "--output={empty}/a.csv"],
        "found a folder, expected a file",
    ),
    "output nowhere": (["{model}", "{image}", "--output={empty}/no/a.csv"], "found no folder {empty}/no;"),
    "heat maps on a file": (["{model}", "{image}", "--heatmap={image}"], "found a file, expected a folder"),
    "batch of none": (["{model}", "{image}", "--batch_size=0"], "found 0, expected a whole number from 1"),
    "no device": (["{model}", "{image}", "--device=abacus"], "--device abacus: found no such device"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_command_ends_in_one_line_and_status_2(name, runs, test_images, tmp_path, capsys):
    (tmp_path / "empty" / "a.csv").mkdir(parents=True)
    values = {"model": runs / "vit" / "model", "empty": tmp_path / "empty"}
    values["image"] = next(iter(test_images.values()))
    argv, expected = WRONG[name]
    argv = [one.format(**values) for one in argv]
    assert expected.format(**values) in refused(predict.main, argv, capsys)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, a disk without room, as on Linux")
def test_script_on_a_full_disk_ends_with_advice_that_names_no_flags_of_a_training(runs, test_images):
    image = next(iter(test_images.values()))
    command = [sys.executable, str(predict.__file__), str(runs / "vit" / "model"), image]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr
    assert done.stderr.endswith("error: the disk is full: make room and start again\n")


@pytest.mark.slow
def test_script_prints_a_table_alone_on_standard_output(runs, test_images):
    script = Path(predict.__file__)
    command = [sys.executable, str(script), str(runs / "vit" / "model"), *list(test_images.values())[:2]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert (
        done.stdout.startswith("path,probability,decision,warning,error\n") and done.stdout.count("\n") == 3
    )
    assert done.stderr.startswith("2 files: ") and done.stderr.count("\n") == 1
