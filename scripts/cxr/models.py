"""Models by name, from scratch or pretrained, and the image processor stored with each."""

import contextlib
import logging
import math
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from torch import nn
from transformers import AutoImageProcessor
from transformers import PretrainedConfig
from transformers import PreTrainedModel
from transformers import ResNetConfig
from transformers import ResNetForImageClassification
from transformers import ViTConfig
from transformers import ViTForImageClassification
from transformers import ViTImageProcessor
from transformers import ViTMAEConfig
from transformers import ViTMAEForPreTraining
from transformers.activations import ACT2FN
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEAttention

from cxr.architectures import DEFAULT_IMAGE_SIZE
from cxr.architectures import RESNET_CONFIGS
from cxr.architectures import VIT_MAE_CONFIGS
from cxr.hub import repository_dir
from cxr.records import read_json
from cxr.transforms import GRAY_MEAN
from cxr.transforms import GRAY_STD

logger = logging.getLogger(__name__)


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
                raise ValueError(
                    f"--config_overrides {pair[:50]}: {config_name} has no such key; expected some of "
                    + ", ".join(allowed)
                )
        try:
            config.update_from_string(overrides)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"--config_overrides {overrides[:200]}: {error}; expected values as {config_name} has them"
            ) from error
    values = {name: getattr(config, name) for name in FIELDS[config.model_type]}
    _check_values(values, config.model_type, where="--config_overrides, --image_size")
    _check_memory(model_class, config, where=f"--config_name {config_name}, --config_overrides, --image_size")
    return config


def _check_values(values: dict[str, Any], model_type: str, *, where: str) -> None:
    """Raises ValueError, beginning with `where`, for what no model of this type can have."""
    for name, value in values.items():
        is_valid, expected = FIELDS[model_type][name]
        if not is_valid(value):
            raise ValueError(f"{where}: found {name}={str(value)[:50]}, expected {expected}")
    if model_type == "resnet":
        if len(values["hidden_sizes"]) != len(values["depths"]):
            raise ValueError(f"{where}: found hidden_sizes and depths of different lengths, expected one")
        return
    if values["image_size"] % values["patch_size"]:
        raise ValueError(
            f"{where}: found image_size={values['image_size']}, expected a multiple of "
            f"patch_size={values['patch_size']}: change one"
        )
    for side in ("", "decoder_") if model_type == "vit_mae" else ("",):
        width, heads = values[f"{side}hidden_size"], values[f"{side}num_attention_heads"]
        if width % heads or (width % 4 and model_type == "vit_mae"):  # sine, cosine; rows, columns
            raise ValueError(
                f"{where}: found {side}hidden_size={width}, expected a multiple of 4 and of "
                f"{side}num_attention_heads={heads}: change one"
            )


