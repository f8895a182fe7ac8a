"""Steps whose loss or gradient is no number: left out, counted, and their images noted, up to a limit."""

import logging

from torch import nn

from cxr.checkpoints import Progress
from cxr.checkpoints import complete_checkpoints
from cxr.data import ChestXrays
from cxr.data import TrainingBatches
from cxr.optimization import total_norm
from cxr.records import BAD_STEPS_FILE
from cxr.records import RunRecord

logger = logging.getLogger(__name__)


def check_steps(
    record: RunRecord,
    progress: Progress,
    model: nn.Module,
    bad_steps: list[int],
    *,
    images: ChestXrays,
    batches: TrainingBatches,
    max_bad_steps: int,
) -> None:
    """Notes the images of `bad_steps`, which were left out.

    Raises ValueError when the run has too many of them, an epoch has no other, or a weight is infinite.
    """
    for step in bad_steps:
        _, indices = batches.images_of_step(step - 1)
        record.append_bad_step(step, images.images.select(indices)["dicom_id"])
        logger.warning(
            "Step %d is left out: its loss or gradient is no number. Its images are in %s.",
            step,
            record.output_dir / BAD_STEPS_FILE,
        )
    weights_are_finite = bool(total_norm(list(model.parameters())).isfinite())
    if weights_are_finite and progress.num_bad_steps <= max_bad_steps and progress.num_losses:
        return
    if not weights_are_finite:
        found = "found an infinite weight"
    else:
        found = f"found {progress.num_bad_steps} steps whose loss or gradient is no number, expected at most "
        found += f"--max_bad_steps {max_bad_steps}, and others in each epoch: see {BAD_STEPS_FILE}"
    good = complete_checkpoints(record.output_dir / "checkpoints")
    raise ValueError(
        f"after step {progress.step}: {found}; lower the learning rate, or use bf16, not fp16; "
        f"last good checkpoint: {good[-1] if good else 'none'}"
    )
