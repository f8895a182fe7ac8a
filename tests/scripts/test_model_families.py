"""Networks of timm, mean pooling and DINOv2, from training to the tools that use a model."""

import csv
import json

import export_onnx
import predict
import probe
import pytest
import run_classification
import run_mae_pretrain
import run_study
import serve
import torch
from cxr.errors import UserError
from cxr.inference import heatmaps
from cxr.inference.classifier import load_classifier
from refused import refused
from safetensors.torch import load_file
from tiny_runs import QUICK
from tiny_runs import TINY_VIT
from tiny_runs import run_main
from transformers import AutoModelForImageClassification
from transformers import Dinov2Config
from transformers import Dinov2Model
from transformers import ViTMAEForPreTraining

from mimic_cxr_dataset.radiographs import Reading

pytestmark = pytest.mark.slow
SMALL = ["--image_size=32", "--max_train_steps=2"]


@pytest.fixture(scope="module")
def train(sample_root):
    """Trains a tiny classifier of which all that is asked for is in the flags."""

    def run(folder, *flags):
        return run_main(run_classification, folder, *QUICK, *flags, f"--data_dir={sample_root}")

    return run


@pytest.fixture(scope="module")
def runs(train, tmp_path_factory):
    """A CNN and a ViT of timm, and a ViT of this repository with mean pooling."""
    folder = tmp_path_factory.mktemp("families")
    recipe = [
        "--mask_ratio=0.5",
        "--layer_decay=0.65",
        "--drop_path=0.1",
        "--ema_decay=0.9",
        "--evaluate_test",
    ]
    train(folder / "cnn", "--config_name=timm/test_resnet", *SMALL, "--layer_decay=0.65", "--evaluate_test")
    train(folder / "vit", "--config_name=timm/test_vit", *SMALL, *recipe)
    train(folder / "mean", *TINY_VIT, "--pooling=mean", "--max_train_steps=2", *recipe)
    return folder


FAMILIES = pytest.mark.parametrize("name", ["cnn", "vit", "mean"])


@FAMILIES
def test_predictions_are_those_of_the_run_and_of_plain_transformers(name, runs, sample_root, capsys):
    predict.main([str(runs / name), str(sample_root / "files"), "--device=cpu"])
    found = {
        row["path"].rpartition("/")[2]: row for row in csv.DictReader(capsys.readouterr()[0].splitlines())
    }
    with (runs / name / "predictions_test.csv").open(encoding="utf-8", newline="") as file:
        expected = {f"{row['dicom_id']}.jpg": float(row["probability"]) for row in csv.DictReader(file)}
    assert expected
    for image, probability in expected.items():
        assert float(found[image]["probability"]) == pytest.approx(probability, abs=1e-4)
    classifier = load_classifier(str(runs / name / "model"), device="cpu")
    plain = AutoModelForImageClassification.from_pretrained(runs / name / "model").eval()
    images = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    pixel_values = classifier.normalize(images)
    torch.testing.assert_close(plain(pixel_values).logits, classifier.model(pixel_values=pixel_values).logits)


@FAMILIES
def test_results_and_card_name_the_network(name, runs):
    words = {"cnn": "test_resnet of timm", "vit": "test_vit of timm", "mean": "; mean pooling"}[name]
    results = json.loads((runs / name / "results.json").read_text(encoding="utf-8"))
    assert results["architecture"].endswith(words)
    card = (runs / name / "model" / "README.md").read_text(encoding="utf-8")
    assert words in card and "pip install timm" in card
    weights = load_file(runs / name / "model" / "model.safetensors")
    assert results["num_parameters"] <= sum(one.numel() for one in weights.values())


@FAMILIES
def test_exported_model_computes_the_same(name, runs, sample_root, tmp_path, capsys):
    path = tmp_path / "model.onnx"
    export_onnx.main([str(runs / name), str(path), "--images", str(sample_root), "--batch_sizes", "1"])
    assert path.is_file()  # the script compares the outputs with torch's


def test_heat_maps_are_of_networks_with_a_feature_map(runs, sample_root, tmp_path, capsys):
    cnn = load_classifier(str(runs / "cnn" / "model"), device="cpu")
    images = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    heat = heatmaps.heat_maps(cnn, images)
    side = cnn.model.timm_model.forward_features(torch.zeros(1, 3, 32, 32)).shape[-1]
    assert heat.shape == (2, side, side) and heat.min() >= 0 and heat.max() <= 1
    for name in ("vit", "mean"):
        said = refused(predict.main, [runs / name, sample_root, "--heatmap", tmp_path / name], capsys)
        assert "leave the heat maps out" in said


def test_the_page_shows_a_heat_map_or_says_that_there_is_none(runs, sample_root):
    radiograph = next((sample_root / "files").rglob("*.jpg"))
    for name, has_map in (("cnn", True), ("mean", False)):
        classifier = load_classifier(str(runs / name / "model"), device="cpu")
        html = serve.answer_html(classifier, radiograph, Reading())
        assert ("Grad-CAM on a grid" in html) == has_map and ("No heat map" in html) != has_map


