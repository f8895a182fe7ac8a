"""Hides patches from a ViT in fine-tuning, as MAE's pretraining does."""

import torch
from torch import nn
from transformers import PreTrainedModel

from cxr.models.families import family_of


class PatchDropout:
    """A forward hook on a ViT's embeddings that keeps the first tokens and a random share of the patches.

    It applies MAE's masking in fine-tuning. `noise` (B, L) selects the patches to keep, those with the lowest
    noise; (1, L) selects the same ones for all images; None keeps all, as in evaluation. With a hook, the
    model stays a plain transformers model that can be saved and loaded.
    """

    def __init__(self, mask_ratio: float, *, num_first: int = 1):
        self.mask_ratio = mask_ratio
        self.num_first = num_first  # tokens before the patches: the class token, in timm also registers
        self.noise: torch.Tensor | None = None

    def __call__(self, module: nn.Module, inputs: tuple, tokens: torch.Tensor) -> torch.Tensor:
        if self.noise is None:
            return tokens
        first, patches = tokens[:, : self.num_first], tokens[:, self.num_first :]  # (B, F, D), (B, L, D)
        num_kept = max(1, int(patches.shape[1] * (1 - self.mask_ratio)))
        kept = self.noise.to(tokens.device, non_blocking=True).argsort(dim=1)[:, :num_kept, None]
        kept = kept.expand(len(patches), -1, patches.shape[2])
        return torch.cat([first, patches.gather(1, kept)], dim=1)


def hide_patches(model: PreTrainedModel, mask_ratio: float) -> PatchDropout:
    """Returns the hook that hides patches of this model; without a mask ratio, it is not attached."""
    hook = PatchDropout(mask_ratio)
    if mask_ratio:
        module, hook.num_first = family_of(model.config).tokens(model)
        module.register_forward_hook(hook)
    return hook
