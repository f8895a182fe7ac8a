"""Describes models by name or folder: what defines them and what an image costs; without torch."""

import re
from pathlib import Path
from typing import Annotated
from typing import Any
from typing import ClassVar
from typing import Literal

from huggingface_hub import try_to_load_from_cache
from pydantic import ConfigDict
from pydantic import Field
from pydantic import ValidationError
from pydantic import field_validator
from pydantic import model_validator
from typing_extensions import Self

from cxr.choices import DEFAULT_IMAGE_SIZE
from cxr.errors import UserError
from cxr.errors import did_you_mean
from cxr.run_folder.fields import Record
from cxr.run_folder.fields import first_problem
from cxr.sharing.local_hub import MODEL_ID

# The upper bounds refuse models that would take hours to build.
Whole = Annotated[int, Field(gt=0, le=10**6)]
Depth = Annotated[int, Field(gt=0, le=1000)]
Width = Annotated[int, Field(gt=3, le=10**6)]  # a bottleneck has a quarter of the channels
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Small = Annotated[float, Field(gt=0, lt=1)]
Side = Annotated[int, Field(gt=0, le=2**14)]  # pixels
Channels = Literal[3]  # the input always has three


class Fields(Record):
    """The fields that define a network, and the only ones that are read from a model's config.json.

    All others are ignored, because transformers would act on many of them. The defaults are those of
    transformers.
    """

    model_config = ConfigDict(extra="ignore", allow_inf_nan=True)  # the bounds refuse them, by name
    writer: ClassVar[str] = "transformers"
    advice: ClassVar[str] = "restore the file, or name another model"
    family: ClassVar[str] = "vit"


class EncoderFields(Fields):
    """The fields that all ViTs have."""

    widths: ClassVar[dict[str, int]] = {"": 1}  # prefix of the fields -> a divisor of the width

    hidden_size: Whole = 768
    num_hidden_layers: Depth = 12
    num_attention_heads: Whole = 12
    hidden_act: str = "gelu"
    hidden_dropout_prob: BelowOne = 0.0
    attention_probs_dropout_prob: BelowOne = 0.0
    initializer_range: Small = 0.02
    layer_norm_eps: Small = 1e-12
    image_size: Whole = DEFAULT_IMAGE_SIZE
    patch_size: Whole = 16
    num_channels: Channels = 3
    qkv_bias: bool = True

    @model_validator(mode="after")
    def _check_patches_and_heads(self) -> Self:
        check_multiple(self.image_size, patch_size=self.patch_size)
        for side, multiple in self.widths.items():
            width, num_heads = (getattr(self, side + name) for name in ("hidden_size", "num_attention_heads"))
            if width % num_heads or width % multiple:
                raise ValueError(
                    f"found {side}hidden_size={width}, expected a multiple of {multiple} and of "
                    f"{side}num_attention_heads={num_heads}"
                )
        return self


def check_multiple(image_size: int, *, patch_size: int) -> None:
    """Raises ValueError for an image whose right and lower edge would be in no patch."""
    if image_size % patch_size:
        below = image_size - image_size % patch_size
        raise ValueError(
            f"found image_size={image_size}, expected a multiple of patch_size={patch_size}, "
            f"such as {f'{below} or ' if below else ''}{below + patch_size}"
        )


class VitFields(EncoderFields):
    intermediate_size: Whole = 3072


class Dinov2Fields(EncoderFields):
    """The encoder of DINOv2 (Oquab et al. 2023), to which RAD-DINO also belongs."""

    mlp_ratio: Annotated[int, Field(gt=0, le=100)] = 4
    layer_norm_eps: Small = 1e-6
    patch_size: Whole = 14
    layerscale_value: Annotated[float, Field(ge=0, le=1)] = 1.0
    use_swiglu_ffn: bool = False

    @property
    def intermediate_size(self) -> int:
        return self.mlp_ratio * self.hidden_size