def test_training_goes_on_from_each_of_them(runs, train, tmp_path):
    for name in ("cnn", "vit", "mean"):
        before = load_file(runs / name / "model" / "model.safetensors")
        start = [f"--model_name_or_path={runs / name}", "--max_train_steps=1", "--train_last_layer_only"]
        results = train(tmp_path / name, *start, "--learning_rate=1e-2")
        after = load_file(tmp_path / name / "model" / "model.safetensors")
        changed = {key for key, values in before.items() if not torch.equal(values, after[key])}
        assert changed and all(".head." in key or ".fc." in key for key in changed)
        assert results["pretrained"]


def test_a_masked_autoencoder_is_fine_tuned_with_mean_pooling(sample_root, train, tmp_path):
    flags = [f"--data_dir={sample_root}", "--per_device_train_batch_size=8", "--max_train_steps=1"]
    run_main(run_mae_pretrain, tmp_path / "mae", *TINY_VIT, *flags)
    start = [f"--model_name_or_path={tmp_path / 'mae'}", "--pooling=mean", "--learning_rate=1e-30"]
    train(tmp_path / "run", *start, "--max_train_steps=1")
    encoder = ViTMAEForPreTraining.from_pretrained(tmp_path / "mae" / "model").vit
    found = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert torch.equal(found["timm_model.blocks.1.mlp.fc1.weight"], encoder.layers[1].mlp.fc1.weight)


def test_dinov2_is_fine_tuned_and_used(sample_root, train, tmp_path, capsys):
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28)
    Dinov2Model(config).save_pretrained(tmp_path / "dino")
    push = ["--push_to_hub", "--hub_model_id=lab/dino", f"--hub_dir={tmp_path / 'hub'}"]
    recipe = ["--mask_ratio=0.5", "--layer_decay=0.65", "--drop_path=0.1", "--max_train_steps=2"]
    results = train(tmp_path / "run", f"--model_name_or_path={tmp_path / 'dino'}", *recipe, *push)
    assert results["architecture"].startswith("DINOv2 of depth 2")
    hub = ["--hub_dir", str(tmp_path / "hub")]
    predict.main(["lab/dino", str(sample_root / "files"), "--device=cpu", *hub])
    export_onnx.main(["lab/dino", str(tmp_path / "x.onnx"), "--images", str(sample_root), *hub])
    capsys.readouterr()
    said = refused(predict.main, ["lab/dino", sample_root, "--heatmap", tmp_path / "maps", *hub], capsys)
    assert "leave the heat maps out" in said


def test_frozen_features_of_all_families_are_probed(runs, sample_root, tmp_path):
    models = [str(runs / "cnn"), str(runs / "mean"), "timm/test_vit"]
    folders = [f"--output_dir={tmp_path / 'probe'}", f"--cache_dir={tmp_path / 'cache'}"]
    sizes = ["--train_sizes", "32", "--seeds", "0", "--image_size", "32"]
    probe.main([*models, f"--data_dir={sample_root}", *sizes, *folders, "--device=cpu"])
    (path,) = (tmp_path / "probe").glob("*.json")
    found = json.loads(path.read_text(encoding="utf-8"))["models"]
    assert [one["pooling"] for one in found] == ["mean", "mean", "class"]


def test_a_study_gives_a_model_with_patches_the_arms_of_a_vit(sample_root, tmp_path, capsys):
    models = ["--models", "timm/test_vit", "timm/test_resnet"]
    folders = [f"--data_dir={sample_root}", f"--output_dir={tmp_path / 'study'}"]
    axes = ["--train_sizes", "32", "--seeds", "0", "--augmentations", "mae", "--mask_ratios", "0.5"]
    settings = ["--preset=compare", "--set", "image_size=32", "--config_file=accelerate_configs/cpu.yaml"]
    run_study.main([*folders, *models, *axes, *settings, "--dry_run"])
    printed = capsys.readouterr()[0]
    assert "timm-test-vit-scratch_mae_p50_32_finding_s0" in printed
    assert "timm-test-resnet-scratch_mae_32_finding_s0" in printed


def test_what_a_family_lacks_is_said_in_one_line(train, tmp_path, capsys):
    cases = {
        "--mask_ratio=0.5": "test_resnet of timm, which has no patches",
        "--config_overrides=depth=2": "whose name says its size",
    }
    for flag, reason in cases.items():
        with pytest.raises(UserError, match=reason):
            train(tmp_path / "x", "--config_name=timm/test_resnet", *SMALL, flag)
    capsys.readouterr()
    tagged = refused(run_classification.main, ["--config_name=timm/densenet121.ra_in1k"], capsys)
    assert "use --model_name_or_path" in tagged
