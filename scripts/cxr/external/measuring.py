"""Measures a model on a folder: metrics with intervals, recalibration, conformal sets, shift, differences."""

import dataclasses
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cxr.choices import MASKED
from cxr.evaluation import findings
from cxr.evaluation import intervals
from cxr.evaluation import metrics
from cxr.evaluation import recalibration
from cxr.evaluation import shift
from cxr.evaluation.conformal import ConformalSets
from cxr.evaluation.conformal import resampled_coverage
from cxr.evaluation.intervals import weights_of
from cxr.run_folder.evaluation_record import Conformal
from cxr.run_folder.evaluation_record import EvaluatedFinding
from cxr.run_folder.evaluation_record import Measurement
from cxr.run_folder.evaluation_record import Metric
from cxr.run_folder.evaluation_record import ModelDifference
from cxr.run_folder.evaluation_record import Recalibrated
from cxr.run_folder.evaluation_record import Shift
from cxr.training.scores import Scores

METRICS = ("auroc", "average_precision", "ece", "brier")  # that need no threshold
UNDEFINED = np.array([np.nan])  # a metric without images


@dataclass(frozen=True, kw_only=True)
class OneFinding:
    """The labels (n,) 0 or 1 and probabilities (n,) of one finding, of the images with a label for it."""

    labels: np.ndarray
    probabilities: np.ndarray
    patients: tuple  # of all N images
    labelled: np.ndarray  # (N,): which of them these are

    @property
    def num_patients(self) -> int:
        return len(np.unique(np.asarray(self.patients)[self.labelled]))

    @property
    def weights(self) -> np.ndarray:
        """Returns weights (1 + R, n), a large copy: first 1 for every image, then those of the resamples."""
        return weights_of(self.patients)[:, self.labelled]


def one_by_one(scores: Scores) -> Iterator[tuple[str, OneFinding]]:
    """Yields each finding with its labelled images; of a binary task, its positive label."""
    patients = tuple(scores.rows["subject_id"])
    columns = zip(scores.names, scores.labels.T, scores.probabilities.T)
    if not scores.is_multi_label:
        columns = [(scores.names[1], scores.labels, scores.probabilities)]
    for name, labels, probabilities in columns:
        known = labels != MASKED
        yield (
            name,
            OneFinding(
                labels=labels[known],
                probabilities=probabilities[known],
                patients=patients,
                labelled=known,
            ),
        )


def measure(one: OneFinding, *, threshold: float) -> Measurement:
    resampled = dict.fromkeys((*METRICS, "sensitivity", "specificity"), UNDEFINED)
    if len(one.labels):
        arrays = one.labels, one.probabilities, one.weights
        found = intervals.weighted_metrics(*arrays, threshold=threshold)
        resampled = {name: found[name] for name in METRICS}
        resampled |= intervals.weighted_rates(*arrays, threshold=threshold)
    bins = intervals.reliability(one.labels, one.probabilities) if len(one.labels) else []
    return Measurement(
        n=len(one.labels),
        num_positive=int(one.labels.sum()),
        num_patients=one.num_patients,
        threshold=threshold,
        metrics={name: as_metric(values, name) for name, values in resampled.items()},
        reliability=[[said, was, float(count)] for said, was, count in bins],
    )


def as_metric(values: np.ndarray, name: str = "") -> Metric:
    """Returns a metric from its value and its resamples, (1 + R,)."""
    if np.isnan(values[0]):
        return Metric(value=None)
    found = intervals.percentile_interval(values[1:], around=float(values[0]) if name == "ece" else None)
    return Metric(value=float(values[0]), interval=found and [found.low, found.high])


def macro_metrics(scores: Scores) -> tuple[dict[str, Metric], list[str]]:
    """Returns the means over findings, and the findings that are not in them; ({}, []) for one finding."""
    if not scores.is_multi_label:
        return {}, []
    weights = weights_of(tuple(scores.rows["subject_id"]))
    means = findings.macro_resamples(scores.labels, scores.probabilities, scores.names, weights)
    return (
        {name: as_metric(means[name]) for name in findings.AREAS},
        findings.left_out(scores.labels, scores.names),
    )


