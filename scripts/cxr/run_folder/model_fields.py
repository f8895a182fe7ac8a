"""The fields that we add to a model's `config.json`: how to use the model, and what it was trained on."""

import json
from typing import Annotated
from typing import Any
from typing import ClassVar
from typing import Literal

from pydantic import Field
from typing_extensions import Self

from cxr.choices import VIEWS
from cxr.run_folder.fields import Count
from cxr.run_folder.fields import Name
from cxr.run_folder.fields import Record
from cxr.run_folder.fields import Share
from cxr.run_folder.fields import Word


class Stage(Record):
    """One training of a model's weights by these scripts, without names of images or places."""

    task: Word = Field(description="mae_pretraining, or the task of a classifier")
    dataset: Name = Field(description="name of the collection, from collection.json or else its folder")
    derived_from: list[Name] = Field(
        default=[], description="collections whose images these are under other ids or labels"
    )
    is_synthetic: bool
    num_images: Count
    sha256: str = Field(description="hash of the sorted ids of the images")
    num_epochs: float = Field(description="epochs until the weights were saved")
    base_model: str | None = Field(description="the model that it started from; null: random weights")
    base_model_revision: str | None = Field(description="commit of that model, if it was named on a hub")


class TrainedLabels(Record):
    """How the labels of the training images were read, as the flags of `run_classification.py` say it."""

    labeler: Word | None = Field(default=None, description="null: the labels of a manifest have none")
    uncertain: Name
    blank: Word
    evaluation_level: Word | None = Field(
        default=None, description="image or study: whose probability the thresholds were chosen for"
    )


class ModelFields(Record):
    """Our fields in a model's `config.json`; models from elsewhere have none of them."""

    advice: ClassVar[str] = "correct it"

    decision_threshold: Share = Field(
        default=0.5, description="the probability from which an image gets the positive label"
    )
    decision_thresholds: dict[Word, Share] = Field(
        default={}, description="the same for each finding of a model with several"
    )
    cache_image_size: Annotated[int, Field(gt=0, le=2**14)] | None = Field(
        default=None,
        description="shortest side, in pixels, of the cached images; by default 8/7 of the input size",
    )
    trained_view: Literal[tuple(VIEWS)] | None = Field(
        default=None, description="views of the images that the model was trained on; null: unknown"
    )
    trained_labels: TrainedLabels | None = Field(
        default=None, description="the rest of the label rule of the training; null: unknown"
    )
    equalized: bool | None = Field(
        default=None,
        description="whether the training images had equalised histograms; null: unknown",
    )
    training_history: list[Stage] = Field(
        default=[], description="all trainings of the weights, the oldest first"
    )

    @classmethod
    def of(cls, fields: dict[str, Any], *, where: str) -> Self:
        """Picks our fields from those of a config.json. Raises UserError, which starts with `where`."""
        ours = {name: fields[name] for name in cls.model_fields if name in fields}
        return cls.parse(json.dumps(ours), where=where)
