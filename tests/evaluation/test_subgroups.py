"""Metrics of groups against scikit-learn, gaps that are there or not, means over the same findings."""

import itertools
import math

import numpy as np
import pytest
from cxr.evaluation import intervals
from cxr.evaluation import subgroups
from cxr.evaluation.subgroups import MACRO
from cxr.evaluation.subgroups import UNKNOWN
from cxr.run_folder.measured import Groups
from sklearn import metrics

THRESHOLD = 0.5


def draw(num_patients, *, images_each=2, separation=1.5, seed=0):
    """Returns labels, probabilities with ties, and patients; `separation` is a number or one per patient."""
    generator = np.random.default_rng(seed)
    subjects = np.repeat(np.arange(num_patients), images_each)
    labels = generator.integers(0, 2, len(subjects))
    distance = np.broadcast_to(separation, num_patients)[subjects]
    scores = generator.normal(size=len(subjects)) + distance * (labels - 0.5)
    return labels, np.round(1 / (1 + np.exp(-scores)), 2), subjects


def measure(labels, probabilities, subjects, attributes):
    """Measures one finding, and checks that the result fits its records."""
    groups, gaps = subgroups.measure_groups(
        labels, probabilities, subjects, attributes, threshold=THRESHOLD, finding="Edema"
    )
    Groups(groups=groups, gaps=gaps)
    return groups, gaps


def by_group(groups, finding="Edema"):
    return {group["group"]: group for group in groups if group["finding"] == finding}


def test_each_group_has_the_numbers_of_scikit_learn_on_its_images():
    labels, probabilities, subjects = draw(150)
    generator = np.random.default_rng(1)
    attributes = {
        "view": generator.choice(["AP", "PA"], 300),
        "race": np.array(["White", "Black", "Asian"])[subjects % 3],
    }
    groups, _ = measure(labels, probabilities, subjects, attributes)
    names = [(group["attribute"], group["group"]) for group in groups]
    assert names == [("view", "AP"), ("view", "PA"), ("race", "Asian"), ("race", "Black"), ("race", "White")]
    for group in groups:
        inside = attributes[group["attribute"]] == group["group"]
        truth, scores = labels[inside], probabilities[inside]
        called = scores >= THRESHOLD
        assert group["n"] == inside.sum() and group["num_positive"] == truth.sum()
        assert group["num_patients"] == len(set(subjects[inside]))
        assert group["auroc"] == pytest.approx(metrics.roc_auc_score(truth, scores), abs=1e-12)
        assert group["sensitivity"] == pytest.approx(metrics.recall_score(truth, called), abs=1e-12)
        specificity = metrics.recall_score(truth, called, pos_label=0)
        assert group["specificity"] == pytest.approx(specificity, abs=1e-12)
        for name in ("auroc", "sensitivity", "specificity"):
            low, high = group["intervals"][name]
            assert low < group[name] < high


def test_a_group_of_all_images_has_the_interval_of_all_images():
    labels, probabilities, subjects = draw(100)
    groups, gaps = measure(labels, probabilities, subjects, {"sex": np.full(200, "female")})
    expected = intervals.patient_intervals(labels, probabilities, subjects, threshold=THRESHOLD)
    assert groups[0]["intervals"]["auroc"] == expected["auroc"]
    assert groups[0]["intervals"]["sensitivity"] == expected["recall"]
    assert gaps == []


def test_what_one_class_does_not_define_is_none_and_without_an_interval():
    labels, probabilities, subjects = draw(60)
    sex = np.where(subjects < 30, "female", "male")
    labels[sex == "female"] = 1
    groups, gaps = measure(labels, probabilities, subjects, {"sex": sex})
    female = by_group(groups)["female"]
    assert female["auroc"] is None and female["intervals"]["auroc"] is None
    assert female["specificity"] is None and female["intervals"]["specificity"] is None
    assert 0 < female["sensitivity"] < 1
    assert gaps == []


