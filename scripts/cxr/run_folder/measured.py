"""Declares what `results.json` says about the images of a split: metrics, intervals and groups."""

from typing import Annotated
from typing import Any

from pydantic import Discriminator
from pydantic import Field
from pydantic import Tag

from cxr.run_folder.fields import TAGS
from cxr.run_folder.fields import Count
from cxr.run_folder.fields import Interval
from cxr.run_folder.fields import Name
from cxr.run_folder.fields import Record
from cxr.run_folder.fields import Share
from cxr.run_folder.fields import Word


class AtThreshold(Record):
    """The metrics at an operating point."""

    threshold: float = Field(description="the lowest probability at which an image is called positive")
    accuracy: Share
    precision: Share
    recall: Share
    f1: Share


Intervals = Annotated[
    dict[str, Interval | None],
    Field(description="lower and upper bound of the 95 % interval over patients, by metric"),
]


class GroupMetrics(Record):
    """How well a finding is recognised in one group of patients or images."""

    finding: Name = Field(description="the positive label; for the mean over findings, `macro`")
    attribute: Word = Field(description="what the images are grouped by: view, scanner, sex, age or race")
    group: Word
    n: Count = Field(description="number of images, or of studies")
    num_patients: Count
    num_positive: Count
    auroc: Share | None
    sensitivity: Share | None = Field(description="at the threshold chosen on validation")
    specificity: Share | None = Field(description="at the threshold chosen on validation")
    intervals: Intervals = {}
    num_findings: Count | None = Field(
        default=None,
        description="of `macro`: how many findings the mean is over, the same in all groups of an attribute",
    )


class Gap(Record):
    """The largest difference of AUROC between two groups of an attribute."""

    finding: Name
    attribute: Word
    higher: Word = Field(description="the group with the higher AUROC")
    lower: Word
    difference: float
    interval: Interval
    p: Share = Field(description="corrected by Holm's method for all pairs of groups of all attributes")


class Groups(Record):
    """For whom a model works: its metrics by group, and the largest gap of each attribute."""

    groups: list[GroupMetrics]
    gaps: list[Gap]
    num_patients_unknown: Count | None = Field(
        default=None, description="patients without a row in MIMIC-IV; null: --patients_dir was not given"
    )


class Measured(Record):
    """What the measurements of a split have in common, with one finding or with several."""

    n: Annotated[int, Field(gt=0, lt=2**53)] = Field(description="number of images, or of studies")
    loss: float
    auroc: Share | None = Field(description="of several findings: the mean over findings")
    average_precision: Share | None
    intervals: Intervals = {}
    projection_auroc: Share | None = Field(
        default=None,
        description="AUROC of the view (AP or PA) alone: what a model may know without looking at a finding",
    )
    subgroups: Groups | None = None


class MeasuredSplit(AtThreshold, Measured):
    """A split in `results.json`: the metrics of one finding, with intervals, and the loss."""

    at_chosen_threshold: AtThreshold | None = Field(
        default=None, description="the same at the threshold with the highest Youden's J on validation"
    )


class FindingMetrics(Record):
    """The metrics of one of several findings on the images that have a label for it."""

    n: Count = Field(description="number of images, or of studies, with a label")
    num_positive: Count
    threshold: Share = Field(description="the threshold with the highest Youden's J on validation")
    auroc: Share | None = Field(description="null if all labels are equal; so is the next")
    average_precision: Share | None
    f1: Share = Field(description="at the threshold; so are the next two")
    sensitivity: Share | None
    specificity: Share | None
    projection_auroc: Share | None = None
    intervals: Intervals = {}


class MeasuredFindings(Measured):
    """A split in `results.json` for several findings: means over findings, and the metrics of each."""

    findings: dict[Name, FindingMetrics]
    left_out: list[Name] = Field(
        description="findings that are not in the means, because they have fewer than 10 positive or "
        "negative labels"
    )
    chexpert5_auroc: Share | None = Field(
        default=None, description="mean over CheXpert's five findings; null unless the model has all of them"
    )
    chexpert5_average_precision: Share | None = None


def _tag(value: Any) -> str:
    findings = value.get("findings") if isinstance(value, dict) else getattr(value, "findings", None)
    return TAGS[findings is not None]


# A split that is measured with one label or with several.
EitherMeasured = Annotated[
    Annotated[MeasuredSplit, Tag(TAGS[0])] | Annotated[MeasuredFindings, Tag(TAGS[1])], Discriminator(_tag)
]


class Agreement(Record):
    """How well a labeler agrees with the radiologist on one finding, on the studies that both labelled."""

    n: Count = Field(description="number of studies with a label by both")
    num_positive: Count = Field(description="by the radiologist")
    kappa: Annotated[float, Field(ge=-1, le=1)] | None = Field(
        description="Cohen's kappa; null if both have the same label everywhere"
    )
    f1: Share | None = Field(
        description="with the radiologist as the truth; null if neither has a positive label"
    )
    intervals: Intervals = {}


class AgainstRadiologist(Record):
    """A model measured against one radiologist's labels of test studies, and the labelers as a ceiling."""

    num_studies: Count = Field(description="studies in the radiologist's table")
    num_changed_by_devices: Count = Field(
        description="studies that are No Finding to the radiologist but Finding by the paper's rule, as "
        "Support Devices are their only finding"
    )
    image: EitherMeasured = Field(description="each image has the labels of its study")
    study: EitherMeasured = Field(description="a study has the mean logits of its images")
    agreement: dict[Word, dict[Name, Agreement]] = Field(description="by labeler and label")
