"""Measures frozen features: a linear probe, a nearest-neighbour probe, and the features' effective rank.

`features` (N, D) are of an encoder that is not trained here. `labels` are 0 or 1, (N,); of several findings
(N, K), where each finding is learned and chosen on the images that have a label for it, and the others are
MASKED. All functions are pure: the same arrays give the same numbers.
"""

from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cxr.choices import MASKED
from cxr.choices import SMOOTH
from cxr.evaluation import findings
from cxr.evaluation import intervals

STRENGTHS = tuple(10.0**power for power in range(-4, 4))  # C of the logistic regression, the inverse penalty
NEIGHBOURS = (1, 3, 5, 10, 20, 50, 100, 200)  # k
MOST_FOR_RANK = 25_600  # Garrido et al. 2023 use as many images
BLOCK = 2**24  # similarities that are in memory at once


@dataclass(frozen=True, kw_only=True)
class Split:
    """Features (N, D) and labels, (N,) or (N, K), of some images."""

    features: np.ndarray
    labels: np.ndarray

    def select(self, chosen: np.ndarray) -> "Split":
        return Split(features=self.features[chosen], labels=self.labels[chosen])

    def of_finding(self, number: int) -> "Split":
        """Returns the images that have a label for a finding, with that label."""
        labels = self.labels[:, number]
        return Split(features=self.features, labels=labels).select(labels != MASKED)


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What a probe says: a score per image, (N,) or (N, K), higher for label 1.

    `settings` is the chosen C or k, one per finding; None where all training labels were equal, so that all
    images have the same score.
    """

    settings: list[float | None]
    validation: np.ndarray
    test: np.ndarray


def probe(method: str, *, train: Split, validation: Split, test_features: np.ndarray) -> Probed:
    """Learns from `train`, chooses C or k by the AUROC of `validation`, and scores both other splits.

    `method` is a key of PROBES. Of settings with an equal or an undefined AUROC, the first is chosen.
    """
    if train.labels.ndim == 1:
        setting, scores, of_test = _probe_finding(method, train, validation, test_features)
        return Probed(settings=[setting], validation=scores, test=of_test)
    settings, columns = [], []
    for number in range(train.labels.shape[1]):
        of_finding = Split(features=validation.features, labels=validation.labels[:, number])
        setting, *scores = _probe_finding(method, train.of_finding(number), of_finding, test_features)
        settings.append(setting)
        columns.append(scores)
    of_validation, of_test = (np.stack(scores, axis=1) for scores in zip(*columns))
    return Probed(settings=settings, validation=of_validation, test=of_test)


def _probe_finding(
    method: str, train: Split, validation: Split, test_features: np.ndarray
) -> tuple[float | None, np.ndarray, np.ndarray]:
    """Returns the setting, and the scores of all validation images, also MASKED ones, and of the test's."""
    wanted = [validation.features, test_features]
    if len(np.unique(train.labels)) < 2:
        return None, *(np.zeros(len(features)) for features in wanted)
    mean, scale = train.features.mean(axis=0, dtype="float64"), train.features.std(axis=0, dtype="float64")
    scale[scale == 0] = 1  # a feature that never changes says nothing
    standard = [(features - mean) / scale for features in (train.features, *wanted)]
    labelled = validation.labels != MASKED
    best, highest = (), -1.0
    for found in PROBES[method](standard[0], train.labels, standard[1:]):
        auroc = float(np.nan_to_num(area(validation.labels[labelled], found[1][labelled])))
        if auroc > highest:
            best, highest = found, auroc
    return best


def _linear(
    features: np.ndarray, labels: np.ndarray, wanted: list[np.ndarray]
) -> Iterator[tuple[float | np.ndarray, ...]]:
    """Yields, for each of STRENGTHS, it and the scores of each array in `wanted`."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # the matrices are so small that threads only wait for each other
        for strength in STRENGTHS:
            model = LogisticRegression(C=strength, max_iter=1000).fit(features, labels)
            yield strength, *(model.decision_function(one) for one in wanted)


def _nearest(
    features: np.ndarray, labels: np.ndarray, wanted: list[np.ndarray]
) -> Iterator[tuple[float | np.ndarray, ...]]:
    """Yields, for each k of NEIGHBOURS, it and the share of positive ones among the k nearest images."""
    most = min(NEIGHBOURS[-1], len(features))
    shares = []
    for one in wanted:
        positives = np.cumsum(labels[nearest(features, one, num_neighbours=most)], axis=1)
        shares.append(positives / np.arange(1, most + 1))
    for number in NEIGHBOURS:
        if number <= most:
            yield number, *(of_one[:, number - 1] for of_one in shares)


PROBES = {"linear": _linear, "knn": _nearest}


def nearest(features: np.ndarray, queries: np.ndarray, *, num_neighbours: int) -> np.ndarray:
    """Returns the indices of the `features` with the highest cosine similarity to each query, (Q, k)."""
    known, asked = (
        (one / np.maximum(np.linalg.norm(one, axis=1, keepdims=True), 1e-12)).astype("float32")
        for one in (features, queries)
    )
    found = []
    for block in np.array_split(asked, max(1, len(asked) * len(known) // BLOCK)):
        distances = -block @ known.T
        near = np.argpartition(distances, num_neighbours - 1, axis=1)[:, :num_neighbours]
        order = np.argsort(np.take_along_axis(distances, near, axis=1), axis=1, kind="stable")
        found.append(np.take_along_axis(near, order, axis=1))
    return np.concatenate(found)


def hard_labels(labels: np.ndarray) -> np.ndarray:
    """Returns labels for a probe, which knows no uncertain ones: SMOOTH counts as 1, as in an evaluation."""
    return np.where(labels == SMOOTH, 1, labels)


def area(labels: np.ndarray, scores: np.ndarray) -> float:
    """Returns the AUROC of one finding, NaN if all labels are equal or there are none."""
    if not len(labels):
        return float("nan")
    return float(intervals.weighted_auroc(labels, scores, np.ones((1, len(labels))))[0])


def resampled_areas(
    labels: np.ndarray, scores: np.ndarray, names: Sequence[str], weights: np.ndarray
) -> np.ndarray:
    """Returns the AUROC, of several findings the mean over them, for each row of `weights` (R, N): (R,)."""
    if labels.ndim == 1:
        return intervals.weighted_auroc(labels, scores, weights)
    return findings.macro_resamples(labels, scores, names, weights)["auroc"]


def whole_area(labels: np.ndarray, scores: np.ndarray, names: Sequence[str]) -> float | None:
    """Returns the AUROC, of several findings the mean over them, of all images; None if it is undefined."""
    value = resampled_areas(labels, scores, names, np.ones((1, len(labels))))[0]
    return None if np.isnan(value) else float(value)


def rankme(features: np.ndarray) -> float:
    """Returns the effective rank of features, from 1 (all the same) to D (Garrido et al. 2023).

    It is the exponential of the entropy of the singular values, divided by their sum. Of many images,
    MOST_FOR_RANK are taken at equal distances.
    """
    chosen = np.linspace(0, len(features) - 1, min(len(features), MOST_FOR_RANK), dtype=int)
    values = np.linalg.svd(features[chosen].astype("float64"), compute_uv=False)
    shares = values / max(values.sum(), np.finfo("float64").tiny)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))
