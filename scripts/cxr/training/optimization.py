"""Makes the optimizer, and computes the learning rate as a pure function of the optimizer step."""

import math
from collections import defaultdict
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.distributed.tensor import DTensor

from cxr.choices import SCHEDULES
from cxr.errors import UserError
from cxr.models.layers import layer_ids

# Each maps the share of the steps after warm-up that are done, in [0, 1), to a factor of the peak learning
# rate.
SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}
assert tuple(SHAPES) == SCHEDULES


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The length of a run and its learning rate, as functions of the number of optimizer steps.

    A scheduler object counts its own calls: one prepared by Accelerate steps once per process, and not at all
    if fp16 skipped the update. A function of the step cannot drift, and resuming needs no state for it.
    """

    images_per_step: int  # of all processes and micro-batches
    steps_per_epoch: int
    num_steps: int
    num_warmup_steps: int
    peak_learning_rate: float
    kind: str  # one of SCHEDULES
    min_learning_rate: float = 0.0
    starts_at_zero: bool = False  # as in He et al. 2022; else the first step has a share of the peak

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of step `step` (from 0): linear warm-up to the peak, then `kind`."""
        if step < self.num_warmup_steps:
            return self.peak_learning_rate * (step + (not self.starts_at_zero)) / self.num_warmup_steps
        progress = (step - self.num_warmup_steps) / (self.num_steps - self.num_warmup_steps)
        above = self.peak_learning_rate - self.min_learning_rate
        return self.min_learning_rate + above * SHAPES[self.kind](progress)

    def epoch(self, num_done: int) -> int:
        """Returns the epoch, from 1, of the last of `num_done` steps."""
        return -(-num_done // self.steps_per_epoch)

    def ends_epoch(self, num_done: int) -> bool:
        return num_done % self.steps_per_epoch == 0 or num_done == self.num_steps


@dataclass(frozen=True, kw_only=True)
class Warmup:
    """How long the learning rate rises: for a share of all steps or, if given, for a number of epochs."""

    ratio: float
    epochs: float | None = None


def make_schedule(
    num_images: int,
    *,
    images_per_step: int,
    num_epochs: int,
    max_steps: int | None,
    warmup: Warmup,
    **learning_rate: float | str,
) -> Schedule:
    """Returns the schedule of a run over `num_images`; `learning_rate` are fields of `Schedule`.

    Raises UserError if the images do not fill one step, if the warm-up takes all steps, or if the learning
    rate would rise to its minimum.
    """
    if num_images < images_per_step:
        raise UserError(
            f"found {num_images} training images, expected at least the {images_per_step} of one optimizer "
            "step; lower --per_device_train_batch_size or --gradient_accumulation_steps"
        )
    steps_per_epoch = num_images // images_per_step
    num_steps = max_steps or num_epochs * steps_per_epoch
    num_warmup_steps = math.ceil(warmup.ratio * num_steps)
    if warmup.epochs is not None:
        num_warmup_steps = round(warmup.epochs * steps_per_epoch)
        if num_warmup_steps >= num_steps:
            raise UserError(
                f"--warmup_epochs {warmup.epochs:g}: found {num_steps:,} steps of training, expected more "
                f"than the {num_warmup_steps:,} of the warm-up; train longer, or warm up for fewer epochs"
            )
    schedule = Schedule(
        images_per_step=images_per_step,
        steps_per_epoch=steps_per_epoch,
        num_steps=num_steps,
        num_warmup_steps=num_warmup_steps,
        starts_at_zero=warmup.epochs is not None,
        **learning_rate,
    )
    least, peak = schedule.min_learning_rate, schedule.peak_learning_rate
    if schedule.kind != "constant" and least > peak:
        raise UserError(
            f"--min_learning_rate {least:g}: found a peak of {peak:.3g}, expected one that is not lower; "
            "lower --min_learning_rate, or train with a higher learning rate"
        )
    return schedule


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("learning_rate_scale", 1.0)  # version 0.1 saved none


def make_adamw(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    layer_decay: float = 1.0,
) -> torch.optim.AdamW:
    """Returns AdamW for the trainable parameters; it decays linear and convolution weights only.

    Biases, norms, tokens and position embeddings do not decay, as in He et al. 2022. Parameters are told
    apart by their number of dimensions, because names differ between models and transformers versions.

    A layer's learning rate is `layer_decay` times that of the layer above it (Clark et al. 2020, He et al.
    2022); the head has the whole learning rate.
    """
    ids = layer_ids(model) if layer_decay != 1 else {name: 0 for name, _ in model.named_parameters()}
    highest = max(ids.values())
    groups: dict[tuple[bool, int], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[parameter.ndim not in (2, 4), ids[name]].append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": groups[is_exempt, layer],
                "weight_decay": 0.0 if is_exempt else weight_decay,
                "learning_rate_scale": layer_decay ** (highest - layer),
            }
            for is_exempt, layer in sorted(groups)  # a checkpoint keeps the moments in this order
        ],
        lr=learning_rate,
        betas=betas,
        fused=not torch.backends.mps.is_available(),  # Metal's ignores found_inf and the scale of fp16
    )


def update_weights(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: AcceleratedOptimizer,
    loss: torch.Tensor,
    *,
    max_grad_norm: float | None,
    buffers: Sequence[tuple[torch.Tensor, torch.Tensor]] = (),
) -> torch.Tensor:
    """Takes an optimizer step and clears the gradients; skips the step if its loss is NaN or infinite.

    `loss` () is the loss of this process, `buffers` are the model's buffers and their values before the step.
    Returns the mean loss over all processes, which is NaN or infinite if the step was skipped; weights,
    moments and buffers then keep their values. A NaN or infinite gradient also skips the step, except with
    fp16, where the scaler handles a gradient that overflows. The host waits for the device here only if AdamW
    is not fused, as on Apple's GPUs.
    """
    loss = accelerator.reduce(loss, "mean")
    if max_grad_norm:
        norm = _whole(accelerator.clip_grad_norm_(model.parameters(), max_grad_norm))
    elif accelerator.scaler is None:
        norm = gradient_norm(model)
    is_taken = True
    if accelerator.scaler is None:
        is_finite = (loss + norm).isfinite()
        if optimizer.optimizer.defaults["fused"]:
            optimizer.optimizer.found_inf = (~is_finite).float()  # it then skips its step
        else:
            is_taken = bool(is_finite)
        loss = torch.where(is_finite, loss, torch.nan)
    for buffer, before in buffers:
        buffer.copy_(torch.where(loss.isfinite(), buffer, before))
    if is_taken:
        optimizer.step()
    optimizer.zero_grad()
    return loss


def gradient_norm(model: nn.Module, *, order: float = 2.0) -> torch.Tensor:
    """Returns the norm of all gradients, (); order inf is the largest one, which cannot overflow itself."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return total_norm(gradients, order=order)


def total_norm(tensors: list[torch.Tensor], *, order: float = 2.0) -> torch.Tensor:
    """Returns the norm over all tensors, (); a NaN or infinite element makes it NaN or infinite."""
    return _whole(nn.utils.get_total_norm(tensors, order))


def _whole(norm: torch.Tensor) -> torch.Tensor:
    return norm.full_tensor() if isinstance(norm, DTensor) else norm  # FSDP's shards


def keep_buffers(model: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Returns the buffers of batch normalisation, each with a copy of its values."""
    return [(buffer, buffer.clone()) for buffer in model.buffers() if buffer.is_floating_point()]
