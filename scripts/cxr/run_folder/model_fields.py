"""What we add to a model's `config.json`: how to use it as it was evaluated, and what it was trained on."""

import json
from typing import Annotated
from typing import Any
from typing import ClassVar
from typing import Literal

from pydantic import Field
from typing_extensions import Self

from cxr.choices import DATASET_DEFAULTS
from cxr.choices import VIEWS
from cxr.run_folder.record import Count
from cxr.run_folder.record import Name
from cxr.run_folder.record import Record
from cxr.run_folder.record import Share
from cxr.run_folder.record import Word


class Stage(Record):
    """One training of ours that a model's weights have gone through, without what names images or places."""

    task: Word = Field(description="mae_pretraining, or what a classifier was trained for")
    dataset: Name = Field(description="the name of the data's folder")
    is_synthetic: bool
    num_images: Count
    sha256: str = Field(description="of the sorted ids of the images")
    num_epochs: float = Field(description="until the weights were saved")
    base_model: str | None = Field(description="what it started from; null is random weights")
    base_model_revision: str | None = Field(description="its commit, where it was named on a hub")


class ModelFields(Record):
    """Our fields in a model's `config.json`; a model of other origin has none of them."""

    advice: ClassVar[str] = "change it"

    decision_threshold: Share = Field(
        default=0.5, description="the probability from which an image gets the positive label"
    )
    cache_image_size: Annotated[int, Field(gt=0, le=2**14)] | None = Field(
        default=None,
        description="shortest side in pixels of the images that the run saw; by default 8/7 of the input",
    )
    trained_view: Literal[tuple(VIEWS)] = Field(
        default=DATASET_DEFAULTS["view"], description="the views of the images that it was trained on"
    )
    equalized: bool | None = Field(
        default=None,
        description="whether the images that it was trained on had equalised histograms; null is unknown",
    )
    training_history: list[Stage] = Field(
        default=[], description="the trainings that its weights have gone through, the first one first"
    )

    @classmethod
    def of(cls, fields: dict[str, Any], *, where: str) -> Self:
        """Those among all `fields` of a config.json. Raises UserError, which begins with `where`."""
        ours = {name: fields[name] for name in cls.model_fields if name in fields}
        return cls.parse(json.dumps(ours), where=where)
