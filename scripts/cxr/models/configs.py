"""What the configuration of a model may hold, whoever wrote it: a flag, a config.json, or this repository."""

from collections.abc import Callable
from typing import Annotated
from typing import Any
from typing import ClassVar
from typing import Literal

import psutil
import torch
from pydantic import Field
from transformers import PretrainedConfig
from transformers import PreTrainedModel
from transformers import ResNetConfig
from transformers import ResNetForImageClassification
from transformers import ViTConfig
from transformers import ViTMAEConfig
from transformers import ViTMAEForPreTraining
from transformers.activations import ACT2FN

from cxr.choices import DATASET_DEFAULTS
from cxr.choices import VIEWS
from cxr.errors import UserError
from cxr.models.architectures import DEFAULT_IMAGE_SIZE
from cxr.models.architectures import RESNET_CONFIGS
from cxr.models.architectures import VIT_MAE_CONFIGS
from cxr.run_folder.record import Record
from cxr.run_folder.record import Share

# What a value of a configuration may be, also in words; the bounds keep a model from being built for hours.
Rule = tuple[Callable[[Any], bool], str]
_WHOLE: Rule = (lambda value: type(value) is int and 0 < value <= 10**6, "a whole number from 1 to 1,000,000")
_DEPTH: Rule = (lambda value: type(value) is int and 0 < value <= 1000, "a whole number from 1 to 1,000")
_SHARE: Rule = (lambda value: type(value) in (int, float) and 0 <= value < 1, "a number in [0, 1)")
_SMALL: Rule = (lambda value: type(value) is float and 0 < value < 1, "a number between 0 and 1")
_SWITCH: Rule = (lambda value: type(value) is bool, "true or false")
_ACTIVATION: Rule = (lambda value: type(value) is str and value in ACT2FN, f"one of {', '.join(ACT2FN)}")
_CHANNELS: Rule = (lambda value: type(value) is int and value == 3, "3, as all images have")
_WIDTHS: Rule = (
    # A bottleneck has a quarter of the channels.
    lambda value: (
        isinstance(value, list | tuple) and bool(value) and all(_WHOLE[0](one) and one > 3 for one in value)
    ),
    "a list of whole numbers from 4",
)
_DEPTHS: Rule = (
    lambda value: (
        isinstance(value, list | tuple) and all(_DEPTH[0](one) for one in value) and _DEPTH[0](sum(value))
    ),
    "a list of whole numbers, 1,000 in all",
)
_LAYER_TYPE: Rule = (lambda value: value in ("basic", "bottleneck"), "basic or bottleneck")
# All that makes two ViT encoders, masked autoencoders or ResNets the same network. Nothing else is taken from
# a pretrained model's config.json: transformers acts on much of it.
VIT_FIELDS = {
    "hidden_size": _WHOLE,
    "num_hidden_layers": _DEPTH,
    "num_attention_heads": _WHOLE,
    "intermediate_size": _WHOLE,
    "hidden_act": _ACTIVATION,
    "hidden_dropout_prob": _SHARE,
    "attention_probs_dropout_prob": _SHARE,
    "initializer_range": _SMALL,
    "layer_norm_eps": _SMALL,
    "image_size": _WHOLE,
    "patch_size": _WHOLE,
    "num_channels": _CHANNELS,
    "qkv_bias": _SWITCH,
}
DECODER_FIELDS = {
    "decoder_hidden_size": _WHOLE,
    "decoder_num_hidden_layers": _DEPTH,
    "decoder_num_attention_heads": _WHOLE,
    "decoder_intermediate_size": _WHOLE,
}
RESNET_FIELDS = {
    "num_channels": _CHANNELS,
    "embedding_size": _WHOLE,
    "hidden_sizes": _WIDTHS,
    "depths": _DEPTHS,
    "layer_type": _LAYER_TYPE,
    "hidden_act": _ACTIVATION,
    "downsample_in_first_stage": _SWITCH,
    "downsample_in_bottleneck": _SWITCH,
}
FIELDS = {"vit": VIT_FIELDS, "vit_mae": {**VIT_FIELDS, **DECODER_FIELDS}, "resnet": RESNET_FIELDS}
CONFIG_CLASSES = {"vit": ViTConfig, "vit_mae": ViTMAEConfig, "resnet": ResNetConfig}
# Not by --config_overrides: the side has a flag, images have their channels, and these two are lists.
NOT_OVERRIDDEN = {"image_size", "num_channels", "hidden_sizes", "depths"}


class ModelFields(Record):
    """Our fields in a model's `config.json`; a model of other origin has none of them."""

    advice: ClassVar[str] = "change it"

    decision_threshold: Share = Field(
        default=0.5, description="the probability from which an image gets the positive label"
    )
    cache_image_size: Annotated[int, Field(gt=0, le=2**14)] | None = Field(
        default=None,
        description="shortest side in pixels of the images that the run saw; by default 8/7 of the input",
    )
    trained_view: Literal[tuple(VIEWS)] = Field(
        default=DATASET_DEFAULTS["view"], description="the views of the images that it was trained on"
    )


