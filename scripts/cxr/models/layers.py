"""The layers of a network in order: for learning rates that decay by layer, and for drop path."""

import re

import timm
from torch import nn
from torchvision.ops import StochasticDepth
from transformers import PreTrainedModel
from transformers import TimmWrapperForImageClassification

from cxr.errors import UserError
from cxr.models import timm_networks

BLOCK = re.compile(r"\.(?:stages\.(\d+)\.)?layers?\.(\d+)\.")


def layer_ids(model: nn.Module) -> dict[str, int]:
    """Returns the layer of each parameter: 0 for the embeddings, one per block, the head and last norm above.

    facebookresearch/mae (util/lr_decay.py) counts the layers of a ViT so, and timm those of a ResNet, in
    which each residual block is a layer. Those of timm's networks are timm's.
    """
    if isinstance(model, TimmWrapperForImageClassification):
        return {
            f"timm_model.{name}": layer for name, layer in timm_networks.layer_ids(model.timm_model).items()
        }
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
    Raises UserError for a network of timm without such branches.
    """
    if model.config.model_type == "timm_wrapper":
        _add_timms_drop_path(model, rate)
        return
    if model.config.model_type == "resnet":
        blocks = [block for stage in model.resnet.encoder.stages for block in stage.layers]
    elif model.config.model_type == "dinov2":
        blocks = list(model.dinov2.encoder.layer)
    else:
        blocks = list(model.vit.layers)
    for number, block in enumerate(blocks):
        drop = StochasticDepth(rate * number / max(1, len(blocks) - 1), mode="row")
        if model.config.model_type == "resnet":
            block.layer.append(drop)
        elif model.config.model_type == "dinov2":
            block.drop_path = drop
        else:
            block.dropout = drop if block.dropout.p == 0 else nn.Sequential(block.dropout, drop)


def _add_timms_drop_path(model: TimmWrapperForImageClassification, rate: float) -> None:
    name, arguments = model.config.architecture, {**model.config.model_args, "drop_path_rate": rate}
    try:
        network = timm_networks.make_network(
            name, tuple(arguments.items()), num_labels=model.num_labels, where=f"timm/{name}"
        )
    except UserError as error:  # the same network without a rate exists
        raise UserError(
            f"--drop_path {rate:g}: found {name} of timm, which has no residual branches that it can skip; "
            "leave the flag out"
        ) from error
    network.load_state_dict(model.timm_model.state_dict())
    model.timm_model = network


def remove_drop_path(model: PreTrainedModel) -> None:
    """Takes away the drop path that some networks of timm have by default, such as a Swin."""
    for module in model.modules():
        if isinstance(module, timm.layers.DropPath):
            module.drop_prob = 0.0


def synchronize_batchnorm(model: PreTrainedModel) -> PreTrainedModel:
    """Makes batch normalisation use the statistics of all processes; timm's also holds its activation."""
    if model.config.model_type == "timm_wrapper":
        return timm.layers.convert_sync_batchnorm(model)
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def has_batchnorm(model: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
