"""The metrics against scikit-learn called directly and against cases counted by hand."""

import logging
import socket
import time

import numpy as np
import pytest
from cxr.evaluation import metrics
from sklearn import metrics as sklearn_metrics

NAMES = {"accuracy", "precision", "recall", "f1", "auroc", "average_precision", "threshold", "n"}


def made_up(num: int = 500, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, num)
    return labels, np.clip(rng.normal(0.35 + 0.2 * labels, 0.2), 0, 1).round(2)  # some at a threshold


def measure(labels, probabilities, *, chosen_threshold: float = 0.5) -> dict:
    return metrics.classification_metrics(
        np.array(labels), np.array(probabilities), chosen_threshold=chosen_threshold, split="validation"
    )


def test_metrics_equal_scikit_learn_called_directly():
    labels, probabilities = made_up()
    result = measure(labels, probabilities, chosen_threshold=0.4)
    assert set(result) == {*NAMES, "at_chosen_threshold"}
    for threshold, found in ((0.5, result), (0.4, result["at_chosen_threshold"])):
        calls = probabilities >= threshold
        assert found["threshold"] == threshold
        assert found["accuracy"] == sklearn_metrics.accuracy_score(labels, calls)
        assert found["precision"] == sklearn_metrics.precision_score(labels, calls)
        assert found["recall"] == sklearn_metrics.recall_score(labels, calls)
        assert found["f1"] == sklearn_metrics.f1_score(labels, calls)
    assert result["auroc"] == sklearn_metrics.roc_auc_score(labels, probabilities)
    assert result["average_precision"] == sklearn_metrics.average_precision_score(labels, probabilities)
    assert result["n"] == 500


def test_nothing_called_positive_gives_zeros_and_no_warning(recwarn):
    result = measure([0, 1], [0.1, 0.2])
    assert (result["precision"], result["recall"], result["f1"]) == (0.0, 0.0, 0.0)
    assert not [warning for warning in recwarn if "ndefined" in str(warning.message)]


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_no_auroc_and_a_warning_that_names_the_split(label, caplog):
    with caplog.at_level(logging.WARNING):
        result = measure([label] * 4, [0.1, 0.4, 0.6, 0.9])
    assert result["auroc"] is None and result["average_precision"] is None
    assert result["accuracy"] == 0.5
    assert "The validation split has only one class" in caplog.text


def test_chosen_threshold_has_the_highest_sensitivity_plus_specificity():
    for seed in range(5):
        labels, probabilities = made_up(200, seed=seed)

        def youden(threshold, labels=labels, probabilities=probabilities):
            calls = probabilities >= threshold
            return calls[labels == 1].mean() - calls[labels == 0].mean()

        chosen = metrics.choose_threshold(labels, probabilities)
        assert youden(chosen) == pytest.approx(max(youden(value) for value in probabilities))


@pytest.mark.parametrize(
    ("labels", "probabilities", "chosen"),
    [([0, 0, 1, 1], [0.1, 0.3, 0.35, 0.8], 0.35), ([1, 1, 0, 0], [0.1, 0.2, 0.8, 0.9], 1), ([1], [0.9], 0.5)],
    ids=["one that predictions have", "finite where nothing is better than chance", "of one class"],
)
def test_chosen_threshold_of_small_cases(labels, probabilities, chosen):
    assert metrics.choose_threshold(np.array(labels), np.array(probabilities)) == chosen


def test_module_loads_through_evaluate_and_without_a_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    import evaluate

    module = evaluate.load(str(metrics.METRIC_MODULE))
    result = module.compute(references=[0, 1, 1], predictions=[0.2, 0.7, 0.4])
    assert set(result) == NAMES
    assert result["recall"] == 0.5 and result["threshold"] == 0.5


@pytest.mark.timing
def test_a_quarter_of_a_million_predictions_take_under_4_seconds():
    labels, probabilities = made_up(250_000)
    measure(labels[:10], probabilities[:10])  # importing is not what is timed
    started = time.perf_counter()
    measure(labels, probabilities, chosen_threshold=metrics.choose_threshold(labels, probabilities))
    assert time.perf_counter() - started < 4