def make_config(config_name: str, *, overrides: str | None, image_size: int | None) -> PretrainedConfig:
    """Returns the configuration `config_name` with the image size and `overrides` ("key=value,...")."""
    if config_name in VIT_MAE_CONFIGS:
        config = ViTMAEConfig(**VIT_MAE_CONFIGS[config_name], image_size=image_size or DEFAULT_IMAGE_SIZE)
        model_class = ViTMAEForPreTraining
    else:
        config = ResNetConfig(**RESNET_CONFIGS[config_name])
        model_class = ResNetForImageClassification
    if overrides:
        allowed = [name for name in FIELDS[config.model_type] if name not in NOT_OVERRIDDEN]
        for pair in overrides.split(","):
            if pair.partition("=")[0] not in allowed:
                raise UserError(
                    f"--config_overrides {pair[:50]}: {config_name} has no such key; expected some of "
                    + ", ".join(allowed)
                )
        try:
            config.update_from_string(overrides)
        except (ValueError, TypeError) as error:
            raise UserError(
                f"--config_overrides {overrides[:200]}: {error}; expected values as {config_name} has them"
            ) from error
    values = {name: getattr(config, name) for name in FIELDS[config.model_type]}
    _check_values(values, config.model_type, where="--config_overrides, --image_size")
    check_memory(model_class, config, where=f"--config_name {config_name}, --config_overrides, --image_size")
    return config


def config_from_json(fields: dict[str, Any], *, where: str) -> PretrainedConfig:
    """Returns the configuration in the `fields` of a pretrained model's config.json, of a known model_type.

    Raises UserError, beginning with `where`, for what no model can have.
    """
    model_type = fields["model_type"]
    values = CONFIG_CLASSES[model_type]().to_dict() | fields
    values = {field: values[field] for field in FIELDS[model_type]}
    _check_values(values, model_type, where=where)
    config = CONFIG_CLASSES[model_type](**values)
    # Whose head the weights have: a script says so where it is another's.
    if isinstance(fields.get("architectures"), list) and isinstance(fields.get("id2label"), dict):
        config.architectures = [str(one) for one in fields["architectures"]]
        config.id2label = dict(enumerate(map(str, fields["id2label"].values())))
    return config


def classifier_config(config: PretrainedConfig, labels: list[str]) -> PretrainedConfig:
    """Returns the configuration of the classifier on an encoder; a ViT-MAE's loses decoder and masking."""
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    if config.model_type == "resnet":
        return ResNetConfig(**{**config.to_dict(), **names})
    same = {name: value for name, value in config.to_dict().items() if name in VIT_FIELDS}
    return ViTConfig(**same, encoder_stride=config.patch_size, **names)


def _check_values(values: dict[str, Any], model_type: str, *, where: str) -> None:
    """Raises UserError, beginning with `where`, for what no model of this type can have."""
    for name, value in values.items():
        is_valid, expected = FIELDS[model_type][name]
        if not is_valid(value):
            raise UserError(f"{where}: found {name}={str(value)[:50]}, expected {expected}: change it")
    if model_type == "resnet":
        if len(values["hidden_sizes"]) != len(values["depths"]):
            raise UserError(
                f"{where}: found hidden_sizes and depths of different lengths, expected one: change it"
            )
        return
    if values["image_size"] % values["patch_size"]:
        raise UserError(
            f"{where}: found image_size={values['image_size']}, expected a multiple of "
            f"patch_size={values['patch_size']}: change one"
        )
    for side in ("", "decoder_") if model_type == "vit_mae" else ("",):
        width, heads = values[f"{side}hidden_size"], values[f"{side}num_attention_heads"]
        if width % heads or (width % 4 and model_type == "vit_mae"):  # sine, cosine; rows, columns
            raise UserError(
                f"{where}: found {side}hidden_size={width}, expected a multiple of 4 and of "
                f"{side}num_attention_heads={heads}: change one"
            )


def num_parameters(
    model_class: type[PreTrainedModel], config: PretrainedConfig, *, without: str | None = None
) -> int:
    """Returns how many parameters a model has, but for those whose name begins so, without making it."""
    with torch.device("meta"):
        parameters = dict(model_class(config).named_parameters())
    return sum(
        parameter.numel()
        for name, parameter in parameters.items()
        if without is None or not name.startswith(without)
    )


def check_memory(model_class: type[PreTrainedModel], config: PretrainedConfig, *, where: str) -> None:
    """Raises UserError for a model that this machine cannot hold, before that is tried."""
    needed, available = 4 * num_parameters(model_class, config), psutil.virtual_memory().total
    if needed > available:
        raise UserError(
            f"{where}: found a model that takes {needed / 2**30:,.0f} GiB, expected one that fits into "
            f"the {available / 2**30:,.0f} GiB of this machine: take a smaller one"
        )
