"""The shift of probabilities: scipy's distance, and what another share of positives does to it."""

import numpy as np
import pytest
from cxr.evaluation.shift import compare
from cxr.evaluation.shift import distance
from scipy.stats import ks_2samp


@pytest.mark.parametrize("decimals", [1, 8])  # with many equal values, and with none
def test_distance_is_that_of_scipy(decimals):
    generator = np.random.default_rng(0)
    first, second = generator.random(50).round(decimals), generator.beta(2, 5, 80).round(decimals)
    assert distance(first, second) == pytest.approx(ks_2samp(first, second).statistic, abs=1e-12)
    assert distance(first, first) == 0 and distance(first, first + 2) == 1
    assert distance(first, np.empty(0)) is None


def test_another_share_of_positives_moves_all_images_but_not_those_of_a_class():
    labels = np.array([0] * 50 + [1] * 50)
    scores = np.where(labels, 0.8, 0.2)
    few = np.r_[np.arange(50), 50:60]
    found = compare(labels[few], scores[few], reference_labels=labels, reference_probabilities=scores)
    assert found["distance"] == pytest.approx(0.5 - 10 / 60)
    assert found["distance_negative"] == found["distance_positive"] == 0
    assert (found["mean"], found["reference_mean"]) == pytest.approx((0.3, 0.5))
