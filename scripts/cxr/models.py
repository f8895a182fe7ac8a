"""Models by name, from scratch or pretrained, and the image processor stored with each."""

import logging
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig
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
from cxr.transforms import GRAY_MEAN
from cxr.transforms import GRAY_STD

logger = logging.getLogger(__name__)


# What makes two ViT encoders the same network.
VIT_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
    "qkv_bias",
)


def make_config(config_name: str, *, overrides: str | None, image_size: int | None) -> PretrainedConfig:
    """Returns the configuration `config_name` with the image size and `overrides` ("key=value,...")."""
    if config_name in VIT_MAE_CONFIGS:
        config = ViTMAEConfig(**VIT_MAE_CONFIGS[config_name], image_size=image_size or DEFAULT_IMAGE_SIZE)
    else:
        config = ResNetConfig(**RESNET_CONFIGS[config_name])
    if overrides:
        try:
            config.update_from_string(overrides)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"--config_overrides {overrides}: {error}; expected keys of {config_name}"
            ) from error
    _check_values(config)
    if config.model_type == "vit_mae":
        _check_vit_mae(config)
    return config


def _check_values(config: PretrainedConfig) -> None:
    for name, value in config.to_dict().items():
        if (
            name.endswith(("_size", "_heads", "_layers", "_channels"))
            and isinstance(value, int)
            and value < 1
        ):
            raise ValueError(f"--config_overrides: found {name}={value}, expected a whole number from 1")
    for name, known in {"hidden_act": list(ACT2FN), "layer_type": ["basic", "bottleneck"]}.items():
        value = getattr(config, name, known[0])
        if value not in known:
            raise ValueError(f"--config_overrides: found {name}={value}, expected one of {', '.join(known)}")


def _check_vit_mae(config: ViTMAEConfig) -> None:
    if config.image_size % config.patch_size:
        raise ValueError(
            f"--image_size {config.image_size} is not a multiple of the patch size {config.patch_size}; "
            f"name one that is, or another with --config_overrides patch_size=N"
        )
    for side, width, heads in (
        ("", config.hidden_size, config.num_attention_heads),
        ("decoder_", config.decoder_hidden_size, config.decoder_num_attention_heads),
    ):
        if width % heads or width % 4:
            raise ValueError(
                f"--config_overrides: {side}hidden_size {width} must be a multiple of 4 and of "
                f"{side}num_attention_heads {heads}"
            )


def load_config(
    name: str, *, hub_dir: Path | None, revision: str, expected: tuple[str, ...]
) -> PretrainedConfig:
    """Returns a pretrained model's configuration. Raises ValueError or OSError with what to do instead."""
    if not Path(name).is_dir() and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise OSError(f"--model_name_or_path {name}: found no such folder; expected one with a model in it")
    config = _load(AutoConfig, name, hub_dir=hub_dir, revision=revision)
    if config.model_type not in expected:
        raise ValueError(
            f"--model_name_or_path {name} is a {config.model_type!r} model; expected {' or '.join(expected)}"
        )
    return config


def check_image_size(config: PretrainedConfig, image_size: int | None) -> None:
    """Raises ValueError when a pretrained ViT is asked for another size than its position embeddings have."""
    if image_size not in (None, config.image_size):
        raise ValueError(
            f"--image_size {image_size}: found a model pretrained for {config.image_size} pixels; leave the "
            "flag out, or pretrain one for the size you want with run_mae_pretrain.py --config_name"
        )


def _load(loader: Any, name: str, *, hub_dir: Path | None, revision: str, **options: Any) -> Any:
    """`loader.from_pretrained`, from `hub_dir` where it has the name, with an error that says what to do."""
    if hub_dir is not None and not Path(name).is_dir() and repository_dir(hub_dir, name).is_dir():
        options |= {"cache_dir": str(hub_dir), "local_files_only": True}
    try:
        return loader.from_pretrained(name, revision=revision, **options)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError, StrictDataclassError) as error:
        logger.debug("Loading %s failed.", name, exc_info=True)
        where = f"the local folder {name}" if Path(name).is_dir() else f"{name!r}, revision {revision!r},"
        reason = " ".join(str(error).split()).split(". ")[0][:200]  # its first sentence
        raise OSError(
            f"--model_name_or_path: {where} could not be loaded ({reason}); name a folder with a model, "
            "a name in --hub_dir DIR or on a Hub that can be reached, or train from scratch: --config_name"
        ) from error


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
    model, info = _load(
        model_class,
        name,
        hub_dir=hub_dir,
        revision=revision,
        config=config,
        dtype=torch.float32,  # else the checkpoint's, and half precision cannot be trained
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    fresh = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    unexplained = sorted(key for key in fresh if new_head is None or not key.startswith(new_head))
    if unexplained:
        raise ValueError(
            f"--model_name_or_path {name} does not fit {model_class.__name__}: {len(unexplained)} parameters "
            f"are missing or of another shape, first {unexplained[0]}; expected a complete checkpoint of it"
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
            pretrained = _load(AutoImageProcessor, name, hub_dir=hub_dir, revision=revision)
            mean, std = list(pretrained.image_mean), list(pretrained.image_std)
        except OSError:
            if (Path(name) / "preprocessor_config.json").exists():
                raise  # damaged: other statistics than the model's would be fed to it
            logger.warning("%s has no image processor; it gets the statistics of MIMIC-CXR-JPG.", name)
    return ViTImageProcessor(
        size={"height": image_size, "width": image_size}, image_mean=mean, image_std=std, do_convert_rgb=True
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
