"""Classifiers of several findings at once: training, evaluation, and the radiologist's labels."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import run_classification
import torch
from cxr.choices import LABELS
from cxr.choices import MASKED
from cxr.choices import SMOOTH
from cxr.choices import SMOOTH_TARGETS
from cxr.data.images import load_images
from cxr.data.loading import ChestXrays
from cxr.data.transforms import evaluation_transform
from cxr.models import heads
from sklearn import metrics
from sklearn.utils.class_weight import compute_class_weight
from tiny_runs import QUICK
from tiny_runs import TINY_VIT
from tiny_runs import run_main
from torch.nn import functional as F

from mimic_cxr_dataset.label_rule import LabelRule

SEVERAL = ["--dataset_config_name=findings", "--uncertain=Edema=smooth,Pneumonia=exclude"]


@pytest.fixture(scope="module")
def run_dir(sample_root, tmp_path_factory):
    """A ViT for all labels, measured by study, by group and against the radiologist."""
    folder = tmp_path_factory.mktemp("findings") / "run"
    flags = ["--evaluate_test", "--evaluation_level=study", f"--patients_dir={sample_root / 'hosp'}"]
    flags += ["--class_weights=balanced", f"--data_dir={sample_root}"]
    run_main(run_classification, folder, *TINY_VIT, *QUICK, *SEVERAL, *flags)
    return folder


def results_of(run):
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


# The loss ---------------------------------------------------------------------------------------------------


def test_loss_is_torchs_binary_cross_entropy_and_zero_where_masked():
    logits = torch.randn(6, 4, dtype=torch.float64)
    labels = torch.tensor([[1, 0, 0.7, MASKED]] * 6, dtype=torch.float64)
    known = F.binary_cross_entropy_with_logits(logits[:, :3], labels[:, :3], reduction="sum")
    assert heads.classification_loss(logits, labels).item() == pytest.approx(known.item() / 24, abs=1e-12)
    logits.requires_grad_()
    heads.classification_loss(logits, labels).backward()
    assert (logits.grad[:, 3] == 0).all() and (logits.grad[:, :3] != 0).all()


def test_loss_of_a_batch_is_the_mean_of_its_parts_however_many_labels_are_masked():
    logits, labels = torch.randn(8, 3), torch.randint(-1, 2, (8, 3)).float()
    parts = [heads.classification_loss(logits[half], labels[half]) for half in (slice(4), slice(4, 8))]
    torch.testing.assert_close(heads.classification_loss(logits, labels), sum(parts) / 2)


def test_class_weights_are_scikit_learns_balanced_ones():
    labels = np.array([1, 0, 0, 0, 1, 0])
    expected = compute_class_weight("balanced", classes=np.array([0, 1]), y=labels)
    assert heads.balanced_weights(labels).tolist() == pytest.approx(expected)
    masked = np.stack([labels, np.where(np.arange(6) < 2, MASKED, labels)], axis=1)
    of_second = compute_class_weight("balanced", classes=np.array([0, 1]), y=labels[2:])
    assert heads.balanced_weights(masked)[:, 1].tolist() == pytest.approx(of_second)
    assert heads.balanced_weights(masked)[:, 0].tolist() == pytest.approx(expected)
    assert torch.isfinite(heads.balanced_weights(np.ones((4, 1)))).all()


def test_weighted_loss_counts_both_values_of_a_label_equally():
    labels = np.array([1, 0, 0, 0])
    weights = heads.balanced_weights(labels[:, None])
    logits = torch.zeros(4, 1)
    found = heads.classification_loss(logits, torch.tensor(labels[:, None]).float(), weights)
    assert found.item() == pytest.approx(np.log(2))
    halves = [
        heads.classification_loss(logits[:, 0].new_zeros(1, 1), torch.tensor([[value]]).float(), weights)
        for value in (0, 1)
    ]
    assert (3 * halves[0]).item() == pytest.approx(halves[1].item())


# The labels -------------------------------------------------------------------------------------------------


def test_a_smooth_target_is_a_function_of_seed_epoch_and_image(sample_root, tmp_path):
    rule = LabelRule(task="findings", uncertain="smooth")
    options = {"shortest_side": 40, "cache_dir": tmp_path, "num_proc": 1, "shows_progress": True}
    images = load_images(sample_root, rule, on_bad_image="error", **options)["train"]
    uncertain = (images.labels == SMOOTH).nonzero()
    index, finding = int(uncertain[0][0]), int(uncertain[1][0])

    def target(epoch, seed=0, of=images, at=index):
        return ChestXrays(of, evaluation_transform(32), seed=seed)[(epoch, at)]["label"][finding].item()

    first = target(0)
    assert SMOOTH_TARGETS[0] <= first <= SMOOTH_TARGETS[1]
    assert target(0) == first == target(0, of=images.select([index]), at=0)
    assert len({first, target(1), target(0, seed=1)}) == 3
    labels = ChestXrays(images, evaluation_transform(32), seed=0)[(0, index)]["label"]
    plain = images.labels[index] != SMOOTH
    assert labels[torch.from_numpy(plain)].tolist() == images.labels[index][plain].tolist()


# The run ----------------------------------------------------------------------------------------------------


def test_scikit_learn_agrees_with_every_number_of_every_finding(run_dir):
    results = results_of(run_dir)
    for split in ("validation", "test"):
        table = pd.read_csv(run_dir / f"predictions_{split}.csv")
        counted = {"auroc": [], "average_precision": []}
        assert list(results[split]["findings"]) == list(LABELS)
        for name, found in results[split]["findings"].items():
            known = table[table[f"{name} label"].notna()]
            labels, scores = known[f"{name} label"].astype(int), known[name]
            assert (found["n"], found["num_positive"]) == (len(known), labels.sum())
            calls = scores >= found["threshold"]
            assert found["f1"] == pytest.approx(metrics.f1_score(labels, calls, zero_division=0))
            if labels.nunique() < 2:
                assert found["auroc"] is None
                continue
            assert found["auroc"] == pytest.approx(metrics.roc_auc_score(labels, scores))
            assert found["average_precision"] == pytest.approx(
                metrics.average_precision_score(labels, scores)
            )
            assert found["sensitivity"] == pytest.approx(metrics.recall_score(labels, calls))
            assert found["specificity"] == pytest.approx(metrics.recall_score(labels, calls, pos_label=0))
            if name not in results[split]["left_out"]:
                assert labels.sum() >= 10
                for metric, values in counted.items():
                    values.append(found[metric])
        for metric, values in counted.items():
            assert results[split][metric] == (pytest.approx(np.mean(values)) if values else None)


def test_thresholds_are_chosen_on_validation_and_stored_with_the_model(run_dir):
    results = results_of(run_dir)
    config = json.loads((run_dir / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["problem_type"] == "multi_label_classification"
    assert list(config["id2label"].values()) == list(LABELS)
    for split in ("validation", "test"):
        chosen = {name: found["threshold"] for name, found in results[split]["findings"].items()}
        assert chosen == config["decision_thresholds"]


@pytest.mark.slow
def test_a_study_has_the_mean_logits_of_its_images(run_dir, sample_root, tmp_path):
    flags = [*TINY_VIT, *QUICK, *SEVERAL, "--evaluate_test", "--class_weights=balanced"]
    run_main(run_classification, tmp_path / "run", *flags, f"--data_dir={sample_root}")
    by_image = pd.read_csv(tmp_path / "run" / "predictions_test.csv")
    by_study = pd.read_csv(run_dir / "predictions_test.csv").set_index("study_id")
    assert by_image["study_id"].nunique() == len(by_study) < len(by_image)
    for study, images in by_image.groupby("study_id"):
        logits = np.log(images["Edema"] / (1 - images["Edema"]))
        # Validation by study may choose another epoch; the tiny run has the same best one.
        assert by_study.loc[study, "Edema"] == pytest.approx(1 / (1 + np.exp(-logits.mean())), abs=1e-6)
        assert set(by_study.loc[study, "dicom_id"].split(";")) == set(images["dicom_id"])


def test_the_radiologists_studies_are_measured_by_image_and_by_study(run_dir, sample_root):
    found = results_of(run_dir)["radiologist"]
    table = pd.read_csv(sample_root / "mimic-cxr-2.1.0-test-set-labeled.csv").set_index("study_id")
    assert found["num_studies"] == len(table)
    predictions = pd.read_csv(run_dir / "predictions_radiologist_study.csv").set_index("study_id")
    assert set(predictions.index) <= set(table.index)
    radiologist = table.loc[predictions.index, "Airspace Opacity"].eq(1).astype(int)
    assert predictions["Lung Opacity label"].tolist() == radiologist.tolist()
    assert found["study"]["n"] == len(predictions) <= found["image"]["n"]


def test_the_labelers_agreement_with_the_radiologist_is_that_of_scikit_learn(run_dir, sample_root):
    found = results_of(run_dir)["radiologist"]["agreement"]
    radiologist = pd.read_csv(sample_root / "mimic-cxr-2.1.0-test-set-labeled.csv").set_index("study_id")
    for labeler in ("negbio", "chexpert"):
        labels = pd.read_csv(next(sample_root.glob(f"*{labeler}.csv.gz"))).set_index("study_id")
        both = radiologist.index.intersection(labels.index)
        truth, said = (of.loc[both, "Atelectasis"].eq(1).astype(int) for of in (radiologist, labels))
        agreed = found[labeler]["Atelectasis"]
        assert (agreed["n"], agreed["num_positive"]) == (len(both), truth.sum())
        assert agreed["kappa"] == pytest.approx(metrics.cohen_kappa_score(truth, said))
        assert agreed["f1"] == pytest.approx(metrics.f1_score(truth, said))


def test_groups_of_view_scanner_sex_age_and_race_are_measured(run_dir):
    found = results_of(run_dir)["test"]["subgroups"]
    table = pd.read_csv(run_dir / "predictions_test.csv", keep_default_na=False)
    assert {group["attribute"] for group in found["groups"]} == {"view", "scanner", "sex", "age", "race"}
    for group in found["groups"]:
        column = {"view": "view_position"}.get(group["attribute"], group["attribute"])
        if group["finding"] == "macro":
            assert group["n"] == (table[column] == group["group"]).sum()
    assert found["num_patients_unknown"] == table.loc[table["sex"] == "unknown", "subject_id"].nunique()


@pytest.mark.slow
def test_a_few_findings_make_a_small_head(sample_root, tmp_path):
    flags = [
        "--dataset_config_name=findings",
        "--findings",
        "Edema",
        "No Finding",
        f"--data_dir={sample_root}",
    ]
    results = run_main(run_classification, tmp_path / "run", *TINY_VIT, *QUICK, *flags)
    assert list(results["validation"]["findings"]) == ["Edema", "No Finding"]
    assert "chexpert5_auroc" not in results["validation"]
    assert results["findings"] == ["Edema", "No Finding"] and "test" not in results


def test_findings_that_are_left_out_of_the_means_are_named_once_at_the_end(run_dir):
    log = (run_dir / "train.log").read_text(encoding="utf-8")
    for split in ("validation", "test"):
        assert log.count(f"The means over findings of the {split} split leave out") == 1


@pytest.mark.slow
def test_a_resumed_run_of_several_findings_equals_an_uninterrupted_one(sample_root, tmp_path):
    flags = [*TINY_VIT, *QUICK, *SEVERAL, f"--data_dir={sample_root}", "--checkpointing_steps=1"]
    whole = run_main(run_classification, tmp_path / "whole", *flags)
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    checkpoints = sorted(
        (tmp_path / "resumed" / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime
    )
    for later in checkpoints[1:]:
        shutil.rmtree(later)
    (tmp_path / "resumed" / "results.json").unlink()
    resumed = run_main(run_classification, tmp_path / "resumed", *flags, "--resume_from_checkpoint=latest")
    assert resumed["validation"] == whole["validation"] and resumed["train_loss"] == whole["train_loss"]
