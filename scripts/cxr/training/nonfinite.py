"""Records skipped steps (NaN or infinite loss or gradient) and stops a training that has diverged."""

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

SMALLEST_SCALE = 2.0**-20  # of the fp16 loss scaler, which starts at 2^16 and halves at each overflow
logger = logging.getLogger(__name__)


def note_bad_steps(record: RunRecord, bad_steps: list[int], *, loader: DataLoader) -> None:
    """Records the images of the skipped steps `bad_steps`, and logs a warning for each."""
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
    """Raises UserError if training has diverged; called whenever the losses are read.

    Signs are: more than `max_bad_steps` skipped steps, an epoch in which all steps were skipped, a NaN or
    infinite weight, and fp16 gradients that overflow even at the smallest loss scale.
    """
    if not _is_finite(model):
        found = "found a NaN or infinite weight"
    elif accelerator.scaler is not None and accelerator.scaler.get_scale() < SMALLEST_SCALE:
        found = "found fp16 gradients that overflow at every loss scale"
    elif progress.num_bad_steps > max_bad_steps or (ends_epoch and not progress.num_losses):
        found = (
            f"found {progress.num_bad_steps} steps with a NaN or infinite loss or gradient, expected at most "
        )
        found += f"--max_bad_steps {max_bad_steps}, and a good step in each epoch: see {BAD_STEPS_FILE}"
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
    """Returns the loss. Raises UserError if it is NaN or infinite."""
    if not math.isfinite(loss):
        raise UserError(
            f"the loss on {split} is {loss}, expected a finite number; lower the learning rate, or use bf16, "
            "not fp16; the last complete checkpoint is unchanged"
        )
    return loss