def _num_parameters(
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


def _check_memory(model_class: type[PreTrainedModel], config: PretrainedConfig, *, where: str) -> None:
    """Raises ValueError for a model that this machine cannot hold, before that is tried."""
    needed, available = 4 * _num_parameters(model_class, config), psutil.virtual_memory().total
    if needed > available:
        raise ValueError(
            f"{where}: found a model that takes {needed / 2**30:,.0f} GiB, expected one that fits into "
            f"the {available / 2**30:,.0f} GiB of this machine: make it smaller"
        )


def load_config(
    name: str, *, hub_dir: Path | None, revision: str, expected: tuple[str, ...]
) -> PretrainedConfig:
    """Returns a pretrained model's configuration. Raises ValueError or OSError with what to do instead."""
    is_folder = Path(name).is_dir()
    if not is_folder and (Path(name).exists() or name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise OSError(f"--model_name_or_path {name}: found no such folder; expected one with a model in it")
    if is_folder and revision != "main":
        raise ValueError(
            f"--model_revision {revision}: found the local folder {name}, which has no revisions; leave the "
            "flag out, or name a model in --hub_dir or on the Hub"
        )
    with _loading(name, revision):
        fields, _ = PretrainedConfig.get_config_dict(name, **_source(name, hub_dir, revision))
        model_type = fields.get("model_type")
        if not isinstance(model_type, str):
            raise ValueError("found no model_type in config.json")
    if model_type not in expected:
        raise ValueError(
            f"--model_name_or_path {name} is a {model_type!r} model; expected {' or '.join(expected)}"
        )
    values = CONFIG_CLASSES[model_type]().to_dict() | fields
    values = {field: values[field] for field in FIELDS[model_type]}
    _check_values(values, model_type, where=f"--model_name_or_path {name}: config.json")
    config = CONFIG_CLASSES[model_type](**values)
    # Whose head the weights have: a script says so where it is another's.
    if isinstance(fields.get("architectures"), list) and isinstance(fields.get("id2label"), dict):
        config.architectures = [str(one) for one in fields["architectures"]]
        config.id2label = dict(enumerate(map(str, fields["id2label"].values())))
    return config


def check_image_size(config: PretrainedConfig, image_size: int | None) -> None:
    """Raises ValueError when a pretrained ViT is asked for another size than its position embeddings have."""
    if image_size not in (None, config.image_size):
        raise ValueError(
            f"--image_size {image_size}: found a model pretrained for {config.image_size} pixels; leave the "
            "flag out, or pretrain one for the size you want with run_mae_pretrain.py --config_name"
        )


@contextlib.contextmanager
def _loading(name: str, revision: str) -> Iterator[None]:
    """Turns whatever the libraries end in when they read a model into one line that says what to do."""
    try:
        yield
    except Exception as error:
        logger.debug("Loading %s failed.", name, exc_info=True)
        where = f"the local folder {name}" if Path(name).is_dir() else f"{name!r}, revision {revision!r},"
        text = str(error) or type(error).__name__
        reason = " ".join(text.split()).split(". ")[0][:200]  # its first sentence
        raise OSError(
            f"--model_name_or_path: {where} could not be loaded ({reason}); name a folder with a model, "
            "a name in --hub_dir DIR or on a Hub that can be reached, or train from scratch: --config_name"
        ) from error


def _source(name: str, hub_dir: Path | None, revision: str) -> dict[str, Any]:
    """Returns the keywords by which transformers finds `name`: in `hub_dir` where that has it."""
    if hub_dir is not None and not Path(name).is_dir() and repository_dir(hub_dir, name).is_dir():
        return {"revision": revision, "cache_dir": str(hub_dir), "local_files_only": True}
    return {"revision": revision}


def _find_file(name: str, filename: str, hub_dir: Path | None, revision: str) -> Path | None:
    """Returns a model's file, None where it has none, or is a name whose files are not here yet."""
    if Path(name).is_dir():
        path = Path(name) / filename
        return path if path.is_file() else None
    cache_dir = _source(name, hub_dir, revision).get("cache_dir")
    path = try_to_load_from_cache(name, filename, cache_dir=cache_dir, revision=revision)
    return Path(path) if isinstance(path, str) else None


def _weight_files(name: str, hub_dir: Path | None, revision: str) -> list[Path]:
    """Returns the safetensors of a model, none for a name whose files are not here yet.

    Raises OSError for a folder without them, as a pickle can hold code, and ValueError for an index that
    names other files than safetensors beside it.
    """
    if Path(name).is_dir() and any(Path(name).glob("shard-*.safetensors")):  # they would come before others
        raise ValueError(
            f"--model_name_or_path {name}: found shard-*.safetensors, parts of a distributed checkpoint; "
            "expected model.safetensors: save it as one model"
        )
    if whole := _find_file(name, "model.safetensors", hub_dir, revision):
        return [whole]
    index = _find_file(name, "model.safetensors.index.json", hub_dir, revision)
    if index is None and Path(name).is_dir():
        raise OSError(
            f"--model_name_or_path {name}: found no model.safetensors, and other files, such as "
            "pytorch_model.bin, are not read, as they can hold code; expected safetensors: convert it with "
            "transformers where you trust it, by from_pretrained and save_pretrained"
        )
    if index is None:
        return []
    weight_map = read_json(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else [None]
    for one in names:
        if not isinstance(one, str) or Path(one).name != one or not one.endswith(".safetensors"):
            raise ValueError(
                f"{index}: found {str(one)[:50]!r}, expected names of safetensors files beside it"
            )
    return [index.parent / one for one in sorted(set(names))]


def _num_stored(path: Path) -> int:
    """Returns how many numbers are in a safetensors file, from its header."""
    with safe_open(path, framework="pt") as weights:
        return sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118


def load_pretrained(
    model_class: type[PreTrainedModel],
    name: str,
    *,
    config: PretrainedConfig,
    hub_dir: Path | None,
    revision: str,
    new_head: str | None = None,
) -> PreTrainedModel:
    """Loads `name` into `model_class`; only parameters of `new_head` may be missing or of another shape.

    Raises ValueError when others do: part of the model would silently start from random weights.
    """
    files = _weight_files(name, hub_dir, revision)
    _check_memory(model_class, config, where=f"--model_name_or_path {name}: config.json")
    with _loading(name, revision):
        stored = sum(map(_num_stored, files))
    # Checked before: what is missing would be made, however large it is.
    needed = _num_parameters(model_class, config, without=new_head)
    if files and needed > stored:
        raise ValueError(
            f"--model_name_or_path {name}: found {stored:,} parameters, expected the {needed:,} that its "
            f"config.json says a {model_class.__name__} has; restore the files, or name a complete checkpoint"
        )
    with _loading(name, revision):
        model, info = model_class.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,  # else the checkpoint's, and half precision cannot be trained
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **_source(name, hub_dir, revision),
        )
    fresh = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    unexplained = sorted(key for key in fresh if new_head is None or not key.startswith(new_head))
    if unexplained:
        raise ValueError(
            f"--model_name_or_path {name} does not fit {model_class.__name__}: {len(unexplained)} parameters "
            f"are missing or of another shape, first {unexplained[0]}; expected a complete checkpoint of it"
        )
    for key, values in model.state_dict().items():
        if not torch.isfinite(values).all():
            raise ValueError(
                f"--model_name_or_path {name}: found weights that are no finite numbers, first {key}; "
                "expected those of a training that did not diverge: name another checkpoint"
            )
    return _sharded_by_layer(model)


def load_image_processor(
    name: str | None, *, hub_dir: Path | None, revision: str, image_size: int
) -> ViTImageProcessor:
    """Returns the processor to store with a model: whole image to a square, gray to RGB, statistics.

    A pretrained model keeps the mean and standard deviation it was trained with; one from scratch (`name`
    None, or a model that has none) gets those of MIMIC-CXR-JPG, the same in all channels.
    """
    mean, std = [GRAY_MEAN] * 3, [GRAY_STD] * 3
    if name is not None:
        try:
            with _loading(name, revision):
                pretrained = AutoImageProcessor.from_pretrained(
                    name, trust_remote_code=False, **_source(name, hub_dir, revision)
                )
                mean, std = pretrained.image_mean, pretrained.image_std
        except OSError:
            if _find_file(name, "preprocessor_config.json", hub_dir, revision):
                raise  # damaged: other statistics than the model's would be fed to it
            logger.warning("%s has no image processor; it gets the statistics of MIMIC-CXR-JPG.", name)
        _check_statistics(mean, std, where=f"--model_name_or_path {name}: preprocessor_config.json")
    return ViTImageProcessor(
        size={"height": image_size, "width": image_size},
        image_mean=list(mean),
        image_std=list(std),
        do_convert_rgb=True,
    )


def _check_statistics(mean: Any, std: Any, *, where: str) -> None:
    """Raises ValueError unless both are of three channels whose values are from 0 to 1."""
    for name, values, least in (("image_mean", mean, 0.0), ("image_std", std, 0.001)):
        if (
            not isinstance(values, list | tuple)
            or len(values) != 3
            or not all(type(value) in (int, float) and least <= value <= 1 for value in values)
        ):
            raise ValueError(
                f"{where}: found {name}={str(values)[:50]}, expected three numbers from {least:g} to 1"
            )


def _sharded_by_layer(model: PreTrainedModel) -> PreTrainedModel:
    """Makes FSDP shard `model` layer by layer.

    Accelerate shards the patch embedding by itself; that fails in the unit that transformers has around it.
    """
    model._no_split_modules = [name for name in model._no_split_modules or [] if name.endswith("Layer")]
    return model


def new_mae(config: ViTMAEConfig) -> ViTMAEForPreTraining:
    """Returns an untrained masked autoencoder, initialised as He et al. do.

    transformers 5 leaves the position embeddings, class token and mask token of a model made from a
    configuration at zero: such a model cannot know where a patch was. They are set here.
    """
    model = _sharded_by_layer(ViTMAEForPreTraining(config))
    separate = []  # He et al. initialise query, key and value as one matrix, of three times the height
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, ViTMAEAttention):
            separate.extend([module.q_proj, module.k_proj, module.v_proj])
    for projection in separate:
        nn.init.xavier_uniform_(projection.weight, gain=0.5**0.5)
    embeddings, decoder = model.vit.embeddings, model.decoder
    patches = embeddings.patch_embeddings.projection.weight
    nn.init.xavier_uniform_(patches.data.view(len(patches), -1))
    nn.init.normal_(embeddings.cls_token, std=config.initializer_range)
    nn.init.normal_(decoder.mask_token, std=config.initializer_range)
    grid_size = config.image_size // config.patch_size
    embeddings.position_embeddings.data.copy_(sin_cos_position_embeddings(grid_size, config.hidden_size))
    decoder.decoder_pos_embed.data.copy_(sin_cos_position_embeddings(grid_size, config.decoder_hidden_size))
    return model


def sin_cos_position_embeddings(grid_size: int, width: int) -> torch.Tensor:
    """Returns fixed 2-D position embeddings (1, 1 + grid_size², width), zero for the class token.

    The first half of the width encodes the column, the second the row, as in the published MAE checkpoints.
    """
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid_size, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (grid_size, width / 2)
    rows, columns = torch.meshgrid(torch.arange(grid_size), torch.arange(grid_size), indexing="ij")
    patches = torch.cat([axis[columns.flatten()], axis[rows.flatten()]], dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), patches])[None].float()


def classifier_config(config: PretrainedConfig, labels: list[str]) -> PretrainedConfig:
    """Returns the configuration of the classifier on an encoder; a ViT-MAE's loses decoder and masking."""
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    if config.model_type == "resnet":
        return ResNetConfig(**{**config.to_dict(), **names})
    same = {name: value for name, value in config.to_dict().items() if name in VIT_FIELDS}
    return ViTConfig(**same, encoder_stride=config.patch_size, **names)


def new_classifier(config: PretrainedConfig, labels: list[str]) -> PreTrainedModel:
    """Returns an untrained classifier; a ViT starts where its masked autoencoder would, to be compared."""
    if config.model_type == "resnet":
        return _sharded_by_layer(ResNetForImageClassification(classifier_config(config, labels)))
    model = _sharded_by_layer(ViTForImageClassification(classifier_config(config, labels)))
    model.vit.load_state_dict(new_mae(config).vit.state_dict())
    return model