class VitMaeFields(VitFields):
    widths: ClassVar[dict[str, int]] = {"": 4, "decoder_": 4}  # sine and cosine, for rows and columns

    decoder_hidden_size: Whole = 512
    decoder_num_hidden_layers: Depth = 8
    decoder_num_attention_heads: Whole = 16
    decoder_intermediate_size: Whole = 2048


class ResnetFields(Fields):
    family: ClassVar[str] = "resnet"

    num_channels: Channels = 3
    embedding_size: Whole = 64
    hidden_sizes: Annotated[list[Width], Field(min_length=1)] = [256, 512, 1024, 2048]
    depths: list[Depth] = [3, 4, 6, 3]
    layer_type: Literal["basic", "bottleneck"] = "bottleneck"
    hidden_act: str = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False

    @model_validator(mode="after")
    def _check_stages(self) -> Self:
        if len(self.hidden_sizes) != len(self.depths):
            raise ValueError("found hidden_sizes and depths of different lengths, expected equal lengths")
        if sum(self.depths) > 1000:
            raise ValueError(f"found {sum(self.depths)} layers in depths, expected at most 1,000")
        return self


class TimmArguments(Record):
    """The arguments of timm's networks that a config.json may have; None is timm's own default.

    Others are refused: timm would act on them, and some are Python classes.
    """

    model_config = ConfigDict(extra="forbid")

    img_size: Side | None = None
    patch_size: Side | None = None
    in_chans: Channels | None = None
    embed_dim: Whole | None = None
    depth: Annotated[int, Field(gt=0, le=100)] | None = None  # timm takes a second for a few blocks
    num_heads: Whole | None = None
    mlp_ratio: Annotated[float, Field(gt=0, le=100)] | None = None
    qkv_bias: bool | None = None
    init_values: Annotated[float, Field(ge=0, le=1)] | None = None
    class_token: bool | None = None
    reg_tokens: Annotated[int, Field(ge=0, le=1000)] | None = None
    no_embed_class: bool | None = None
    dynamic_img_size: bool | None = None
    global_pool: Literal["token", "avg", "max", "avgmax"] | None = None
    drop_rate: BelowOne | None = None
    pos_drop_rate: BelowOne | None = None
    proj_drop_rate: BelowOne | None = None
    attn_drop_rate: BelowOne | None = None
    drop_path_rate: BelowOne | None = Field(default=None, exclude=True)  # --drop_path decides it

    @model_validator(mode="before")
    @classmethod
    def _name_those_known(cls, values: Any) -> Any:
        if isinstance(values, dict) and (others := values.keys() - cls.model_fields.keys()):
            known = ", ".join(cls.model_fields)
            raise ValueError(f"found {min(map(str, others))[:50]} in model_args, expected some of {known}")
        return values


class TimmFields(Fields):
    """A network of timm, in transformers' wrapper."""

    architecture: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,100}$")]
    model_args: TimmArguments = TimmArguments()

    @field_validator("model_args", mode="before")
    @classmethod
    def _take_none(cls, value: Any) -> Any:
        return {} if value is None else value

    @property
    def arguments(self) -> tuple[tuple[str, Any], ...]:
        return tuple(self.model_args.model_dump(exclude_none=True).items())

    @property
    def family(self) -> str:
        """A ViT has patches; every other network is treated as a ResNet is."""
        from cxr.models import timm_networks  # with torch, which is slow to import

        return "vit" if timm_networks.is_vit(self.architecture) else "resnet"

    @property
    def own_size(self) -> int | None:
        from cxr.models import timm_networks

        return timm_networks.own_size(self.architecture, self.arguments)

    def count(self, *, num_labels: int = 2, image_size: int | None = None) -> tuple[int, float]:
        """Returns the number of parameters, and the FLOPs of a forward pass of one image."""
        from cxr.models import timm_networks

        size = self.own_size or image_size or DEFAULT_IMAGE_SIZE
        return timm_networks.count(self.architecture, self.arguments, num_labels, size)


