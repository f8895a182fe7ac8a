"""Makes models of transformers out of published checkpoints; every tensor has its place, or is refused."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers import PreTrainedModel
from transformers import ResNetConfig
from transformers import ResNetForImageClassification
from transformers import ResNetModel
from transformers import TimmWrapperConfig
from transformers import TimmWrapperForImageClassification
from transformers import ViTConfig
from transformers import ViTForImageClassification
from transformers import ViTMAEConfig
from transformers import ViTMAEForPreTraining

from cxr.choices import DEFAULT_IMAGE_SIZE
from cxr.errors import UserError
from cxr.models import configs
from cxr.models import tensor_names
from cxr.models.architectures import VIT_MAE_CONFIGS
from cxr.models.pooling import timm_config
from cxr.models.published import Checkpoint
from cxr.models.scratch import new_mae

LAYER_NORM_EPS = 1e-6  # of facebookresearch/mae, medical_mae and timm; transformers has 1e-12
# The heads of ViT-Ti, S, B, L and H, by width and depth; a checkpoint does not say them.
USUAL_HEADS = {
    (one.hidden_size, one.num_hidden_layers): one.num_attention_heads for one in VIT_MAE_CONFIGS.values()
}
# The published decoders have 16 heads, whatever their width: those 512 wide, and those whose model has a
# name such as mae_vit_small_patch16_dec128d2b.
DECODER_WIDTH, DECODER_HEADS = 512, 16
DECODER_NAME = re.compile(r"mae_vit_(?:small|base|large|huge)_patch\d+(?:_dec\d+d\d+b(?:_\d+)?)?")
NUM_BATCHES = "num_batches_tracked"  # older files lack it; batch normalisation with a momentum ignores it


@dataclass(frozen=True, kw_only=True)
class Row:
    """Where a tensor went."""

    source: str
    target: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A model with the weights of a checkpoint."""

    model: PreTrainedModel
    image_size: int
    rows: list[Row]
    notes: list[str]  # what was assumed or added


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The model that a checkpoint becomes, and the names of its tensors in it."""

    model_class: type[PreTrainedModel]
    config: PretrainedConfig
    names: Callable[[str], tuple[str, ...]]
    image_size: int
    notes: list[str] = field(default_factory=list)
    has_new_decoder: bool = False


def convert(
    checkpoint: Checkpoint, *, num_heads: int | None = None, num_decoder_heads: int | None = None
) -> Conversion:
    """Returns the model of a checkpoint, in float32.

    The heads are those of the usual sizes if they are None. Raises UserError for a tensor that has no place
    in the model, is missing, has another shape, or is not finite.
    """
    if "patch_embed.proj.weight" in checkpoint.tensors:
        plan = _plan_vit(checkpoint, num_heads, num_decoder_heads)
    elif "layer1.0.conv1.weight" in checkpoint.tensors:
        plan = _plan_resnet(checkpoint)
    else:
        raise UserError(
            f"{checkpoint.path}: found tensors such as {next(iter(checkpoint.tensors))[:80]}, expected those "
            "of facebookresearch/mae, medical_mae, or a ViT or ResNet of timm; name another checkpoint"
        )
    configs.check_memory(plan.model_class, plan.config, where=str(checkpoint.path))
    weights, rows = _place(checkpoint, plan)
    if plan.has_new_decoder:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = new_mae(plan.config)
    else:
        model = plan.model_class(plan.config)
    model.load_state_dict(weights, strict=False)  # _place has checked that only known ones are missing
    return Conversion(model=model, image_size=plan.image_size, rows=rows, notes=plan.notes)


# Weights ----------------------------------------------------------------------------------------------------


def _place(checkpoint: Checkpoint, plan: _Plan) -> tuple[dict[str, torch.Tensor], list[Row]]:
    """Returns the weights by their names in transformers, and which tensor went where. Raises UserError."""
    with torch.device("meta"):
        shapes = {name: values.shape for name, values in plan.model_class(plan.config).state_dict().items()}
    weights, rows, where = {}, [], checkpoint.path
    prefix = f"{plan.model_class.base_model_prefix}." if plan.model_class is ResNetModel else ""
    for source, tensor in checkpoint.tensors.items():
        targets = [name.removeprefix(prefix) for name in plan.names(source)]
        if not targets or any(name not in shapes for name in targets):
            raise UserError(
                f"{where}: {source[:80]}: found a tensor that a {_describe(plan)} does not have, expected "
                "none; this kind of model cannot be converted"
            )
        num_parts, needed = len(targets), shapes[targets[0]]
        if num_parts > 1:
            needed = torch.Size([num_parts * needed[0], *needed[1:]])
        if tensor.shape != needed:
            raise UserError(
                f"{where}: {source}: found shape {tuple(tensor.shape)}, expected {tuple(needed)} in a "
                f"{_describe(plan)}; use another checkpoint"
            )
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"{where}: {source}: found NaN or infinite weights, expected those of a training that did "
                "not diverge; use another checkpoint"
            )
        weights |= zip(targets, tensor.chunk(num_parts) if num_parts > 1 else [tensor])
        rows.append(Row(source=source, target=_join(targets), shape=tuple(tensor.shape)))
    missing = [name for name in shapes if name not in weights and not name.endswith(NUM_BATCHES)]
    if plan.has_new_decoder:
        missing = [name for name in missing if not name.startswith("decoder.")]
    if missing:
        raise UserError(
            f"{where}: found no tensors for {len(missing)} of {len(shapes)} parameters of a "
            f"{_describe(plan)}, first {missing[0]}; expected all: use a complete checkpoint"
        )
    return weights, rows


def _describe(plan: _Plan) -> str:
    config = plan.config
    if plan.names is tensor_names.resnet_names:
        return f"ResNet with {config.layer_type} blocks {'-'.join(map(str, config.depths))}"
    return f"{plan.model_class.__name__} for {plan.image_size} pixels"


def _join(targets: list[str]) -> str:
    """Returns one name for those of query, key and value: a.{q,k,v}_proj.weight."""
    if len(targets) == 1:
        return targets[0]
    return targets[0].replace(".q_proj.", ".{q,k,v}_proj.")


# Kinds of models --------------------------------------------------------------------------------------------


def _plan_vit(checkpoint: Checkpoint, num_heads: int | None, num_decoder_heads: int | None) -> _Plan:
    fields, notes = _encoder_fields(checkpoint, num_heads)
    common = {"names": tensor_names.vit_names, "image_size": fields["image_size"], "notes": notes}
    has_decoder = any(name.startswith("decoder_") for name in checkpoint.tensors)
    if "fc_norm.weight" in checkpoint.tensors and not has_decoder:
        config = _timm_config(checkpoint, fields)
        notes.append("mean pooling: a timm ViT, which plain transformers loads if timm is installed")
        names = {"names": tensor_names.timm_names}
        return _Plan(model_class=TimmWrapperForImageClassification, config=config, **common | names)
    if "head.weight" in checkpoint.tensors and not has_decoder:
        pooling = checkpoint.of_timm.get("global_pool", "token")
        if pooling != "token":
            raise UserError(
                f"{checkpoint.path}: found global_pool {str(pooling)[:20]!r} in timm's config.json beside "
                "it, expected 'token', or fc_norm in the file; this kind of model cannot be converted"
            )
        num_labels, _ = checkpoint.shape("head.weight", 2)
        values = configs.check_fields({"model_type": "vit", **fields}, where=str(checkpoint.path))
        config = ViTConfig(**values, encoder_stride=values["patch_size"], num_labels=num_labels)
        return _Plan(model_class=ViTForImageClassification, config=config, **common)
    decoder = (
        _decoder_fields(checkpoint, num_decoder_heads, notes) if has_decoder else _new_decoder_fields(fields)
    )
    values = {"model_type": "vit_mae", **fields, **decoder}
    config = ViTMAEConfig(**configs.check_fields(values, where=str(checkpoint.path)))
    if not has_decoder:
        notes.append(
            "no decoder in the file: a new one with random weights was added, so that pretraining can go on"
        )
    _set_loss(config, checkpoint.settings)
    return _Plan(model_class=ViTMAEForPreTraining, config=config, has_new_decoder=not has_decoder, **common)


def _encoder_fields(checkpoint: Checkpoint, num_heads: int | None) -> tuple[dict[str, Any], list[str]]:
    """Returns the fields of a ViT's configuration, and what was assumed."""
    width, _, patch_size, _ = checkpoint.shape("patch_embed.proj.weight", 4)
    num_tokens, depth = checkpoint.shape("pos_embed", 3)[1], _depth(checkpoint, r"blocks\.(\d+)\.")
    side = math.isqrt(max(0, num_tokens - 1))
    if side < 1 or side**2 != num_tokens - 1:
        raise UserError(
            f"{checkpoint.path}: pos_embed: found embeddings for {num_tokens} tokens, expected a class token "
            "and a square of patches, such as 197; this kind of model cannot be converted"
        )
    usual, notes = USUAL_HEADS.get((width, depth)), []
    if num_heads is None and usual is None:
        raise UserError(
            f"{checkpoint.path}: found a ViT of width {width} and depth {depth}, whose number of heads the "
            "file does not tell; expected a usual size, or the number: add --num_attention_heads N"
        )
    if num_heads is None:
        notes.append(
            f"{usual} attention heads: usual for width {width} and depth {depth} (--num_attention_heads)"
        )
    fields = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": num_heads or usual,
        "intermediate_size": checkpoint.shape("blocks.0.mlp.fc1.weight", 2)[0],
        "patch_size": patch_size,
        "image_size": side * patch_size,
        "qkv_bias": "blocks.0.attn.qkv.bias" in checkpoint.tensors,
        "layer_norm_eps": LAYER_NORM_EPS,
    }
    return fields, notes


