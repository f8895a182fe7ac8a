"""Agreement with the radiologist: scikit-learn's kappa and F1, with intervals over patients."""

import numpy as np
import pytest
from cxr.choices import MASKED
from cxr.evaluation import intervals
from cxr.evaluation.agreement import agreement
from cxr.evaluation.agreement import weighted_kappa
from cxr.run_folder.measured import Agreement
from sklearn import metrics


def draw(num_studies: int = 300, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two findings by the radiologist and by a labeler that errs in a tenth, and each study's patient."""
    generator = np.random.default_rng(seed)
    truth = (generator.random((num_studies, 2)) < (0.4, 0.1)).astype(int)
    labels = np.where(generator.random(truth.shape) < 0.1, 1 - truth, truth)
    return truth, labels, generator.integers(0, num_studies // 2, num_studies)


def test_kappa_and_f1_are_scikit_learns_on_the_pairs_without_a_masked_side():
    truth, labels, patients = draw()
    truth[:30, 0], labels[20:50, 0] = MASKED, MASKED
    found = agreement(truth, labels, ("Edema", "Fracture"), patients, num_resamples=20)
    for column, (name, start) in enumerate({"Edema": 50, "Fracture": 0}.items()):
        pair, one = (truth[start:, column], labels[start:, column]), found[name]
        assert (one["n"], one["num_positive"]) == (len(pair[0]), pair[0].sum())
        assert one["kappa"] == pytest.approx(metrics.cohen_kappa_score(*pair), abs=1e-12)
        assert one["f1"] == pytest.approx(metrics.f1_score(*pair), abs=1e-12)
        Agreement.model_validate(one)


def test_weighted_kappa_and_f1_are_scikit_learns_with_sample_weights():
    truth, labels, patients = (array[:, 0] if array.ndim == 2 else array for array in draw())
    weights = intervals.patient_weights(patients, num_resamples=20, seed=0)
    kappas, f1s = weighted_kappa(truth, labels, weights), intervals.weighted_f1(truth, labels, weights)
    for drawn, kappa, f1 in zip(weights, kappas, f1s):
        expected = metrics.cohen_kappa_score(truth, labels, sample_weight=drawn)
        assert kappa == pytest.approx(expected, abs=1e-12)
        assert f1 == pytest.approx(metrics.f1_score(truth, labels, sample_weight=drawn), abs=1e-12)


def test_intervals_are_the_middle_of_the_resamples():
    truth, labels, patients = draw()
    found = agreement(truth, labels, ("Edema", "Fracture"), patients, num_resamples=100)["Edema"]
    weights = intervals.patient_weights(patients, num_resamples=100, seed=0)
    kappas = weighted_kappa(truth[:, 0], labels[:, 0], weights)
    assert found["intervals"]["kappa"] == pytest.approx(np.quantile(kappas, [0.025, 0.975]).tolist())
    for metric in ("kappa", "f1"):
        low, high = found["intervals"][metric]
        assert low < found[metric] < high


def test_opposite_labels_have_kappa_minus_one_and_its_interval_is_not_cut_at_zero():
    truth = np.arange(100)[:, None] % 2
    found = agreement(truth, 1 - truth, ["Edema"], range(100), num_resamples=50)["Edema"]
    assert found["kappa"] == -1 and found["f1"] == 0
    assert found["intervals"]["kappa"][1] < -0.5
    Agreement.model_validate(found)


@pytest.mark.parametrize(
    ("truth", "labels", "kappa", "f1"),
    [(0, 0, None, None), (1, 1, None, 1.0), (0, 1, 0.0, 0.0)],
    ids=["all negative", "all positive", "opposite"],
)
def test_one_class_has_a_value_only_where_it_is_defined(truth, labels, kappa, f1):
    ones = np.ones((4, 1), dtype=int)
    found = agreement(truth * ones, labels * ones, ["Edema"], range(4), num_resamples=5)["Edema"]
    assert (found["kappa"], found["f1"]) == (kappa, f1)
    assert found["intervals"]["kappa"] == (kappa if kappa is None else [kappa, kappa])


def test_finding_without_a_pair_has_nulls():
    masked = np.full((4, 1), MASKED)
    found = agreement(masked, masked, ["Edema"], range(4), num_resamples=5)["Edema"]
    nothing = {"kappa": None, "f1": None}
    assert found == {"n": 0, "num_positive": 0, **nothing, "intervals": nothing}
    Agreement.model_validate(found)
