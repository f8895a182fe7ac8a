"""How well a labeler agrees with the radiologist: Cohen's kappa and F1 of each finding, with intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cxr.choices import MASKED
from cxr.evaluation import intervals


def agreement(
    radiologist: np.ndarray,
    labeler: np.ndarray,
    names: Sequence[str],
    subject_ids: Sequence[int | str],
    *,
    num_resamples: int = intervals.NUM_RESAMPLES,
) -> dict[str, dict[str, Any]]:
    """Returns the `Agreement` of each finding, with the radiologist as the truth.

    Both arrays (N, K) are 1, 0 or MASKED, with a row per study and a column per finding. A pair with a masked
    side is not used. The intervals are over patients. Undefined values are None.
    """
    weights = intervals.weights_of(tuple(subject_ids), num_resamples)
    return {
        name: _agreement(truth, labels, weights)
        for name, truth, labels in zip(names, radiologist.T, labeler.T)
    }


def weighted_kappa(truth: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns Cohen's kappa of every resample, (R,), for `weights` (R, N); NaN where it is undefined."""
    sums = np.stack([np.ones(len(truth)), truth, labels, truth == labels], axis=1)
    blocks = intervals.in_blocks(weights)
    total, of_truth, of_labels, equal = np.concatenate([block @ sums for block in blocks]).T
    with np.errstate(invalid="ignore", divide="ignore"):
        by_chance = (of_truth * of_labels + (total - of_truth) * (total - of_labels)) / total
        return (equal - by_chance) / (total - by_chance)


def _agreement(truth: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    both = (truth != MASKED) & (labels != MASKED)
    n, num_positive = int(both.sum()), int((truth[both] == 1).sum())
    if not n:
        undefined = dict.fromkeys(("kappa", "f1"))
        return {"n": n, "num_positive": num_positive, **undefined, "intervals": undefined}
    arrays = truth[both], labels[both], weights[:, both]
    resampled = {"kappa": weighted_kappa(*arrays), "f1": intervals.weighted_f1(*arrays)}
    return {
        "n": n,
        "num_positive": num_positive,
        **{name: intervals.value_of(values) for name, values in resampled.items()},
        "intervals": {name: intervals.interval_of(values) for name, values in resampled.items()},
    }
