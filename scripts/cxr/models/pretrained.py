"""Loads pretrained models by folder or name, and the image processor stored with each."""

import contextlib
import functools
import hashlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.utils import get_session
from safetensors import safe_open
from transformers import AutoImageProcessor
from transformers import PretrainedConfig
from transformers import PreTrainedModel
from transformers import ViTImageProcessor

from cxr.choices import CHECKPOINT_FORMATS
from cxr.choices import DEFAULT_IMAGE_SIZE
from cxr.data.transforms import GRAY_MEAN
from cxr.data.transforms import GRAY_STD
from cxr.errors import UserError
from cxr.errors import did_you_mean
from cxr.models import configs
from cxr.models.architectures import CONFIGS
from cxr.models.architectures import is_untrained
from cxr.models.positions import at_image_size
from cxr.models.scratch import sharded_by_layer
from cxr.run_folder.files import read_json
from cxr.run_folder.files import sha256_of
from cxr.sharing import local_hub
from mimic_cxr_dataset.errors import one_line

logger = logging.getLogger(__name__)
MAX_SIDE = 2**14  # pixels
HUB_SECONDS = 5  # time for the Hub to answer
MODEL_FILES = ["*.json", "*.md", "*.png", "*.safetensors"]  # those that are downloaded from the Hub


def load_config(
    name: str, *, hub_dir: Path | None, revision: str, expected: tuple[str, ...]
) -> PretrainedConfig:
    """Returns a pretrained model's configuration. Raises UserError if there is none or it is not usable."""
    fields = read_config(name, hub_dir=hub_dir, revision=revision)
    if fields["model_type"] not in expected:
        raise UserError(
            f"model {name}: found model_type {fields['model_type'][:50]}, expected {' or '.join(expected)}: "
            "name another"
        )
    return configs.config_from_json(fields, where=f"model {name}: config.json")


def read_config(name: str, *, hub_dir: Path | None, revision: str) -> dict[str, Any]:
    """Returns a pretrained model's config.json, of which only model_type is checked. Raises UserError."""
    _check_name(name)
    if Path(name).is_dir() and revision != "main":
        raise UserError(
            f"--model_revision {revision}: found the local folder {name}, which has no revisions; leave the "
            "flag out, or name a model in --hub_dir or on the Hub"
        )
    source = _source(name, hub_dir, revision)
    if "cache_dir" in source and not find_file(name, "config.json", hub_dir=hub_dir, revision=revision):
        raise UserError(
            f"model {name}: found no revision {revision} in --hub_dir {hub_dir}; expected --model_revision "
            "main, a tag or a full commit hash, as hub.py log lists them"
        )
    with _loading(name, revision, hub_dir):
        fields, _ = PretrainedConfig.get_config_dict(name, **source)
        if not isinstance(fields.get("model_type"), str):
            raise UserError("found no config.json with a model_type")
    return fields


def _check_name(name: str) -> None:
    """Raises UserError for a file, and for what can be neither a folder nor a model on the Hub."""
    if Path(name).is_file():
        raise UserError(
            f"model {name}: found a file; expected a folder with config.json and model.safetensors, or "
            f"ORG/NAME{how_to_convert(name)}"
        )
    if not Path(name).is_dir() and not local_hub.MODEL_ID.fullmatch(name):
        scratch = did_you_mean(name, CONFIGS).replace("mean ", "mean --config_name ")
        raise UserError(
            f"model {name}: found no such folder{scratch}; expected one with a model in it, or ORG/NAME"
        )


def how_to_convert(name: str) -> str:
    """Returns what to do with a file that is named in place of a model, "" if it is no checkpoint."""
    path = Path(name)
    if path.suffix not in CHECKPOINT_FORMATS:
        return ""
    return f": make one of this file with scripts/convert_checkpoint.py {name} {path.with_suffix('')}"


