"""Where a run stands, and which of its checkpoints are complete; nothing here needs torch."""

import logging
import math
import re
from dataclasses import dataclass
from dataclasses import field
from dataclasses import fields
from pathlib import Path
from typing import Any

from cxr.errors import UserError
from cxr.run_folder.files import read_json
from cxr.run_folder.record import PROGRESS_FILE

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Progress:
    """Where a run stands. With the model, the optimizer and the scaler it is all that a resume needs:

    the images, augmentations and masks of a step, and its learning rate, are functions of the step and the
    seed.
    """

    images_per_step: int  # of all processes: what a step means
    step: int = 0  # optimizer steps done
    loss_sum: float = 0.0  # of the steps done in this epoch, as far as they are numbers
    num_losses: int = 0  # their number
    num_bad_steps: int = 0  # since the start of the run: those whose loss was no number
    train_seconds: float = 0.0  # spent in training steps, without evaluation and saving
    best: dict[str, Any] = field(default_factory=dict)  # the best epoch so far

    def add_losses(self, losses: list[float]) -> list[int]:
        """Adds the losses of the last steps, up to `step`; returns the steps whose loss is no number."""
        good = [loss for loss in losses if math.isfinite(loss)]
        for loss in good:  # one by one: the sum must not depend on how often the losses are read
            self.loss_sum += loss
        self.num_losses += len(good)
        self.num_bad_steps += len(losses) - len(good)
        first = self.step - len(losses) + 1
        return [first + index for index, loss in enumerate(losses) if not math.isfinite(loss)]

    @property
    def train_loss(self) -> float:
        """The mean loss of this epoch's steps so far, NaN where no step of it has one."""
        return self.loss_sum / self.num_losses if self.num_losses else math.nan

    def start_epoch(self) -> None:
        self.loss_sum, self.num_losses = 0.0, 0


def complete_checkpoints(checkpoints_dir: Path) -> list[Path]:
    """Returns the checkpoint folders, oldest first, by the step in the file inside, not by the name.

    One whose `progress.json` is damaged is left aside; so is what a user keeps there by another name.
    """
    if not checkpoints_dir.is_dir():
        return []
    steps = {}
    for path in checkpoints_dir.iterdir():
        if re.fullmatch(r"step_\d+", path.name) and (path / PROGRESS_FILE).is_file():
            try:
                steps[path] = read_progress(path).step
            except ValueError as error:
                logger.warning("Left aside: %s", error)
    return sorted(steps, key=steps.get)


def read_progress(checkpoint: Path) -> Progress:
    path = checkpoint / PROGRESS_FILE
    try:
        content = read_json(path)
        progress = Progress(**content)
        if content.keys() != {one.name for one in fields(Progress)}:
            raise UserError("fields are missing")
        counts = (progress.images_per_step, progress.step, progress.num_losses, progress.num_bad_steps)
        if not all(type(count) is int and 0 <= count < 2**53 for count in counts):
            raise UserError(f"found {counts!r:.100}, expected whole numbers")
        if not all(0 <= value < math.inf for value in (progress.loss_sum, progress.train_seconds)):
            raise UserError("found a sum that is infinite or negative")
        if progress.best:
            numbers = [progress.best[name] for name in ("epoch", "eval_loss", "train_loss")]
            numbers.append(progress.best["auroc"] or 0.0)
            if not all(type(number) in (int, float) and math.isfinite(number) for number in numbers):
                raise UserError("found a best epoch without its metrics")
        return progress
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} is damaged ({error}); remove {checkpoint}, or name an older one") from error


def has_checkpoint(output_dir: Path) -> bool:
    return bool(complete_checkpoints(output_dir / "checkpoints"))
