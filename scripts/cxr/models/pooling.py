"""What a ViT's head reads: the class token, or the mean of the patches, as He et al. fine-tune it.

transformers' own ViT has no mean pooling. With it, a ViT is one of timm in transformers' wrapper: after the
blocks, the patch tokens are averaged without the last norm, and the mean is normalised (fc_norm).
"""

import logging
import math

import torch
from transformers import PretrainedConfig
from transformers import PreTrainedModel
from transformers import TimmWrapperConfig
from transformers import TimmWrapperForImageClassification
from transformers import ViTConfig

from cxr.errors import UserError
from cxr.models import timm_networks
from cxr.models.families import describe_family
from cxr.models.families import has_patches
from cxr.models.scratch import sharded_by_layer
from cxr.models.tensor_names import vit_names

ARCHITECTURE = "vit_base_patch16_224"  # of timm; the arguments below replace all sizes
OWN_VITS = ("vit", "vit_mae")
logger = logging.getLogger(__name__)


def choose_pooling(config: PretrainedConfig, pooling: str | None) -> None:
    """Sets the pooling of a pretrained ViT of timm; warns if the flag has no effect on this model.

    Raises UserError for the class token of a model that was trained with the mean of the patches, and for the
    mean in a distilled DeiT.
    """
    if pooling is None or config.model_type in OWN_VITS:
        return
    kind = describe_family(config)
    if config.model_type != "timm_wrapper" or not has_patches(config):
        logger.warning("--pooling %s has no effect: a %s has its own pooling", pooling, kind)
        return
    network = timm_networks.network_of(config.architecture, tuple(config.model_args.items()))
    own = network.global_pool
    if pooling == "token" and own != "token":
        raise UserError(f"--pooling token: found {kind}, whose pooling is {own!r}; leave the flag out")
    if pooling == "mean" and timm_networks.is_distilled(network):
        raise UserError(
            f"--pooling mean: found {kind}, whose two heads read a token each; use --pooling token"
        )
    if pooling == "mean" and own != "avg":
        config.model_args = {**config.model_args, "global_pool": "avg"}


def with_mean_pooling(model: PreTrainedModel) -> PreTrainedModel:
    """Returns a ViT classifier of transformers with mean pooling, with the same encoder and a new head.

    Raises UserError for an activation that timm's ViT does not have.
    """
    own = model.config
    labels = {"id2label": own.id2label, "label2id": own.label2id, "problem_type": own.problem_type}
    config = timm_config(own, where="--pooling mean", **labels)
    pooled = TimmWrapperForImageClassification(config)
    weights, network = model.state_dict(), pooled.timm_model
    encoder = {
        name: torch.cat([weights[part] for part in vit_names(name)])
        for name in network.state_dict()
        if not name.startswith(("head.", "fc_norm."))  # He et al. start these anew
    }
    network.load_state_dict(encoder, strict=False)
    return sharded_by_layer(pooled)


def timm_config(vit: ViTConfig, *, where: str, **fields: object) -> TimmWrapperConfig:
    """Returns the configuration of a ViT with mean pooling; `fields` are those of its head.

    Its norms have timm's epsilon, 1e-6.
    """
    if vit.hidden_act != "gelu":
        raise UserError(
            f"{where}: found hidden_act={vit.hidden_act!r:.50}, expected 'gelu', the only one of timm's ViT"
        )
    arguments = {
        "img_size": vit.image_size,
        "patch_size": vit.patch_size,
        "embed_dim": vit.hidden_size,
        "depth": vit.num_hidden_layers,
        "num_heads": vit.num_attention_heads,
        "mlp_ratio": _ratio(vit.intermediate_size, vit.hidden_size),
        "qkv_bias": vit.qkv_bias,
        "global_pool": "avg",
    }
    dropout = {
        "pos_drop_rate": vit.hidden_dropout_prob,
        "proj_drop_rate": vit.hidden_dropout_prob,
        "attn_drop_rate": vit.attention_probs_dropout_prob,
    }
    arguments |= {name: rate for name, rate in dropout.items() if rate}
    return TimmWrapperConfig(architecture=ARCHITECTURE, model_args=arguments, **fields)


def _ratio(inner: int, width: int) -> float:
    """Returns a ratio of which timm makes `inner` again, although it rounds down."""
    ratio = inner / width
    return ratio if int(width * ratio) == inner else math.nextafter(ratio, math.inf)
