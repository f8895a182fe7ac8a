"""Adapts the probabilities of a classifier to other images: a temperature, fitted on labels of such images.

A temperature T divides the logit of each probability (Guo et al. 2017): above 1, probabilities move towards
one half. It does not change their order, and so no AUROC. It cannot correct another share of positive images.
"""

import numpy as np

LIMITS = (0.05, 20.0)  # of a temperature; without them, images that are separated perfectly would have 0
SMALLEST = 1e-12  # distance of a probability from 0 and from 1


def logit(probabilities: np.ndarray) -> np.ndarray:
    kept = np.clip(probabilities, SMALLEST, 1 - SMALLEST)
    return np.log(kept) - np.log1p(-kept)


def fit_temperature(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Returns the temperature with the lowest mean cross-entropy on labels (N,) 0 or 1, within LIMITS.

    None if there is no label, or all are equal: such labels say nothing about a temperature.
    """
    from scipy.optimize import minimize_scalar  # slow to import

    if len(np.unique(labels)) < 2:
        return None
    margins = np.where(labels == 1, -1, 1) * logit(probabilities)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, margins / np.exp(log_temperature)).mean())

    found = minimize_scalar(loss, bounds=np.log(LIMITS), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    return 1 / (1 + np.exp(-logit(probabilities) / temperature))
