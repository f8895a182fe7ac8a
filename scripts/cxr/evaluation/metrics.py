"""Computes the metrics of a binary classifier from arrays, by `evaluate` and chest_xray_metrics."""

import functools
import logging
from pathlib import Path

import numpy as np

METRIC_MODULE = Path(__file__).resolve().parents[3] / "chest_xray_metrics"
logger = logging.getLogger(__name__)


@functools.cache
def _metric():
    import evaluate  # not at the top: it takes a second, and only evaluation needs it

    return evaluate.load(str(METRIC_MODULE))


def choose_threshold(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Returns the threshold with the highest sensitivity + specificity (Youden's J); 0.5 for one class."""
    from sklearn.metrics import roc_curve

    if len(np.unique(labels)) < 2:
        return 0.5
    false_positive_rate, true_positive_rate, thresholds = roc_curve(labels, probabilities)
    return float(min(thresholds[np.argmax(true_positive_rate - false_positive_rate)], 1.0))


def classification_metrics(
    labels: np.ndarray, probabilities: np.ndarray, *, chosen_threshold: float, split: str
) -> dict[str, float | int | dict | None]:
    """Returns the metrics of a split at 0.5, and those that need a threshold also at `chosen_threshold`.

    `labels` (N,) are 0 or 1, `probabilities` (N,) are of class 1. If the split has only one class, AUROC and
    average precision are None, with a warning.
    """
    at_half = _metric().compute(references=labels, predictions=probabilities, threshold=0.5)
    at_chosen = _metric().compute(references=labels, predictions=probabilities, threshold=chosen_threshold)
    if at_half["auroc"] is None:
        logger.warning(
            "The %s split has only one class: its AUROC and average precision are undefined (null).", split
        )
    names = ("threshold", "accuracy", "precision", "recall", "f1")
    return {**at_half, "at_chosen_threshold": {name: at_chosen[name] for name in names}}
