"""Writes run folders of classifiers of several findings, without training."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from cxr.choices import LABELS
from cxr.choices import MASKED
from cxr.evaluation.findings import finding_metrics
from cxr.run_folder.files import write_json
from cxr.run_folder.measured import AgainstRadiologist
from cxr.run_folder.measured import Agreement
from cxr.run_folder.record import Sample
from finished_runs import classification_results
from finished_runs import finish

RARE = "Fracture"  # has too few positive labels to count in a mean
FEW = 5


def draw(num_images: int, names: tuple[str, ...], *, quality: float, seed: int, level: str) -> dict[str, Any]:
    """Returns ids and groups (N), labels and probabilities (N, K) of the same images for any quality."""
    generator = np.random.default_rng(99)
    images, patients = np.arange(num_images), np.arange(num_images) // 2
    shares = np.linspace(0.15, 0.5, len(names))
    labels = (generator.random((num_images, len(names))) < shares).astype(int)
    labels[generator.random(labels.shape) < 0.1] = MASKED
    if RARE in names:
        labels[:, names.index(RARE)] = np.where(images < FEW, 1, 0)
    noise = np.random.default_rng(seed).normal(size=labels.shape)
    scores = quality * np.linspace(0.4, 1.6, len(names)) * (labels == 1) + noise
    rows = pd.DataFrame(
        {
            "dicom_id": [f"deadbeef-{image:08x}" + ";more" * (level == "study") for image in images],
            "subject_id": 17_000_000 + patients,
            "study_id": 57_000_000 + images,
            "view_position": np.where(images % 4 < 2, "AP", "PA"),
            "scanner": np.where(images % 4 < 1, "portable", "fixed"),
            "sex": np.where(patients % 2, "F", "M"),
            "age": np.array(["18-39", "40-59", "60-79", "80+"])[patients % 4],
            "race": np.where(patients < 4, "Asian", np.where(patients % 3, "White", "Black")),
        }
    )
    return {"rows": rows, "labels": labels, "probabilities": 1 / (1 + np.exp(1 - scores))}


def write_predictions(path: Path, drawn: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Writes the table of predictions as a run does; returns the fields of its `MeasuredFindings`."""
    labels, probabilities = drawn["labels"], drawn["probabilities"]
    table = drawn["rows"].copy()
    known = pd.DataFrame(labels, columns=names).astype("Int64").mask(labels == MASKED)
    for number, name in enumerate(names):
        table[name], table[f"{name} label"] = probabilities[:, number], known[name]
    table.to_csv(path, index=False)
    found = finding_metrics(labels, probabilities, names, thresholds=[0.5] * len(names))
    for of_finding in found["findings"].values():
        of_finding["projection_auroc"] = 0.55
    return {**found, "loss": 0.5, "projection_auroc": 0.612}


def write_findings_run(
    folder: Path,
    *,
    names: tuple[str, ...] = LABELS,
    quality: float = 1.5,
    seed: int = 0,
    num_images: int = 200,
    level: str = "image",
    with_radiologist: bool = False,
    **results,
) -> Path:
    """Writes a finished run of the task findings, with the groups of its patients."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = draw(num_images, names, quality=quality, seed=seed, level=level)
    measured = write_predictions(folder / "predictions_test.csv", drawn, names)
    results = {"task": "findings", "seed": seed, "evaluation_level": level, **results}
    if names != LABELS:
        results["findings"] = list(names)
    if with_radiologist:
        results["radiologist"] = against_radiologist(folder, names, quality=quality, seed=seed)
    finished = classification_results(validation=measured, test=measured, **results)
    finish(folder, finished, seed=seed, dataset_config_name="findings")
    sample = Sample(num_images=1, seed=seed, sha256=f"{finished.num_train_images} {seed}", dicom_ids=["a"])
    write_json(folder / "samples.json", sample.as_json())
    return folder


def against_radiologist(folder: Path, names: tuple[str, ...], *, quality: float, seed: int) -> dict[str, Any]:
    measured = {}
    for level, name, number in (("image", "radiologist", 120), ("study", "radiologist_study", 80)):
        drawn = draw(number, names, quality=quality / 2, seed=seed, level=level)
        measured[level] = write_predictions(folder / f"predictions_{name}.csv", drawn, names)
    bounds = {"kappa": [0.6, 0.8], "f1": [0.7, 0.9]}
    agreed = Agreement(n=80, num_positive=20, kappa=0.71, f1=0.82, intervals=bounds)
    agreement = {labeler: dict.fromkeys(names, agreed) for labeler in ("negbio", "chexpert")}
    return AgainstRadiologist(num_studies=80, num_changed_by_devices=7, agreement=agreement, **measured)
