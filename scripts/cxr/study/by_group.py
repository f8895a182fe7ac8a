"""For whom do the models of a table work? AUROC by group of patients or images, averaged over seeds."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cxr.choices import MASKED
from cxr.evaluation.intervals import weighted_auroc
from cxr.evaluation.subgroups import MIN_PATIENTS
from cxr.evaluation.subgroups import UNKNOWN
from cxr.evaluation.subgroups import Group
from cxr.evaluation.subgroups import GroupedImages
from cxr.evaluation.subgroups import average_findings
from cxr.evaluation.subgroups import describe_group
from cxr.evaluation.subgroups import largest_gaps
from cxr.run_folder.measured import Gap
from cxr.run_folder.measured import GroupMetrics
from cxr.run_folder.measured import Groups
from cxr.study.names import plural
from cxr.study.predictions import arrays
from cxr.study.predictions import finding_arrays
from cxr.study.predictions import group_names
from cxr.study.results import ResultTable


def measure_by_group(predictions: list[pd.DataFrame], names: tuple[str, ...], weights: np.ndarray) -> Groups:
    """Returns the groups, with the mean AUROC of the runs of a row, and the largest gap of each attribute.

    The runs, which differ in their seed only, have `predictions` for the same images. Of several labels,
    `names`, the groups are those of the mean over findings. `weights` (1 + R, N) are 1 for every image, then
    the resamples.
    """
    first = predictions[0]
    images = GroupedImages(
        subject_ids=first["subject_id"].to_numpy(), attributes=dict(group_names(first)), weights=weights
    )
    if names:
        each = [finding_arrays(one, names) for one in predictions]
        groups = [
            group
            for number, name in enumerate(names)
            for group in groups_of(
                images, each[0][0][:, number], [scores[:, number] for _, scores in each], finding=name
            )
        ]
        found = average_findings(images, groups)
    else:
        each = [arrays(one) for one in predictions]
        groups = groups_of(images, each[0][0], [scores for _, scores in each], finding="finding")
        found = list(groups)
    measured = [GroupMetrics(**group.metrics) for group in found]
    gaps = largest_gaps([group for group in found if names or group.has_labels])
    return Groups(groups=measured, gaps=[Gap(**gap) for gap in gaps])


def groups_of(
    images: GroupedImages, labels: np.ndarray, runs: list[np.ndarray], *, finding: str
) -> Iterable[Group]:
    """Yields each group of images with a label (N,), with the mean AUROC of `runs`, probabilities (N,)."""
    for attribute, name, inside in images.groups():
        inside = inside & (labels != MASKED)
        drawn = images.weights[:, inside]
        if not inside.any():
            continue
        aurocs = [weighted_auroc(labels[inside], scores[inside], drawn) for scores in runs]
        place = {"finding": finding, "attribute": attribute, "group": name}
        resampled = {"auroc": np.mean(aurocs, axis=0)}
        yield describe_group(place, images.subject_ids[inside], labels[inside], resampled)


@dataclass(frozen=True, kw_only=True)
class GroupLine:
    """A line of a report: a group of an attribute, and what each row of the table has measured in it."""

    attribute: str
    group: str
    n: str
    num_patients: str
    of_rows: list[GroupMetrics | None]


def group_lines(table: ResultTable) -> list[GroupLine]:
    """Returns the groups of at least MIN_PATIENTS patients, by attribute; those without a name come last."""
    lines: dict[tuple[str, str], list[GroupMetrics | None]] = {}
    for number, row in enumerate(table.measured):
        for found in row.by_group.groups:
            if found.num_patients >= MIN_PATIENTS:
                empty = [None] * len(table.measured)
                lines.setdefault((found.attribute, found.group), empty)[number] = found
    attributes = list(dict.fromkeys(attribute for attribute, _ in lines))
    places = sorted(lines, key=lambda place: (attributes.index(place[0]), place[1] == UNKNOWN, place[1]))
    return [
        GroupLine(
            attribute=attribute,
            group=group,
            n=said_once(found.n for found in lines[attribute, group] if found),
            num_patients=said_once(found.num_patients for found in lines[attribute, group] if found),
            of_rows=lines[attribute, group],
        )
        for attribute, group in places
    ]


def gap_lines(table: ResultTable) -> list[tuple[str, Gap]]:
    """Returns the largest gap of each attribute and row, with the row's label."""
    gaps = [(row.label, gap) for row in table.measured for gap in row.by_group.gaps]
    attributes = list(dict.fromkeys(gap.attribute for _, gap in gaps))
    return sorted(gaps, key=lambda one: attributes.index(one[1].attribute))


def said_once(numbers: Iterable[int]) -> str:
    """Returns the different numbers as text; they differ if the rows were measured on different images."""
    return " or ".join(f"{number:,}" for number in dict.fromkeys(numbers))


def group_notes(table: ResultTable) -> list[str]:
    """Returns what a reader must know about the groups of a table."""
    groups = {(one.attribute, one.group): one for row in table.measured for one in row.by_group.groups}
    said = []
    if table.name.is_multi_label:
        counts = {one.attribute: one.num_findings for one in groups.values()}
        numbers = {str(number) for number in counts.values()}
        if len(numbers) > 1:
            numbers = [", ".join(f"{attribute} {number}" for attribute, number in counts.items())]
        said.append(
            "A mean is over the findings that have enough labels in all groups of an attribute: "
            f"{', '.join(numbers)} of {len(table.name.findings)}."
        )
    if small := sum(one.num_patients < MIN_PATIENTS for one in groups.values()):
        said.append(f"Not shown: {plural(small, 'group')} of fewer than {MIN_PATIENTS} patients.")
    measured = [run.measured.subgroups for row in table.measured for run in row.runs]
    if unknown := max((one.num_patients_unknown or 0 for one in measured if one), default=0):
        said.append(f"{plural(unknown, 'patient')} without a row in MIMIC-IV.")
    return said
