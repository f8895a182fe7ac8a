"""What differs between the families of models, in one registry: their classifiers, heads and tokens."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig
from transformers import PreTrainedModel
from transformers import ResNetForImageClassification
from transformers import ViTForImageClassification


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
    "resnet": Family(classifier=ResNetForImageClassification, heads=_own_head),
}


def family_of(config: PretrainedConfig) -> Family:
    return FAMILIES[config.model_type]
