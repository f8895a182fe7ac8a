"""A classifier of several findings in use: table, heat map of a finding, ONNX, page, pipeline."""

import csv
import io
import json
import re
from html import unescape
from pathlib import Path

import export_onnx
import numpy as np
import onnxruntime
import predict
import pytest
import serve
import torch
from cxr.data.transforms import evaluation_transform
from cxr.errors import UserError
from cxr.inference import heatmaps
from cxr.inference import radiographs
from cxr.inference.classifier import Classifier
from cxr.inference.classifier import load_classifier
from cxr.models import configs
from cxr.models.pretrained import load_image_processor
from cxr.models.scratch import new_classifier
from PIL import Image
from refused import refused
from tiny_runs import TINY_RESNET
from tiny_runs import TINY_VIT
from transformers import pipeline

from mimic_cxr_dataset.radiographs import Reading
from mimic_cxr_dataset.radiographs import shrink_radiograph

FINDINGS = ["Cardiomegaly", "Edema, or <fluid>", "No Finding"]
NAMES = {"vit": "vit-mae-tiny", "resnet": "resnet-18"}
OVERRIDES = {"vit": TINY_VIT[1], "resnet": TINY_RESNET[1]}


def save(folder: Path, *, kind: str = "vit", findings: list[str] = FINDINGS, **fields) -> Path:
    """Saves an untrained model of several findings whose probabilities are not all near 0.5."""
    torch.manual_seed(0)
    overrides = OVERRIDES[kind].removeprefix("--config_overrides=")
    config = configs.make_config(NAMES[kind], overrides=overrides, image_size=32 if kind == "vit" else None)
    model = new_classifier(config, findings, multi_label=True)
    head = model.classifier if kind == "vit" else model.classifier[1]
    torch.nn.init.normal_(head.weight, std=0.5)
    model.config.update(fields)
    model.save_pretrained(folder)
    load_image_processor(None, hub_dir=None, revision="main", image_size=32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def paths(sample_root) -> list[Path]:
    return radiographs.find_radiographs([str(sample_root)])[0][:6]


@pytest.fixture(scope="module")
def images(paths) -> torch.Tensor:
    read = [radiographs.read_radiograph(path, shortest_side=37, reading=Reading()).pixels for path in paths]
    return torch.stack(list(map(evaluation_transform(32), read)))


@pytest.fixture(scope="module", params=NAMES)
def model_dir(request, images, tmp_path_factory) -> Path:
    """A model whose thresholds are medians of its probabilities, so that each finding is called for half."""
    folder = tmp_path_factory.mktemp(request.param)
    save(folder / "no thresholds", kind=request.param)
    found = load_classifier(str(folder / "no thresholds"), device="cpu").probabilities(images)
    thresholds = dict(zip(FINDINGS, np.median(found, axis=0).tolist()))
    return save(folder / "model", kind=request.param, decision_thresholds=thresholds, equalized=False)


@pytest.fixture(scope="module")
def classifier(model_dir) -> Classifier:
    return load_classifier(str(model_dir), device="cpu")


def run_predict(capsys, *argv) -> tuple[list[dict[str, str]], str]:
    predict.main([*map(str, argv), "--device=cpu"])
    out, said = capsys.readouterr()
    return list(csv.DictReader(io.StringIO(out))), said


def test_each_finding_has_the_sigmoid_of_its_logit_and_a_threshold(classifier, images):
    assert classifier.is_multi_label and classifier.findings == classifier.labels == tuple(FINDINGS)
    with torch.no_grad():
        logits = classifier.model(pixel_values=classifier.normalize(images)).logits
    found = classifier.probabilities(images)
    assert found.shape == (6, 3) and found == pytest.approx(1 / (1 + np.exp(-logits.double().numpy())))
    assert classifier.has_threshold and len(set(classifier.thresholds)) == 3
    called = [classifier.find_called(one) for one in found]
    assert [sum(name in one for one in called) for name in FINDINGS] == [3, 3, 3]


def test_decision_names_the_findings_at_their_thresholds_or_none(classifier):
    first, second, third = classifier.thresholds
    assert classifier.decide([first, second - 1e-9, third]) == "Cardiomegaly; No Finding"
    assert classifier.decide([0.0, 0.0, 0.0]) == "none"


@pytest.mark.parametrize("num_labels", [1, 2, 100])
def test_model_from_elsewhere_may_have_any_number_of_labels_and_no_threshold(num_labels, images, tmp_path):
    labels = [f"finding {number}" for number in range(num_labels)]
    found = load_classifier(str(save(tmp_path, findings=labels)), device="cpu")
    assert not found.has_threshold and found.thresholds == (0.5,) * num_labels
    assert found.probabilities(images).shape == (6, num_labels)


def test_too_many_labels_are_refused_with_both_kinds_of_heads(tmp_path):
    labels = [f"finding {number}" for number in range(101)]
    with pytest.raises(
        UserError, match=r"101 labels, expected 2 \(negative and positive\), or 1 to 100 with"
    ):
        load_classifier(str(save(tmp_path, findings=labels)), device="cpu")


# The table --------------------------------------------------------------------------------------------------


def test_table_has_a_column_per_finding_and_the_summary_counts_each(model_dir, classifier, paths, capsys):
    rows, said = run_predict(capsys, model_dir, *paths)
    assert list(rows[0]) == ["path", *FINDINGS, "decision", "warning", "error"]
    found = np.array([[float(row[name]) for name in FINDINGS] for row in rows])
    assert [row["decision"] for row in rows] == list(map(classifier.decide, found))
    counts = dict(zip(FINDINGS, (found >= classifier.thresholds).sum(axis=0)))
    assert "6 files: 6 predicted, 0 of them with a warning, 0 refused\n" in said
    for name, threshold in zip(FINDINGS, classifier.thresholds):
        assert f"  {counts[name]} {name} (threshold {threshold:.4g})\n" in said


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_stopped_table_is_continued_to_the_same_one(suffix, model_dir, paths, tmp_path, monkeypatch, capsys):
    (tmp_path / "bad.png").write_text("no image", encoding="utf-8")
    argv = [model_dir, tmp_path / "bad.png", *paths, "--batch_size=2", "--num_workers=1", "--device=cpu"]
    argv, calls, compute = list(map(str, argv)), [], Classifier.probabilities

    def stop_at_third(self, images):
        calls.append(images)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute(self, images)

    for name in ("whole", "stopped"):
        output = tmp_path / f"{name}.{suffix}"
        if name == "stopped":
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(Classifier, "probabilities", stop_at_third)
                predict.main([*argv, f"--output={output}"])
            assert not output.exists()
        with pytest.raises(SystemExit):
            predict.main([*argv, f"--output={output}"])
    assert "found 4 rows of an earlier call; continuing it" in capsys.readouterr().err
    whole = (tmp_path / f"whole.{suffix}").read_text(encoding="utf-8")
    assert (tmp_path / f"stopped.{suffix}").read_text(encoding="utf-8") == whole
    if suffix == "jsonl":
        rows = [json.loads(line) for line in whole.splitlines()]
        assert list(rows[1]) == ["path", *FINDINGS, "decision", "warning", "error"]
        assert rows[0]["Cardiomegaly"] is None and 0 < rows[1]["Cardiomegaly"] < 1


def test_finding_with_the_name_of_a_column_is_refused(paths, tmp_path, capsys):
    folder = save(tmp_path / "model", findings=["Edema", "error"])
    capsys.readouterr()  # saving a model shows a progress bar
    assert "found a label named error, which is a column" in refused(predict.main, [folder, *paths], capsys)


# Heat maps --------------------------------------------------------------------------------------------------


def test_heat_of_a_finding_is_that_of_a_binary_model_with_its_logit(classifier, images):
    """A binary model with the logits 0 and that of the finding has the same log-odds."""
    model = classifier.model
    is_vit = model.config.model_type == "vit"
    for number in range(3):
        expected = heatmaps.heat_maps(classifier, images, number)
        head = model.classifier if is_vit else model.classifier[1]
        binary = torch.nn.Linear(head.in_features, 2)
        with torch.no_grad():
            binary.weight.copy_(torch.stack([torch.zeros(head.in_features), head.weight[number]]))
            binary.bias.copy_(torch.stack([torch.zeros(()), head.bias[number]]))
        twin = load_classifier(classifier.name, device="cpu")
        twin.model.config.problem_type = None
        twin.model.classifier = binary if is_vit else torch.nn.Sequential(model.classifier[0], binary)
        assert np.abs(heatmaps.heat_maps(twin, images) - expected).max() < 1e-4
    if is_vit:  # the ResNet's grid is one cell
        assert np.abs(heatmaps.heat_maps(classifier, images, 0) - expected).max() > 0.1


def test_heat_map_is_of_the_named_finding(model_dir, paths, tmp_path, capsys, monkeypatch):
    drawn, draw = [], heatmaps.plot_heat_map
    monkeypatch.setattr(
        heatmaps, "plot_heat_map", lambda *args, **said: (drawn.append(said), draw(*args, **said))
    )
    flags = [f"--heatmap={tmp_path}", "--heatmap_finding=No Finding"]
    rows, _ = run_predict(capsys, model_dir, paths[0], *flags)
    assert Image.open(rows[0]["heat_map"]).size and drawn[0]["label"] == "No Finding"
    assert f"No Finding: {float(rows[0]['No Finding']):.3f}, decision " in drawn[0]["title"]


WRONG_FINDINGS = {
    "none": ([], "--heatmap_finding: found nothing, expected a finding of"),
    "unknown": (
        ["--heatmap_finding=Cardiomegali"],
        "found Cardiomegali (did you mean Cardiomegaly?), expected",
    ),
}


@pytest.mark.parametrize("wrong", WRONG_FINDINGS)
def test_finding_that_the_model_lacks_is_refused_in_one_line(wrong, model_dir, paths, tmp_path, capsys):
    flags, said = WRONG_FINDINGS[wrong]
    argv = [model_dir, paths[0], f"--heatmap={tmp_path / 'maps'}", *flags]
    assert said in refused(predict.main, argv, capsys) and not (tmp_path / "maps").exists()


def test_finding_without_heat_maps_is_refused(model_dir, paths, capsys):
    argv = [model_dir, paths[0], "--heatmap_finding=Cardiomegaly"]
    assert "--heatmap_finding: found no --heatmap" in refused(predict.main, argv, capsys)


# Without torch, and by transformers alone -------------------------------------------------------------------


@pytest.mark.slow
def test_onnx_file_has_the_probabilities_and_says_whose_they_are(
    model_dir, classifier, images, paths, tmp_path
):
    out = tmp_path / "model.onnx"
    export_onnx.main([str(model_dir), str(out), "--images", str(paths[0]), "--batch_sizes", "1"])
    session = onnxruntime.InferenceSession(out)
    probability, logits = session.run(["probability", "logits"], {"images": images.numpy()})
    assert probability.shape == logits.shape == (6, 3)
    assert np.abs(probability - classifier.probabilities(images)).max() <= 1e-4
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["findings"]) == FINDINGS
    assert tuple(json.loads(about["thresholds"])) == classifier.thresholds
    assert not {"negative", "positive", "threshold"} & about.keys()


