"""The progress of a run, and the list of its complete checkpoints; does not import torch."""

import logging
import math
import re
from pathlib import Path
from typing import Any
from typing import ClassVar

from pydantic import Field
from pydantic import field_validator
from typing_extensions import Self

from cxr.errors import UserError
from cxr.run_folder import fields
from cxr.run_folder import record

logger = logging.getLogger(__name__)


class Progress(fields.Record):
    """`progress.json` in a checkpoint: the progress of a run.

    Resuming needs only this, the model, the optimizer and the scaler: a step's images, augmentations, masks
    and learning rate are functions of the step and the seed.
    """

    advice: ClassVar[str] = "remove this checkpoint, or name an older one"

    images_per_step: fields.Count = Field(description="images per optimizer step, over all processes")
    step: fields.Count = Field(default=0, description="optimizer steps done")
    loss_sum: float = Field(default=0.0, description="sum of the finite losses of this epoch so far")
    num_losses: fields.Count = Field(default=0, description="number of losses in that sum")
    num_bad_steps: fields.Count = Field(default=0, description="steps skipped since the start of the run")
    train_seconds: fields.Seconds = Field(default=0.0, description="time spent in training steps")
    best: record.Epoch | None = Field(default=None, description="the best epoch so far (classifiers only)")

    @field_validator("best", mode="before")
    @classmethod
    def _none_was_empty(cls, value: Any) -> Any:
        return value or None  # checkpoints of v0.1 have {} for none

    @classmethod
    def parse(cls, text: str | bytes, *, where: object) -> Self:
        """Raises UserError also if a field is missing, because a resumed run must not depend on defaults."""
        progress = super().parse(text, where=where)
        missing = sorted(cls.model_fields.keys() - progress.model_fields_set)
        if missing:
            raise UserError(f"{where}: not what a run writes: found no {missing[0]}; {cls.advice}")
        return progress

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def add_losses(self, losses: list[float]) -> list[int]:
        """Adds the losses of the last steps, up to `step`; returns the steps with a NaN or infinite loss."""
        good = [loss for loss in losses if math.isfinite(loss)]
        for loss in good:  # one by one, so that the sum does not depend on how often the losses are read
            self.loss_sum += loss
        self.num_losses += len(good)
        self.num_bad_steps += len(losses) - len(good)
        first = self.step - len(losses) + 1
        return [first + index for index, loss in enumerate(losses) if not math.isfinite(loss)]

    @property
    def train_loss(self) -> float:
        """Returns the mean loss of this epoch so far, NaN if all its steps were skipped."""
        return self.loss_sum / self.num_losses if self.num_losses else math.nan

    def start_epoch(self) -> None:
        self.loss_sum, self.num_losses = 0.0, 0


def complete_checkpoints(checkpoints_dir: Path) -> list[Path]:
    """Returns the checkpoint folders, oldest first, by the step in their `progress.json`, not in their name.

    Skips a checkpoint whose `progress.json` is damaged, with a warning, and folders with other names.
    """
    if not checkpoints_dir.is_dir():
        return []
    steps = {}
    for path in checkpoints_dir.iterdir():
        if re.fullmatch(r"step_\d+", path.name) and (path / record.PROGRESS_FILE).is_file():
            try:
                steps[path] = Progress.read(path / record.PROGRESS_FILE).step
            except UserError as error:
                logger.warning("Skipped: %s", error)
    return sorted(steps, key=steps.get)


def has_checkpoint(output_dir: Path) -> bool:
    return bool(complete_checkpoints(output_dir / "checkpoints"))