def download(name: str, *, hub_dir: Path | None, revision: str) -> Path | None:
    """Downloads all files of a model on the Hub; returns the directory in which its name is then found.

    That is the Hub's cache. For a folder or a model in `hub_dir`, nothing is downloaded and `hub_dir` is
    returned. Raises UserError.
    """
    _check_name(name)
    source = _source(name, hub_dir, revision)
    if Path(name).is_dir() or "cache_dir" in source:
        return hub_dir
    with _loading(name, revision):
        snapshot_download(name, allow_patterns=MODEL_FILES, **source)
    return Path(HF_HUB_CACHE)


def check_image_size(config: PretrainedConfig, image_size: int | None) -> None:
    """Raises UserError if a pretrained ViT cannot have `image_size`: its patch size stays."""
    if image_size is not None:
        configs.check_fields({**config.to_dict(), "image_size": image_size}, where="--image_size")


@contextlib.contextmanager
def _loading(name: str, revision: str, hub_dir: Path | None = None) -> Iterator[None]:
    """Turns any error of the libraries that read a model into a UserError that says what to do."""
    try:
        yield
    except Exception as error:
        logger.debug("Loading %s failed.", name, exc_info=True)
        where = name if Path(name).is_dir() else f"{name}, revision {revision}"
        text = str(error) or type(error).__name__
        reason = " ".join(text.split()).split(". ")[0].rstrip(".")[:200]  # its first sentence
        in_hub_dir = local_hub.model_ids(hub_dir) if hub_dir else []
        known = f"{hub_dir}, which has {', '.join(in_hub_dir) or 'none'}," if hub_dir else "DIR"
        meant = f" (did you mean --config_name {name}?)" if is_untrained(name) else ""
        meant = meant or did_you_mean(name, in_hub_dir)
        raise UserError(
            f"model {where}: could not be loaded ({reason}){meant}; name a folder "
            f"with a complete model, or ORG/NAME in --hub_dir {known} or on a reachable Hub"
        ) from error


def _source(name: str, hub_dir: Path | None, revision: str) -> dict[str, Any]:
    """Returns the keywords with which transformers finds `name`, in `hub_dir` if the model is there."""
    if Path(name).is_dir():
        return {"revision": revision}
    if hub_dir is not None and local_hub.repository_dir(hub_dir, name).is_dir():
        return {"revision": revision, "cache_dir": str(hub_dir), "local_files_only": True}
    return {"revision": revision, "local_files_only": not _reaches_hub()}


@functools.cache
def _reaches_hub() -> bool:
    """Returns whether the Hub answers. If not, the libraries would retry for half a minute."""
    if is_offline_mode():
        return False
    try:
        get_session().head(ENDPOINT, timeout=HUB_SECONDS)
    except Exception as error:  # any error: its type depends on the HTTP library, which has changed before
        logger.debug("%s cannot be reached (%s): only local models are found", ENDPOINT, one_line(error))
        return False
    return True


def find_file(name: str, filename: str, *, hub_dir: Path | None, revision: str) -> Path | None:
    """Returns a model's file; None if the model does not have it or is not downloaded yet."""
    if Path(name).is_dir():
        path = Path(name) / filename
        return path if path.is_file() else None
    cache_dir = _source(name, hub_dir, revision).get("cache_dir")
    path = try_to_load_from_cache(name, filename, cache_dir=cache_dir, revision=revision)
    return Path(path) if isinstance(path, str) else None


def identify(name: str, *, hub_dir: Path | None, revision: str) -> str:
    """Returns the commit of a downloaded model or, for a folder, the hash of its files."""
    config = find_file(name, "config.json", hub_dir=hub_dir, revision=revision)
    if not Path(name).is_dir():
        return config.parent.name  # in the Hub's layout, a snapshot's folder has the name of its commit
    hashes = [sha256_of(path) for path in (config, *_weight_files(name, hub_dir, revision))]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def read_object(name: str, filename: str, *, hub_dir: Path | None, revision: str) -> dict[str, Any]:
    """Returns the object in a model's JSON file, an empty one if there is no file. Raises UserError."""
    path = find_file(name, filename, hub_dir=hub_dir, revision=revision)
    with _loading(name, revision):
        return read_json(path) if path else {}