def test_a_gap_that_is_there_is_found():
    separation = np.where(np.arange(300) < 150, 3.0, 0.5)
    labels, probabilities, subjects = draw(300, separation=separation)
    sex = np.where(subjects < 150, "female", "male")
    groups, [gap] = measure(labels, probabilities, subjects, {"sex": sex})
    found = by_group(groups)
    assert (gap["attribute"], gap["higher"], gap["lower"]) == ("sex", "female", "male")
    assert gap["difference"] == pytest.approx(found["female"]["auroc"] - found["male"]["auroc"])
    assert 0.1 < gap["interval"][0] < gap["difference"] < gap["interval"][1]
    assert gap["p"] < 0.001


@pytest.mark.slow
def test_gaps_that_are_not_there_are_rarely_found_and_intervals_cover(monkeypatch):
    """Twelve pairs of groups without a difference: at most about 5 % of the draws may find one."""
    monkeypatch.setattr(subgroups, "weights_of", lambda patients: intervals.weights_of(patients, 500))
    true_auroc = (1 + math.erf(1.5 / 2)) / 2
    num_draws, found, covered = 300, 0, 0
    for seed in range(num_draws):
        labels, probabilities, subjects = draw(250, seed=seed)
        generator = np.random.default_rng(seed)
        attributes = {
            "view": generator.choice(["AP", "PA"], 500),
            "sex": np.array(["female", "male"])[subjects % 2],
            "race": np.array(["White", "Black", "Asian", "Hispanic", "other or unknown"])[subjects % 5],
        }
        groups, gaps = measure(labels, probabilities, subjects, attributes)
        found += min(gap["p"] for gap in gaps) < 0.05
        low, high = by_group(groups)["Asian"]["intervals"]["auroc"]
        covered += low <= true_auroc <= high
    assert found / num_draws < 0.08
    assert 0.9 < covered / num_draws < 0.98


