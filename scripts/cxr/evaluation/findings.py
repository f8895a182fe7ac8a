"""Measures classifiers of several findings; arrays (N, K) have a column per finding.

`labels` are 1, 0 or MASKED, `probabilities` are of class 1. A finding is measured on the images that have a
label for it. A mean over findings is over those with at least MIN_LABELS positive and MIN_LABELS negative
labels, the same in all resamples.
"""

import logging
from collections.abc import Container
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import numpy as np

from cxr.choices import CHEXPERT5
from cxr.choices import MASKED
from cxr.evaluation import intervals
from cxr.evaluation import metrics
from cxr.evaluation.intervals import MIN_LABELS

AREAS = ("auroc", "average_precision")
METRICS = (*AREAS, "f1", "sensitivity", "specificity")
logger = logging.getLogger(__name__)


def choose_thresholds(labels: np.ndarray, probabilities: np.ndarray) -> list[float]:
    """Returns each finding's threshold with the highest Youden's J; 0.5 for one class."""
    return [
        metrics.choose_threshold(of_finding, scores)
        for of_finding, scores, _ in _columns(labels, probabilities)
    ]


def finding_metrics(
    labels: np.ndarray,
    probabilities: np.ndarray,
    names: Sequence[str],
    *,
    thresholds: Sequence[float],
) -> dict[str, Any]:
    """Returns the metrics of each finding and the means over findings, without intervals.

    The result is that of `MeasuredFindings`, without the loss. If no finding is in the means, they are None.
    """
    whole = np.ones((1, len(labels)), dtype=np.uint8)
    values = _measure(labels, probabilities, whole, dict(zip(names, thresholds)))
    num_positive = dict(zip(names, (labels == 1).sum(axis=0).tolist()))
    num_labelled = dict(zip(names, (labels != MASKED).sum(axis=0).tolist()))
    without = left_out(labels, names)
    return {
        "n": len(labels),
        **{name: intervals.value_of(mean) for name, mean in macro_means(values, without).items()},
        "left_out": without,
        "findings": {
            name: {
                "n": num_labelled[name],
                "num_positive": num_positive[name],
                "threshold": threshold,
                **{metric: intervals.value_of(value) for metric, value in values[name].items()},
                "f1": float(np.nan_to_num(values[name]["f1"][0])),  # 0 if undefined, as scikit-learn's
            }
            for name, threshold in zip(names, thresholds)
        },
    }


def warn_left_out(measured: dict[str, Any], *, split: str) -> None:
    """Says in one line which findings are not in the means of `finding_metrics`, and why."""
    reasons = []
    for name in measured["left_out"]:
        found = measured["findings"][name]
        reasons.append(f"{name} ({few_labels(found['num_positive'], found['n'] - found['num_positive'])})")
    if reasons:
        logger.warning(
            "The means over findings of the %s split leave out %d of %d, because they have fewer than %d "
            "positive or negative labels: %s.%s",
            split,
            len(reasons),
            len(measured["findings"]),
            MIN_LABELS,
            ", ".join(reasons),
            " Without any finding they are undefined (null)." * (len(reasons) == len(measured["findings"])),
        )


def add_intervals(
    measured: dict[str, Any],
    labels: np.ndarray,
    probabilities: np.ndarray,
    subject_ids: Sequence[int | str],
    *,
    num_resamples: int = intervals.NUM_RESAMPLES,
) -> None:
    """Adds the 95 % intervals over patients to what `finding_metrics` returned for the same arrays.

    Patients are resampled once for all findings. A resample in which a finding is undefined is not used for
    the interval of a mean over findings.
    """
    weights = intervals.weights_of(tuple(subject_ids), num_resamples)
    thresholds = {name: found["threshold"] for name, found in measured["findings"].items()}
    resampled = _measure(labels, probabilities, weights, thresholds)
    means = macro_means(resampled, measured["left_out"])
    measured["intervals"] = {name: intervals.interval_of(values) for name, values in means.items()}
    for name, found in measured["findings"].items():
        found["intervals"] = {
            metric: intervals.interval_of(values) for metric, values in resampled[name].items()
        }


