"""Loads a trained classifier by its folder or name, and computes the probabilities of images.

It needs only what `run_classification.py` saves: the network, the statistics and size of its input, the names
of the labels, and `ModelFields` in config.json, which a model from elsewhere may lack.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel

from cxr.choices import VIEWS
from cxr.data.images import default_cache_image_size
from cxr.data.transforms import Normalizer
from cxr.data.transforms import evaluation_transform
from cxr.errors import UserError
from cxr.inference.radiographs import Radiograph
from cxr.models import heads
from cxr.models.configs import classifier_config
from cxr.models.configs import config_from_json
from cxr.models.configs import stored_labels
from cxr.models.families import FAMILIES
from cxr.models.families import own_size
from cxr.models.pretrained import download
from cxr.models.pretrained import load_image_processor
from cxr.models.pretrained import load_pretrained
from cxr.models.pretrained import read_config
from cxr.models.pretrained import stored_input_size
from cxr.run_folder.model_fields import ModelFields
from mimic_cxr_dataset.gray_levels import looks_equalized
from mimic_cxr_dataset.radiographs import Reading

CLASSIFIERS = {kind: one.classifier for kind, one in FAMILIES.items() if kind != "vit_mae"}
DEFAULT_THRESHOLD = ModelFields().decision_threshold
MAX_LABELS = 100  # of a model with several labels
EQUALIZED_UNKNOWN = (
    "does not say whether its training images were equalised: DICOM files and images of more than 8 bits are "
    "equalised, as in MIMIC-CXR-JPG; if its training images were not, use --equalize no"
)


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A classifier with everything needed to use it exactly as it was evaluated.

    A binary one has two labels, negative and positive, and says how probable the positive one is. A
    multi-label one says so of each label.
    """

    name: str  # as given by the user
    model: PreTrainedModel  # float32, in evaluation mode, on `device`
    device: torch.device
    image_size: int  # side of the square input, in pixels
    shortest_side: int  # pixels; original images are first shrunk to this
    image_mean: tuple[float, ...]  # per channel (3), of pixels in [0, 1]
    image_std: tuple[float, ...]
    labels: tuple[str, ...]  # negative and positive; or those of a multi-label model
    thresholds: tuple[float, ...]  # of each finding: it is called at this probability and above
    has_threshold: bool  # whether the thresholds come from the model's config.json
    threshold_level: str | None  # image or study, whose probability they were chosen for; None: unknown
    trained_view: str | None  # frontal, lateral or all; None: unknown
    trained_equalized: bool | None = None  # whether the training images were equalised; None is unknown

    @property
    def is_multi_label(self) -> bool:
        return heads.is_multi_label(self.model.config)

    @property
    def has_threshold_of_studies(self) -> bool:
        return self.has_threshold and self.threshold_level == "study"

    @property
    def findings(self) -> tuple[str, ...]:
        """The K labels that have a probability; a binary model has one, its positive label."""
        return self.labels if self.is_multi_label else self.labels[1:]

    def prepare(self, pixels: torch.Tensor) -> torch.Tensor:
        """Resizes a radiograph (1, H, W) to the model's input (1, image_size, image_size), both uint8."""
        return evaluation_transform(self.image_size)(pixels)

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Turns prepared images (B, 1, S, S) into `pixel_values` (B, 3, S, S) float32 on the device."""
        return Normalizer(self.image_mean, self.image_std, self.device)(images)

    def choose_reading(self, equalize: str = "auto", *, dicom_window: str = "header") -> Reading:
        """Returns how files are read for this model, given --equalize and --dicom_window."""
        as_trained = self.trained_equalized is not False  # unknown counts as yes
        return Reading(
            use_window=dicom_window == "header",
            equalizes={"yes": True, "no": False, "auto": as_trained}[equalize],
            equalizes_8_bits=equalize == "yes",
        )

    def doubt_equalize(self, equalize: str) -> str | None:
        """Returns a warning if --equalize is auto and the model does not say how it was trained."""
        is_guessed = equalize == "auto" and self.trained_equalized is None
        return f"{self.name} {EQUALIZED_UNKNOWN}" if is_guessed else None

    def find_doubts(self, radiograph: Radiograph) -> list[str]:
        """Returns warnings about a radiograph: about the file itself, and about its use with this model."""
        doubts, view = [*radiograph.warnings], radiograph.view_position
        known_views = VIEWS[self.trained_view or "all"]
        if view and known_views is not None and view not in known_views:
            doubts.append(f"the header says view {view}; the model was trained on {self.trained_view} views")
        is_equalized = radiograph.is_equalized or looks_equalized(radiograph.pixels.numpy())
        if self.trained_equalized not in (None, is_equalized):
            found, expected = ("equalised", "not equalised")[:: 1 if is_equalized else -1]
            verb = "is" if radiograph.is_equalized else "seems to be"
            doubts.append(f"the image {verb} {found}; the model was trained on images that are {expected}")
        return doubts

    @torch.no_grad()
    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the logit of each label (B, C), float64, for prepared images (B, 1, S, S)."""
        return self.model(pixel_values=self.normalize(images)).logits.float().cpu().double()

    def probabilities(self, images: torch.Tensor) -> np.ndarray:
        """Returns the probability of each finding (B, K), float64, for prepared images (B, 1, S, S)."""
        logits = self.logits(images)
        found = heads.probabilities(logits, multi_label=self.is_multi_label)
        return found.reshape(len(images), len(self.findings)).numpy()

    def find_called(self, probabilities: Sequence[float]) -> list[str]:
        """Returns the findings whose probabilities (K,) are at or above their thresholds."""
        each = zip(self.findings, probabilities, self.thresholds, strict=True)
        return [name for name, probability, threshold in each if probability >= threshold]

    def decide(self, probabilities: Sequence[float]) -> str:
        """Returns the findings that are called, in one text; without any, the negative label or "none"."""
        nothing = "none" if self.is_multi_label else self.labels[0]
        return "; ".join(self.find_called(probabilities)) or nothing


