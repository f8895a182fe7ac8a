"""Mixup and CutMix: a training image is mixed with a partner, and so are their labels.

timm mixes an image with the one at the mirrored place of its batch, which depends on how a batch is divided.
Here the partner and the share are functions of (seed, epoch, image), so a run does not depend on the number
of processes; the loader reads the partner.
"""

from dataclasses import dataclass

import numpy as np
import torch

from cxr.choices import MASKED
from cxr.data.seeding import derive_seed


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """The parameters of the beta distributions from which the share of an image is drawn; 0 is off.

    With both, each image gets one of the two, with equal probability. Zhang et al. 2018 (mixup), Yun et al.
    2019 (CutMix).
    """

    mixup: float
    cutmix: float

    def draw(self, *, seed: int, epoch: int, dicom_id: str, num_images: int) -> "Mix":
        """Draws an image's partner among `num_images`, the way of mixing, and the share that is kept."""
        generator = np.random.default_rng(derive_seed(seed, "mix", epoch, dicom_id))
        partner, cuts = int(generator.integers(num_images)), generator.random() < 0.5
        is_cutmix = bool(self.cutmix and (cuts or not self.mixup))
        alpha = self.cutmix if is_cutmix else self.mixup
        share, center = float(generator.beta(alpha, alpha)), generator.random(2)
        return Mix(partner=partner, share=share, center=tuple(center) if is_cutmix else None)


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How one image is mixed: its partner's index, its own share, and the centre of CutMix's rectangle."""

    partner: int
    share: float
    center: tuple[float, float] | None  # (y, x), as a share of the side; None: mixup

    def images(self, image: torch.Tensor, partner: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Mixes two images (1, H, W) uint8; returns the mixed one and the share of the first in it."""
        if self.center is None:
            mixed = image.float().mul_(self.share).add_(partner.float(), alpha=1 - self.share)
            return mixed.round_().to(torch.uint8), self.share
        _, height, width = image.shape
        side = (1 - self.share) ** 0.5  # of the rectangle, as a share of the image's
        top, bottom, left, right = (
            int(np.clip(round(size * (place + end * side / 2)), 0, size))
            for size, place in zip((height, width), self.center)
            for end in (-1, 1)
        )
        mixed = image.clone()
        mixed[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
        return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def mix_labels(label: torch.Tensor, partner: torch.Tensor, share: float) -> torch.Tensor:
    """Mixes labels from 0 to 1, of any shape; one that is MASKED in either image stays MASKED."""
    masked = (label == MASKED) | (partner == MASKED)
    return torch.where(masked, float(MASKED), share * label + (1 - share) * partner)
