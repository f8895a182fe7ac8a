"""Run folders as run_classification.py leaves them, made without a training."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score


def predict(num_images: int, *, quality: float, seed: int) -> pd.DataFrame:
    """Predictions on the same images whatever the quality and seed: two a patient, AP and PA."""
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
    **results,
) -> Path:
    """A finished classification run with three epochs."""
    folder.mkdir(parents=True)
    predictions = predict(num_images, quality=quality, seed=seed)
    auroc = roc_auc_score(predictions["label"], predictions["probability"])
    measured = {name: 0.5 for name in ("accuracy", "precision", "recall", "f1", "average_precision")}
    measured |= {"n": num_images, "auroc": auroc}
    content = {
        "task": "finding",
        "model": "resnet-18",
        "pretrained": False,
        "labeler": "negbio",
        "view": "frontal",
        "uncertain": "negative",
        "augmentation": "none",
        "mask_ratio": 0.0,
        "random_erasing_prob": 0.0,
        "train_last_layer_only": False,
        "validation": measured,
        split: measured,
        "num_train_images": 1000,
        "images_per_step": 32,
        "seed": seed,
        **results,
    }
    (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")
    predictions.to_csv(folder / f"predictions_{split}.csv", index=False)
    sample = {
        "sha256": f"sample {content['num_train_images']} {content['seed']}",
        "dicom_ids": ["deadbeef-0"],
    }
    (folder / "samples.json").write_text(json.dumps(sample), encoding="utf-8")
    epochs = [
        {"epoch": epoch, "step": epoch, "train_loss": 1 / epoch, "eval_loss": 1.1 / epoch}
        for epoch in (1, 2, 3)
    ]
    lines = "".join(json.dumps(epoch) + "\n" for epoch in epochs)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    return folder
