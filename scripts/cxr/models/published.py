"""Reads checkpoints that others published: tensors by name, and what the file says of them; runs no code."""

import argparse
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cxr.choices import CHECKPOINT_FORMATS
from cxr.errors import UserError
from cxr.run_folder.files import read_json
from mimic_cxr_dataset.errors import one_line

# The entry of a training's checkpoint that has the weights; as in timm, an average of them comes first.
WEIGHTS = ("state_dict_ema", "model_ema", "model", "state_dict")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# medical_mae: its build_transform (util/datasets.py) fine-tunes on all chest X-rays with these, unless
# --norm_stats says imagenet. Its pretraining (main_pretrain_multi_datasets_xray.py) uses them for NIH
# ChestX-ray14, and those of ImageNet for CheXpert and MIMIC-CXR.
MEDICAL_MAE = ((0.5056,) * 3, (0.252,) * 3)
MEDICAL_MAE_DATASETS = ("chestxray", "chexpert", "covidx")  # its --dataset, when it fine-tunes


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a file holds."""

    path: Path
    tensors: dict[str, torch.Tensor]
    settings: dict[str, Any]  # the flags of the training that wrote it, if it says them
    of_timm: dict[str, Any]  # the config.json beside the file, if it is one of timm
    unused: dict[str, str]  # the file's other entries, and why they are not used

    def shape(self, name: str, num_dims: int) -> tuple[int, ...]:
        """Returns a tensor's shape. Raises UserError if it is missing or has other dimensions."""
        found = self.tensors.get(name)
        if found is None or found.ndim != num_dims:
            what = "no such tensor" if found is None else f"shape {tuple(found.shape)}"
            raise UserError(
                f"{self.path}: {name}: found {what}, expected {num_dims} dimensions; use a "
                "complete checkpoint"
            )
        return tuple(found.shape)


def read_checkpoint(path: Path) -> Checkpoint:
    """Returns the content of a safetensors or PyTorch file.

    Of a PyTorch file, only tensors, plain values and an argparse.Namespace are read, so that no code in it
    runs. Raises UserError for all other content.
    """
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: found {what}, expected a checkpoint file; check the path")
    if path.suffix not in CHECKPOINT_FORMATS:
        expected = ", ".join(CHECKPOINT_FORMATS)
        raise UserError(
            f"{path}: found a name that ends in {path.suffix[:20] or 'nothing'}, expected one of {expected}; "
            "name a checkpoint file"
        )
    content = _load(path)
    entry = next((name for name in WEIGHTS if isinstance(content.get(name), Mapping) and content[name]), None)
    weights = dict(content if entry is None else content[entry])
    weights.pop("n_averaged", None)  # of torch's AveragedModel
    for name, tensor in weights.items():
        _check_is_tensor(name, tensor, path)
    if not weights:
        raise UserError(f"{path}: found no tensors, expected those of a model; name another file")
    others = {} if entry is None else {name: content[name] for name in content if name != entry}
    settings, of_timm = others.get("args"), _read_timm_config(path)
    unused = {str(name): _why_unused(name, entry) for name in others}
    if not of_timm and path.with_name("config.json").is_file():
        unused["config.json"] = "a file beside it, but not timm's"
    return Checkpoint(
        path=path,
        tensors=_without_prefix(weights, "module."),  # of torch's DistributedDataParallel
        settings=dict(vars(settings)) if isinstance(settings, argparse.Namespace) else {},
        of_timm=of_timm,
        unused=unused,
    )


def _load(path: Path) -> Mapping:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about old formats before it reads or refuses them
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # any error: a damaged file can cause all kinds
        if code := re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error)):
            raise UserError(
                f"{path}: found {code[1]}, which is code and was not run; expected tensors, plain values and "
                "argparse.Namespace only: use another file, or ask its author for safetensors"
            ) from error
        reason = one_line(error).split(". ")[0][:100]
        raise UserError(
            f"{path}: found a file that cannot be read ({reason}), expected a complete checkpoint of "
            "PyTorch or safetensors: download it again"
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(
            f"{path}: found a {type(content).__name__}, expected tensors by name; name a checkpoint file"
        )
    return content


def _check_is_tensor(name: Any, tensor: Any, path: Path) -> None:
    is_dense = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and not tensor.is_quantized
    if not isinstance(name, str) or not is_dense or tensor.is_meta or tensor.is_complex():
        found = type(tensor).__name__ if not isinstance(tensor, torch.Tensor) else "another kind of tensor"
        raise UserError(
            f"{path}: {str(name)[:80]}: found {found}, expected a dense tensor of real numbers, or the "
            f"weights under {' or '.join(WEIGHTS)}; use another file"
        )


def _without_prefix(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    has_prefix = all(name.startswith(prefix) for name in tensors)
    return {name.removeprefix(prefix) if has_prefix else name: tensor for name, tensor in tensors.items()}


def _read_timm_config(path: Path) -> dict[str, Any]:
    """Returns the config.json that timm keeps beside its weights, {} if there is none, or another file."""
    try:
        content = read_json(path.with_name("config.json"))
    except (UserError, OSError):
        return {}
    statistics = content.get("pretrained_cfg")
    return content if isinstance(statistics, dict) and {"mean", "std"} <= statistics.keys() else {}


def _why_unused(name: Any, entry: str | None) -> str:
    if name == "args":
        return "flags of the training; read for the statistics, the decoder's heads and the loss"
    if name in WEIGHTS:
        return f"weights of the training; {entry} is used instead"
    return "state of the training, not of the model"


def find_statistics(checkpoint: Checkpoint) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """Returns mean and standard deviation per channel that a checkpoint was trained with, and who says so."""
    settings = checkpoint.settings
    if "datasets_names" in settings:
        return *MEDICAL_MAE, (
            "those of medical_mae's fine-tuning; its pretraining had ImageNet's for CheXpert and MIMIC-CXR"
        )
    if settings.get("dataset") in MEDICAL_MAE_DATASETS and settings.get("norm_stats") is None:
        return *MEDICAL_MAE, "medical_mae's for chest X-rays"
    if checkpoint.of_timm:
        of_timm = checkpoint.of_timm["pretrained_cfg"]
        return of_timm["mean"], of_timm["std"], "those in timm's config.json beside the file"
    return *IMAGENET, "ImageNet's, the default"