def macro_resamples(
    labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str], weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns the means over findings for each row of `weights` (R, N): arrays (R,).

    The keys are "auroc" and "average_precision" and, if all of CHEXPERT5 are in `names`, "chexpert5_auroc"
    and "chexpert5_average_precision". A mean without any finding is NaN, and so is one over a resample in
    which a finding is undefined.
    """
    return macro_means(finding_areas(labels, probabilities, names, weights), left_out(labels, names))


def finding_areas(
    labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str], weights: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    """Returns AREAS of each finding for each row of `weights` (R, N): arrays (R,), NaN without labels."""
    undefined = dict.fromkeys(AREAS, np.full(len(weights), np.nan))
    return {
        name: intervals.weighted_areas(of_finding, scores, weights[:, labelled])
        if len(of_finding)
        else undefined
        for name, (of_finding, scores, labelled) in zip(names, _columns(labels, probabilities))
    }


def left_out(labels: np.ndarray, names: Sequence[str]) -> list[str]:
    """Returns the findings that are not in a mean over findings."""
    counts = zip((labels == 1).sum(axis=0), (labels == 0).sum(axis=0))
    return [name for name, of_classes in zip(names, counts) if few_labels(*of_classes)]


def few_labels(num_positive: int, num_negative: int) -> str:
    """Returns in words the classes with fewer than MIN_LABELS labels, "" if both have enough."""
    counts = {"positive": num_positive, "negative": num_negative}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count < MIN_LABELS)


def doubt_intervals(labels: np.ndarray, subject_ids: Sequence[int | str], *, split: str) -> str:
    """Returns why intervals and tests by one label, (N,) 0 or 1, are not to be trusted; "" if they are."""
    few = few_labels(*intervals.count_patients(subject_ids, labels))
    if not few:
        return ""
    where = f"{few} in the {split} split, at least {MIN_LABELS} of each are needed"
    return f"Intervals are too narrow and p-values too small, as few patients have a label: {where}."


def macro_means(
    of_findings: dict[str, dict[str, np.ndarray]], without: Container[str]
) -> dict[str, np.ndarray]:
    """Returns the means over findings of AREAS, and over CHEXPERT5 if all five are there: arrays (R,).

    `without` are the findings to leave out; a mean without any finding is NaN.
    """
    groups = {"": tuple(of_findings)}
    if set(CHEXPERT5) <= of_findings.keys():
        groups["chexpert5_"] = CHEXPERT5
    means = {}
    for prefix, names in groups.items():
        for area in AREAS:
            values = [of_findings[name][area] for name in names if name not in without]
            undefined = np.full_like(of_findings[names[0]][area], np.nan)
            means[prefix + area] = np.mean(values, axis=0) if values else undefined
    return means


def _columns(
    labels: np.ndarray, probabilities: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields each finding's labels and probabilities (n,) of the images with a label, and which these are."""
    for of_finding, scores in zip(labels.T, probabilities.T):
        labelled = of_finding != MASKED
        yield of_finding[labelled], scores[labelled], labelled


def _measure(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray, thresholds: dict[str, float]
) -> dict[str, dict[str, np.ndarray]]:
    """Returns the metrics of each finding for each row of `weights` (R, N): arrays (R,)."""
    found = {}
    columns = _columns(labels, probabilities)
    for (name, threshold), (of_finding, scores, labelled) in zip(thresholds.items(), columns):
        if not len(of_finding):
            found[name] = dict.fromkeys(METRICS, np.full(len(weights), np.nan))
            continue
        drawn = weights[:, labelled]
        found[name] = {
            **intervals.weighted_areas(of_finding, scores, drawn),
            "f1": intervals.weighted_f1(of_finding, scores >= threshold, drawn),
            **intervals.weighted_rates(of_finding, scores, drawn, threshold=threshold),
        }
    return found
