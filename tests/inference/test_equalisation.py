"""Equalised histograms: which files are equalised, for which models, and which images look different."""

import csv
import importlib.util
import io
import itertools
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import predict
import pytest
import serve
from cxr.inference.classifier import EQUALIZED_UNKNOWN
from cxr.inference.classifier import load_classifier
from cxr.inference.radiographs import read_radiograph
from dicom_files import write_dicom
from picture_files import distance
from picture_files import encode
from picture_files import encode_png
from picture_files import soft_picture
from tiny_models import make_model

from mimic_cxr_dataset.gray_levels import equalize

RAW = soft_picture()
EQUALIZED = equalize(RAW)
SEEMS_RAW = "the image seems to be not equalised; the model was trained on images that are equalised"
SEEMS_EQUALIZED = "the image seems to be equalised; the model was trained on images that are not equalised"
FORMATS = {
    "JPEG": lambda path, gray: path.write_bytes(encode(gray)),
    "PNG of 8 bits": lambda path, gray: path.write_bytes(encode_png(gray)),
    "PNG of 16 bits": lambda path, gray: path.write_bytes(encode_png(16 * gray.astype(int), depth=16)),
    "DICOM of 8 bits": lambda path, gray: write_dicom(path, gray),
    "DICOM of 12 bits": lambda path, gray: write_dicom(path, 16 * gray.astype(np.uint16)),
}
NONE, ALL = set(), set(FORMATS)
DEEP_OR_DICOM = ALL - {"JPEG", "PNG of 8 bits"}
# --equalize and what the model says of its images -> the files that are equalised.
DONE = {
    ("auto", True): DEEP_OR_DICOM,
    ("auto", False): NONE,
    ("auto", None): DEEP_OR_DICOM,
    ("yes", True): ALL,
    ("yes", False): ALL,
    ("yes", None): ALL,
    ("no", True): NONE,
    ("no", False): NONE,
    ("no", None): NONE,
}


