"""Intervals and tests against scikit-learn, textbook formulas and simulation."""

import math

import numpy as np
import pytest
from cxr.evaluation import intervals
from scipy import stats
from sklearn import metrics


def draw(num_images: int, *, separation: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities with ties (two digits) from overlapping normal scores."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, num_images)
    scores = generator.normal(size=num_images) + separation * (labels - 0.5)
    return labels, np.round(1 / (1 + np.exp(-scores)), 2)


def one_each(num_images: int, *, num_resamples: int, seed: int = 0) -> np.ndarray:
    return intervals.patient_weights(range(num_images), num_resamples=num_resamples, seed=seed)


def test_weighted_metrics_are_those_of_scikit_learn_with_sample_weights():
    labels, probabilities = draw(300)
    weights = one_each(300, num_resamples=5)
    found = intervals.weighted_metrics(labels, probabilities, weights, threshold=0.5)
    calls = probabilities >= 0.5
    for row, weight in enumerate(weights):
        expected = {
            "accuracy": metrics.accuracy_score(labels, calls, sample_weight=weight),
            "precision": metrics.precision_score(labels, calls, sample_weight=weight),
            "recall": metrics.recall_score(labels, calls, sample_weight=weight),
            "f1": metrics.f1_score(labels, calls, sample_weight=weight),
            "auroc": metrics.roc_auc_score(labels, probabilities, sample_weight=weight),
            "average_precision": metrics.average_precision_score(labels, probabilities, sample_weight=weight),
            "brier": metrics.brier_score_loss(labels, probabilities, sample_weight=weight),
        }
        for name, value in expected.items():
            assert found[name][row] == pytest.approx(value, abs=1e-12), name


def test_blocks_do_not_change_the_metrics(monkeypatch):
    labels, probabilities = draw(50)
    weights = one_each(50, num_resamples=40)
    whole = intervals.weighted_metrics(labels, probabilities, weights, threshold=0.5)
    monkeypatch.setattr(intervals, "BLOCK", 300)
    for name, values in intervals.weighted_metrics(labels, probabilities, weights, threshold=0.5).items():
        assert values == pytest.approx(whole[name], abs=1e-12)


def test_nothing_called_positive_gives_zeros_and_one_class_gives_no_auroc():
    labels, probabilities = np.array([0, 1, 1]), np.array([0.1, 0.2, 0.3])
    weights = np.array([[1, 1, 1], [0, 1, 2], [3, 0, 0]])
    found = intervals.weighted_metrics(labels, probabilities, weights, threshold=0.5)
    assert found["precision"].tolist() == found["f1"].tolist() == found["recall"].tolist() == [0, 0, 0]
    assert found["auroc"][0] == 1 and np.isnan(found["auroc"][1:]).all()
    assert found["accuracy"].tolist() == [1 / 3, 0, 1]
    assert intervals.percentile_interval(found["auroc"][1:]) is None


@pytest.mark.filterwarnings("error")
def test_resample_without_a_labelled_image_has_no_metrics_and_gives_no_warning():
    found = intervals.weighted_metrics(
        np.array([0, 1]), np.array([0.2, 0.7]), np.array([[1, 1], [0, 0]]), threshold=0.5
    )
    assert all(np.isfinite(values[0]) for values in found.values())
    assert np.isnan([found[name][1] for name in ("accuracy", "auroc", "brier", "ece")]).all()


def test_resamples_draw_patients_whole_and_are_the_same_for_every_row():
    patients = ["a", "b", "b", "c", "c", "c"]
    weights = intervals.patient_weights(patients, num_resamples=500, seed=3)
    assert (weights[:, 1] == weights[:, 2]).all()
    assert (weights[:, 3:] == weights[:, 3:4]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    again = intervals.patient_weights(patients, num_resamples=500, seed=3)
    assert (weights == again).all()
    assert (weights != intervals.patient_weights(patients, num_resamples=500, seed=4)).any()


def test_interval_of_accuracy_is_the_binomial_one():
    labels, probabilities = draw(1000)
    weights = one_each(1000, num_resamples=4000)
    found = intervals.weighted_metrics(labels, probabilities, weights, threshold=0.5)["accuracy"]
    accuracy = ((probabilities >= 0.5) == labels).mean()
    half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / 1000)
    interval = intervals.percentile_interval(found)
    assert interval.low == pytest.approx(accuracy - half, abs=0.004)
    assert interval.high == pytest.approx(accuracy + half, abs=0.004)


def test_interval_over_seeds_is_students_within_the_range_of_a_metric():
    found = intervals.seed_interval([0.4, 0.5, 0.6])
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert found.low == pytest.approx(0.5 - half, abs=1e-6)
    assert found.high == pytest.approx(0.5 + half, abs=1e-6)
    assert intervals.seed_interval([0.9, 0.99, 0.999]).high == 1


def test_fewer_than_three_seeds_have_no_interval_over_seeds():
    assert intervals.seed_interval([0.9, 0.99]) is None and intervals.seed_interval([0.5]) is None


def delong_error(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """Standard error of the difference of two AUROCs on the same images (DeLong et al. 1988)."""
    parts = []
    for scores in (first, second):
        positive, negative = scores[labels == 1], scores[labels == 0]
        wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
        parts.append((wins.mean(axis=1), wins.mean(axis=0)))
    of_positives, of_negatives = parts[0][0] - parts[1][0], parts[0][1] - parts[1][1]
    return math.sqrt(sum(one.var(ddof=1) / len(one) for one in (of_positives, of_negatives)))


UNKNOWN = intervals.SeedNoise(variance=0.0, freedom=0)


def compare(labels, first, second, *, num_resamples: int, seed: int = 0) -> intervals.Difference:
    weights = np.vstack([np.ones(len(labels)), one_each(len(labels), num_resamples=num_resamples, seed=seed)])
    difference = np.subtract(*(intervals.weighted_auroc(labels, p, weights) for p in (first, second)))
    return intervals.paired_difference(
        float(difference[0]), difference[1:], num_patients=len(labels), num_seeds=1, noise=UNKNOWN
    )


def test_paired_difference_agrees_with_delong():
    labels, first = draw(600, separation=1.5)
    noise = np.random.default_rng(1).normal(scale=0.15, size=600)
    second = np.clip(first + noise, 0, 1)
    found = compare(labels, first, second, num_resamples=4000)
    error = delong_error(labels, first, second)
    aurocs = [metrics.roc_auc_score(labels, scores) for scores in (first, second)]
    assert found.value == pytest.approx(aurocs[0] - aurocs[1], abs=1e-12)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.06)
    assert found.p == pytest.approx(2 * stats.norm.sf(found.value / error), rel=0.5)


def test_seed_noise_is_the_spread_that_rows_and_seeds_do_not_explain():
    generator = np.random.default_rng(0)
    rows, seeds = generator.normal(size=(400, 1)), generator.normal(size=(1, 3))
    aurocs = rows + seeds + generator.normal(scale=0.2, size=(400, 3))
    by_seed = [dict(enumerate(row)) for row in aurocs]
    noise = intervals.seed_noise(by_seed)
    residual = aurocs - aurocs.mean(0) - aurocs.mean(1, keepdims=True) + aurocs.mean()
    assert noise.freedom == 399 * 2
    assert noise.variance == pytest.approx((residual**2).sum() / noise.freedom)
    assert noise.variance == pytest.approx(0.04, rel=0.1)
    for row in by_seed[::2]:
        del row[2]  # not yet run
    assert intervals.seed_noise(by_seed).variance == pytest.approx(0.04, rel=0.15)
    assert intervals.seed_noise(by_seed).freedom == 399 + 199
    for unknown in ([{0: 0.8}, {0: 0.9}], [{0: 0.8, 1: 0.9}]):  # one seed in each row, and one row
        assert intervals.seed_noise(unknown).freedom == 0


@pytest.mark.parametrize("spread_over_seeds", [0.0, 1.0, 3.0])
def test_tables_of_equal_rows_rarely_claim_a_difference(spread_over_seeds):
    """Six rows, three seeds, Holm: at most about 5 % of the tables may claim one."""
    generator = np.random.default_rng(0)
    num_rows, num_seeds, num_patients, claims = 6, 3, 300, 0
    for _ in range(400):
        of_patients = generator.normal(size=num_rows)  # chance of the test set, the same for all seeds
        aurocs = of_patients[:, None] + spread_over_seeds * generator.normal(size=(num_rows, num_seeds))
        noise = intervals.seed_noise([dict(enumerate(row)) for row in aurocs])
        p_values = []
        for first in range(num_rows):
            for second in range(first):
                found = intervals.paired_difference(
                    float((aurocs[first] - aurocs[second]).mean()),
                    generator.normal(scale=math.sqrt(2), size=300),
                    num_patients=num_patients,
                    num_seeds=num_seeds,
                    noise=noise,
                )
                p_values.append(found.p)
        claims += min(intervals.holm(p_values)) < 0.05
    assert claims / 400 < 0.085


def test_noise_of_seeds_widens_a_difference():
    resampled = np.random.default_rng(0).normal(0.05, 0.01, 2000)
    noise = intervals.SeedNoise(variance=0.03**2, freedom=10)
    options = {"num_patients": 300, "num_seeds": 3}
    without = intervals.paired_difference(0.05, resampled, noise=UNKNOWN, **options)
    found = intervals.paired_difference(0.05, resampled, noise=noise, **options)
    of_seeds = 2 * 0.03**2 / 3
    error = math.sqrt(0.01**2 + of_seeds)
    freedom = error**4 / (0.01**4 / 299 + of_seeds**2 / 10)
    assert found.high - 0.05 == pytest.approx(stats.t.ppf(0.975, freedom) * error, rel=0.02)
    assert without.p < 1e-4 < 0.05 < found.p
    more_seeds = intervals.paired_difference(0.05, resampled, noise=noise, num_patients=300, num_seeds=9)
    error = math.sqrt(0.01**2 + 2 * 0.03**2 / 9)
    assert (more_seeds.high - 0.05) / error == pytest.approx(stats.t.ppf(0.975, 20), abs=0.2)


def test_equal_predictions_do_not_differ():
    options = {"num_patients": 100, "num_seeds": 1, "noise": UNKNOWN}
    found = intervals.paired_difference(0.0, np.zeros(100), **options)
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert intervals.paired_difference(0.1, np.full(100, np.nan), **options) is None


def test_interval_of_a_calibration_error_is_around_it():
    generator = np.random.default_rng(0)
    probabilities = generator.random(500)
    labels = (generator.random(500) < probabilities).astype(int)
    weights = np.vstack([np.ones(500), one_each(500, num_resamples=2000)])
    found = intervals.weighted_metrics(labels, probabilities, weights, threshold=0.5)["ece"]
    assert found[1:].mean() > 1.2 * found[0]  # resampling adds noise, which looks like miscalibration
    interval = intervals.percentile_interval(found[1:], around=found[0])
    assert 0 <= interval.low < found[0] < interval.high


def test_holm_corrects_as_the_textbook_does():
    assert intervals.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert intervals.holm([0.6, 0.7]) == [1.0, 1.0]
    assert intervals.holm([]) == []


def test_calibration_error_is_the_gap_of_the_bins():
    labels, probabilities = np.array([0, 1, 1, 1]), np.array([0.05, 0.05, 0.85, 1.0])
    assert intervals.reliability(labels, probabilities) == [
        (pytest.approx(0.05), 0.5, 2),
        (pytest.approx(0.85), 1.0, 1),
        (1.0, 1.0, 1),
    ]
    found = intervals.weighted_metrics(labels, probabilities, np.ones((1, 4)), threshold=0.5)["ece"]
    assert found[0] == pytest.approx((2 * 0.45 + 0.15) / 4)
