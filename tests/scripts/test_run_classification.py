"""Classification, end to end on a small synthetic sample."""

import csv
import io
import json
import stat
import sys

import numpy as np
import pandas as pd
import pytest
import run_classification
import run_mae_pretrain
import torch
from cxr.data.images import default_cache_image_size
from cxr.data.images import load_images
from cxr.evaluation.metrics import choose_threshold
from cxr.models.masking import PatchDropout
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from tiny_runs import QUICK
from tiny_runs import TINY_RESNET
from tiny_runs import TINY_VIT
from tiny_runs import read_epochs
from tiny_runs import read_results
from tiny_runs import run_main
from transformers import ViTForImageClassification
from transformers import pipeline

from mimic_cxr_dataset.label_rule import LabelRule

METRICS = {"loss", "accuracy", "precision", "recall", "f1", "auroc", "average_precision", "threshold", "n"}

ADDED = {"at_chosen_threshold", "intervals", "projection_auroc", "subgroups"}


@pytest.fixture(scope="module")
def vit_run(sample_root, tmp_path_factory):
    """A ViT with all that training may vary, pushed to a hub directory."""
    folder = tmp_path_factory.mktemp("vit")
    flags = ["--augmentation=mae", "--random_erasing_prob=0.25", "--mask_ratio=0.5", "--evaluate_test"]
    push = ["--push_to_hub", "--hub_model_id=my-lab/cxr", f"--hub_dir={folder / 'hub'}"]
    run_main(
        run_classification, folder / "run", *TINY_VIT, *QUICK, *flags, *push, f"--data_dir={sample_root}"
    )
    return folder / "run"