# Not for --config_overrides: image_size has its own flag, num_channels is fixed, the others are lists.
NOT_OVERRIDDEN = {"image_size", "num_channels", "hidden_sizes", "depths"}
TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
FIELDS = {
    "vit": VitFields,
    "vit_mae": VitMaeFields,
    "dinov2": Dinov2Fields,
    "resnet": ResnetFields,
    "timm_wrapper": TimmFields,
}


class ModelType(Fields):
    """The field of a config.json that selects one of FIELDS."""

    model_type: Literal[tuple(FIELDS)]

    @model_validator(mode="before")
    @classmethod
    def _know_timm(cls, values: Any) -> Any:
        """Adds what timm's own files lack; transformers knows them in the same way."""
        is_of_timm = isinstance(values, dict) and "model_type" not in values and "pretrained_cfg" in values
        return {**values, "model_type": "timm_wrapper"} if is_of_timm else values


def _vit_mae(
    width: int, depth: int, heads: int, decoder: tuple[int, int, int], *, patch_size: int = 16
) -> VitMaeFields:
    decoder_width, decoder_depth, decoder_heads = decoder
    return VitMaeFields(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        patch_size=patch_size,
        decoder_hidden_size=decoder_width,
        decoder_num_hidden_layers=decoder_depth,
        decoder_num_attention_heads=decoder_heads,
        decoder_intermediate_size=4 * decoder_width,
    )


# Base, Large and Huge are those of He et al. 2022 with their decoder of width 512 and depth 8; the smaller
# ones are the usual ViT-Ti and ViT-S with smaller decoders, or with that of Medical MAE (Xiao et al. 2023).
VIT_MAE_CONFIGS = {
    "vit-mae-tiny": _vit_mae(192, 12, 3, decoder=(128, 2, 4)),
    "vit-mae-small": _vit_mae(384, 12, 6, decoder=(256, 4, 8)),
    "vit-mae-small-medical": _vit_mae(384, 12, 6, decoder=(512, 2, 16)),
    "vit-mae-base": _vit_mae(768, 12, 12, decoder=(512, 8, 16)),
    "vit-mae-large": _vit_mae(1024, 24, 16, decoder=(512, 8, 16)),
    "vit-mae-huge": _vit_mae(1280, 32, 16, decoder=(512, 8, 16), patch_size=14),
}
_BASIC = {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]}
# He et al. 2015, table 1.
RESNET_CONFIGS = {
    "resnet-18": ResnetFields(depths=[2, 2, 2, 2], **_BASIC),
    "resnet-34": ResnetFields(depths=[3, 4, 6, 3], **_BASIC),
    "resnet-50": ResnetFields(depths=[3, 4, 6, 3]),
    "resnet-101": ResnetFields(depths=[3, 4, 23, 3]),
    "resnet-152": ResnetFields(depths=[3, 8, 36, 3]),
}
CONFIGS = VIT_MAE_CONFIGS | RESNET_CONFIGS
# Models on the Hub with the configurations above: planning a study with them needs no network.
_PUBLISHED = {f"facebook/vit-mae-{size}": CONFIGS[f"vit-mae-{size}"] for size in ("base", "large", "huge")}
_PUBLISHED |= {f"microsoft/{name}": fields for name, fields in RESNET_CONFIGS.items()}
# timm's names: timm/densenet121 is untrained, timm/densenet121.ra_in1k has weights on the Hub.
TIMM_NAME = re.compile(r"timm/([a-z0-9_]{1,100})(\.[a-z0-9_]+)?")


def is_untrained(model: str) -> bool:
    """Returns whether a name is one of a model to train from scratch: of CONFIGS, or timm/NAME."""
    of_timm = TIMM_NAME.fullmatch(model)
    return model in CONFIGS or bool(of_timm and not of_timm[2])


