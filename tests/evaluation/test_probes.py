"""Probes agree with scikit-learn's pipelines, choose on validation, and see labelled images only."""

import numpy as np
import pytest
from cxr.choices import MASKED
from cxr.choices import SMOOTH
from cxr.evaluation import probes
from cxr.evaluation.probes import Split
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def draw(num_images: int, *, seed: int, num_findings: int | None = None) -> Split:
    """Features of very different scales, some of which tell the labels."""
    generator = np.random.default_rng(seed)
    hidden = generator.normal(size=(num_images, 6))
    mixing = np.random.default_rng(0).normal(size=(6, 20)) * np.logspace(-2, 2, 20)
    features = (hidden @ mixing + generator.normal(size=(num_images, 20)) + 5).astype("float32")
    shape = num_images if num_findings is None else (num_images, num_findings)
    signal = hidden[:, 0] if num_findings is None else hidden[:, :num_findings]
    return Split(features=features, labels=(signal + generator.normal(size=shape) > 0).astype(int))


TRAIN, VALIDATION, TEST = draw(150, seed=1), draw(80, seed=2), draw(90, seed=3)


def run(method: str, train=TRAIN, validation=VALIDATION) -> probes.Probed:
    return probes.probe(method, train=train, validation=validation, test_features=TEST.features)


def of_scikit_learn(method: str, setting, train: Split, features: np.ndarray) -> np.ndarray:
    if method == "linear":
        model = make_pipeline(StandardScaler(), LogisticRegression(C=setting, max_iter=1000))
        return model.fit(train.features.astype("float64"), train.labels).decision_function(features)
    model = make_pipeline(StandardScaler(), KNeighborsClassifier(setting, metric="cosine"))
    return model.fit(train.features, train.labels).predict_proba(features)[:, 1]


@pytest.mark.parametrize("method", probes.PROBES)
def test_scores_are_those_of_scikit_learns_pipeline_at_its_best_setting(method):
    grid = {"linear": probes.STRENGTHS, "knn": [k for k in probes.NEIGHBOURS if k <= 150]}[method]
    areas = [
        roc_auc_score(VALIDATION.labels, of_scikit_learn(method, setting, TRAIN, VALIDATION.features))
        for setting in grid
    ]
    found = run(method)
    assert found.settings == [grid[int(np.argmax(areas))]]
    assert roc_auc_score(VALIDATION.labels, found.validation) == pytest.approx(max(areas), abs=1e-9)
    expected = of_scikit_learn(method, found.settings[0], TRAIN, TEST.features)
    assert found.test == pytest.approx(expected, abs=1e-4)
    assert roc_auc_score(TEST.labels, found.test) > 0.6


@pytest.mark.parametrize("method", probes.PROBES)
def test_each_finding_is_learned_from_the_images_that_have_its_label(method):
    train, validation = draw(150, seed=1, num_findings=2), draw(80, seed=2, num_findings=2)
    train.labels[:40, 1] = validation.labels[:30, 1] = MASKED
    found = run(method, train, validation)
    assert found.validation.shape == (80, 2) and found.test.shape == (90, 2)
    for number, (first, first_validation) in enumerate(((0, 0), (40, 30))):
        alone = run(
            method,
            Split(features=train.features[first:], labels=train.labels[first:, number]),
            Split(
                features=validation.features[first_validation:],
                labels=validation.labels[first_validation:, number],
            ),
        )
        assert found.settings[number] == alone.settings[0]
        assert np.array_equal(found.test[:, number], alone.test)


@pytest.mark.parametrize("method", probes.PROBES)
def test_a_sample_with_one_label_only_gives_all_images_the_same_score(method):
    found = run(method, Split(features=TRAIN.features, labels=np.zeros(150, dtype=int)))
    assert found.settings == [None] and not found.test.any()
    assert probes.area(TEST.labels, found.test) == 0.5


def test_a_validation_split_with_one_label_only_chooses_the_first_setting():
    one_class = Split(features=VALIDATION.features, labels=np.ones(80, dtype=int))
    assert run("linear", validation=one_class).settings == [probes.STRENGTHS[0]]
    assert probes.whole_area(one_class.labels, one_class.features[:, 0], ("no", "yes")) is None


@pytest.mark.parametrize("method", probes.PROBES)
def test_a_finding_without_validation_labels_has_the_first_setting_and_no_part_in_the_mean(method):
    train, validation = draw(150, seed=1, num_findings=2), draw(80, seed=2, num_findings=2)
    validation.labels[:, 1] = MASKED
    found = run(method, train, validation)
    first = {"linear": probes.STRENGTHS, "knn": probes.NEIGHBOURS}[method][0]
    assert found.settings[1] == first and found.test.shape == (90, 2)
    mean = probes.whole_area(validation.labels, found.validation, ("Edema", "Pneumonia"))
    assert mean == pytest.approx(probes.area(validation.labels[:, 0], found.validation[:, 0]))


def test_a_feature_that_never_changes_does_no_harm():
    constant = np.full((150, 1), 7, dtype="float32")
    train = Split(features=np.hstack([TRAIN.features, constant]), labels=TRAIN.labels)
    found = probes.probe("linear", train=train, validation=train, test_features=train.features)
    assert np.isfinite(found.test).all()


def test_neighbours_are_the_same_in_many_blocks(monkeypatch):
    whole = probes.nearest(TRAIN.features, TEST.features, num_neighbours=7)
    monkeypatch.setattr(probes, "BLOCK", 1000)
    assert np.array_equal(probes.nearest(TRAIN.features, TEST.features, num_neighbours=7), whole)


def test_uncertain_labels_count_as_positive():
    assert probes.hard_labels(np.array([[0, 1], [SMOOTH, MASKED]])).tolist() == [[0, 1], [1, MASKED]]


def test_rankme_counts_directions_that_are_used_equally():
    assert probes.rankme(np.eye(12)) == pytest.approx(12)
    assert probes.rankme(np.eye(12)[:5] * 3) == pytest.approx(5)
    assert probes.rankme(np.ones((30, 12))) == pytest.approx(1)
    values = np.array([4.0, 2, 1, 1]) / 8
    by_hand = np.exp(-(values * np.log(values)).sum())
    assert probes.rankme(np.diag([4.0, 2, 1, 1])) == pytest.approx(by_hand)
