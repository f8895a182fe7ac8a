"""How differently the probabilities of two groups of images are distributed."""

import numpy as np


def distance(first: np.ndarray, second: np.ndarray) -> float | None:
    """Returns the Kolmogorov-Smirnov distance of two samples, from 0 to 1; None if one is empty."""
    if not len(first) or not len(second):
        return None
    values = np.concatenate([first, second])
    shares = (np.searchsorted(np.sort(one), values, side="right") / len(one) for one in (first, second))
    return float(abs(np.subtract(*shares)).max())


def compare(
    labels: np.ndarray,
    probabilities: np.ndarray,
    *,
    reference_labels: np.ndarray,
    reference_probabilities: np.ndarray,
) -> dict[str, float | None]:
    """Returns how far the probabilities are from those of a reference, of all images and by label.

    Another share of positive images alone moves the distance of all, but not those by label.
    """
    by_label = {
        name: distance(probabilities[labels == label], reference_probabilities[reference_labels == label])
        for name, label in (("distance_negative", 0), ("distance_positive", 1))
    }
    return {
        "mean": float(probabilities.mean()) if len(probabilities) else None,
        "reference_mean": float(reference_probabilities.mean()) if len(reference_probabilities) else None,
        "distance": distance(probabilities, reference_probabilities),
        **by_label,
    }
