"""Metrics of several findings: scikit-learn's numbers, means over the findings that count, intervals."""

import copy
import json
import logging
import math
import time

import interval_coverage
import numpy as np
import pytest
from cxr.choices import CHEXPERT5
from cxr.choices import LABELS
from cxr.choices import MASKED
from cxr.evaluation import findings
from cxr.evaluation import intervals
from cxr.evaluation.metrics import choose_threshold
from cxr.run_folder.measured import MeasuredFindings
from sklearn import metrics

NAMES = ("Cardiomegaly", "Edema", "Fracture", "No Finding", "Pneumonia")
RARE, ALWAYS, UNLABELLED = 2, 3, 4
THRESHOLDS = (0.5, 0.4, 0.3, 0.6, 0.5)


def draw(num_images: int = 400, num_findings: int = 5, *, seed: int = 0):
    """Labels, of which some are masked, probabilities with ties, and the patients of the images."""
    generator = np.random.default_rng(seed)
    labels = (generator.random((num_images, num_findings)) < 0.3).astype(int)
    scores = generator.normal(size=labels.shape) + 1.2 * labels - 0.8
    labels[generator.random(labels.shape) < 0.1] = MASKED
    patients = generator.integers(0, num_images // 2, num_images)
    return labels, np.round(1 / (1 + np.exp(-scores)), 2), patients


@pytest.fixture
def arrays():
    """Five findings: two are common, one has nine positives, one no negative, one no label at all."""
    labels, probabilities, patients = draw()
    labels[np.flatnonzero(labels[:, RARE] == 1)[9:], RARE] = 0
    labels[:, ALWAYS], labels[:, UNLABELLED] = 1, MASKED
    return labels, probabilities, patients


def measure(labels, probabilities, names=NAMES, thresholds=THRESHOLDS) -> dict:
    return findings.finding_metrics(labels, probabilities, names, thresholds=thresholds)


def of_scikit_learn(labels, probabilities, threshold, weights=None) -> dict[str, float]:
    calls, options = probabilities >= threshold, {"sample_weight": weights}
    return {
        "auroc": metrics.roc_auc_score(labels, probabilities, **options),
        "average_precision": metrics.average_precision_score(labels, probabilities, **options),
        "f1": metrics.f1_score(labels, calls, **options),
        "sensitivity": metrics.recall_score(labels, calls, **options),
        "specificity": metrics.recall_score(labels, calls, pos_label=0, **options),
    }


def test_metrics_of_a_finding_are_scikit_learns_on_its_labelled_images(arrays):
    labels, probabilities, _ = arrays
    found = measure(labels, probabilities)
    assert found["n"] == len(labels) and list(found["findings"]) == list(NAMES)
    for number in (0, 1, RARE):
        labelled = labels[:, number] != MASKED
        truth, scores = labels[labelled, number], probabilities[labelled, number]
        expected = of_scikit_learn(truth, scores, THRESHOLDS[number])
        expected |= {"n": labelled.sum(), "num_positive": (truth == 1).sum(), "threshold": THRESHOLDS[number]}
        assert found["findings"][NAMES[number]] == pytest.approx(expected, abs=1e-12)


def test_means_are_over_the_findings_that_count(arrays):
    labels, probabilities, _ = arrays
    found = measure(labels, probabilities)
    assert found["left_out"] == ["Fracture", "No Finding", "Pneumonia"]
    for metric in ("auroc", "average_precision"):
        mean = np.mean([found["findings"][name][metric] for name in ("Cardiomegaly", "Edema")])
        assert found[metric] == pytest.approx(mean, abs=1e-12)
    assert "chexpert5_auroc" not in found


def test_a_tenth_positive_label_puts_a_finding_into_the_means(arrays):
    labels, probabilities, _ = arrays
    labels[np.flatnonzero(labels[:, RARE] == 0)[0], RARE] = 1
    assert "Fracture" not in measure(labels, probabilities)["left_out"]


def test_finding_of_one_class_or_without_labels_has_null_metrics(arrays):
    found = measure(*arrays[:2])["findings"]
    assert found["No Finding"]["auroc"] is None and found["No Finding"]["specificity"] is None
    assert found["No Finding"]["sensitivity"] == (arrays[1][:, ALWAYS] >= 0.6).mean()
    assert found["Pneumonia"] == {
        "n": 0,
        "num_positive": 0,
        "threshold": 0.5,
        "auroc": None,
        "average_precision": None,
        "f1": 0.0,
        "sensitivity": None,
        "specificity": None,
    }


def test_means_over_chexperts_five_leave_out_the_same_findings():
    labels, probabilities, patients = draw(num_findings=14)
    thresholds = [0.5] * 14
    rare = LABELS.index("Edema")
    labels[np.flatnonzero(labels[:, rare] == 1)[5:], rare] = 0
    found = measure(labels, probabilities, LABELS, thresholds)
    assert found["left_out"] == ["Edema"]
    for metric in ("auroc", "average_precision"):
        values = [found["findings"][name][metric] for name in CHEXPERT5 if name != "Edema"]
        assert found[f"chexpert5_{metric}"] == pytest.approx(np.mean(values), abs=1e-12)
    findings.add_intervals(found, labels, probabilities, patients, num_resamples=50)
    assert set(found["intervals"]) == {
        "auroc",
        "average_precision",
        "chexpert5_auroc",
        "chexpert5_average_precision",
    }


def test_results_fit_their_record_and_json(arrays):
    labels, probabilities, patients = arrays
    found = measure(labels, probabilities)
    MeasuredFindings.model_validate({**copy.deepcopy(found), "loss": 0.5})
    findings.add_intervals(found, labels, probabilities, patients, num_resamples=20)
    record = MeasuredFindings.model_validate({**found, "loss": 0.5})
    assert MeasuredFindings.model_validate_json(json.dumps(record.as_json())) == record
    assert not record.model_extra and not record.findings["Edema"].model_extra


def test_thresholds_are_those_of_each_finding_alone(arrays):
    labels, probabilities, _ = arrays
    found = findings.choose_thresholds(labels, probabilities)
    for number in (0, 1, RARE):
        labelled = labels[:, number] != MASKED
        assert found[number] == choose_threshold(labels[labelled, number], probabilities[labelled, number])
    assert found[ALWAYS] == found[UNLABELLED] == 0.5


def test_intervals_are_those_of_scikit_learn_over_the_same_patients(arrays):
    labels, probabilities, patients = arrays
    found = measure(labels, probabilities)
    findings.add_intervals(found, labels, probabilities, patients, num_resamples=40)
    weights = intervals.patient_weights(patients, num_resamples=40, seed=0)
    resampled = {name: [] for name in ("Cardiomegaly", "Edema")}
    for number, values in enumerate(resampled.values()):
        labelled = labels[:, number] != MASKED
        columns = labels[labelled, number], probabilities[labelled, number], THRESHOLDS[number]
        values += [of_scikit_learn(*columns, drawn[labelled]) for drawn in weights]

    def quantiles(values):
        return pytest.approx(np.quantile(values, [0.025, 0.975]).tolist(), abs=1e-12)

    for name, values in resampled.items():
        for metric, interval in found["findings"][name]["intervals"].items():
            assert interval == quantiles([one[metric] for one in values]), (name, metric)
    for metric, interval in found["intervals"].items():
        pairs = zip(*([one[metric] for one in values] for values in resampled.values()))
        assert interval == quantiles([np.mean(pair) for pair in pairs]), metric
    assert found["findings"]["No Finding"]["intervals"]["auroc"] is None
    assert set(found["findings"]["Pneumonia"]["intervals"].values()) == {None}


@pytest.mark.parametrize(("num_negative", "is_out"), [(1, True), (9, True), (10, False)])
def test_a_mean_needs_ten_negative_labels_of_a_finding_too(num_negative, is_out):
    labels = np.ones((40, 2), dtype=int)
    labels[:num_negative, 0] = 0
    labels[:20, 1] = 0
    assert findings.left_out(labels, NAMES[:2]) == [NAMES[0]] * is_out


def test_resample_without_a_class_of_a_finding_is_not_in_the_mean():
    labels, probabilities, _ = draw(60, 2, seed=1)
    labels[:, 1] = 0
    labels[:10, 1] = 1
    weights = np.ones((3, 60), dtype=np.uint8)
    weights[1, :10] = 0
    found = findings.macro_resamples(labels, probabilities, NAMES[:2], weights)
    for values in found.values():
        assert np.isnan(values[1]) and values[0] == values[2]


def test_first_of_the_resampled_means_is_the_reported_one(arrays):
    labels, probabilities, _ = arrays
    reported = measure(labels, probabilities)
    found = findings.macro_resamples(labels, probabilities, NAMES, np.ones((2, len(labels))))
    assert set(found) == {"auroc", "average_precision"}
    for metric, values in found.items():
        assert values.tolist() == pytest.approx([reported[metric]] * 2, abs=1e-12)


def test_findings_that_are_left_out_are_named_once_with_the_reason(arrays, caplog):
    with caplog.at_level(logging.WARNING):
        found = measure(*arrays[:2])
        assert not caplog.records
        findings.warn_left_out(found, split="test")
    assert [record.getMessage() for record in caplog.records] == [
        "The means over findings of the test split leave out 3 of 5, because they have fewer than 10 "
        "positive or negative labels: Fracture (9 positive), No Finding (0 negative), Pneumonia (0 positive, "
        "0 negative)."
    ]


def test_without_any_finding_that_counts_the_means_are_null_with_a_warning(arrays, caplog):
    labels, probabilities, patients = (array[:20] for array in arrays)
    with caplog.at_level(logging.WARNING):
        found = measure(labels, probabilities)
        findings.warn_left_out(found, split="test")
    assert found["auroc"] is None and found["average_precision"] is None
    [record] = caplog.records
    assert record.getMessage().endswith("Without any finding they are undefined (null).")
    findings.add_intervals(found, labels, probabilities, patients, num_resamples=5)
    assert found["intervals"] == {"auroc": None, "average_precision": None}
    assert MeasuredFindings.model_validate({**found, "loss": 0.5}).auroc is None


def test_all_findings_counting_gives_no_warning(caplog):
    labels, probabilities, _ = draw()
    findings.warn_left_out(measure(labels, probabilities), split="test")
    assert not caplog.records


@pytest.mark.timing
def test_metrics_of_an_epoch_take_a_quarter_of_a_second_and_intervals_8_seconds():
    labels, probabilities, patients = draw(3000, 14)
    thresholds = findings.choose_thresholds(labels, probabilities)
    started = time.perf_counter()
    found = measure(labels, probabilities, LABELS, thresholds)
    assert time.perf_counter() - started < 0.25
    findings.add_intervals(found, labels, probabilities, patients)
    assert time.perf_counter() - started < 8


@pytest.mark.slow
def test_interval_of_the_mean_covers_the_truth_in_95_percent_of_test_sets():
    """With 200 resamples, the interval between the quantiles is expected to cover 94.2 %."""
    num_draws = 400
    flags = [f"--num_draws={num_draws}", "--num_findings=4", "--num_resamples=200", "--num_patients=500"]
    measured = interval_coverage.measure_coverage(interval_coverage.parse_args(flags))
    error = math.sqrt(0.95 * 0.05 / num_draws)
    assert 0.942 - 3 * error < measured["coverage"] < 0.942 + 3 * error
    assert abs(measured["bias"]) < 0.003
