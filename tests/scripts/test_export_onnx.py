"""The ONNX file: what it computes, what it says of itself, and its use without torch."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import export_onnx
import numpy as np
import onnxruntime
import pytest
import run_classification
import torch
from cxr.inference import radiographs
from cxr.inference.classifier import Classifier
from cxr.inference.classifier import load_classifier
from PIL import Image
from refused import refused
from tiny_runs import QUICK
from tiny_runs import TINY_RESNET
from tiny_runs import TINY_VIT
from tiny_runs import run_main

QUICKLY = ["--batch_sizes", "1"]


@pytest.fixture(scope="module")
def vit(sample_root, tmp_path_factory) -> Path:
    """The run folder of a tiny ViT, and a Hub-like directory beside it that has it as my-lab/cxr."""
    folder = tmp_path_factory.mktemp("vit")
    push = ["--push_to_hub", "--hub_model_id=my-lab/cxr", f"--hub_dir={folder / 'hub'}"]
    run_main(run_classification, folder / "run", *TINY_VIT, *QUICK, *push, f"--data_dir={sample_root}")
    return folder / "run"


@pytest.fixture(scope="module")
def vit_file(vit, sample_root) -> Path:
    path = vit.parent / "vit.onnx"
    export_onnx.main([str(vit / "model"), str(path), "--images", str(sample_root), *QUICKLY])
    return path


def paths_of(sample_root: Path) -> list[Path]:
    return radiographs.find_radiographs([str(sample_root)])[0][:12]


def prepared(classifier: Classifier, path: Path, equalize: str = "auto") -> torch.Tensor:
    side, reading = classifier.shortest_side, classifier.choose_reading(equalize)
    read = radiographs.read_radiograph(path, shortest_side=side, reading=reading)
    return classifier.prepare(read.pixels)


@pytest.mark.parametrize("num_images", [1, 5, 12])
def test_file_gives_the_probabilities_of_torch_for_any_number_of_images(
    vit, vit_file, sample_root, num_images
):
    classifier = load_classifier(str(vit / "model"), device="cpu")
    images = torch.stack([prepared(classifier, path) for path in paths_of(sample_root)[:num_images]])
    session = onnxruntime.InferenceSession(vit_file)
    probability, logits = session.run(["probability", "logits"], {"images": images.numpy()})
    assert probability.shape == (num_images,) and logits.shape == (num_images, 2)
    assert np.abs(probability - classifier.probabilities(images)[:, 0]).max() <= 1e-4
    assert num_images == 1 or np.ptp(probability) > 1e-3


def test_file_says_how_to_use_it_and_nothing_of_the_machine_that_wrote_it(vit, vit_file):
    classifier = load_classifier(str(vit / "model"), device="cpu")
    session = onnxruntime.InferenceSession(vit_file)
    about = session.get_modelmeta().custom_metadata_map
    assert (about["negative"], about["positive"]) == ("No Finding", "Finding")
    assert (float(about["threshold"]),) == classifier.thresholds and about["threshold_is_chosen"] == "true"
    assert int(about["image_size"]) == 32 and int(about["shortest_side"]) == classifier.shortest_side
    assert json.loads(about["image_mean"]) == pytest.approx([0.4978] * 3)
    (images,) = session.get_inputs()
    assert (images.name, images.type, images.shape[1:]) == ("images", "tensor(uint8)", [1, 32, 32])
    content = vit_file.read_bytes()
    for private in (str(vit.parent), str(Path(export_onnx.__file__).parent), "site-packages", "Error"):
        assert private.encode() not in content


# Runs the snippet without torch in each folder that it is given, and says what it found to more digits.
DRIVER = """
import os, sys
sys.modules.update(dict.fromkeys(["torch", "torchvision", "transformers"]))
for folder in sys.argv[2:]:
    os.chdir(folder)
    exec(sys.argv[1].replace('equalize = "auto"', f"equalize = {open('equalize').read()!r}"))
    print(probability)
