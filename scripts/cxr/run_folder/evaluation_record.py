"""Declares `evaluation.json`: how well trained classifiers work on the images of other collections."""

from typing import Annotated
from typing import ClassVar

from pydantic import Field

from cxr.run_folder.fields import Count
from cxr.run_folder.fields import Interval
from cxr.run_folder.fields import Name
from cxr.run_folder.fields import Record
from cxr.run_folder.fields import Share
from cxr.run_folder.fields import Word


class Metric(Record):
    """A metric with its interval."""

    value: float | None = Field(description="null if it is undefined")
    interval: Interval | None = Field(default=None, description="95 % interval over patients")


class Measurement(Record):
    """How well one finding is recognised on some images."""

    n: Count = Field(description="images or studies with a label")
    num_positive: Count
    num_patients: Count
    threshold: Share | None = Field(description="of sensitivity and specificity")
    metrics: dict[Word, Metric] = Field(
        description="auroc, average_precision, ece, brier, sensitivity, specificity"
    )
    reliability: list[list[float]] = Field(
        default=[],
        description="of each bin of probabilities: mean probability, share of positives, number of images",
    )


class Recalibrated(Record):
    """A finding after a temperature and a threshold were fitted on the validation split of the folder."""

    num_validation: Count = Field(description="labels on which both were fitted")
    temperature: Annotated[float, Field(gt=0)]
    is_at_limit: bool = Field(description="whether the best temperature is outside the range that is tried")
    after: Measurement


class Conformal(Record):
    """Sets of labels by split conformal prediction, calibrated on the validation split of the folder."""

    alpha: Share = Field(description="the share of images whose label may be missing in their set")
    num_negative: Count = Field(description="calibration images; so is the next")
    num_positive: Count
    is_small: bool = Field(description="whether a class has fewer than 50 calibration images")
    metrics: dict[Word, Metric] = Field(
        description="on test: coverage, coverage_negative, coverage_positive, set_size"
    )


class Shift(Record):
    """How differently the probabilities of a finding are distributed; distances are Kolmogorov-Smirnov's."""

    reference: Name = Field(description="the images that these are compared with")
    mean: Share | None = Field(description="mean probability here")
    reference_mean: Share | None
    distance: Share | None
    distance_negative: Share | None = Field(description="of the images with label 0 alone")
    distance_positive: Share | None = Field(description="of the images with label 1 alone")


class EvaluatedFinding(Record):
    """One finding of a model on one folder."""

    external: Measurement
    internal: Measurement | None = Field(default=None, description="on images of the training's folder")
    recalibrated: Recalibrated | None = None
    conformal: Conformal | None = None
    shift: Shift | None = None

    @property
    def has_both_classes(self) -> bool:
        return 0 < self.external.num_positive < self.external.n


class Overlap(Record):
    """Whether images of the evaluation were in the training of the model."""

    same_name: bool | None = Field(
        description="whether a training was on a collection of the same name; null: the model names none"
    )
    same_origin: list[Name] = Field(
        default=[], description="collections of other names, of which images are here and were in a training"
    )
    start: str | None = Field(
        default=None, description="the model that the trainings started from, whose images are not known"
    )
    num_unknown_trainings: Count = Field(description="trainings of the weights whose images are not known")
    num_same_ids: Count | None = Field(description="null: the ids of the training images are not known")
    num_same_pixels: Count | None = Field(description="null: the training images are not in the cache")


class Evaluation(Record):
    """A model on the test split of a folder."""

    model: Name
    data: Name = Field(description="name of the folder")
    task: Word
    view: Word
    labeler: Word | None = Field(description="null: the labels are those of a manifest")
    uncertain: Name
    blank: Word
    evaluation_level: Word
    equalizes: bool = Field(description="whether images were equalised for the model, after shrinking")
    num_images: Count = Field(description="images of the test split that have a label")
    num_patients: Count
    internal_split: Name | None = Field(description="where the internal figures come from, in words")
    macro: dict[Word, Metric] = Field(description="means over findings; empty for a model of one finding")
    internal_macro: dict[Word, Metric] = {}
    by_card: dict[Word, Metric] = Field(
        default={}, description="internal figures on the card of a model that is not in its run folder"
    )
    left_out: list[Name] = Field(description="findings that are not in the means")
    findings: dict[Name, EvaluatedFinding]
    overlap: Overlap
    notes: list[str] = Field(description="what a reader must know about this evaluation")

    @property
    def is_multi_label(self) -> bool:
        return bool(self.macro)

    def headline(self, metric: str, *, internal: bool = False) -> Metric | None:
        """Returns a metric of the only finding, or the mean over findings; None if it was not measured."""
        if internal and self.by_card:
            return self.by_card.get(metric)
        if self.is_multi_label:
            return (self.internal_macro if internal else self.macro).get(metric)
        (finding,) = self.findings.values()
        measured = finding.internal if internal else finding.external
        return measured and measured.metrics.get(metric)


class ModelDifference(Record):
    """The AUROC of a model minus that of another on the same images."""

    data: Name
    first: Name
    second: Name
    findings: list[Name] = Field(description="the findings that both have; of several: the mean AUROC")
    difference: float
    interval: Interval
    p: Share
    p_corrected: Share = Field(description="by Holm's method for all differences of its list")


class EvaluationResults(Record):
    """`evaluation.json`: what evaluate_model.py measured."""

    writer: ClassVar[str] = "evaluate_model.py"

    evaluations: list[Evaluation]
    differences: list[ModelDifference]
    differences_by_finding: list[ModelDifference] = Field(description="of models of several findings")
    not_compared: list[str] = Field(description="which models were not compared, and why")
    num_resamples: Count = Field(description="resamples of the patients")
    versions: dict[str, str] = Field(description="versions of the libraries")
