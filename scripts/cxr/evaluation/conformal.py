"""Split conformal prediction of one label: sets of values of which, at a chosen rate, one is right.

The sets are conditional on the class (Vovk 2012): the images of each class in a split with labels decide
which probabilities are unusual for it. So at least 1 - alpha of the positive images and of the negative ones
have their label in their set, if the other images are drawn like those of the split; another share of
positive images changes nothing. A set holds both labels (not decided), one, or none (unlike either class).
"""

from dataclasses import dataclass

import numpy as np

from cxr.evaluation.intervals import in_blocks

FEWEST = 50  # calibration images of a class, below which the coverage varies much from split to split


@dataclass(frozen=True, kw_only=True)
class ConformalSets:
    """The highest nonconformity, 1 - probability of the label, with which a label is in a set."""

    limits: tuple[float, float]  # of label 0 and label 1; infinite if there are too few calibration images
    num_calibration: tuple[int, int]  # images of each

    @classmethod
    def calibrate(cls, labels: np.ndarray, probabilities: np.ndarray, *, alpha: float) -> "ConformalSets":
        """`labels` (N,) are 0 or 1, `probabilities` (N,) of label 1, `alpha` the share of errors."""
        scores = [np.sort(probabilities[labels == 0]), np.sort(1 - probabilities[labels == 1])]
        return cls(
            limits=tuple(_quantile(of_class, alpha) for of_class in scores),
            num_calibration=tuple(map(len, scores)),
        )

    @property
    def is_small(self) -> bool:
        return min(self.num_calibration) < FEWEST

    def sets(self, probabilities: np.ndarray) -> np.ndarray:
        """Returns whether label 0 and label 1 are in the set of each image, (N, 2)."""
        return np.stack([probabilities <= self.limits[0], 1 - probabilities <= self.limits[1]], axis=1)


def _quantile(scores: np.ndarray, alpha: float) -> float:
    """Returns the ceil((n + 1)(1 - alpha))-th smallest of the sorted scores (n,), infinity if n is less."""
    rank = int(np.ceil(np.round((len(scores) + 1) * (1 - alpha), 9)))  # 0.9 * 10 is not 9 in binary
    return float(scores[rank - 1]) if rank <= len(scores) else float("inf")


def resampled_coverage(labels: np.ndarray, sets: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Returns for each row of `weights` (R, N) what is true of `sets` (N, 2), arrays (R,).

    The share of images whose label is in their set, of all and by class (NaN without an image of it), and
    the mean number of labels in a set.
    """
    hit = sets[np.arange(len(labels)), labels]
    sums = np.stack(
        [
            *(np.ones(len(labels)), labels == 0, labels == 1),
            *(hit, hit & (labels == 0), hit & (labels == 1)),
            sets.sum(axis=1),
        ],
        axis=1,
    )
    found = np.concatenate([block @ sums for block in in_blocks(weights)])
    with np.errstate(invalid="ignore", divide="ignore"):
        coverage, negative, positive = (found[:, 3:6] / found[:, :3]).T
        size = found[:, 6] / found[:, 0]
    return {
        "coverage": coverage,
        "coverage_negative": negative,
        "coverage_positive": positive,
        "set_size": size,
    }