"""


def test_documented_snippet_gives_predicts_probability_in_a_process_without_torch(
    vit, vit_file, sample_root, tmp_path
):
    """For radiographs smaller and larger than those that it was trained on, up to where a JPEG is drafted.

    They are JPEG and PNG of 8 and 16 bits, equalised or not, under the name of a JPEG, as content tells.
    """
    page = (Path(__file__).parents[2] / "docs" / "using-a-model.md").read_text(encoding="utf-8")
    snippet = page.partition("```python\n")[2].partition("```")[0]
    classifier = load_classifier(str(vit / "model"), device="cpu")
    folders, expected = [], []
    paths = paths_of(sample_root)
    for kind, equalize in itertools.product(("JPEG", "PNG", "deep PNG"), ("auto", "yes", "no")):
        for path, scale in zip(paths, (0.5, 1, 2.7, 12.3)):
            folder = tmp_path / str(len(folders))
            folder.mkdir()
            image = Image.open(path).convert("L")
            image = image.resize([round(scale * side) for side in image.size])
            if kind == "deep PNG":
                image = Image.fromarray(np.asarray(image).astype(np.uint16) * 16 + 100)
            image.save(folder / "xray.jpg", quality=95, format=kind.removeprefix("deep "))
            shutil.copyfile(vit_file, folder / "finding.onnx")
            (folder / "equalize").write_text(equalize, encoding="utf-8")
            folders.append(str(folder))
            prepared_image = prepared(classifier, folder / "xray.jpg", equalize)
            expected.append(float(classifier.probabilities(prepared_image[None])[0, 0]))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", DRIVER, snippet, *folders]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    lines = printed.splitlines()
    assert [float(line) for line in lines[1::2]] == pytest.approx(expected, abs=1e-4)
    for line, one in zip(lines[::2], expected):
        assert line.startswith(f"{classifier.decide([one])}: probability of Finding 0.")
    assert np.ptp(expected) > 1e-3


def test_name_in_a_hub_directory_gives_the_same_file_as_the_folder(vit, vit_file, sample_root, tmp_path):
    out = tmp_path / "new folder" / "named.onnx"
    hub_dir = vit.parent / "hub"
    export_onnx.main(["my-lab/cxr", str(out), f"--hub_dir={hub_dir}", "--images", str(sample_root), *QUICKLY])
    assert out.read_bytes() == vit_file.read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["named.onnx"]


@pytest.mark.slow
def test_table_tells_both_speeds_and_the_largest_difference(vit, sample_root, tmp_path, capsys):
    export_onnx.main([str(vit / "model"), str(tmp_path / "a.onnx"), "--images", str(sample_root)])
    printed = capsys.readouterr().out
    said = ("differs from torch by at most", "on noise", "on radiographs", "onnxruntime")
    assert all(text in printed for text in said)
    rows = [line for line in printed.splitlines() if line.count("│") == 5]
    cells = [[cell.strip() for cell in row.strip("│ ").split("│")] for row in rows]
    assert [row[0] for row in cells] == ["1", "8", "32"]
    assert all(float(cell.replace(",", "")) > 0 for row in cells for cell in row)


@pytest.mark.slow
def test_a_resnet_is_exported_with_its_own_statistics(sample_root, tmp_path):
    run_main(run_classification, tmp_path / "run", *TINY_RESNET, *QUICK, f"--data_dir={sample_root}")
    processor = tmp_path / "run" / "model" / "preprocessor_config.json"
    fields = json.loads(processor.read_text(encoding="utf-8"))
    fields |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    processor.write_text(json.dumps(fields), encoding="utf-8")
    out = tmp_path / "resnet.onnx"
    export_onnx.main([str(tmp_path / "run" / "model"), str(out), "--images", str(sample_root), *QUICKLY])
    about = onnxruntime.InferenceSession(out).get_modelmeta().custom_metadata_map
    assert json.loads(about["image_mean"]) == pytest.approx([0.485, 0.456, 0.406])


@pytest.mark.slow
def test_weights_too_large_for_one_file_go_beside_it(vit, sample_root, tmp_path, monkeypatch):
    monkeypatch.setattr(export_onnx, "MAX_BYTES", 1000)
    out = tmp_path / "large.onnx"
    export_onnx.main([str(vit / "model"), str(out), "--images", str(sample_root), *QUICKLY])
    assert {path.name for path in tmp_path.iterdir()} == {"large.onnx", "large.onnx.data"}
    images = np.zeros((1, 1, 32, 32), dtype=np.uint8)
    assert 0 < onnxruntime.InferenceSession(out).run(["probability"], {"images": images})[0][0] < 1


# Errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("difference", [1.1e-4, pytest.param(float("nan"), marks=pytest.mark.slow)])
def test_a_model_on_which_onnxruntime_differs_leaves_no_file(
    vit, sample_root, tmp_path, capsys, monkeypatch, difference
):
    monkeypatch.setattr(export_onnx, "largest_difference", lambda *_: difference)
    message = refused(export_onnx.main, [vit / "model", tmp_path / "a.onnx", "--images", sample_root], capsys)
    assert "differs by" in message and "expected at most 0.0001" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "out", "images", "expected"),
    [
        ("nowhere", "a.onnx", "sample", "nowhere: found no such folder"),
        ("model", "a.pt", "sample", "expected a file that ends in .onnx"),
        ("model", "there.onnx", "sample", "found a file, expected none"),
        ("model", "there.onnx/a.onnx", "sample", "could not be written"),
        ("model", "a.onnx", "nowhere", "--images nowhere: found none"),
        ("model", "a.onnx", "there.onnx", "neither JPEG, PNG nor DICOM"),
    ],
)
def test_wrong_arguments_end_in_one_line(
    vit, sample_root, tmp_path, monkeypatch, capsys, model, out, images, expected
):
    monkeypatch.chdir(tmp_path)
    Path("there.onnx").write_text("not an image", encoding="utf-8")
    names = {"model": vit / "model", "sample": sample_root}
    argv = [names.get(model, model), out, "--images", names.get(images, images)]
    assert expected in refused(export_onnx.main, argv, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["there.onnx"]
    assert Path("there.onnx").read_text(encoding="utf-8") == "not an image"