def find_architecture(model: str, *, hub_dir: Path | None = None, revision: str = "main") -> Fields:
    """Returns the architecture of a model: a configuration's name, a folder, or a downloaded model's name.

    Names are looked up in `hub_dir` and the Hugging Face cache, never on the network. Raises UserError for a
    name that is in neither.
    """
    if model in CONFIGS:
        return CONFIGS[model]
    if is_untrained(model):
        return timm_architecture(model)
    path = Path(model) / "config.json" if Path(model).is_dir() else None
    if path is None and MODEL_ID.fullmatch(model):
        for cache_dir in (None, hub_dir) if hub_dir else (None,):  # hub_dir wins over the cache
            found = try_to_load_from_cache(model, "config.json", cache_dir=cache_dir, revision=revision)
            path = Path(found) if isinstance(found, str) else path
    if path is not None:
        return FIELDS[ModelType.read(path).model_type].read(path)
    if model in _PUBLISHED:
        return _PUBLISHED[model]
    if TIMM_NAME.fullmatch(model):
        return timm_architecture(model)
    close = did_you_mean(model, [*CONFIGS, *_PUBLISHED])
    raise UserError(
        f"model {model}: found no folder and no downloaded model of this name{close}, expected one, because "
        "its config.json tells its kind and size; name a folder, or download the model first: "
        f"hf download {model} --revision {revision}"
    )


def timm_architecture(model: str) -> TimmFields:
    """Returns the architecture of timm/NAME or timm/NAME.TAG. Raises UserError if timm has no such name."""
    from cxr.models import timm_networks

    name = TIMM_NAME.fullmatch(model)[1]
    timm_networks.check_name(name, where=f"model {model}")
    return TimmFields(architecture=name)


def describe_architecture(model: Fields) -> str:
    """Returns a description of a network in words: its name, if it has one, and its size."""
    if isinstance(model, TimmFields):
        return _describe_timm(model)
    if model.family == "resnet":
        name = f"resnet-{(2 if model.layer_type == 'basic' else 3) * sum(model.depths) + 2}"
        name = name.replace("resnet", "ResNet") if RESNET_CONFIGS.get(name) == model else "ResNet"
        blocks = f"{sum(model.depths)} {model.layer_type} blocks"
        return f"{name} of {blocks}, {model.hidden_sizes[0]} to {model.hidden_sizes[-1]} channels"
    size = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    names = [
        name.removeprefix("vit-mae-").capitalize()
        for name, known in VIT_MAE_CONFIGS.items()
        if all(getattr(known, field) == getattr(model, field) for field in size)
    ]
    kind = "DINOv2" if isinstance(model, Dinov2Fields) else "-".join(["ViT", *names[:1]])
    text = (
        f"{kind} of depth {model.num_hidden_layers} and width {model.hidden_size}, "
        f"{model.num_attention_heads} heads, patches of {model.patch_size} by {model.patch_size} pixels"
    )
    if isinstance(model, VitMaeFields):
        depth, width = model.decoder_num_hidden_layers, model.decoder_hidden_size
        text += f"; decoder of depth {depth} and width {width}"
    return text


def _describe_timm(model: TimmFields) -> str:
    own = model.model_args
    pooling = "; mean pooling" if own.global_pool == "avg" else ""
    sizes = (own.embed_dim, own.depth, own.num_heads, own.patch_size, own.mlp_ratio)
    if None in sizes:  # only then does timm's name tell the size
        return f"{model.architecture} of timm{pooling}"
    width, depth, heads, patch_size, mlp_ratio = sizes
    size = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
    inner = {"intermediate_size": round(width * mlp_ratio), "patch_size": patch_size}
    return describe_architecture(VitFields.model_construct(**size, **inner)) + pooling