def internal_macro(
    internal: Scores | None, names: Sequence[str], without: Sequence[str]
) -> tuple[dict[str, Metric], list[str]]:
    """Returns the means in the model's own run over those `names` that count on the folder, and a note.

    `without` are the findings that do not count there.
    """
    counted = [name for name in names if name not in without]
    if internal is None or not internal.is_multi_label or not counted:
        return {}, []
    means, left_out = macro_metrics(of_findings(internal, counted))
    said = f"The internal means also leave out {', '.join(left_out)}: too few labels there."
    return means, [said] * bool(left_out)


def of_findings(scores: Scores, names: Sequence[str]) -> Scores:
    """Returns the scores of some of several findings."""
    chosen = [scores.names.index(name) for name in names]
    labels, probabilities = scores.labels[:, chosen], scores.probabilities[:, chosen]
    return dataclasses.replace(scores, names=tuple(names), labels=labels, probabilities=probabilities)


@dataclass(frozen=True, kw_only=True)
class Splits:
    """What a model says about a folder: its test split and, if it is needed, its validation split.

    `internal` is what it said in its own run, `reference` what its probabilities are compared with.
    """

    test: Scores
    validation: Scores | None
    internal: Scores | None
    reference: Scores | None
    reference_name: str


def measure_findings(
    splits: Splits, thresholds: Sequence[float], *, recalibrates: bool, alpha: float | None
) -> dict[str, EvaluatedFinding]:
    """Measures each finding of the test split at the model's own thresholds, and what else is asked for."""
    found = {}
    of = {
        name: dict(one_by_one(scores)) if scores is not None else {}
        for name, scores in vars(splits).items()
        if name != "reference_name"
    }
    for (name, test), threshold in zip(of["test"].items(), thresholds, strict=True):
        validation, internal, reference = (
            of[part].get(name) for part in ("validation", "internal", "reference")
        )
        found[name] = EvaluatedFinding(
            external=measure(test, threshold=threshold),
            internal=internal and measure(internal, threshold=threshold),
            recalibrated=recalibrate(test, validation) if recalibrates else None,
            conformal=measure_sets(test, validation, alpha=alpha) if alpha else None,
            shift=reference and compare_scores(test, reference, name=splits.reference_name),
        )
    return found


def recalibrate(test: OneFinding, validation: OneFinding) -> Recalibrated | None:
    """Measures a finding again after a fit on validation; None if validation has one class only."""
    temperature = recalibration.fit_temperature(validation.labels, validation.probabilities)
    if temperature is None:
        return None
    before = validation.probabilities, test.probabilities
    fitted, adapted = (recalibration.apply_temperature(one, temperature) for one in before)
    low, high = recalibration.LIMITS
    return Recalibrated(
        num_validation=len(validation.labels),
        temperature=temperature,
        is_at_limit=not low * 1.01 < temperature < high / 1.01,
        after=measure(
            dataclasses.replace(test, probabilities=adapted),
            threshold=metrics.choose_threshold(validation.labels, fitted),
        ),
    )


def measure_sets(test: OneFinding, validation: OneFinding, *, alpha: float) -> Conformal:
    calibrated = ConformalSets.calibrate(validation.labels, validation.probabilities, alpha=alpha)
    names = ("coverage", "coverage_negative", "coverage_positive", "set_size")
    resampled = dict.fromkeys(names, UNDEFINED)
    if len(test.labels):
        resampled = resampled_coverage(test.labels, calibrated.sets(test.probabilities), test.weights)
    negative, positive = calibrated.num_calibration
    return Conformal(
        alpha=alpha,
        num_negative=negative,
        num_positive=positive,
        is_small=calibrated.is_small,
        metrics={name: as_metric(values) for name, values in resampled.items()},
    )


def compare_scores(test: OneFinding, reference: OneFinding, *, name: str) -> Shift:
    found = shift.compare(
        test.labels,
        test.probabilities,
        reference_labels=reference.labels,
        reference_probabilities=reference.probabilities,
    )
    return Shift(reference=name, **found)


