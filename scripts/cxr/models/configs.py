"""What the configuration of a model may hold, whoever wrote it: a flag, a config.json, or this repository."""

from typing import Annotated
from typing import Any
from typing import ClassVar
from typing import Literal

import psutil
import torch
from pydantic import BaseModel
from pydantic import ConfigDict
from pydantic import Field
from pydantic import ValidationError
from pydantic import model_validator
from transformers import PretrainedConfig
from transformers import PreTrainedModel
from transformers import ResNetConfig
from transformers import ResNetForImageClassification
from transformers import ViTConfig
from transformers import ViTMAEConfig
from transformers import ViTMAEForPreTraining
from transformers.activations import ACT2FN
from typing_extensions import Self

from cxr.choices import DATASET_DEFAULTS
from cxr.choices import VIEWS
from cxr.errors import UserError
from cxr.models.architectures import DEFAULT_IMAGE_SIZE
from cxr.models.architectures import RESNET_CONFIGS
from cxr.models.architectures import VIT_MAE_CONFIGS
from cxr.run_folder.record import Record
from cxr.run_folder.record import Share
from cxr.run_folder.record import first_problem

# The bounds keep a model from being built for hours.
Whole = Annotated[int, Field(gt=0, le=10**6)]
Depth = Annotated[int, Field(gt=0, le=1000)]
Width = Annotated[int, Field(gt=3, le=10**6)]  # a bottleneck has a quarter of the channels
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Small = Annotated[float, Field(gt=0, lt=1)]
Activation = Literal[tuple(ACT2FN)]
Channels = Literal[3]  # as all images have


class Fields(BaseModel):
    """All that makes two models the same network, and all that is taken from a model's config.json.

    transformers acts on much of what else may stand there.
    """

    model_config = ConfigDict(strict=True)


class VitFields(Fields):
    hidden_size: Whole
    num_hidden_layers: Depth
    num_attention_heads: Whole
    intermediate_size: Whole
    hidden_act: Activation
    hidden_dropout_prob: BelowOne
    attention_probs_dropout_prob: BelowOne
    initializer_range: Small
    layer_norm_eps: Small
    image_size: Whole
    patch_size: Whole
    num_channels: Channels
    qkv_bias: bool

    @model_validator(mode="after")
    def _check_patches_and_heads(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"found image_size={self.image_size}, expected a multiple of patch_size={self.patch_size}"
            )
        check_heads(self.hidden_size, self.num_attention_heads, multiple=1, side="")
        return self


class VitMaeFields(VitFields):
    decoder_hidden_size: Whole
    decoder_num_hidden_layers: Depth
    decoder_num_attention_heads: Whole
    decoder_intermediate_size: Whole

    @model_validator(mode="after")
    def _check_positions(self) -> Self:
        for side in ("", "decoder_"):  # 4: sine and cosine, of rows and columns
            width, heads = (getattr(self, side + name) for name in ("hidden_size", "num_attention_heads"))
            check_heads(width, heads, multiple=4, side=side)
        return self


def check_heads(width: int, num_heads: int, *, multiple: int, side: str) -> None:
    if width % num_heads or width % multiple:
        raise ValueError(
            f"found {side}hidden_size={width}, expected a multiple of {multiple} and of "
            f"{side}num_attention_heads={num_heads}"
        )


class ResnetFields(Fields):
    num_channels: Channels
    embedding_size: Whole
    hidden_sizes: Annotated[list[Width], Field(min_length=1)]
    depths: list[Depth]
    layer_type: Literal["basic", "bottleneck"]
    hidden_act: Activation
    downsample_in_first_stage: bool
    downsample_in_bottleneck: bool

    @model_validator(mode="after")
    def _check_stages(self) -> Self:
        if len(self.hidden_sizes) != len(self.depths):
            raise ValueError("found hidden_sizes and depths of different lengths, expected one")
        if sum(self.depths) > 1000:
            raise ValueError(f"found {sum(self.depths)} layers in depths, expected at most 1,000")
        return self


FIELDS = {"vit": VitFields, "vit_mae": VitMaeFields, "resnet": ResnetFields}
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
        allowed = [name for name in FIELDS[config.model_type].model_fields if name not in NOT_OVERRIDDEN]
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
    check_fields(config.to_dict(), where="--config_overrides, --image_size")
    check_memory(model_class, config, where=f"--config_name {config_name}, --config_overrides, --image_size")
    return config


def config_from_json(fields: dict[str, Any], *, where: str) -> PretrainedConfig:
    """Returns the configuration in the `fields` of a pretrained model's config.json, of a known model_type.

    Raises UserError, beginning with `where`, for what no model can have.
    """
    config_class = CONFIG_CLASSES[fields["model_type"]]
    config = config_class(**check_fields(config_class().to_dict() | fields, where=where))
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
    same = {name: value for name, value in config.to_dict().items() if name in VitFields.model_fields}
    return ViTConfig(**same, encoder_stride=config.patch_size, **names)


def check_fields(values: dict[str, Any], *, where: str) -> dict[str, Any]:
    """Returns the FIELDS of a configuration. Raises UserError, beginning with `where`, where one is wrong."""
    try:
        return FIELDS[values["model_type"]].model_validate(values).model_dump()
    except ValidationError as error:
        raise UserError(f"{where}: {first_problem(error)}: change it") from error


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