def load_classifier(
    name: str, *, hub_dir: Path | None = None, revision: str = "main", device: str = "auto"
) -> Classifier:
    """Loads the classifier from the folder `name`, or by that name from `hub_dir` or the Hub.

    `device` is a name that torch knows, or "auto": a GPU if there is one. Raises UserError if the model is
    neither a binary nor a multi-label image classifier, or is damaged.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()  # loading the weights takes less than a second
    chosen = choose_device(device)
    fields = read_config(name, hub_dir=hub_dir, revision=revision)
    _check_is_classifier(fields, name)
    config = config_from_json(fields, where=f"model {name}: config.json")
    labels = list(config.id2label.values())
    source = {"hub_dir": download(name, hub_dir=hub_dir, revision=revision), "revision": revision}
    image_size = own_size(config) or stored_input_size(name, **source)
    ours = ModelFields.of(fields, where=f"model {name}: config.json")
    processor = load_image_processor(name, image_size=image_size, **source)
    network, multi_label = CLASSIFIERS[config.model_type], _is_multi_label(fields)
    model_config = classifier_config(config, labels, multi_label=multi_label)
    model = load_pretrained(network, name, config=model_config, **source)
    chosen_thresholds = ours.decision_thresholds
    if not multi_label and "decision_threshold" in fields:
        chosen_thresholds = {labels[1]: ours.decision_threshold}
    findings = labels if multi_label else labels[1:]
    return Classifier(
        name=name,
        model=model.to(chosen).eval(),
        device=chosen,
        image_size=image_size,
        shortest_side=ours.cache_image_size or default_cache_image_size(image_size),
        image_mean=tuple(processor.image_mean),
        image_std=tuple(processor.image_std),
        labels=tuple(labels),
        thresholds=tuple(chosen_thresholds.get(label, DEFAULT_THRESHOLD) for label in findings),
        has_threshold=all(label in chosen_thresholds for label in findings),
        threshold_level=ours.trained_labels and ours.trained_labels.evaluation_level,
        trained_view=ours.trained_view,
        trained_equalized=ours.equalized,
    )


def choose_device(name: str) -> torch.device:
    """Returns the device of that name. Raises UserError if this machine does not have it."""
    gpus = [kind for kind in ("cuda", "mps") if getattr(torch, kind).is_available()]
    if name == "auto":
        name = next(iter(gpus), "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        here = " or ".join(["auto", "cpu", *gpus])
        raise UserError(f"--device {name}: found no such device; expected {here}") from error
    # Full float32 precision: with TF32, probabilities on a GPU differ from those on a CPU.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return device


def _is_multi_label(fields: dict[str, Any]) -> bool:
    return fields.get("problem_type") == heads.MULTI_LABEL_HEAD


def _check_is_classifier(fields: dict[str, Any], name: str) -> None:
    """Raises UserError unless the `fields` of config.json describe a binary or multi-label classifier."""
    model_type, found = fields["model_type"], fields.get("architectures")
    if model_type == "vit_mae":
        raise UserError(
            f"model {name}: found a masked autoencoder, expected a classifier: fine-tune it with "
            "run_classification.py first, or name another model"
        )
    if model_type not in CLASSIFIERS or found != [CLASSIFIERS[model_type].__name__]:
        expected = " or ".join(f"{kind} with {[one.__name__]}" for kind, one in CLASSIFIERS.items())
        raise UserError(
            f"model {name}: found {model_type[:50]} with architectures {str(found)[:100]}, expected "
            f"{expected}: name another model"
        )
    names = stored_labels(fields, where=f"model {name}: config.json")
    # transformers does not store its default, two labels without names.
    num_labels = len(names) if names or "id2label" in fields else 2
    if not (1 <= num_labels <= MAX_LABELS if _is_multi_label(fields) else num_labels == 2):
        raise UserError(
            f"model {name}: found a head for {num_labels} labels, expected 2 (negative and positive), or "
            f"1 to {MAX_LABELS} with the problem_type {heads.MULTI_LABEL_HEAD}: name another model"
        )
    if repeated := [one for one in names if names.count(one) > 1]:
        raise UserError(
            f"model {name}: found the label {repeated[0]!r:.50} twice in id2label of its config.json, "
            "expected a name for each: correct it"
        )