def override(architecture: Fields, overrides: str | None, *, image_size: int | None) -> Fields:
    """Returns the architecture with `overrides` ("key=value,...") and, if it is a ViT, the image size.

    Raises UserError for an unknown key and for a value that no model can have.
    """
    if isinstance(architecture, TimmFields):
        return _override_timm(architecture, overrides, image_size)
    fields, changes = architecture.model_dump(), {}
    allowed = [name for name in fields if name not in NOT_OVERRIDDEN]
    for name, _, text in [pair.partition("=") for pair in overrides.split(",")] if overrides else ():
        where = f"--config_overrides {name}={text}"[:70]
        if name not in allowed:
            raise UserError(
                f"{where}: found no such key; expected one of {', '.join(allowed)}"
                + did_you_mean(name, allowed)
            )
        kind = type(fields[name])
        try:
            changes[name] = TRUTHS[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError) as error:
            raise UserError(f"{where}: expected a value such as {fields[name]}: change it") from error
    if image_size and "image_size" in fields:
        changes["image_size"] = image_size
    try:
        return type(architecture).model_validate(fields | changes)
    except ValidationError as error:
        raise UserError(f"--config_overrides, --image_size: {first_problem(error)}: change it") from error


def _override_timm(architecture: TimmFields, overrides: str | None, image_size: int | None) -> TimmFields:
    if overrides:
        raise UserError(
            f"--config_overrides: found {architecture.architecture} of timm, whose name says its size; leave "
            "the flag out"
        )
    if not image_size or architecture.own_size is None:
        return architecture
    check_patches(architecture.architecture, architecture.arguments, image_size)
    arguments = architecture.model_args.model_copy(update={"img_size": image_size})
    return architecture.model_copy(update={"model_args": arguments})


def check_patches(name: str, arguments: tuple[tuple[str, Any], ...], image_size: int) -> None:
    """Raises UserError for an --image_size that is no multiple of the patches of a network of timm."""
    from cxr.models import timm_networks

    try:
        check_multiple(image_size, patch_size=timm_networks.patch_size(name, arguments) or 1)
    except ValueError as error:
        raise UserError(f"--image_size: {error}: change it") from error


def default_image_size(architecture: Fields) -> int:
    """Returns the side of the input of a model, if no other is asked for."""
    own = architecture.own_size if isinstance(architecture, TimmFields) else None
    return own or getattr(architecture, "image_size", DEFAULT_IMAGE_SIZE)


def estimate_gflop(architecture: Fields, *, image_size: int, share_seen: float) -> float:
    """Returns an estimate of the cost of a forward pass of one image, in GFLOP.

    It is exact enough to tell beforehand whether a study takes hours or weeks. `share_seen` is the share of
    the patches that a ViT processes. Raises UserError for a size that no image can have.
    """
    if not 0 < image_size <= 10**6:  # a larger one overflows
        raise UserError(f"image_size: found {str(image_size)[:50]}, expected a number from 1 to 1,000,000")
    if isinstance(architecture, TimmFields):
        share = share_seen if architecture.family == "vit" else 1.0
        return 1e-9 * share * architecture.count(image_size=image_size)[1]
    if architecture.family == "resnet":
        return 2e-9 * _resnet_macs(architecture, image_size)
    width, tokens = architecture.hidden_size, 1 + share_seen * (image_size // architecture.patch_size) ** 2
    per_token = 4 * width**2 + 2 * width * architecture.intermediate_size + 2 * tokens * width
    return 2e-9 * architecture.num_hidden_layers * tokens * per_token


def _resnet_macs(model: ResnetFields, image_size: int) -> float:
    """Returns the multiply-adds of the convolutions (He et al. 2015, table 1): weights times pixels."""
    before, macs = model.embedding_size, 7**2 * 3 * model.embedding_size * (image_size / 2) ** 2
    for stage, (width, depth) in enumerate(zip(model.hidden_sizes, model.depths)):
        outer = before + (2 * depth - 1) * width  # of all blocks: channels in and channels out
        is_basic, inner = model.layer_type == "basic", width // 4
        weights = 9 * width * outer if is_basic else inner * outer + depth * 9 * inner**2
        weights += before * width if before != width else 0  # the shortcut
        macs += weights * (image_size / 4 / 2**stage) ** 2
        before = width
    return macs