def test_p_values_are_corrected_for_all_pairs_of_all_attributes():
    labels, probabilities, subjects = draw(240, separation=np.linspace(0.3, 2.5, 240))
    attributes = {
        "age": np.array(["18-39", "40-59", "60-79", "80+"])[subjects // 60],
        "sex": np.array(["female", "male"])[subjects % 2],
        "view": np.array(["AP", "PA"])[np.arange(480) % 2],
    }
    _, gaps = measure(labels, probabilities, subjects, attributes)
    weights = intervals.patient_weights(subjects, num_resamples=2000, seed=0)
    p_values = {}
    for attribute, names in attributes.items():
        for pair in itertools.combinations(sorted(set(names)), 2):
            inside = [names == group for group in pair]
            whole = [metrics.roc_auc_score(labels[one], probabilities[one]) for one in inside]
            resampled = [
                intervals.weighted_auroc(labels[one], probabilities[one], weights[:, one]) for one in inside
            ]
            difference = intervals.paired_difference(
                whole[0] - whole[1],
                resampled[0] - resampled[1],
                num_patients=min(len(set(subjects[one])) for one in inside),
                num_seeds=1,
                noise=intervals.SeedNoise(variance=0.0, freedom=0),
            )
            p_values[(attribute, *pair)] = difference.p
    assert len(p_values) == 6 + 1 + 1
    corrected = dict(zip(p_values, intervals.holm(list(p_values.values()))))
    assert [gap["attribute"] for gap in gaps] == ["age", "sex", "view"]
    for gap in gaps:
        pair = sorted((gap["higher"], gap["lower"]))
        assert gap["p"] == pytest.approx(corrected[(gap["attribute"], *pair)])
    assert {gaps[0]["higher"], gaps[0]["lower"]} == {"80+", "18-39"}


@pytest.mark.parametrize(("num_positive", "num_gaps"), [(9, 0), (10, 1)])
def test_groups_with_few_positive_patients_have_no_gap_however_many_images_they_have(num_positive, num_gaps):
    _, probabilities, subjects = draw(100, images_each=6)
    labels = (subjects % 50 < num_positive).astype(int)
    sex = np.where(subjects < 50, "female", "male")
    _, gaps = measure(labels, probabilities, subjects, {"sex": sex})
    assert len(gaps) == num_gaps


@pytest.mark.parametrize(("num_resamples", "num_gaps"), [(1, 0), (2, 1)])
def test_groups_with_fewer_than_two_resamples_have_no_gap(num_resamples, num_gaps, monkeypatch):
    monkeypatch.setattr(
        subgroups, "weights_of", lambda patients: intervals.weights_of(patients, num_resamples)
    )
    labels, probabilities, subjects = draw(150)
    sex = np.where(subjects % 2, "female", "male")
    groups, gaps = measure(labels, probabilities, subjects, {"sex": sex})
    assert all(group["auroc"] is not None for group in groups) and len(gaps) == num_gaps


def test_patients_in_both_groups_make_a_gap_more_certain_than_if_they_were_others():
    """AP and PA images of the same patients, who are easy or hard in both views."""
    generator = np.random.default_rng(0)
    subjects = np.repeat(np.arange(200), 2)
    view = np.tile(["AP", "PA"], 200)
    labels = np.repeat(generator.integers(0, 2, 200), 2)
    hardness = np.repeat(generator.normal(size=200), 2)
    scores = labels + hardness + 0.2 * generator.normal(size=400) + 0.2 * labels * (view == "PA")
    probabilities = 1 / (1 + np.exp(-scores))
    _, [paired] = measure(labels, probabilities, subjects, {"view": view})
    _, [unpaired] = measure(labels, probabilities, np.arange(400), {"view": view})
    assert paired["difference"] == unpaired["difference"]
    widths = [gap["interval"][1] - gap["interval"][0] for gap in (paired, unpaired)]
    assert widths[0] < widths[1] / 2


@pytest.mark.parametrize("name", [UNKNOWN, "of few patients", "of few labels"])
def test_unknown_and_small_groups_are_measured_but_take_no_part_in_gaps(name):
    labels, probabilities, subjects = draw(120, images_each=6)
    race = np.where(subjects < 60, "White", np.where(subjects < 100, "Black", name))
    if name == "of few patients":
        race = np.where(subjects < 60, "White", np.where(subjects < 111, "Black", name))
    elif name == "of few labels":
        labels[race == name] = 0
        labels[np.flatnonzero(race == name)[:9]] = 1
    groups, [gap] = measure(labels, probabilities, subjects, {"race": race})
    assert by_group(groups)[name]["auroc"] is not None
    assert {gap["higher"], gap["lower"]} == {"White", "Black"}


def draw_findings(num_patients=150, *, images_each=2):
    """Returns labels and probabilities (N, 3) of findings of different difficulty, and patients."""
    columns = [
        draw(num_patients, images_each=images_each, separation=separation, seed=seed)
        for seed, separation in enumerate((0.5, 1.5, 3.0))
    ]
    labels, probabilities = (np.stack([column[part] for column in columns], axis=1) for part in (0, 1))
    return labels, probabilities, columns[0][2]


NAMES = ["Fracture", "Edema", "Pneumothorax"]
THRESHOLDS = [0.4, 0.5, 0.6]


def measure_findings(labels, probabilities, subjects, attributes):
    groups, gaps = subgroups.measure_groups_of_findings(
        labels, probabilities, subjects, attributes, names=NAMES, thresholds=THRESHOLDS
    )
    Groups(groups=groups, gaps=gaps)
    return groups, gaps


def test_each_finding_is_measured_on_its_labelled_images_and_the_mean_is_that_of_the_findings():
    labels, probabilities, subjects = draw_findings()
    labels[np.random.default_rng(0).random(labels.shape) < 0.2] = -1
    sex = np.where(subjects < 70, "female", "male")
    groups, gaps = measure_findings(labels, probabilities, subjects, {"sex": sex})
    assert len(groups) == 2 * 4 and len(gaps) == 4
    for name, of_finding, predicted, threshold in zip(NAMES, labels.T, probabilities.T, THRESHOLDS):
        for sex_name, group in by_group(groups, name).items():
            inside = (sex == sex_name) & (of_finding != -1)
            assert group["n"] == inside.sum()
            expected = metrics.roc_auc_score(of_finding[inside], predicted[inside])
            assert group["auroc"] == pytest.approx(expected, abs=1e-12)
            called = predicted[inside] >= threshold
            assert group["sensitivity"] == pytest.approx(metrics.recall_score(of_finding[inside], called))
    for sex_name, group in by_group(groups, MACRO).items():
        own = [by_group(groups, name)[sex_name] for name in NAMES]
        assert group["auroc"] == pytest.approx(np.mean([one["auroc"] for one in own]))
        assert group["n"] == (sex == sex_name).sum() and group["num_findings"] == 3
        assert group["sensitivity"] is None and group["specificity"] is None
        low, high = group["intervals"]["auroc"]
        assert low < group["auroc"] < high
        assert high - low < min(np.ptp(one["intervals"]["auroc"]) for one in own[:2])
    assert [gap["finding"] for gap in gaps] == [MACRO, *NAMES]


def test_the_mean_is_over_the_findings_that_all_large_groups_have():
    labels, probabilities, subjects = draw_findings()
    race = np.where(subjects < 70, "White", np.where(subjects < 140, "Black", "Asian"))
    is_black = np.flatnonzero(race == "Black")
    labels[is_black, 2] = 0
    labels[is_black[:9], 2] = 1  # the easy finding is too rare in one group
    labels[race == "Asian"] = 0  # a group with labels of one class does not empty the mean of the others
    groups, gaps = measure_findings(labels, probabilities, subjects, {"race": race})
    means = by_group(groups, MACRO)
    for name in ("White", "Black"):
        own = [by_group(groups, finding)[name]["auroc"] for finding in NAMES[:2]]
        assert means[name]["auroc"] == pytest.approx(np.mean(own))
        assert means[name]["num_findings"] == 2
    assert means["Asian"]["auroc"] is None and means["Asian"]["intervals"]["auroc"] is None
    assert [(gap["finding"], {gap["higher"], gap["lower"]}) for gap in gaps] == [
        (name, {"White", "Black"}) for name in (MACRO, *NAMES[:2])
    ]


def test_a_group_without_a_label_of_a_finding_has_no_entry_for_it():
    labels, probabilities, subjects = draw_findings()
    sex = np.where(subjects < 70, "female", "male")
    labels[sex == "male", 1] = -1
    groups, gaps = measure_findings(labels, probabilities, subjects, {"sex": sex})
    assert list(by_group(groups, "Edema")) == ["female"]
    assert [group["num_findings"] for group in by_group(groups, MACRO).values()] == [2, 2]
    assert [gap["finding"] for gap in gaps] == [MACRO, "Fracture", "Pneumothorax"]


def test_p_values_of_findings_are_corrected_for_all_findings_and_those_of_the_mean_among_themselves():
    labels, probabilities, subjects = draw_findings()
    attributes = {
        "sex": np.array(["female", "male"])[subjects % 2],
        "view": np.array(["AP", "PA"])[np.arange(len(subjects)) % 2],
    }
    _, gaps = measure_findings(labels, probabilities, subjects, attributes)
    raw = []
    for column in range(3):
        for name, groups_of in attributes.items():
            _, [gap] = measure(labels[:, column], probabilities[:, column], subjects, {name: groups_of})
            raw.append(gap["p"])
    assert [gap["p"] for gap in gaps[2:]] == pytest.approx(intervals.holm(raw))


def test_projection_auroc_is_that_of_the_share_of_positives_of_each_view():
    train_views = np.array(["AP"] * 10 + ["PA"] * 10)
    train_labels = np.array([1] * 8 + [0] * 2 + [1] * 2 + [0] * 8)
    views = np.array(["AP", "AP", "PA", "PA", "LATERAL", "LATERAL"])
    labels = np.array([1, 1, 0, 1, 0, 1])
    train = {"train_labels": train_labels, "train_views": train_views}
    found = subgroups.projection_auroc(labels, views, **train)
    assert found == metrics.roc_auc_score(labels, [0.8, 0.8, 0.2, 0.2, 0.5, 0.5])
    assert subgroups.projection_auroc(labels[:4], np.full(4, "PA"), **train) == 0.5
    assert subgroups.projection_auroc(np.ones(6, dtype=int), views, **train) is None
    empty = {"train_labels": train_labels[:0], "train_views": train_views[:0]}
    assert subgroups.projection_auroc(labels, views, **empty) is None
