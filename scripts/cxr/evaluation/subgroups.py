"""For whom does a classifier work? Its metrics by group of patients or images, and the gaps between groups.

`attributes` maps what the images are grouped by (view, scanner, sex, age, race) to the name of each image's
group, (N,); an image without one is in the group UNKNOWN. All intervals and p-values are of one bootstrap of
patients, drawn once for all groups, as a patient with an AP and a PA image is in two groups of an attribute.
The results fit the records `GroupMetrics` and `Gap`.

A gap is a claim about a group, so it is measured between groups that can support one: at least MIN_PATIENTS
patients, MIN_LABELS of them with each class, and a name other than UNKNOWN. With fewer, the bootstrap of
patients underestimates the variance: it finds one in six such groups to differ (p < 0.05) where none does.
"""

import itertools
from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr.evaluation.intervals import MIN_LABELS
from cxr.evaluation.intervals import SeedNoise
from cxr.evaluation.intervals import count_patients
from cxr.evaluation.intervals import holm
from cxr.evaluation.intervals import interval_of
from cxr.evaluation.intervals import paired_difference
from cxr.evaluation.intervals import value_of
from cxr.evaluation.intervals import weighted_auroc
from cxr.evaluation.intervals import weighted_rates
from cxr.evaluation.intervals import weights_of

MIN_PATIENTS = 10
UNKNOWN = "unknown"
MACRO = "macro"  # the name of the mean over findings


@dataclass(frozen=True, kw_only=True)
class GroupedImages:
    """Images of a split by group, with resamples of their patients."""

    subject_ids: np.ndarray  # (N,)
    attributes: dict[str, np.ndarray]  # name -> (N,)
    weights: np.ndarray  # (1 + R, N): the first row, all ones, is the images themselves

    def groups(self) -> Iterable[tuple[str, str, np.ndarray]]:
        """Yields each attribute, each of its groups, and which images are in it, (N,)."""
        for attribute, names in self.attributes.items():
            for group in np.unique(names):
                yield attribute, str(group), names == group


@dataclass(frozen=True, kw_only=True)
class Group:
    """A group's metrics of one finding, and the AUROC of the group itself and of each resample, (1 + R,)."""

    metrics: dict[str, Any]
    aurocs: np.ndarray
    num_labelled: int = 0  # patients with the class that fewer have

    @property
    def key(self) -> tuple[str, str]:
        return self.metrics["finding"], self.metrics["attribute"]

    @property
    def is_large(self) -> bool:
        return self.metrics["group"] != UNKNOWN and self.metrics["num_patients"] >= MIN_PATIENTS

    @property
    def has_labels(self) -> bool:
        return self.num_labelled >= MIN_LABELS


