"""Makes and checks configurations of models, from a flag, a config.json, or this repository."""

from typing import Any

import psutil
import torch
from pydantic import ValidationError
from transformers import Dinov2Config
from transformers import PretrainedConfig
from transformers import PreTrainedModel
from transformers import ResNetConfig
from transformers import ResNetForImageClassification
from transformers import TimmWrapperConfig
from transformers import TimmWrapperForImageClassification
from transformers import ViTConfig
from transformers import ViTMAEConfig
from transformers import ViTMAEForPreTraining
from transformers.activations import ACT2FN

from cxr.errors import UserError
from cxr.models import timm_networks
from cxr.models.architectures import FIELDS
from cxr.models.architectures import Dinov2Fields
from cxr.models.architectures import TimmFields
from cxr.models.architectures import VitFields
from cxr.models.architectures import VitMaeFields
from cxr.models.architectures import find_architecture
from cxr.models.architectures import override
from cxr.run_folder.fields import first_problem

CONFIG_CLASSES = {
    "vit": ViTConfig,
    "vit_mae": ViTMAEConfig,
    "dinov2": Dinov2Config,
    "resnet": ResNetConfig,
    "timm_wrapper": TimmWrapperConfig,
}


def make_config(config_name: str, *, overrides: str | None, image_size: int | None) -> PretrainedConfig:
    """Returns the configuration `config_name` with the image size and `overrides` ("key=value,...")."""
    where = f"--config_name {config_name}, --config_overrides, --image_size"
    fields = override(find_architecture(config_name), overrides, image_size=image_size)
    if isinstance(fields, TimmFields):
        return _timm_config(fields, where=where)
    if isinstance(fields, VitMaeFields):
        config, model_class = ViTMAEConfig(**fields.model_dump()), ViTMAEForPreTraining
    else:
        config, model_class = ResNetConfig(**fields.model_dump()), ResNetForImageClassification
    check_fields(config.to_dict(), where="--config_overrides, --image_size")
    check_memory(model_class, config, where=where)
    return config


def config_from_json(fields: dict[str, Any], *, where: str) -> PretrainedConfig:
    """Returns the configuration in the `fields` of a pretrained model's config.json; its model_type is known.

    Raises UserError, beginning with `where`, for a value that no model can have.
    """
    checked = check_fields(fields, where=where)
    if fields["model_type"] == "timm_wrapper":
        config = _timm_config(TimmFields.model_validate(checked), where=where)
    else:
        config = CONFIG_CLASSES[fields["model_type"]](**checked)
    # What the stored head was trained for: run_classification.py warns if its labels are others.
    if isinstance(fields.get("architectures"), list) and (labels := stored_labels(fields, where=where)):
        config.architectures = [str(one) for one in fields["architectures"]]
        config.id2label = dict(enumerate(labels))
    return config


def stored_labels(fields: dict[str, Any], *, where: str) -> list[str]:
    """Returns the labels of a classifier that its config.json names, the wrapper of timm by another field.

    Their order is that of the numbers in `id2label`. Raises UserError, beginning with `where`, if one is
    missing.
    """
    by_id, in_order = fields.get("id2label"), fields.get("label_names")
    if isinstance(by_id, dict):
        if by_id.keys() != {*map(str, range(len(by_id)))}:
            raise UserError(
                f"{where}: id2label: found the numbers {', '.join(by_id)[:100]}, expected 0 to "
                f"{len(by_id) - 1}; correct them"
            )
        return [str(by_id[str(number)]) for number in range(len(by_id))]
    return list(map(str, in_order)) if isinstance(in_order, list) else []


def _timm_config(fields: TimmFields, *, where: str) -> TimmWrapperConfig:
    """Returns the configuration of a network of timm. Raises UserError unless timm can make it here."""
    config = TimmWrapperConfig(architecture=fields.architecture, model_args=dict(fields.arguments))
    with torch.device("meta"):
        timm_networks.make_network(fields.architecture, fields.arguments, num_labels=2, where=where)
    check_memory(TimmWrapperForImageClassification, config, where=where)
    return config


def classifier_config(
    config: PretrainedConfig, labels: list[str], *, multi_label: bool = False
) -> PretrainedConfig:
    """Returns the configuration of a classifier on an encoder; a ViT-MAE loses its decoder and masking.

    `labels` are the names of label 0 and label 1, or those of all labels of a `multi_label` head.
    """
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    names |= {"problem_type": "multi_label_classification"} if multi_label else {}
    if config.model_type == "resnet":
        return ResNetConfig(**{**config.to_dict(), **names})
    if config.model_type == "timm_wrapper":
        return TimmWrapperConfig(architecture=config.architecture, model_args=config.model_args, **names)
    if config.model_type == "dinov2":  # its mask token is for pretraining only
        same = {name: value for name, value in config.to_dict().items() if name in Dinov2Fields.model_fields}
        return Dinov2Config(**same, use_mask_token=False, **names)
    same = {name: value for name, value in config.to_dict().items() if name in VitFields.model_fields}
    return ViTConfig(**same, encoder_stride=config.patch_size, **names)


def check_fields(values: dict[str, Any], *, where: str) -> dict[str, Any]:
    """Returns the FIELDS of a configuration. Raises UserError, beginning with `where`, if one is invalid."""
    try:
        fields = FIELDS[values["model_type"]].model_validate(values).model_dump()
    except ValidationError as error:
        raise UserError(f"{where}: {first_problem(error)}: change it") from error
    if fields.get("hidden_act", "gelu") not in ACT2FN:
        raise UserError(
            f"{where}: found hidden_act={fields['hidden_act']!r:.50}, expected one of {', '.join(ACT2FN)}: "
            "change it"
        )
    return fields


def num_parameters(
    model_class: type[PreTrainedModel], config: PretrainedConfig, *, without: tuple[str, ...] = ()
) -> int:
    """Returns the number of parameters of a model, without making it.

    Parameters whose names begin with one of `without` do not count.
    """
    with torch.device("meta"):
        parameters = dict(model_class(config).named_parameters())
    return sum(parameter.numel() for name, parameter in parameters.items() if not name.startswith(without))


def check_memory(model_class: type[PreTrainedModel], config: PretrainedConfig, *, where: str) -> None:
    """Raises UserError for a model that does not fit into this machine's memory, before it is made."""
    needed, available = 4 * num_parameters(model_class, config), psutil.virtual_memory().total
    if needed > available:
        raise UserError(
            f"{where}: found a model that takes {needed / 2**30:,.0f} GiB, expected one that fits into "
            f"the {available / 2**30:,.0f} GiB of this machine: take a smaller one"
        )