def stored_input_size(name: str, *, hub_dir: Path | None, revision: str) -> int:
    """Returns the image processor's output size; a ResNet's config has none, as it takes any size.

    Without one, a config.json of timm has it. Downloads a model of the Hub, so that the answer is the same
    before and after.
    """
    source = {"hub_dir": download(name, hub_dir=hub_dir, revision=revision), "revision": revision}
    size = read_object(name, "preprocessor_config.json", **source).get("size", {})
    sides = size.values() if isinstance(size, dict) else [size]
    of_timm = _input_of_timm(name, **source)
    if of_timm and isinstance(of_timm.get("input_size"), list):
        sides = of_timm["input_size"][1:]  # channels, height, width
    found = {side for side in sides if type(side) is int and 0 < side <= MAX_SIDE}
    return found.pop() if len(found) == 1 else DEFAULT_IMAGE_SIZE


def _weight_files(name: str, hub_dir: Path | None, revision: str) -> list[Path]:
    """Returns the safetensors files of a model, none if it is not downloaded yet.

    Raises UserError for a folder without them, because a pickle can hold code, and for an index that names
    anything but safetensors files beside it.
    """
    if Path(name).is_dir() and any(Path(name).glob("shard-*.safetensors")):  # transformers prefers these
        raise UserError(
            f"model {name}: found shard-*.safetensors, parts of a distributed checkpoint; "
            "expected model.safetensors: save it as one model"
        )
    if whole := find_file(name, "model.safetensors", hub_dir=hub_dir, revision=revision):
        return [whole]
    index = find_file(name, "model.safetensors.index.json", hub_dir=hub_dir, revision=revision)
    if index is None and Path(name).is_dir():
        raise UserError(
            f"model {name}: found no model.safetensors, and other files, such as pytorch_model.bin, are not "
            "read, because they can hold code; expected safetensors: restore the file or, if you trust the "
            "model, convert it with from_pretrained and save_pretrained of transformers"
        )
    if index is None:
        return []
    weight_map = read_object(name, index.name, hub_dir=hub_dir, revision=revision).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else [None]
    for one in names:
        if not isinstance(one, str) or Path(one).name != one or not one.endswith(".safetensors"):
            raise UserError(
                f"model {name}: {index.name}: found {str(one)[:50]!r}, expected names of safetensors files "
                "beside it"
            )
    return [index.parent / one for one in sorted(set(names))]


def _num_stored(path: Path) -> int:
    """Returns how many numbers a safetensors file holds, according to its header."""
    with safe_open(path, framework="pt") as weights:
        return sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118


def load_pretrained(
    model_class: type[PreTrainedModel],
    name: str,
    *,
    config: PretrainedConfig,
    hub_dir: Path | None,
    revision: str,
    new_head: tuple[str, ...] = (),
    image_size: int | None = None,
) -> PreTrainedModel:
    """Loads `name` into `model_class`; only parameters whose names begin as `new_head` says may be missing.

    They may also have another shape. Raises UserError for any other, of which the model would silently start
    from random weights. A ViT becomes one for `image_size`, if that is given and differs from its own.
    """
    files = _weight_files(name, hub_dir, revision)
    configs.check_memory(model_class, config, where=f"model {name}: config.json")
    with _loading(name, revision):
        stored = sum(map(_num_stored, files))
    # Checked before loading, which would create missing parameters, however large they are.
    needed = configs.num_parameters(model_class, config, without=new_head)
    if files and needed > stored:
        raise UserError(
            f"model {name}: found {stored:,} parameters, expected the {needed:,} that its "
            f"config.json says a {model_class.__name__} has; restore the files, or name a complete checkpoint"
        )
    with _loading(name, revision):
        model, info = model_class.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,  # not the checkpoint's: half precision cannot be trained
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **_source(name, hub_dir, revision),
        )
    fresh = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    unexplained = sorted(key for key in fresh if not key.startswith(new_head))
    if unexplained:
        raise UserError(
            f"model {name}: found {len(unexplained)} parameters of {model_class.__name__} missing or of "
            f"another shape, first {unexplained[0]}; expected a complete checkpoint: name another"
        )
    for key, values in model.state_dict().items():
        if not torch.isfinite(values).all():
            raise UserError(
                f"model {name}: found NaN or infinite weights, first {key}; "
                "expected those of a training that did not diverge: name another checkpoint"
            )
    if hasattr(config, "image_size") and image_size not in (None, config.image_size):
        model = at_image_size(model, image_size)
    return sharded_by_layer(model)