@pytest.mark.slow
def test_documented_code_prints_each_finding(model_dir, classifier, paths, tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "using-a-model.md").read_text(encoding="utf-8")
    snippet = page.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    export_onnx.main([str(model_dir), "finding.onnx", "--images", str(paths[0]), "--batch_sizes", "1"])
    Path("xray.jpg").write_bytes(Path(paths[0]).read_bytes())
    capsys.readouterr()
    exec(snippet, {})
    printed = capsys.readouterr().out.splitlines()
    rows, _ = run_predict(capsys, model_dir, "xray.jpg")
    for line, name, threshold in zip(printed, FINDINGS, classifier.thresholds, strict=True):
        probability = float(rows[0][name])
        said = re.fullmatch(r"(.*): probability of .* (\d\.\d{4})", line)
        assert float(said[2]) == pytest.approx(probability, abs=2e-4)
        assert said[1] == (name if float(said[2]) >= threshold else f"no {name}")


def test_plain_pipeline_gives_the_probability_of_each_finding(model_dir, paths, tmp_path, capsys):
    classify = pipeline("image-classification", model=str(model_dir), device="cpu")
    rows, _ = run_predict(capsys, model_dir, *paths[:3])
    for path, row in zip(paths, rows):
        (tmp_path / "a.jpg").write_bytes(shrink_radiograph(path, 37).content)
        scores = {entry["label"]: entry["score"] for entry in classify(str(tmp_path / "a.jpg"))}
        assert scores == pytest.approx({name: float(row[name]) for name in FINDINGS}, abs=1e-5)


