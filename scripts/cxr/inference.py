"""A trained classifier, as a user has it: from its folder or name to the probabilities of images.

What `run_classification.py` saves is enough: the network, the statistics and size of its input, the names of
the labels, and three numbers of its own in config.json, which may be absent in a model of other origin:

    decision_threshold  the probability from which the positive label is decided on (absent: 0.5)
    cache_image_size    the shortest side in pixels of the images that the run saw (absent: 8/7 of the input)
    trained_view        frontal, lateral or all (absent: frontal)
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from transformers import PreTrainedModel
from transformers import ResNetForImageClassification
from transformers import ViTForImageClassification

from cxr import models
from cxr.architectures import DEFAULT_IMAGE_SIZE
from cxr.data import default_cache_image_size
from cxr.hub import MODEL_ID
from cxr.hub import repository_dir
from cxr.records import read_json
from cxr.sources import dataset_module
from cxr.transforms import Normalizer
from cxr.transforms import evaluation_transform

CLASSIFIERS = {"vit": ViTForImageClassification, "resnet": ResNetForImageClassification}
DEFAULT_THRESHOLD = 0.5
DEFAULT_VIEW = "frontal"
MAX_SIDE = 2**14  # pixels
LOCAL = {"hub_dir": None, "revision": "main"}  # where cxr.models looks: in the folder
MODEL_FILES = ["*.json", "*.md", "*.png", "*.safetensors"]


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A binary classifier with all that is needed to use it as it was evaluated."""

    name: str  # as the user gave it
    model: PreTrainedModel  # float32, in evaluation mode, on `device`
    device: torch.device
    image_size: int  # side of the square input, in pixels
    shortest_side: int  # in pixels, that an original is shrunk to before
    image_mean: tuple[float, ...]  # of three channels, of pixels in [0, 1]
    image_std: tuple[float, ...]
    labels: tuple[str, str]  # negative, positive
    threshold: float  # the positive label is decided on from this probability
    has_threshold: bool  # whether the model came with it
    trained_view: str  # frontal, lateral or all

    def prepare(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns the model's view of a radiograph: (1, H, W) to (1, image_size, image_size), both uint8."""
        return evaluation_transform(self.image_size)(pixels)

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Returns `pixel_values` (B, 3, S, S) float32, on the device, of prepared images (B, 1, S, S)."""
        return Normalizer(self.image_mean, self.image_std, self.device)(images)

    @torch.no_grad()
    def probabilities(self, images: torch.Tensor) -> np.ndarray:
        """Returns the probability of the positive label (B,), float64, of prepared images (B, 1, S, S)."""
        logits = self.model(pixel_values=self.normalize(images)).logits
        return logits.float().cpu().double().softmax(dim=1)[:, 1].numpy()

    def decide(self, probability: float) -> str:
        """Returns the label that a probability means."""
        return self.labels[bool(probability >= self.threshold)]


def find_model(name: str, *, hub_dir: Path | None, revision: str = "main") -> Path:
    """Returns the folder of a model: `name` itself or, for organisation/name, its revision in `hub_dir`.

    Where `hub_dir` is None or has no such name, the Hub is asked. Raises ValueError or OSError.
    """
    if Path(name).is_dir():
        if revision != "main":
            raise ValueError(
                f"--model_revision {revision}: found the local folder {name}, which has no revisions; leave "
                "the flag out, or name a model in --hub_dir or on the Hub"
            )
        return Path(name)
    if not MODEL_ID.fullmatch(name):
        raise OSError(f"MODEL {name}: found no such folder; expected one with a model in it")
    source: dict[str, Any] = {}
    if hub_dir is not None and repository_dir(hub_dir, name).is_dir():
        source = {"cache_dir": hub_dir, "local_files_only": True}
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=MODEL_FILES, **source))
    except Exception as error:  # of the Hub's, httpx's and the system's
        raise OSError(
            f"MODEL {name}, revision {revision!r}: found in no place ({type(error).__name__}); expected a "
            "folder with a model, or a name in --hub_dir DIR or on a Hub that can be reached"
        ) from error


def load_classifier(
    name: str, *, hub_dir: Path | None = None, revision: str = "main", device: str = "auto"
) -> Classifier:
    """Returns the classifier in the folder `name`, or of that name in `hub_dir` or on the Hub.

    `device` is torch's name of one; "auto" is a GPU where there is one. Raises ValueError or OSError, in one
    line, for a model that is no binary classifier of images, or is damaged.
    """
    chosen = choose_device(device)
    folder = find_model(name, hub_dir=hub_dir, revision=revision)
    with _named(name, folder):
        fields = read_json(folder / "config.json")
        _check_is_binary_classifier(fields, folder)
        config = models.load_config(str(folder), expected=tuple(CLASSIFIERS), **LOCAL)
        labels = list(config.id2label.values())
        image_size = config.image_size if config.model_type == "vit" else _stored_input_size(folder)
        processor = models.load_image_processor(str(folder), image_size=image_size, **LOCAL)
        model = models.load_pretrained(
            CLASSIFIERS[config.model_type],
            str(folder),
            config=models.classifier_config(config, labels),
            **LOCAL,
        )
        stored = _stored(fields, folder, image_size=image_size)
    return Classifier(
        name=name,
        model=model.to(chosen).eval(),
        device=chosen,
        image_size=image_size,
        shortest_side=stored["cache_image_size"],
        image_mean=tuple(processor.image_mean),
        image_std=tuple(processor.image_std),
        labels=(labels[0], labels[1]),
        threshold=stored["decision_threshold"],
        has_threshold="decision_threshold" in fields,
        trained_view=stored["trained_view"],
    )


def choose_device(name: str) -> torch.device:
    """Returns the device of that name. Raises ValueError for one that is not here."""
    gpus = [kind for kind in ("cuda", "mps") if getattr(torch, kind).is_available()]
    if name == "auto":
        name = next(iter(gpus), "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        here = " or ".join(["auto", "cpu", *gpus])
        raise ValueError(f"--device {name}: found no such device; expected {here}") from error
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # else probabilities are not a CPU's
    return device


@contextlib.contextmanager
def _named(name: str, folder: Path) -> Iterator[None]:
    """Puts errors about a model, which name the flag of a training and a folder, into this user's words."""
    try:
        yield
    except (ValueError, OSError) as error:
        text = str(error).replace("--model_name_or_path: ", "").replace("--model_name_or_path ", "")
        text = text.replace(", or train from scratch: --config_name", "").replace(str(folder), name)
        raise ValueError(f"MODEL {text}") from error


def _check_is_binary_classifier(fields: dict[str, Any], folder: Path) -> None:
    """Raises ValueError unless config.json, whose `fields` these are, is that of a head for two labels."""
    model_type, found = fields.get("model_type"), fields.get("architectures")
    if model_type == "vit_mae":
        raise ValueError(
            f"{folder} is a masked autoencoder without a classifier; expected one that run_classification.py "
            "fine-tuned"
        )
    if model_type not in CLASSIFIERS or found != [CLASSIFIERS[model_type].__name__]:
        expected = " or ".join(one.__name__ for one in CLASSIFIERS.values())
        raise ValueError(f"{folder} is {str(found or model_type)[:100]}, expected {expected}")
    labels = fields.get("id2label")
    # transformers leaves its default, two labels without names, out of the file.
    num_labels = len(labels) if isinstance(labels, dict) else 2
    if num_labels != 2:
        raise ValueError(f"{folder} has a head for {num_labels} labels, expected 2: negative and positive")


def _stored_input_size(folder: Path) -> int:
    """Returns the side of the square that the image processor makes; a ResNet takes images of any size."""
    size = read_json(folder / "preprocessor_config.json").get("size", {})
    sides = size.values() if isinstance(size, dict) else [size]
    found = {side for side in sides if type(side) is int and 0 < side <= MAX_SIDE}
    return found.pop() if len(found) == 1 else DEFAULT_IMAGE_SIZE


def _stored(fields: dict[str, Any], folder: Path, *, image_size: int) -> dict[str, Any]:
    """Returns what a run of ours stored in config.json, or its defaults. Raises ValueError for nonsense."""
    views = tuple(dataset_module().VIEWS)
    rules = {
        "decision_threshold": (
            DEFAULT_THRESHOLD,
            lambda value: type(value) in (int, float) and 0 <= value <= 1,
            "a probability",
        ),
        "cache_image_size": (
            default_cache_image_size(image_size),
            lambda value: type(value) is int and 0 < value <= MAX_SIDE,
            f"a whole number from 1 to {MAX_SIDE}",
        ),
        "trained_view": (DEFAULT_VIEW, lambda value: value in views, " or ".join(views)),
    }
    stored = {}
    for name, (default, is_valid, expected) in rules.items():
        stored[name] = fields.get(name, default)
        if not is_valid(stored[name]):
            found = str(stored[name])[:50]
            raise ValueError(f"{folder}: config.json: found {name}={found}, expected {expected}")
    return stored