def load_image_processor(
    name: str | None, *, hub_dir: Path | None, revision: str, image_size: int
) -> ViTImageProcessor:
    """Returns the image processor to store with a model: it resizes, makes gray images RGB and normalises.

    A pretrained model keeps the mean and standard deviation it was trained with. A model from scratch
    (`name` is None) or without a processor gets those of MIMIC-CXR-JPG, the same for all channels.
    """
    mean, std = [GRAY_MEAN] * 3, [GRAY_STD] * 3
    of_timm = None if name is None else _input_of_timm(name, hub_dir=hub_dir, revision=revision)
    if of_timm is not None:
        mean, std = of_timm.get("mean"), of_timm.get("std")
    elif name is not None:
        try:
            with _loading(name, revision):
                pretrained = AutoImageProcessor.from_pretrained(
                    name, trust_remote_code=False, **_source(name, hub_dir, revision)
                )
                mean, std = pretrained.image_mean, pretrained.image_std
        except UserError:
            if find_file(name, "preprocessor_config.json", hub_dir=hub_dir, revision=revision):
                raise  # damaged: the model would get images normalised with other statistics
            logger.warning(
                "%s has no preprocessor_config.json: its images are normalised with the mean and standard "
                "deviation of MIMIC-CXR-JPG",
                name,
            )
    return new_image_processor(
        mean=mean, std=std, image_size=image_size, where=f"model {name}: preprocessor_config.json"
    )


def _input_of_timm(name: str, *, hub_dir: Path | None, revision: str) -> dict[str, Any] | None:
    """Returns what a config.json of timm says of the input, if no image processor is beside it."""
    source = {"hub_dir": hub_dir, "revision": revision}
    of_timm = read_config(name, **source).get("pretrained_cfg")
    if not isinstance(of_timm, dict) or find_file(name, "preprocessor_config.json", **source):
        return None
    return of_timm


def new_image_processor(*, mean: Any, std: Any, image_size: int, where: str) -> ViTImageProcessor:
    """Returns an image processor with these statistics of pixels in [0, 1], one number per channel.

    Raises UserError, beginning with `where`, for statistics that no images have.
    """
    _check_statistics(mean, std, where=where)
    return ViTImageProcessor(
        size={"height": image_size, "width": image_size},
        image_mean=list(mean),
        image_std=list(std),
        do_convert_rgb=True,
    )


def _check_statistics(mean: Any, std: Any, *, where: str) -> None:
    """Raises UserError unless both have three numbers, one per channel, from 0 to 1."""
    for name, values, least in (("image_mean", mean, 0.0), ("image_std", std, 0.001)):
        if (
            not isinstance(values, list | tuple)
            or len(values) != 3
            or not all(type(value) in (int, float) and least <= value <= 1 for value in values)
        ):
            raise UserError(
                f"{where}: found {name}={str(values)[:50]}, expected three numbers from {least:g} to 1"
            )