# The page ---------------------------------------------------------------------------------------------------


def test_page_has_a_bar_per_finding_with_its_mark_those_that_are_called_first(classifier, images, paths):
    html = serve.answer_html(classifier, paths[0], Reading())
    bars = re.findall(
        r'<div class="bar( called)?"><span>(.*?)</span>.*?width:([\d.]+)%.*?left:([\d.]+)%.*?<b>([\d.]+)</b>',
        html,
        flags=re.DOTALL,
    )
    found = dict(zip(FINDINGS, zip(classifier.probabilities(images)[0], classifier.thresholds)))
    assert {unescape(name) for _, name, *_ in bars} == set(FINDINGS)
    margins = []
    for called, name, width, left, said in bars:
        probability, threshold = found[unescape(name)]
        assert bool(called) == (probability >= threshold) and said == f"{probability:.3f}"
        assert (width, left) == (f"{100 * probability:.2f}", f"{100 * threshold:.2f}")
        margins.append(probability - threshold)
    assert margins == sorted(margins, reverse=True)
    assert "<fluid>" not in html + serve.head_html(classifier, is_local=True)


def test_page_has_a_heat_map_per_finding_and_shows_the_first(classifier, paths):
    html = serve.answer_html(classifier, paths[0], Reading())
    names = re.findall(r"<option>(.*?)</option>", html)
    assert re.findall(r"<span>(.*?)</span>", html) == names and len(set(names)) == 3
    assert re.findall(r'<figure class="map"( hidden)?>', html) == ["", " hidden", " hidden"]
    assert html.count("data:image/jpeg") == 4


def test_page_of_one_finding_has_no_choice_of_heat_maps(paths, tmp_path):
    one = load_classifier(str(save(tmp_path, findings=["Edema"])), device="cpu")
    html = serve.answer_html(one, paths[0], Reading())
    assert "<select" not in html and html.count("data:image/jpeg") == 2
    assert "<h1>Edema?</h1>" in serve.head_html(one, is_local=True)
    assert "its threshold of 0.500 is the default" in serve.read_card(None, one)


def test_heading_names_the_findings(classifier):
    html = serve.head_html(classifier, is_local=True)
    assert "Which of these findings?" in html and "Cardiomegaly \u00b7 Edema, or &lt;fluid&gt;" in html
