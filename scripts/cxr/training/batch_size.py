"""Finds the largest batch that fits into the GPU's memory, for `--per_device_train_batch_size auto`."""

import copy
import gc
import logging
from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import nn

from cxr.errors import UserError
from cxr.models.acceleration import speed_up

logger = logging.getLogger(__name__)
MARGIN = 0.05  # of the GPU's memory, left free for fragmentation and for other libraries


def largest_fitting(fits: Callable[[int], bool], *, limit: int) -> int:
    """Returns the largest size up to `limit` that fits, within 1/16 of the optimum; 0 if not even 1 fits.

    Sizes from 8 on are rounded down to a multiple of 8, which suits tensor cores. If `fits` is true for a
    size, it must be true for all smaller sizes.
    """
    if limit < 1:
        return 0
    size = min(2, limit)  # batch normalisation refuses a single image if its last feature map has one pixel
    if not fits(size):
        return int(size > 1 and fits(1))
    while 2 * size <= limit and fits(2 * size):
        size *= 2
    too_large = min(2 * size, limit + 1)
    while too_large - size > max(1, size // 16):
        middle = (size + too_large) // 2
        size, too_large = (middle, too_large) if fits(middle) else (size, middle)
    return size - size % 8 if size >= 8 else size


def find_batch_size(
    accelerator: Accelerator,
    model: nn.Module,
    synthetic_loss: Callable[[nn.Module, int], torch.Tensor],
    limit: int,
) -> int:
    """Returns the largest batch size whose training step fits into the memory of every process's GPU.

    Tries forward and backward passes on a copy of `model`, with memory reserved for AdamW's two moments and
    for the buckets in which processes exchange gradients. Raises UserError if not even one image fits.
    """
    found = _try_batch_sizes(accelerator, model, synthetic_loss, limit=limit)
    gc.collect()  # the copy's modules are in reference cycles
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    batch_size = int(accelerator.gather(torch.tensor([found], device=accelerator.device)).min())
    if batch_size == 0:
        raise UserError(
            "--per_device_train_batch_size auto: found too little GPU memory for even one image; use a "
            "smaller model or --image_size, or the FSDP configuration with a fixed batch size"
        )
    logger.info(
        "The largest batch that fits: %d images per GPU. --base_learning_rate is scaled to it, "
        "--learning_rate is not.",
        batch_size,
    )
    return batch_size


def _try_batch_sizes(
    accelerator: Accelerator,
    model: nn.Module,
    synthetic_loss: Callable[[nn.Module, int], torch.Tensor],
    *,
    limit: int,
) -> int:
    device = accelerator.device
    probe = copy.deepcopy(model).to(device).train()
    speed_up(probe, torch_compile=False)
    num_trainable = sum(parameter.numel() for parameter in probe.parameters() if parameter.requires_grad)
    margin = int(MARGIN * torch.cuda.get_device_properties(device).total_memory / 4)
    reserve = torch.empty(3 * num_trainable + margin, device=device)  # noqa: F841 - occupies memory

    def fits(batch_size: int) -> bool:
        probe.zero_grad()
        torch.cuda.empty_cache()
        try:
            with accelerator.autocast():
                loss = synthetic_loss(probe, batch_size)
            loss.backward()
        except torch.OutOfMemoryError:
            return False
        return True

    return largest_fitting(fits, limit=limit)