# Differences ------------------------------------------------------------------------------------------------


def doubts(scores: Scores) -> list[str]:
    """Returns why intervals are not to be trusted; those of means are over findings with enough labels."""
    if scores.is_multi_label:
        return []
    doubt = findings.doubt_intervals(scores.labels, scores.rows["subject_id"], split=scores.split)
    return [doubt] if doubt else []


def common_findings(first: Scores, second: Scores) -> list[str] | str:
    """Returns the findings on which two models can be compared, those of a mean, or why there is none."""
    if first.is_multi_label != second.is_multi_label or (
        not first.is_multi_label and first.names != second.names
    ):
        return "they answer different questions"
    if not first.rows["dicom_id"].equals(second.rows["dicom_id"]):
        return "they were measured on different images or studies"
    if not first.is_multi_label:
        same = np.array_equal(first.labels, second.labels)
        return [first.names[1]] if same else "their label rules give different labels"
    common = [name for name in first.names if name in second.names]
    if not common:
        return "they have no finding in common"
    labels = [of_findings(one, common).labels for one in (first, second)]
    if not np.array_equal(*labels):
        return "their label rules give different labels"
    without = findings.left_out(labels[0], common)
    counted = [name for name in common if name not in without]
    return counted or f"no finding has {findings.MIN_LABELS} positive and as many negative labels"


def resampled_auroc(scores: Scores, common: list[str]) -> np.ndarray:
    """Returns the AUROC, of several findings the mean over `common`, and its resamples: (1 + R,)."""
    weights = weights_of(tuple(scores.rows["subject_id"]))
    if not scores.is_multi_label:
        return intervals.weighted_auroc(scores.labels, scores.probabilities, weights)
    scores = of_findings(scores, common)
    means = findings.macro_resamples(scores.labels, scores.probabilities, common, weights)
    return means["auroc"]


def compare_models(data: str, first: tuple[str, Scores], second: tuple[str, Scores]) -> ModelDifference | str:
    """Tests the AUROC of two models, paired over patients; returns why not if they cannot be compared."""
    common = common_findings(first[1], second[1])
    if isinstance(common, str):
        return f"{first[0]} and {second[0]} on {data}: {common}"
    found = find_difference(data, first, second, common)
    return found or f"{first[0]} and {second[0]} on {data}: an AUROC is undefined"


def compare_findings(
    data: str, first: tuple[str, Scores], second: tuple[str, Scores]
) -> list[ModelDifference]:
    """Tests two models of several findings on each one that is in their mean; [] for models of one label."""
    common = common_findings(first[1], second[1])
    if isinstance(common, str) or not first[1].is_multi_label:
        return []
    found = (find_difference(data, first, second, [name]) for name in common)
    return [one for one in found if one]


def find_difference(
    data: str, first: tuple[str, Scores], second: tuple[str, Scores], common: list[str]
) -> ModelDifference | None:
    """Returns the difference in AUROC over `common` findings; None if an AUROC is undefined."""
    aurocs = {name: resampled_auroc(scores, common) for name, scores in (first, second)}
    (higher, above), (lower, below) = sorted(aurocs.items(), key=lambda item: -np.nan_to_num(item[1][0]))
    if not np.isfinite(above[0] - below[0]):
        return None
    found = intervals.paired_difference(
        float(above[0] - below[0]),
        (above - below)[1:],
        num_patients=first[1].rows["subject_id"].nunique(),
        num_seeds=1,
        noise=intervals.SeedNoise(variance=0.0, freedom=0),
    )
    return found and ModelDifference(
        data=data,
        first=higher,
        second=lower,
        findings=common,
        difference=found.value,
        interval=[found.low, found.high],
        p=found.p,
        p_corrected=found.p,
    )


def corrected(differences: list[ModelDifference]) -> list[ModelDifference]:
    """Returns the differences, the smallest p first, with their p-values corrected by Holm's method."""
    for one, p in zip(differences, intervals.holm([one.p for one in differences])):
        one.p_corrected = p
    return sorted(differences, key=lambda one: (one.p_corrected, one.p))