@pytest.fixture(scope="module")
def mae_model(sample_root, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("mae") / "run"
    run_main(run_mae_pretrain, output_dir, *TINY_VIT, *QUICK, f"--data_dir={sample_root}")
    return output_dir / "model"


def read_predictions(path):
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    labels = np.array([int(row["label"]) for row in rows])
    return [row["dicom_id"] for row in rows], labels, np.array([float(row["probability"]) for row in rows])


def test_results_have_every_metric_of_both_splits(vit_run):
    results = read_results(vit_run)
    for split in ("validation", "test"):
        assert set(results[split]) == METRICS | ADDED
        assert results[split]["threshold"] == 0.5
        assert set(results[split]["at_chosen_threshold"]) == METRICS - {
            "loss",
            "auroc",
            "average_precision",
            "n",
        }
    chosen = {results[split]["at_chosen_threshold"]["threshold"] for split in ("validation", "test")}
    config = json.loads((vit_run / "model" / "config.json").read_text(encoding="utf-8"))
    assert chosen == {config["decision_threshold"]}
    assert results["images_per_second"] > 0
    assert {"steps", "num_train_images", "seed", "versions"} <= set(results)


def test_thresholds_against_the_radiologist_are_of_validation_at_the_same_level(sample_root, tmp_path):
    flags = [*TINY_VIT, *QUICK, "--max_train_steps=1", "--view=all", "--evaluate_test"]
    results = run_main(run_classification, tmp_path / "run", *flags, f"--data_dir={sample_root}")
    validation = pd.read_csv(tmp_path / "run" / "predictions_validation.csv")
    logits = np.log(validation["probability"] / (1 - validation["probability"]))
    studies = validation.assign(logit=logits).groupby("study_id")[["label", "logit"]].mean()
    expected = {
        "image": choose_threshold(validation["label"], validation["probability"]),
        "study": choose_threshold(studies["label"], 1 / (1 + np.exp(-studies["logit"]))),
    }
    assert expected["image"] != pytest.approx(expected["study"], abs=1e-6)
    for level, threshold in expected.items():
        chosen = results["radiologist"][level]["at_chosen_threshold"]["threshold"]
        assert chosen == pytest.approx(threshold, abs=1e-6)


def test_run_folder_has_every_record_and_picture(vit_run):
    names = {path.name for path in vit_run.iterdir()} - {".lock", ".claims"}
    records = {
        "README.md",
        "args.json",
        "metrics.jsonl",
        "results.json",
        "samples.json",
        "train.log",
        "model",
        "checkpoints",
    }
    by_split = {
        name.format(split)
        for split in ("validation", "test", "radiologist", "radiologist_study")
        for name in ("predictions_{}.csv", "roc_pr_{}.png", "confusion_matrix_{}.png")
    }
    assert names - {f"groups_{split}.png" for split in ("validation", "test")} == records | by_split | {
        "loss.png"
    }


def test_measured_auroc_is_that_of_the_predictions(vit_run):
    results = read_results(vit_run)
    for split in ("validation", "test"):
        dicom_ids, labels, probabilities = read_predictions(vit_run / f"predictions_{split}.csv")
        assert len(dicom_ids) == len(set(dicom_ids)) == results[split]["n"]
        assert roc_auc_score(labels, probabilities) == pytest.approx(results[split]["auroc"], abs=1e-6)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
def test_predictions_are_readable_by_the_owner_alone(vit_run):
    assert stat.S_IMODE((vit_run / "predictions_test.csv").stat().st_mode) == 0o600


def test_best_epoch_is_the_one_measured_at_the_end(vit_run):
    results = read_results(vit_run)
    epochs = read_epochs(vit_run)
    assert results["validation"]["auroc"] == pytest.approx(max(epoch["auroc"] for epoch in epochs), abs=1e-6)
    assert epochs[results["best_epoch"] - 1]["auroc"] == pytest.approx(
        results["validation"]["auroc"], abs=1e-6
    )


def test_run_that_ends_with_its_best_epoch_says_that_it_is_undertrained(sample_root, tmp_path):
    flags = [*TINY_VIT, *QUICK, "--max_train_steps=1", f"--data_dir={sample_root}"]
    results = run_main(run_classification, tmp_path / "run", *flags)
    assert results["undertrained"] == "the best epoch is the last"
    log = (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    assert "undertrained: the best epoch is the last; train longer (--num_train_epochs)" in log


def test_early_stopping_ends_training_when_the_best_epoch_is_long_ago(sample_root, tmp_path):
    # At this learning rate the weights soon stop to improve; the folder says what was run.
    flags = [*TINY_VIT, "--per_device_train_batch_size=8", "--learning_rate=0.3", f"--data_dir={sample_root}"]
    flags += ["--num_train_epochs=40", "--early_stopping_patience=2", "--checkpointing_steps=1000"]
    results = run_main(run_classification, tmp_path / "run", *flags)
    epochs = read_epochs(tmp_path / "run")
    assert len(epochs) == results["num_epochs"] == results["best_epoch"] + 2 < 40
    assert results["steps"] == epochs[-1]["step"]
    log = (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    assert log.count("Stopped early: 2 epochs were not better than epoch") == 1
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert checkpoint.name == f"step_{results['steps']}"


def test_plain_transformers_pipeline_gives_the_same_probabilities(vit_run, sample_root, tmp_path):
    options = {"shortest_side": default_cache_image_size(32), "cache_dir": tmp_path, "num_proc": 1}
    splits = load_images(sample_root, LabelRule(), on_bad_image="error", shows_progress=False, **options)
    dicom_ids, _, probabilities = read_predictions(vit_run / "predictions_test.csv")
    classify = pipeline("image-classification", model=str(vit_run / "model"), device="cpu")
    assert dicom_ids == splits["test"]["dicom_id"]
    for content, expected in zip(splits["test"].read(range(8)), probabilities):
        found = classify(Image.open(io.BytesIO(content)))
        answer = {entry["label"]: entry["score"] for entry in found}
        assert answer["Finding"] == pytest.approx(expected, abs=1e-5)


def test_pushed_model_loads_by_name_and_by_commit_in_transformers_and_in_both_scripts(
    vit_run, sample_root, tmp_path
):
    hub_dir = vit_run.parent / "hub"
    commit = read_results(vit_run)["hub_commit"]
    saved = ViTForImageClassification.from_pretrained(vit_run / "model").state_dict()
    for revision in ("main", commit):
        model = ViTForImageClassification.from_pretrained(
            "my-lab/cxr", cache_dir=hub_dir, local_files_only=True, revision=revision
        )
        assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    again = run_main(
        run_classification,
        tmp_path / "again",
        "--model_name_or_path=my-lab/cxr",
        f"--model_revision={commit}",
        f"--hub_dir={hub_dir}",
        f"--data_dir={sample_root}",
        "--learning_rate=1e-30",
        "--max_train_steps=1",
        "--per_device_train_batch_size=8",
    )
    assert again["validation"]["auroc"] == read_results(vit_run)["validation"]["auroc"]


def test_masked_vit_sees_a_share_of_the_patches_in_training_and_all_at_evaluation(vit_run):
    model = ViTForImageClassification.from_pretrained(vit_run / "model")
    lengths = []
    model.vit.layers[0].register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    hook = PatchDropout(mask_ratio=0.5)
    model.vit.embeddings.register_forward_hook(hook)
    pixel_values = torch.randn(2, 3, 32, 32)
    hook.noise = torch.rand(2, 16)
    model(pixel_values=pixel_values)
    hook.noise = None
    model(pixel_values=pixel_values)
    assert lengths == [1 + 8, 1 + 16]


def test_patch_dropout_keeps_the_class_token_and_the_patches_of_lowest_noise():
    hook = PatchDropout(mask_ratio=0.5)
    hook.noise = torch.tensor([[0.9, 0.1, 0.8, 0.2]])
    tokens = torch.arange(5.0).view(1, 5, 1)
    assert hook(None, (), tokens).flatten().tolist() == [0.0, 2.0, 4.0]


@pytest.mark.parametrize("model", ["vit", pytest.param("resnet", marks=pytest.mark.slow)])
def test_last_layer_training_changes_the_head_and_nothing_else(model, sample_root, mae_model, tmp_path):
    flags = [f"--model_name_or_path={mae_model}"] if model == "vit" else TINY_RESNET
    frozen = [*flags, *QUICK, "--train_last_layer_only", f"--data_dir={sample_root}"]
    run_main(run_classification, tmp_path / "first", *frozen, "--max_train_steps=1")
    run_main(run_classification, tmp_path / "last", *frozen)
    before, after = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("first", "last"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("classifier.") for name in changed)


def test_fine_tuning_starts_from_the_pretrained_encoder(sample_root, mae_model, tmp_path):
    flags = [f"--model_name_or_path={mae_model}", "--learning_rate=1e-30", "--max_train_steps=1"]
    data_flags = ["--per_device_train_batch_size=8", f"--data_dir={sample_root}"]
    run_main(run_classification, tmp_path / "run", *flags, *data_flags)
    encoder, classifier = (
        load_file(mae_model / "model.safetensors"),
        load_file(tmp_path / "run" / "model" / "model.safetensors"),
    )
    shared = [name for name in classifier if name.startswith("vit.")]
    assert all(torch.allclose(encoder[name], classifier[name]) for name in shared)
    assert set(classifier) - set(encoder) == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("augmentation", [pytest.param("none", marks=pytest.mark.slow), "classic"])
def test_resnet_trains_on_pleural_effusion(augmentation, sample_root, tmp_path):
    flags = [
        "--dataset_config_name=pleural_effusion",
        f"--augmentation={augmentation}",
        "--max_train_steps=3",
    ]
    results = run_main(
        run_classification, tmp_path / "run", *TINY_RESNET, *QUICK, *flags, f"--data_dir={sample_root}"
    )
    assert results["task"] == "pleural_effusion"
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == {"0": "No Finding", "1": "Pleural Effusion"}
    assert config["architectures"] == ["ResNetForImageClassification"]


def test_smaller_sample_is_part_of_the_larger_and_both_are_recorded(sample_root, tmp_path):
    drawn = {}
    for size in (16, 32):
        flags = [f"--max_train_samples={size}", "--max_train_steps=1", f"--data_dir={sample_root}"]
        results = run_main(run_classification, tmp_path / str(size), *TINY_VIT, *QUICK, *flags)
        drawn[size] = set(json.loads((tmp_path / str(size) / "samples.json").read_text())["dicom_ids"])
        assert results["num_train_images"] == len(drawn[size]) == size
    assert drawn[16] < drawn[32]


def test_validation_split_with_one_class_gives_null_auroc_and_a_warning(sample_root, tmp_path, caplog):
    """A root whose validation images are all negative: the best epoch is then that of the lowest loss."""
    root = relabel_validation_as_normal(sample_root, tmp_path / "root")
    results = run_main(run_classification, tmp_path / "run", *TINY_VIT, *QUICK, f"--data_dir={root}")
    assert results["validation"]["auroc"] is None
    assert results["validation"]["average_precision"] is None
    assert "has only one class" in (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    losses = [epoch["eval_loss"] for epoch in read_epochs(tmp_path / "run")]
    assert results["best_epoch"] == 1 + losses.index(min(losses))


def relabel_validation_as_normal(sample_root, root):
    import gzip
    import shutil

    shutil.copytree(sample_root, root)

    def read(name):
        with gzip.open(root / f"mimic-cxr-2.0.0-{name}.csv.gz", "rt", encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    validation = {row["study_id"] for row in read("split") if row["split"] == "validate"}
    rows = read("negbio")
    for row in rows:
        if row["study_id"] in validation:
            row.update(
                {name: "" for name in row if name not in ("subject_id", "study_id")}, **{"No Finding": "1.0"}
            )
    with gzip.open(root / "mimic-cxr-2.0.0-negbio.csv.gz", "wt", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return root


def test_mask_ratio_is_refused_for_a_resnet(sample_root, tmp_path):
    with pytest.raises(ValueError, match="found a ResNet, which has no patches"):
        run_main(
            run_classification,
            tmp_path / "run",
            *TINY_RESNET,
            "--mask_ratio=0.5",
            f"--data_dir={sample_root}",
        )


def test_figures_are_pictures_of_a_readable_size(vit_run):
    for path in vit_run.glob("*.png"):
        assert min(Image.open(path).size) > 300


PARTS = ["--mixup=0.8", "--cutmix=1", "--label_smoothing=0.1", "--layer_decay=0.75", "--ema_decay=0.9"]


@pytest.mark.slow
@pytest.mark.parametrize("others", [["--mask_ratio=0.5"], PARTS], ids=["masked", "with parts"])
def test_compiled_training_loses_what_plain_training_does(others, sample_root, tmp_path):
    flags = [*TINY_VIT, *QUICK, *others, f"--data_dir={sample_root}"]
    run_main(run_classification, tmp_path / "plain", *flags)
    run_main(run_classification, tmp_path / "compiled", *flags, "--torch_compile")
    plain, compiled = (read_epochs(tmp_path / name) for name in ("plain", "compiled"))
    for name in ("train_loss", "eval_loss"):
        assert [epoch[name] for epoch in compiled] == pytest.approx(
            [epoch[name] for epoch in plain], rel=1e-3
        )


def test_flags_without_effect_and_a_training_set_of_one_class_warn(sample_root, tmp_path):
    flags = ["--crop_scale", "0.5", "1", "--report_to=wandb", "--max_train_samples=1", "--max_train_steps=1"]
    flags += [*QUICK, "--per_device_train_batch_size=1", f"--data_dir={sample_root}"]
    flags += ["--min_learning_rate=1e-9", "--drop_path=0.1", "--train_last_layer_only", "--layer_decay=0.5"]
    run_main(run_classification, tmp_path / "run", *TINY_VIT, *flags)
    log = (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    useless = ("--crop_scale", "--report_to wandb", "--min_learning_rate", "--drop_path", "--layer_decay")
    for said in [*(f"{flag} has no effect" for flag in useless), "have the same label"]:
        assert said in log
