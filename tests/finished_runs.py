"""Writes run folders like those of the main scripts, without training."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from cxr.run_folder.files import write_json
from cxr.run_folder.record import Arguments
from cxr.run_folder.record import ClassificationResults
from cxr.run_folder.record import Origin
from cxr.run_folder.record import PretrainingResults
from cxr.run_folder.record import Sample
from sklearn.metrics import roc_auc_score

ORIGIN = Origin(
    git_commit="0" * 40, is_synthetic=True, dataset="synthetic", base_model=None, base_model_revision=None
)
_OF_BOTH = {
    "model": "resnet-18",
    "train_loss": 0.5,
    "images_per_second": 50.0,
    "steps": 3,
    "bad_steps": 0,
    "images_per_step": 32,
    "num_train_images": 1000,
    "seed": 0,
    "versions": {"torch": "2.14"},
}


def arguments(**flags) -> Arguments:
    return Arguments(**{"origin": ORIGIN, "seed": 0, **flags})


def measured(*, auroc: float | None = 0.75, n: int = 200) -> dict:
    names = ("accuracy", "precision", "recall", "f1", "average_precision", "loss", "threshold")
    return {**dict.fromkeys(names, 0.5), "n": n, "auroc": auroc}


def classification_results(**changes) -> ClassificationResults:
    content = {
        **_OF_BOTH,
        "task": "finding",
        "pretrained": False,
        "labeler": "negbio",
        "view": "frontal",
        "uncertain": "negative",
        "augmentation": "none",
        "mask_ratio": 0.0,
        "random_erasing_prob": 0.0,
        "train_last_layer_only": False,
        "learning_rate": 1e-3,
        "best_epoch": 1,
        "num_train_positive": 500,
        "validation": measured(),
    }
    return ClassificationResults(**(content | changes))


def pretraining_results(**changes) -> PretrainingResults:
    content = {**_OF_BOTH, "task": "mae_pretraining", "eval_loss": 0.25, "num_eval_images": 22}
    return PretrainingResults(**(content | changes))


def finish(folder: Path, results: ClassificationResults | PretrainingResults, **flags) -> Path:
    """Writes the two records that a study reads of a finished run."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "args.json", arguments(**flags).as_json())
    write_json(folder / "results.json", results.as_json())
    return folder


def predict(num_images: int, *, quality: float, seed: int) -> pd.DataFrame:
    """Returns predictions on the same images for any quality and seed: two per patient, AP and PA."""
    images = np.arange(num_images)
    labels = np.random.default_rng(99).integers(0, 2, num_images)
    scores = quality * (labels - 0.5) + np.random.default_rng(seed).normal(size=num_images)
    return pd.DataFrame(
        {
            "dicom_id": [f"deadbeef-{image:08x}" for image in images],
            "subject_id": 17_000_000 + images // 2,
            "view_position": np.where(images % 4 < 2, "AP", "PA"),
            "label": labels,
            "probability": 1 / (1 + np.exp(-scores)),
        }
    )


def write_run(
    folder: Path,
    *,
    quality: float = 1.5,
    seed: int = 0,
    num_images: int = 200,
    split: str = "test",
    flags: dict | None = None,
    **results,
) -> Path:
    """Writes a finished classification run with three epochs."""
    predictions = predict(num_images, quality=quality, seed=seed)
    auroc = float(roc_auc_score(predictions["label"], predictions["probability"]))
    of_split = measured(auroc=auroc, n=num_images)
    finished = classification_results(**{"validation": of_split, split: of_split, "seed": seed, **results})
    finish(folder, finished, **{"seed": seed, **(flags or {})})
    predictions.to_csv(folder / f"predictions_{split}.csv", index=False)
    sample = Sample(
        num_images=1, seed=seed, sha256=f"{finished.num_train_images} {seed}", dicom_ids=["deadbeef-0"]
    )
    write_json(folder / "samples.json", sample.as_json())
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for epoch in (1, 2, 3):
            losses = {"train_loss": 1 / epoch, "eval_loss": 1.1 / epoch}
            file.write(json.dumps({"epoch": epoch, "step": epoch, **losses}) + "\n")
    return folder
