"""What differs between the families of models, in one registry: their classifiers, heads and tokens."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from transformers import Dinov2ForImageClassification
from transformers import PretrainedConfig
from transformers import PreTrainedModel
from transformers import ResNetForImageClassification
from transformers import TimmWrapperForImageClassification
from transformers import ViTForImageClassification

from cxr.errors import UserError
from cxr.models import timm_networks
from cxr.models.architectures import check_patches

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Family:
    """The classifiers of one model_type."""

    classifier: type[PreTrainedModel]
    heads: Callable[[PreTrainedModel], list[nn.Module]]  # the layers that compute the logits
    # The module whose output (B, F + L, D) are F first tokens and L patches, and F; None without patches.
    tokens: Callable[[PreTrainedModel], tuple[nn.Module, int]] | None = None


def _own_head(model: PreTrainedModel) -> list[nn.Module]:
    return [model.classifier]


_VIT = Family(
    classifier=ViTForImageClassification,
    heads=_own_head,
    tokens=lambda model: (model.vit.embeddings, 1),
)
# By model_type. A masked autoencoder is fine-tuned as a ViT, without its decoder.
FAMILIES = {
    "vit_mae": _VIT,
    "vit": _VIT,
    "dinov2": Family(
        classifier=Dinov2ForImageClassification,
        heads=_own_head,
        tokens=lambda model: (model.dinov2.embeddings, 1),
    ),
    "resnet": Family(classifier=ResNetForImageClassification, heads=_own_head),
    "timm_wrapper": Family(
        classifier=TimmWrapperForImageClassification,
        heads=lambda model: timm_networks.heads_of(model.timm_model),
        tokens=lambda model: timm_networks.tokens_of(model.timm_model),
    ),
}


def family_of(config: PretrainedConfig) -> Family:
    return FAMILIES[config.model_type]


def describe_family(config: PretrainedConfig) -> str:
    """Returns the kind of a model in a word or two, for messages."""
    if config.model_type == "timm_wrapper":
        return f"{config.architecture} of timm"
    return {"resnet": "ResNet", "dinov2": "DINOv2"}.get(config.model_type, "ViT")


def has_patches(config: PretrainedConfig) -> bool:
    """Returns whether a model is a ViT whose patches can be hidden."""
    if config.model_type == "timm_wrapper":
        return timm_networks.is_vit(config.architecture)
    return family_of(config).tokens is not None


def num_patches(config: PretrainedConfig, image_size: int) -> int:
    """Returns the number of patches of a square image that is `image_size` pixels wide."""
    if config.model_type == "timm_wrapper":
        arguments = {**config.model_args, "img_size": image_size}
        return timm_networks.num_patches(config.architecture, tuple(arguments.items()))
    return (image_size // config.patch_size) ** 2


def own_size(config: PretrainedConfig) -> int | None:
    """Returns the side in pixels of the only input that a model takes, None if it takes any size."""
    if config.model_type == "timm_wrapper":
        return timm_networks.own_size(config.architecture, tuple(config.model_args.items()))
    return getattr(config, "image_size", None)


def check_input_size(config: PretrainedConfig, image_size: int | None) -> None:
    """Raises UserError for an --image_size that fits no strides, patches or windows of a network of timm."""
    if image_size is None or config.model_type != "timm_wrapper":
        return
    arguments, own = config.model_args, own_size(config)
    if own is not None:
        check_patches(config.architecture, tuple(arguments.items()), image_size)
    if own not in (None, image_size):
        arguments = {**arguments, "img_size": image_size}
    timm_networks.count(config.architecture, tuple(arguments.items()), 2, image_size)


def new_parameters(config: PretrainedConfig) -> tuple[str, ...]:
    """Returns how the names of a classifier's parameters begin that a pretrained encoder does not have."""
    if config.model_type != "timm_wrapper":
        return ("classifier.",)
    network = timm_networks.network_of(config.architecture, tuple(config.model_args.items()))
    heads = timm_networks.heads_of(network)
    names = [name for name, module in network.named_modules() if any(module is head for head in heads)]
    if config.model_args.get("global_pool") == "avg":
        names.append("fc_norm")  # after the mean of the patches; He et al. start it anew
    return tuple(f"timm_model.{name}." for name in names)


def set_input_size(model: PreTrainedModel, image_size: int) -> None:
    """Interpolates the position embeddings of a timm model that takes images of one size only.

    Raises UserError if timm cannot, or would not make the same network again from the stored arguments.
    """
    config = model.config
    if config.model_type != "timm_wrapper" or own_size(config) in (None, image_size):
        return
    arguments = {**config.model_args, "img_size": image_size}
    stored = timm_networks.network_of(config.architecture, tuple(arguments.items()))
    if not timm_networks.set_input_size(model.timm_model, image_size, like=stored):
        raise UserError(
            f"--image_size {image_size}: found {config.architecture} of timm, pretrained for "
            f"{own_size(config)} pixels, which timm cannot adapt to other images; leave the flag out"
        )
    logger.info("Position embeddings interpolated by timm, %d to %d pixels", own_size(config), image_size)
    config.model_args = arguments