def measure_groups(
    labels: np.ndarray,
    probabilities: np.ndarray,
    subject_ids: Sequence[int | str],
    attributes: dict[str, np.ndarray],
    *,
    threshold: float,
    finding: str,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measures one finding, `labels` (N,) 0 or 1, in each group of each attribute.

    Returns the metrics of the groups, None where they are undefined, and the largest gap of AUROC of each
    attribute. The p-value of a gap is corrected for all pairs of groups of all attributes, its interval is
    not.
    """
    images = _resample(subject_ids, attributes)
    groups = _measure_finding(images, labels, probabilities, threshold=threshold, finding=finding)
    return [group.metrics for group in groups], largest_gaps([group for group in groups if group.has_labels])


def measure_groups_of_findings(
    labels: np.ndarray,
    probabilities: np.ndarray,
    subject_ids: Sequence[int | str],
    attributes: dict[str, np.ndarray],
    *,
    names: Sequence[str],
    thresholds: Sequence[float],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measures several findings, `labels` (N, K) 0, 1 or -1 (no label), in each group, and their mean AUROC.

    Returns groups and gaps as `measure_groups` does, those of MACRO first. A group without a label for a
    finding has no entry for it.

    The mean is over the same findings in all groups of an attribute, because some findings are easier than
    others: a group without the easy ones would differ by that alone. They are the findings that have
    MIN_LABELS patients of each class in every group of at least MIN_PATIENTS patients; `num_findings` says
    how many. A group that has so many of no finding does not count, as it would leave no finding to the
    others. A group that lacks one of the findings has no mean. `num_positive` counts the labels of these
    findings that are 1.

    The gaps of MACRO, the main question, are corrected among themselves, and those of all findings together.
    """
    images = _resample(subject_ids, attributes)
    groups = []
    for finding, threshold, of_finding, predicted in zip(names, thresholds, labels.T, probabilities.T):
        known = of_finding != -1
        labelled = GroupedImages(
            subject_ids=images.subject_ids[known],
            attributes={name: groups_of[known] for name, groups_of in images.attributes.items()},
            weights=images.weights[:, known],
        )
        groups += _measure_finding(
            labelled, of_finding[known], predicted[known], threshold=threshold, finding=finding
        )
    means = average_findings(images, groups)
    gaps = [*largest_gaps(means), *largest_gaps([group for group in groups if group.has_labels])]
    return [group.metrics for group in (*means, *groups)], gaps


def projection_auroc(
    labels: np.ndarray, views: np.ndarray, *, train_labels: np.ndarray, train_views: np.ndarray
) -> float | None:
    """Returns the AUROC of the view (AP, PA) alone: what a model may know without looking at a finding.

    An image's score is the share of positives among the training images of its view, or among all for a view
    that training lacks. Returns None if `labels` (N,) have one class, or if there is no training image.
    """
    from sklearn.metrics import roc_auc_score

    if len(np.unique(labels)) < 2 or not len(train_labels):
        return None
    shares = {view: train_labels[train_views == view].mean() for view in np.unique(train_views)}
    return float(roc_auc_score(labels, [shares.get(view, train_labels.mean()) for view in views]))


def _resample(subject_ids: Sequence[int | str], attributes: dict[str, np.ndarray]) -> GroupedImages:
    attributes = {name: np.asarray(groups) for name, groups in attributes.items()}
    return GroupedImages(
        subject_ids=np.asarray(subject_ids), attributes=attributes, weights=weights_of(tuple(subject_ids))
    )


def _measure_finding(
    images: GroupedImages, labels: np.ndarray, probabilities: np.ndarray, *, threshold: float, finding: str
) -> list[Group]:
    groups = []
    for attribute, name, inside in images.groups():
        arrays = labels[inside], probabilities[inside], images.weights[:, inside]
        resampled = {"auroc": weighted_auroc(*arrays), **weighted_rates(*arrays, threshold=threshold)}
        place = {"finding": finding, "attribute": attribute, "group": name}
        groups.append(describe_group(place, images.subject_ids[inside], labels[inside], resampled))
    return groups


def describe_group(
    place: dict[str, str], subject_ids: np.ndarray, labels: np.ndarray, resampled: dict[str, np.ndarray]
) -> Group:
    """Returns the group at `place` (finding, attribute, group), whose images have these ids and labels (n,).

    `resampled` has the values of each metric, (1 + R,).
    """
    metrics = {
        **place,
        "n": len(labels),
        "num_patients": len(np.unique(subject_ids)),
        "num_positive": int(labels.sum()),
        "sensitivity": None,
        "specificity": None,
        **{metric: value_of(values) for metric, values in resampled.items()},
        "intervals": {metric: interval_of(values) for metric, values in resampled.items()},
    }
    num_labelled = min(count_patients(subject_ids, labels))
    return Group(metrics=metrics, aurocs=resampled["auroc"], num_labelled=num_labelled)


def average_findings(images: GroupedImages, groups: list[Group]) -> list[Group]:
    """Returns the mean AUROC over findings of each group."""
    means = []
    for attribute, name, inside in images.groups():
        of_attribute = [group for group in groups if group.metrics["attribute"] == attribute]
        common = _common_findings(of_attribute)
        of_group = [group for group in of_attribute if group.metrics["group"] == name]
        own = [group for group in of_group if group.metrics["finding"] in common]
        is_defined = common and len(own) == len(common) and all(group.has_labels for group in own)
        undefined = np.full(len(images.weights), np.nan)
        aurocs = np.mean([group.aurocs for group in own], axis=0) if is_defined else undefined
        metrics = {
            "finding": MACRO,
            "attribute": attribute,
            "group": name,
            "n": int(inside.sum()),
            "num_patients": len(np.unique(images.subject_ids[inside])),
            "num_positive": sum(group.metrics["num_positive"] for group in own),
            "auroc": value_of(aurocs),
            "sensitivity": None,
            "specificity": None,
            "intervals": {"auroc": interval_of(aurocs)},
            "num_findings": len(common),
        }
        means.append(Group(metrics=metrics, aurocs=aurocs))
    return means


def _common_findings(groups: list[Group]) -> set[str]:
    """Returns the findings of which all large groups of an attribute have enough labels."""
    enough: dict[str, set[str]] = {}
    for group in groups:
        if group.is_large and group.has_labels:
            enough.setdefault(group.metrics["group"], set()).add(group.metrics["finding"])
    return set.intersection(*enough.values()) if enough else set()


def largest_gaps(groups: list[Group]) -> list[dict[str, Any]]:
    """Compares all pairs of large groups of each finding and attribute; returns the largest gap of each."""
    large = [group for group in groups if group.is_large and group.metrics["auroc"] is not None]
    pairs = itertools.combinations(large, 2)
    compared = (_compare(first, second) for first, second in pairs if first.key == second.key)
    gaps = [gap for gap in compared if gap]
    for gap, p in zip(gaps, holm([gap["p"] for gap in gaps])):
        gap["p"] = p
    by_key = itertools.groupby(gaps, key=lambda gap: (gap["finding"], gap["attribute"]))
    return [max(same, key=lambda gap: gap["difference"]) for _, same in by_key]


def _compare(first: Group, second: Group) -> dict[str, Any] | None:
    """Returns the gap between two groups, before correction; the smaller one gives the degrees of freedom.

    Returns None if fewer than two resamples are defined for both.
    """
    higher, lower = sorted((first, second), key=lambda group: group.aurocs[0], reverse=True)
    differences = higher.aurocs - lower.aurocs
    found = paired_difference(
        float(differences[0]),
        differences[1:],
        num_patients=min(first.metrics["num_patients"], second.metrics["num_patients"]),
        num_seeds=1,
        noise=SeedNoise(variance=0.0, freedom=0),
    )
    return found and {
        "finding": higher.metrics["finding"],
        "attribute": higher.metrics["attribute"],
        "higher": higher.metrics["group"],
        "lower": lower.metrics["group"],
        "difference": found.value,
        "interval": [found.low, found.high],
        "p": found.p,
    }
