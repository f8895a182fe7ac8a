"""Declares `probe.json`: how good the frozen features of some models are."""

from typing import Annotated
from typing import ClassVar

from pydantic import Field

from cxr.run_folder.fields import Count
from cxr.run_folder.fields import Interval
from cxr.run_folder.fields import Name
from cxr.run_folder.fields import Record
from cxr.run_folder.fields import Seed
from cxr.run_folder.fields import Share
from cxr.run_folder.fields import Word


class SeedProbe(Record):
    """One probe: a method on one sample of the training images."""

    seed: Seed = Field(description="of the sample, as --seed of run_classification.py")
    settings: list[float | None] = Field(
        description="C of the logistic regression, or k; one per finding; null: all training labels are equal"
    )
    validation_auroc: Share | None = Field(description="at these settings, which were chosen for it")
    test_auroc: Share | None = Field(description="of several findings: the mean over findings")
    interval: Interval | None = Field(description="95 % interval of test_auroc over patients")


class ProbePoint(Record):
    """A method at one number of training images: the mean over seeds."""

    method: Word = Field(description="linear or knn")
    num_train_images: Count
    test_auroc: Share | None
    interval: Interval | None = Field(description="95 % interval over patients, of the mean over seeds")
    seeds: list[SeedProbe] = Field(description="one only where all training images are used")


class ProbedModel(Record):
    """A model and how good its features are."""

    model: Name
    architecture: Name
    sha256: str = Field(description="hash of the weights and of all that decides about the features")
    image_size: Count = Field(description="side of the square input, in pixels")
    pooling: Word = Field(description="mean of the patch tokens or of the last feature map, or class token")
    width: Count = Field(description="numbers per image")
    rankme: Annotated[float, Field(ge=1)] = Field(description="effective rank of the training features")
    points: list[ProbePoint]


class ProbeResults(Record):
    """`probe.json`: what probe.py measured."""

    writer: ClassVar[str] = "probe.py"

    task: Word
    labeler: Word | None = Field(description="null: the labels of a manifest have none")
    view: Word
    uncertain: Name
    blank: Word
    label_names: list[Name]
    left_out: list[Name] = Field(
        description="findings that are not in the mean, because the test split has fewer than 10 positive "
        "or negative labels"
    )
    is_synthetic: bool
    num_images: dict[Word, Count] = Field(description="by split")
    num_test_patients: Count
    models: list[ProbedModel]
    versions: dict[str, str] = Field(description="versions of the libraries")
