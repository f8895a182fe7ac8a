"""Steps with a NaN or infinite loss or gradient: skipped, counted, their images noted, up to a limit."""

import logging
import math
from pathlib import Path

from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from cxr.errors import UserError
from cxr.run_folder.record import BAD_STEPS_FILE
from cxr.run_folder.record import RunRecord
from cxr.training.optimization import total_norm
from cxr.training.progress import Progress
from cxr.training.progress import complete_checkpoints

SMALLEST_SCALE = 2.0**-20  # of fp16's losses; it begins at 2^16 and is halved at each overflow
logger = logging.getLogger(__name__)


def note_bad_steps(record: RunRecord, bad_steps: list[int], *, loader: DataLoader) -> None:
    """Notes the images of `bad_steps`, which were skipped."""
    for step in bad_steps:
        _, indices = loader.batch_sampler.images_of_step(step - 1)
        record.append_bad_step(step, loader.dataset.images.select(indices)["dicom_id"])
        logger.warning(
            "Skipped step %d: its loss or gradient is NaN or infinite. Its images are in %s.",
            step,
            record.output_dir / BAD_STEPS_FILE,
        )


def check_training(
    accelerator: Accelerator,
    model: nn.Module,
    progress: Progress,
    *,
    output_dir: Path,
    ends_epoch: bool,
    max_bad_steps: int,
) -> None:
    """Raises UserError where training has diverged; to be called where the losses are read.

    That is when too many steps were skipped, or all of an epoch; when a weight is infinite; and when fp16's
    gradients overflow whatever they are scaled by.
    """
    if not _is_finite(model):
        found = "found an infinite weight"
    elif accelerator.scaler is not None and accelerator.scaler.get_scale() < SMALLEST_SCALE:
        found = "found gradients that overflow at every scale of fp16"
    elif progress.num_bad_steps > max_bad_steps or (ends_epoch and not progress.num_losses):
        found = (
            f"found {progress.num_bad_steps} steps with a NaN or infinite loss or gradient, expected at most "
        )
        found += f"--max_bad_steps {max_bad_steps}, and others in each epoch: see {BAD_STEPS_FILE}"
    else:
        return
    good = complete_checkpoints(output_dir / "checkpoints")
    raise UserError(
        f"after step {progress.step}: {found}; lower the learning rate, or use bf16, not fp16; "
        f"last good checkpoint: {good[-1] if good else 'none'}"
    )


def _is_finite(model: nn.Module) -> bool:
    statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    return bool(total_norm(list(model.parameters())).isfinite()) and all(
        bool(buffer.isfinite().all()) for buffer in statistics
    )


def check_evaluation(loss: float, split: str) -> float:
    """Returns the loss. Raises UserError where it is NaN or infinite."""
    if not math.isfinite(loss):
        raise UserError(
            f"the loss on {split} is {loss}, expected a finite number; lower the learning rate, or use bf16, "
            "not fp16; the last complete checkpoint is as it was"
        )
    return loss
