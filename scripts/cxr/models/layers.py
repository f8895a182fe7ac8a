"""The layers of a network in order: for learning rates that decay by layer, and for drop path."""

import re

from torch import nn
from torchvision.ops import StochasticDepth
from transformers import PreTrainedModel

BLOCK = re.compile(r"\.(?:stages\.(\d+)\.)?layers\.(\d+)\.")


def layer_ids(model: nn.Module) -> dict[str, int]:
    """Returns the layer of each parameter: 0 for the embeddings, one per block, the head and last norm above.

    facebookresearch/mae (util/lr_decay.py) counts the layers of a ViT so, and timm those of a ResNet, in
    which each residual block is a layer.
    """
    names = [name for name, _ in model.named_parameters()]
    places = {name: _place(name) for name in names}
    order = {
        place: number for number, place in enumerate(sorted(set(filter(None, places.values()))), start=1)
    }
    last = len(order) + 1
    first = dict.fromkeys([name for name in names if re.search(r"\.(embeddings|embedder)\.", name)], 0)
    return {name: first.get(name, order.get(place, last)) for name, place in places.items()}


def _place(name: str) -> tuple[int, int] | None:
    """Returns the stage and the number of a parameter's block, None outside of all blocks."""
    found = BLOCK.search(name)
    return found and (int(found[1] or 0), int(found[2]))


def add_drop_path(model: PreTrainedModel, rate: float) -> None:
    """Makes training skip an image's residual branches at random, the more the deeper the block is.

    The probability rises linearly from 0 to `rate` (Huang et al. 2016, arXiv:1603.09382). The model keeps its
    parameters and, in evaluation, its outputs, so it is saved and loaded as a plain transformers model.
    """
    if model.config.model_type == "resnet":
        blocks = [block for stage in model.resnet.encoder.stages for block in stage.layers]
    else:
        blocks = list(model.vit.layers)
    for number, block in enumerate(blocks):
        drop = StochasticDepth(rate * number / max(1, len(blocks) - 1), mode="row")
        if model.config.model_type == "resnet":
            block.layer.append(drop)
        else:
            block.dropout = drop if block.dropout.p == 0 else nn.Sequential(block.dropout, drop)