def _depth(checkpoint: Checkpoint, pattern: str) -> int:
    matches = [re.match(pattern, name) for name in checkpoint.tensors]
    return len({match[1] for match in matches if match})


def _decoder_fields(checkpoint: Checkpoint, num_heads: int | None, notes: list[str]) -> dict[str, int]:
    width, _ = checkpoint.shape("decoder_embed.weight", 2)
    name = checkpoint.settings.get("model")
    is_published = width == DECODER_WIDTH or (isinstance(name, str) and DECODER_NAME.fullmatch(name))
    if num_heads is None and not is_published:
        raise UserError(
            f"{checkpoint.path}: found a decoder of width {width}, whose number of heads the file does not "
            f"tell; expected width {DECODER_WIDTH}, or the number: add --decoder_num_attention_heads N"
        )
    if num_heads is None:
        notes.append(
            f"{DECODER_HEADS} heads in the decoder: as in all published ones (--decoder_num_attention_heads)"
        )
    return {
        "decoder_hidden_size": width,
        "decoder_num_hidden_layers": _depth(checkpoint, r"decoder_blocks\.(\d+)\."),
        "decoder_num_attention_heads": num_heads or DECODER_HEADS,
        "decoder_intermediate_size": checkpoint.shape("decoder_blocks.0.mlp.fc1.weight", 2)[0],
    }


