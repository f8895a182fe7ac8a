"""Predictions that are stopped and continued, end to end: no row is lost, doubled or mixed; the summary."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time

import predict
import pytest
from cxr.errors import run_script
from dicom_files import write_dicom
from picture_files import encode
from picture_files import encode_png
from picture_files import soft_picture
from tiny_models import make_model

PICTURE = soft_picture()
ODD_NAMES = ["b, c.png", 'd "quoted".png', "e\nf.png", "g\r.png", "ü.png", "\n.png"]
if sys.platform == "win32":
    ODD_NAMES = ["b, c.png", "ü.png"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model") / "m", bias=0.1)


@pytest.fixture
def images(tmp_path):
    """Twelve files with names that a table must quote; some are refused, some doubted."""
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(encode(PICTURE))
    for name in ODD_NAMES:
        (folder / name).write_bytes(encode_png(PICTURE))
    (folder / "empty.png").touch()
    (folder / "constant, too.jpg").write_bytes(encode(0 * PICTURE))
    write_dicom(folder / "x.dcm", PICTURE, Modality="CT")
    write_dicom(folder / "y.dcm", PICTURE, BurnedInAnnotation="YES")
    (folder / "z.jpg").write_bytes(encode(255 - PICTURE))
    return folder


def call(capsys, *argv) -> tuple[int, str]:
    """Calls the script as a user does; returns its status and what it said."""
    try:
        run_script(lambda: predict.main([*map(str, argv), "--device=cpu", "--batch_size=1"]))
        status = 0
    except SystemExit as ended:
        status = ended.code
    return status, capsys.readouterr().err


def stop_after(monkeypatch, num_batches: int) -> list:
    """Ctrl-C comes while that many have been predicted, and once more; returns what is called."""
    calls, probabilities = [], predict.Classifier.probabilities

    def stopping(classifier, images):
        calls.append(len(images))
        if len(calls) == num_batches + 1:
            raise KeyboardInterrupt
        return probabilities(classifier, images)

    monkeypatch.setattr(predict.Classifier, "probabilities", stopping)
    return calls


@pytest.mark.parametrize("flags", [[], pytest.param(["--heatmap={images}"], marks=pytest.mark.slow)])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_stopped_calls_are_continued_to_the_table_of_an_uninterrupted_one(
    suffix, flags, model, images, tmp_path, capsys, monkeypatch
):
    flags = [flag.format(images=images) for flag in flags]  # maps among the images are no images
    inputs, unfinished = [images, images / "*.nothing"], tmp_path / f".out.{suffix}.partial"
    whole, output = tmp_path / f"whole.{suffix}", tmp_path / f"out.{suffix}"
    assert call(capsys, model, *inputs, f"--output={whole}", *flags)[0] == 1
    for num_batches in (3, 2):
        with monkeypatch.context() as patch:
            calls = stop_after(patch, num_batches)
            status, said = call(capsys, model, *inputs, f"--output={output}", *flags)
        assert status == 130 and f"{unfinished} holds the rows so far: repeat the call to continue" in said
        assert len(calls) == num_batches + 1 and not output.exists()
        if sys.platform != "win32":
            assert stat.S_IMODE(unfinished.stat().st_mode) == 0o600
        with unfinished.open("ab") as file:
            file.truncate(file.tell() - 3)  # as a kill in the middle of a row leaves it
    with monkeypatch.context() as patch:
        calls = stop_after(patch, 10**6)
        status, said = call(capsys, model, *inputs, f"--output={output}", *flags)
    assert status == 1 and "rows of an earlier call; continuing it" in said
    assert output.read_bytes() == whole.read_bytes() and not unfinished.exists()
    assert len(calls) <= len(ODD_NAMES) + 4 - 3  # the others alone, but for rows that were cut
    if sys.platform != "win32":
        assert stat.S_IMODE(output.stat().st_mode) == 0o600


CHANGES = {
    "--equalize": (["--equalize=yes"], "--equalize auto, now yes"),
    "--dicom_window": (["--dicom_window=none"], "--dicom_window header, now none"),
    "--heatmap": (["--heatmap={maps}"], "--heatmap None, now {maps}"),
    "images": (["{images}/a.jpg"], "IMAGE ['{images}'], now ['{images}', '{images}/a.jpg']"),
}


@pytest.mark.parametrize("name", [*CHANGES, "commit", "threshold"])
def test_call_that_differs_is_refused_in_one_line_and_the_earlier_one_goes_on(
    name, model, images, tmp_path, capsys, monkeypatch
):
    names = {"images": images, "maps": tmp_path / "maps"}
    changed, said = CHANGES.get(name, ([], ""))
    output, mine = tmp_path / "out.csv", shutil.copytree(model, tmp_path / "model")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        call(capsys, mine, images, f"--output={output}")
    left = (tmp_path / ".out.csv.partial").read_bytes()
    if name == "commit":
        make_model(mine, bias=0.7)
        said = "commit "
    if name == "threshold":  # in a folder it changes the commit, too
        commit = json.loads(left.split(b"\n")[0])["commit"]
        monkeypatch.setattr(predict, "identify", lambda *args, **options: commit)
        config = json.loads((mine / "config.json").read_text(encoding="utf-8"))
        text = json.dumps(config | {"decision_threshold": 0.3})
        (mine / "config.json").write_text(text, encoding="utf-8")
        said = "thresholds [0.5], now [0.3]"
    argv = [mine, images, *(one.format(**names) for one in changed), f"--output={output}"]
    status, message = call(capsys, *argv)
    message = message.splitlines()[-1]
    assert status == 2 and f"found rows of a call with {said.format(**names)}" in message
    assert message.endswith("; remove the file to start again, or repeat the earlier call to continue it")
    assert (tmp_path / ".out.csv.partial").read_bytes() == left and not output.exists()
    (tmp_path / ".out.csv.partial").unlink()
    assert call(capsys, *argv)[0] == 1 and output.is_file()


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_garbage_in_the_place_of_earlier_rows_is_refused_in_one_line(name, model, images, tmp_path, capsys):
    unfinished = tmp_path / f".{name}.partial"
    unfinished.write_bytes(b"\x00garbage\n")
    status, said = call(capsys, model, images, f"--output={tmp_path / name}")
    assert status == 2 and f"{unfinished}: not what predict.py writes" in said.splitlines()[-1]
    assert "remove the file to start again" in said and unfinished.read_bytes() == b"\x00garbage\n"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
def test_killed_script_is_continued_to_the_same_table(model, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(200):
        (folder / f"{number:03}.jpg").write_bytes(encode(PICTURE))
    assert call(capsys, model, folder, f"--output={tmp_path / 'whole.csv'}")[0] == 0
    output, unfinished = tmp_path / "out.csv", tmp_path / ".out.csv.partial"
    command = [sys.executable, predict.__file__, str(model), str(folder), f"--output={output}"]
    with subprocess.Popen([*command, "--device=cpu", "--batch_size=1"], stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (unfinished.exists() and unfinished.stat().st_size > 2000):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert unfinished.exists() and not output.exists()
    status, said = call(capsys, model, folder, f"--output={output}")
    assert status == 0 and "rows of an earlier call; continuing it" in said
    assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has other pipes")
def test_reader_of_the_rows_may_go_away(model, images):
    command = [sys.executable, predict.__file__, str(model), str(images), "--device=cpu", "--batch_size=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"path,probability,decision,warning,error\n"
        process.stdout.close()
        said = process.stderr.read().decode()
    assert process.returncode == 141 and "Traceback" not in said and "Broken" not in said


# The summary ------------------------------------------------------------------------------------------------


def test_summary_counts_what_was_predicted_warned_and_refused_by_reason(model, images, tmp_path, capsys):
    status, said = call(capsys, model, images, images / "*.nothing", f"--output={tmp_path / 'out.csv'}")
    *_, first, second, third, fourth, fifth, sixth = said.splitlines()
    num_predicted = len(ODD_NAMES) + 4
    assert status == 1
    assert first.startswith(
        f"{num_predicted + 3} files in {tmp_path / 'out.csv'}: {num_predicted} predicted ("
    )
    assert first.endswith("2 of them with a warning, 3 refused")
    assert [second, third] == [
        f"  1 warning: the header says modality CT (first {images / 'x.dcm'})",
        f"  1 warning: the header says that text is burned into the image (first {images / 'y.dcm'})",
    ]
    assert [fourth, fifth, sixth] == [
        f"  1 refused: all pixels are the same (first {images / 'constant, too.jpg'})",
        f"  1 refused: empty (first {images / 'empty.png'})",
        f"  1 refused: no such file, or none that matches (first {images / '*.nothing'})",
    ]


def test_summary_names_the_ten_most_frequent_reasons_of_a_kind_and_how_many_more_there_are(
    model, tmp_path, capsys
):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(15):
        write_dicom(folder / f"bad{number}.dcm", PICTURE, Rows=90 + min(number, 12))  # the last three alike
        write_dicom(
            folder / f"doubtful{number}.dcm", PICTURE, Modality=f"OT{min(number, 10)}"
        )  # the last five
    _, said = call(capsys, model, folder)
    lines = [line for line in said.splitlines() if line.startswith("  ")]
    assert len(lines) == 2 * 10 + 2
    assert lines[0] == f"  5 warning: the header says modality OT10 (first {folder / 'doubtful10.dcm'})"
    assert lines[10] == "  1 more reasons: see the table"
    assert lines[11].startswith("  3 refused: DICOM with 4,800 bytes of pixels, expected 6,120 (first ")
    assert lines[21] == "  3 more reasons: see the table"
