"""Temperatures: the one that labels were drawn with is found, and what it does to probabilities is known."""

import numpy as np
import pytest
from cxr.evaluation import recalibration
from cxr.evaluation.intervals import reliability
from cxr.evaluation.recalibration import apply_temperature
from cxr.evaluation.recalibration import fit_temperature
from scipy.special import expit
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score


def draw(num_images: int, *, temperature: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels, and probabilities whose logits are `temperature` times those the labels come from."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(-0.5, 2, num_images)
    labels = (generator.random(num_images) < expit(logits)).astype(int)
    return labels, expit(temperature * logits)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_temperature_that_the_labels_were_drawn_with_is_found(temperature):
    found = [fit_temperature(*draw(2000, temperature=temperature, seed=seed)) for seed in range(40)]
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    assert abs(np.mean(found) - temperature) < 4 * error
    assert np.std(found) < 0.08 * temperature


def test_temperature_is_the_slope_of_a_logistic_regression_without_intercept():
    labels, probabilities = draw(500, temperature=2.0, seed=0)
    fitted = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-8)
    fitted.fit(logit(probabilities)[:, None], labels)
    assert fit_temperature(labels, probabilities) == pytest.approx(1 / fitted.coef_[0, 0], rel=1e-4)


def test_fit_improves_calibration_and_keeps_the_order():
    labels, probabilities = draw(5000, temperature=3.0, seed=1)
    adapted = apply_temperature(probabilities, fit_temperature(labels, probabilities))
    error = [
        sum(abs(said - was) * count for said, was, count in reliability(labels, one)) / len(labels)
        for one in (probabilities, adapted)
    ]
    assert error[0] > 0.1 and error[1] < 0.02
    assert roc_auc_score(labels, adapted) == pytest.approx(roc_auc_score(labels, probabilities))


def test_temperature_divides_the_logit_and_one_changes_nothing():
    probabilities = np.array([0.2, 0.5, 0.9])
    assert apply_temperature(probabilities, 2.0) == pytest.approx(expit(logit(probabilities) / 2))
    assert apply_temperature(probabilities, 1.0) == pytest.approx(probabilities)
    assert apply_temperature(np.array([0.0, 1.0]), 1.0) == pytest.approx([0, 1])


def test_labels_of_one_class_have_no_temperature():
    assert fit_temperature(np.ones(5, int), np.full(5, 0.7)) is None
    assert fit_temperature(np.empty(0, int), np.empty(0)) is None


def test_temperature_stays_within_its_limits():
    labels = np.array([0, 0, 1, 1])
    apart = np.array([0.4, 0.45, 0.55, 0.6])
    low, high = recalibration.LIMITS
    assert fit_temperature(labels, apart) == pytest.approx(low, rel=0.01)
    assert fit_temperature(1 - labels, apart) == pytest.approx(high, rel=0.01)
