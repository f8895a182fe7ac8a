"""A moving average of a model's weights, which is evaluated and saved instead of the trained model."""

from typing import Any

import torch
from accelerate.utils import broadcast
from torch import nn
from torch.optim.swa_utils import AveragedModel

WARMUP_POWER = 2 / 3  # timm's


class WeightAverage:
    """The exponential moving average of weights and buffers: torch's AveragedModel, warmed up as timm's.

    After the first n updates the decay is at most 1 - n^(-2/3), so that the average soon forgets the first
    weights. A step that was skipped for a NaN or infinite loss changes nothing; the host never waits for the
    device to know it.
    """

    def __init__(self, model: nn.Module, *, decay: float):
        self.decay = decay
        self.averaged = AveragedModel(model, multi_avg_fn=self._average, use_buffers=True)
        self.num_updates = torch.zeros(())
        self._weight = torch.ones(())  # of the new values in the next update

    @property
    def model(self) -> nn.Module:
        return self.averaged.module

    def to(self, device: torch.device) -> None:
        self.model.to(device)  # not the counter of AveragedModel, which it reads at each update
        self.num_updates = self.num_updates.to(device)

    def update(self, model: nn.Module, loss: torch.Tensor) -> None:
        """Adds the weights after a step; `loss` () is NaN or infinite if the step was skipped."""
        is_finite = loss.isfinite()
        self.num_updates += is_finite
        decay = (1 - self.num_updates.clamp(min=1) ** -WARMUP_POWER).clamp(max=self.decay)
        self._weight = torch.where(is_finite, 1 - decay, 0.0)
        self.averaged.update_parameters(model)

    def share_statistics(self) -> None:
        """Gives the statistics of batch normalisation of the first process, which are saved, to all.

        Each process averages those of its own images, which DDP replaces only in the trained model.
        """
        broadcast(list(self.model.buffers()))

    def _average(self, averaged: list[torch.Tensor], new: list[torch.Tensor], num_averaged: object) -> None:
        for one, other in zip(averaged, new):
            if one.is_floating_point():
                one.lerp_(other, self._weight.to(one.dtype))
            else:
                one.copy_(other)  # counts of batch normalisation

    def state_dict(self) -> dict[str, Any]:
        return {"averaged": self.averaged.state_dict(), "num_updates": self.num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.averaged.load_state_dict(state["averaged"])
        self.num_updates.copy_(state["num_updates"])