def _new_decoder_fields(encoder: dict[str, Any]) -> dict[str, int]:
    """Returns the decoder that this repository gives to an encoder of this size, else He et al.'s."""
    size = ("hidden_size", "num_hidden_layers")
    known = [
        one.model_dump()
        for one in VIT_MAE_CONFIGS.values()
        if all(getattr(one, name) == encoder[name] for name in size)
    ]
    fields = known[0] if known else VIT_MAE_CONFIGS["vit-mae-base"].model_dump()
    return {name: value for name, value in fields.items() if name.startswith("decoder_")}


def _set_loss(config: ViTMAEConfig, settings: dict[str, Any]) -> None:
    """Keeps how the checkpoint was pretrained, if its training says it."""
    if isinstance(settings.get("norm_pix_loss"), bool):
        config.norm_pix_loss = settings["norm_pix_loss"]
    ratio = settings.get("mask_ratio")
    if isinstance(ratio, float) and 0 < ratio < 1:
        config.mask_ratio = ratio


def _timm_config(checkpoint: Checkpoint, fields: dict[str, Any]) -> TimmWrapperConfig:
    """Returns the configuration of a timm ViT with mean pooling, which transformers' own ViT lacks."""
    values = configs.check_fields({"model_type": "vit", **fields}, where=str(checkpoint.path))
    num_labels, _ = checkpoint.shape("head.weight", 2)
    return timm_config(ViTConfig(**values), where=str(checkpoint.path), num_labels=num_labels)


def _plan_resnet(checkpoint: Checkpoint) -> _Plan:
    names = "".join(f"{name}\n" for name in checkpoint.tensors)
    is_bottleneck, has_head = "layer1.0.conv3.weight" in checkpoint.tensors, "fc.weight" in checkpoint.tensors
    last = "conv3" if is_bottleneck else "conv2"
    num_stages = len(set(re.findall(r"^layer(\d)\.", names, re.MULTILINE)))
    stages = range(1, num_stages + 1)
    fields = {
        "embedding_size": checkpoint.shape("conv1.weight", 4)[0],
        "hidden_sizes": [checkpoint.shape(f"layer{stage}.0.{last}.weight", 4)[0] for stage in stages],
        "depths": [len(set(re.findall(rf"^layer{stage}\.(\d+)\.", names, re.MULTILINE))) for stage in stages],
        "layer_type": "bottleneck" if is_bottleneck else "basic",
        "downsample_in_bottleneck": False,  # the stride is in the 3 x 3 convolution, as in timm
    }
    values = configs.check_fields({"model_type": "resnet", **fields}, where=str(checkpoint.path))
    head = {"num_labels": checkpoint.shape("fc.weight", 2)[0]} if has_head else {}
    notes = [] if has_head else ["no classifier in the file: the model has none until it is fine-tuned"]
    return _Plan(
        model_class=ResNetForImageClassification if has_head else ResNetModel,
        config=ResNetConfig(**values, **head),
        names=tensor_names.resnet_names,
        image_size=DEFAULT_IMAGE_SIZE,
        notes=notes,
    )
