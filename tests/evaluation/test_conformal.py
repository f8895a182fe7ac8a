"""Conformal sets: the coverage that they promise, by simulation, and sets that are computed by hand."""

import numpy as np
import pytest
from cxr.evaluation import intervals
from cxr.evaluation.conformal import FEWEST
from cxr.evaluation.conformal import ConformalSets
from cxr.evaluation.conformal import resampled_coverage
from cxr.evaluation.intervals import patient_weights
from cxr.evaluation.intervals import percentile_interval
from scipy import stats
from scipy.special import expit


def draw(generator: np.random.Generator, num_images: int, *, share: float) -> tuple[np.ndarray, np.ndarray]:
    labels = (generator.random(num_images) < share).astype(int)
    return labels, expit(3 * (labels - 0.5) + generator.normal(0, 1.5, num_images))  # not calibrated


@pytest.mark.parametrize("alpha", [0.1, 0.2])
@pytest.mark.parametrize("test_share", [0.3, 0.7])
def test_coverage_of_each_class_is_what_is_promised_also_with_another_share_of_positives(alpha, test_share):
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        calibrated = ConformalSets.calibrate(*draw(generator, 200, share=0.3), alpha=alpha)
        labels, probabilities = draw(generator, 400, share=test_share)
        sets = calibrated.sets(probabilities)
        found = resampled_coverage(labels, sets, np.ones((1, len(labels))))
        covered.append([found[f"coverage_{name}"][0] for name in ("negative", "positive")])
    mean, error = np.mean(covered, axis=0), stats.sem(covered)
    assert (mean > 1 - alpha - 4 * error).all()
    # Of n calibration images the coverage is at most 1 - alpha + 1 / (n + 1); the fewest are 200 * 0.3.
    assert (mean < 1 - alpha + 1 / 50 + 4 * error).all()


def test_limit_is_the_right_rank_of_the_scores_by_hand():
    labels = np.array([0] * 9 + [1] * 9)
    probabilities = np.r_[np.arange(1, 10) / 20, 1 - np.arange(1, 10) / 25]
    found = ConformalSets.calibrate(labels, probabilities, alpha=0.1)
    assert found.limits == pytest.approx((9 / 20, 9 / 25))  # the ceil(10 * 0.9) = 9th of 9
    found = ConformalSets.calibrate(labels, probabilities, alpha=0.2)
    assert found.limits == pytest.approx((8 / 20, 8 / 25))
    assert found.num_calibration == (9, 9) and found.is_small


def test_too_few_images_of_a_class_leave_its_label_in_every_set():
    labels, probabilities = np.array([0] * 8 + [1] * 60), np.linspace(0, 1, 68)
    found = ConformalSets.calibrate(labels, probabilities, alpha=0.1)
    assert found.limits[0] == np.inf and found.is_small
    assert found.sets(np.array([0.0, 0.5, 1.0]))[:, 0].all()


def test_a_class_is_small_below_50_images():
    labels = np.array([0] * FEWEST + [1] * FEWEST)
    assert not ConformalSets.calibrate(labels, np.linspace(0, 1, 100), alpha=0.1).is_small
    assert ConformalSets.calibrate(labels[1:], np.linspace(0, 1, 99), alpha=0.1).is_small


def test_sets_and_their_coverage_by_hand():
    calibrated = ConformalSets(limits=(0.4, 0.3), num_calibration=(60, 60))
    sets = calibrated.sets(np.array([0.1, 0.5, 0.8, 0.4]))
    assert sets.tolist() == [[True, False], [False, False], [False, True], [True, False]]
    weights = np.array([[1, 1, 1, 1], [2, 0, 1, 0], [1, 0, 0, 0]])
    found = resampled_coverage(np.array([0, 0, 1, 1]), sets, weights)
    assert found["coverage"] == pytest.approx([2 / 4, 1, 1])
    assert found["coverage_negative"] == pytest.approx([1 / 2, 1, 1])
    assert found["coverage_positive"] == pytest.approx([1 / 2, 1, np.nan], nan_ok=True)
    assert found["set_size"] == pytest.approx([3 / 4, 1, 1])


def test_interval_of_a_coverage_is_near_that_of_a_share_if_each_patient_has_one_image():
    labels = np.arange(400) % 2
    hit = np.arange(400) % 10 > 0  # 90 % of the sets are right
    sets = np.stack([hit == (labels == 0), hit == (labels == 1)], axis=1)
    weights = patient_weights(np.arange(400), num_resamples=2000, seed=0)
    found = percentile_interval(resampled_coverage(labels, sets, weights)["coverage"])
    expected = stats.binomtest(360, 400).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.008)


def test_coverage_of_resamples_does_not_depend_on_how_many_are_read_at_once(monkeypatch):
    labels, probabilities = draw(np.random.default_rng(0), 40, share=0.5)
    sets = ConformalSets(limits=(0.4, 0.3), num_calibration=(60, 60)).sets(probabilities)
    weights = patient_weights(range(40), num_resamples=30, seed=0)
    whole = resampled_coverage(labels, sets, weights)
    monkeypatch.setattr(intervals, "BLOCK", 90)
    for name, values in resampled_coverage(labels, sets, weights).items():
        assert np.array_equal(values, whole[name])