def expected_warning(trained: bool | None, *, is_equalized: bool, is_done_here: bool) -> str:
    if trained is None or trained == is_equalized:
        return ""
    warning = SEEMS_RAW if trained else SEEMS_EQUALIZED
    return warning.replace("seems to be", "is") if is_done_here else warning


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[bool | None, Path]:
    """A model for each thing that config.json may say of the images."""
    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "None", bias=0.1)
    fields = json.loads((folder / "None" / "config.json").read_text(encoding="utf-8"))
    fields |= {"cache_image_size": 60, "decision_threshold": 0.5, "trained_view": "frontal"}
    (folder / "None" / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    for said in (True, False):
        shutil.copytree(folder / "None", folder / str(said))
        text = json.dumps(fields | {"equalized": said})
        (folder / str(said) / "config.json").write_text(text, encoding="utf-8")
    return {said: folder / str(said) for said in (True, False, None)}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """The raw picture in each format."""
    folder = tmp_path_factory.mktemp("files")
    for name, write in FORMATS.items():
        write(folder / name, RAW)
    return {name: folder / name for name in FORMATS}


def run_predict(capsys, model: Path, paths: list[Path], *flags: str) -> tuple[list[dict[str, str]], str]:
    predict.main([*map(str, (model, *paths)), *flags, "--device=cpu"])
    out, said = capsys.readouterr()
    return list(csv.DictReader(io.StringIO(out))), said


@pytest.mark.parametrize(("flag", "trained"), DONE)
def test_flag_and_model_decide_which_files_are_equalised_and_the_rest_is_doubted(
    flag, trained, models, files, capsys
):
    classifier = load_classifier(str(models[trained]), device="cpu")
    reading = classifier.choose_reading(flag)
    rows, said = run_predict(capsys, models[trained], list(files.values()), f"--equalize={flag}")
    for (name, path), row in zip(files.items(), rows, strict=True):
        is_equalized = name in DONE[flag, trained]
        read = read_radiograph(path, shortest_side=classifier.shortest_side, reading=reading)
        assert distance(read.pixels[0].numpy(), EQUALIZED if is_equalized else RAW) < 1.5
        assert read.is_equalized == is_equalized
        warning = expected_warning(trained, is_equalized=is_equalized, is_done_here=is_equalized)
        assert row["warning"] == "; ".join(classifier.find_doubts(read)) == warning
        assert warning in serve.answer_html(classifier, path, reading)
    assert said.count(EQUALIZED_UNKNOWN) == (flag == "auto" and trained is None)


@pytest.mark.parametrize("trained", [True, False, None])
@pytest.mark.parametrize("name", FORMATS)
def test_picture_that_was_equalised_before_is_known_by_its_histogram(name, trained, models, tmp_path, capsys):
    FORMATS[name](tmp_path / "a", EQUALIZED)
    for flag in ("auto", "yes", "no"):
        (row,), _ = run_predict(capsys, models[trained], [tmp_path / "a"], f"--equalize={flag}")
        is_done_here = name in DONE[flag, trained]
        expected = expected_warning(trained, is_equalized=True, is_done_here=is_done_here)
        assert row["warning"] == expected


def test_warnings_of_file_header_and_histogram_stand_in_one_row_and_each_in_the_page(
    models, tmp_path, capsys
):
    path = write_dicom(tmp_path / "a.dcm", RAW // 16, Modality="CT", ViewPosition="LL")
    (row,), said = run_predict(capsys, models[True], [path], "--equalize=no")
    expected = [
        "the header says modality CT",
        "the image has only 16 gray levels",
        "the header says view LL; the model was trained on frontal views",
        SEEMS_RAW,
    ]
    assert row["warning"] == "; ".join(expected)
    assert f"1 warning: {row['warning']} (first {path})" in said
    classifier = load_classifier(str(models[True]), device="cpu")
    page = serve.answer_html(classifier, path, classifier.choose_reading("no"))
    assert [f'<p class="warning">Warning: {one}</p>' in page for one in expected] == [True] * 4


def test_title_of_a_heat_map_carries_the_warning(models, files, tmp_path, capsys, monkeypatch):
    def record(pixels, heat, path, *, title, label):
        titles.append(title)

    titles = []
    monkeypatch.setattr(predict.heatmaps, "plot_heat_map", record)
    paths = [files["JPEG"], files["DICOM of 8 bits"]]
    rows, _ = run_predict(capsys, models[True], paths, f"--heatmap={tmp_path}")
    assert [bool(row["warning"]) for row in rows] == [True, False]
    for title, row in zip(titles, rows, strict=True):
        first, second, method, *rest = title.split("\n")
        assert "on a grid of" in method
        assert first == Path(row["path"]).name and f"decision {row['decision']}" in second
        assert " ".join(rest) == (f"Warning: {SEEMS_RAW}" if row["warning"] else "")
        assert max(map(len, title.split("\n"))) <= 90


FLAGS = (
    [f"--equalize={one}" for one in ("auto", "yes", "no")],
    [f"--dicom_window={one}" for one in ("header", "none")],
)


@pytest.mark.parametrize("flags", itertools.product(*FLAGS))
def test_page_reads_as_the_table_does_under_the_same_flags(flags, models, monkeypatch, capsys):
    def record(classifier, reading, card, *, is_local):
        readings.append(reading)
        raise KeyboardInterrupt

    readings = []
    monkeypatch.setattr(serve, "make_page", record)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    for trained, model in models.items():
        with pytest.raises(KeyboardInterrupt):
            serve.main([str(model), *flags, "--device=cpu"])
        said = capsys.readouterr().err
        assert said.count(EQUALIZED_UNKNOWN) == (trained is None and "--equalize=auto" in flags)
        args = predict.parse_args([str(model), "image", *flags])
        classifier = load_classifier(str(model), device="cpu")
        reading = readings.pop()
        assert reading == classifier.choose_reading(args.equalize, dicom_window=args.dicom_window)
        assert reading.use_window == ("--dicom_window=header" in flags)


@pytest.mark.parametrize("wrong", ["--equalize=maybe", "--equalize", "--dicom_window=wide"])
def test_both_scripts_refuse_other_values_of_the_flags(wrong, capsys):
    for parse_args, argv in ((predict.parse_args, ["model", "image"]), (serve.parse_args, ["model"])):
        with pytest.raises(SystemExit) as ended:
            parse_args([*argv, wrong])
        message = capsys.readouterr().err
        assert ended.value.code == 2 and message.count("\n") == 1 and wrong.partition("=")[0] in message
