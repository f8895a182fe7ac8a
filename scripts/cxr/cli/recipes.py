"""The recipes: named sets of flags, as the literature trains; a flag that the user gives counts more."""

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cxr import choices
from cxr.errors import UserError
from cxr.models.architectures import Dinov2Fields
from cxr.models.architectures import Fields
from cxr.models.architectures import TimmFields
from cxr.models.architectures import find_architecture
from cxr.sharing.local_hub import MODEL_ID

# Recipe -> script -> flags. The paper's (Fradkin and Boxer 2023, section 5) are the defaults of the flags.
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {"pretraining": {}, "classification": {}},
    # He et al. 2022 (arXiv:2111.06377), with the values of facebookresearch/mae for a ViT-B.
    "mae": {
        "pretraining": {  # table 8; PRETRAIN.md
            "num_train_epochs": 800,
            "images_per_step": 4096,
            "base_learning_rate": 1.5e-4,
            "warmup_epochs": 40.0,
            "lr_scheduler_type": "cosine",
            "weight_decay": 0.05,
            "mask_ratio": 0.75,
            "crop_scale": (0.2, 1.0),
            "norm_pix_loss": True,
        },
        "classification": {  # table 9; FINETUNE.md, whose base learning rate and layer decay are a ViT-B's
            "num_train_epochs": 100,
            "images_per_step": 1024,
            "base_learning_rate": 5e-4,
            "min_learning_rate": 1e-6,
            "warmup_epochs": 5.0,
            "lr_scheduler_type": "cosine",
            "layer_decay": 0.65,
            "weight_decay": 0.05,
            "drop_path": 0.1,
            "pooling": "mean",
            "augmentation": "mae",
            "randaugment": "rand-m9-mstd0.5-inc1",
            "random_erasing_prob": 0.25,
            "mixup": 0.8,
            "cutmix": 1.0,
            "label_smoothing": 0.1,
        },
    },
    # Xiao et al. 2023 (arXiv:2210.12843, chest X-rays), with the values of lambert-x/medical_mae for a ViT-B.
    "medical_mae": {
        "pretraining": {
            "num_train_epochs": 800,
            "images_per_step": 2048,
            "base_learning_rate": 1.5e-4,
            "warmup_epochs": 40.0,
            "lr_scheduler_type": "cosine",
            "weight_decay": 0.05,
            "mask_ratio": 0.90,
            "crop_scale": (0.5, 1.0),
            "norm_pix_loss": False,
        },
        "classification": {
            "num_train_epochs": 75,
            "images_per_step": 1024,
            "base_learning_rate": 2.5e-4,
            "min_learning_rate": 1e-5,
            "warmup_epochs": 5.0,
            "lr_scheduler_type": "cosine",
            "layer_decay": 0.55,
            "weight_decay": 0.05,
            "drop_path": 0.2,
            "pooling": "mean",
            "augmentation": "mae",
            "randaugment": "rand-m6-mstd0.5-inc1",
            "random_erasing_prob": 0.0,
            "mixup": 0.0,
            "cutmix": 0.0,
            "label_smoothing": 0.0,
        },
    },
}
assert tuple(RECIPES) == choices.RECIPES
# A recipe's flags that other models are trained without. Layer decay keeps what lower layers have learned.
ONLY_FOR_VITS = ("pooling", "drop_path", "layer_decay")
ONLY_FOR_PRETRAINED = ("layer_decay",)
# A flag of a recipe -> the flags that say the same in another way; if the user gives one, it counts.
REPLACED_BY = {
    "base_learning_rate": ("learning_rate",),
    "warmup_epochs": ("warmup_ratio",),
    "images_per_step": ("gradient_accumulation_steps",),
}
LONGEST_WARMUP = 0.1  # of a training that the user made shorter than the recipe's

logger = logging.getLogger(__name__)


def add_recipe_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipe",
        choices=choices.RECIPES,
        default=choices.RECIPES[0],
        help="values of the flags that are not given; paper: the defaults listed here; mae: those of He et "
        "al. 2022; medical_mae: those of Xiao et al. 2023",
    )


def defaults_of(
    recipe: str, script: str, given: dict[str, Any], *, model: str | None, from_scratch: bool
) -> dict[str, Any]:
    """Returns the flags of a recipe for a run with the flags `given` by the user, and with this model.

    Raises UserError for a model of which nothing is known, as it is not downloaded yet.
    """
    flags = dict(RECIPES[recipe][script])
    if not flags:
        return flags
    unfit = _unfit_for(model, given)
    if from_scratch:
        unfit += ONLY_FOR_PRETRAINED
    if given.get("train_last_layer_only"):
        unfit += ("drop_path", "layer_decay")  # the other layers stay as they are
    if given.get("lr_scheduler_type") == "constant":
        unfit += ("min_learning_rate",)
    flags = {name: value for name, value in flags.items() if name not in unfit}
    for name, others in REPLACED_BY.items():
        if given.keys() & set(others):
            del flags[name]
    if given.get("augmentation", "mae") != "mae":
        flags.pop("randaugment", None)  # it is a part of that augmentation
    given_batch = given.get("per_device_train_batch_size", 1)
    if given_batch != "auto" and given_batch > flags.get("images_per_step", given_batch):
        del flags["images_per_step"]
    if "min_learning_rate" in flags and "learning_rate" in given:
        flags["min_learning_rate"] = min(flags["min_learning_rate"], given["learning_rate"])
    return _shorten_warmup(flags, given)


def _shorten_warmup(flags: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Returns the flags with a warm-up that fits the length of training that the user has given."""
    if "warmup_epochs" not in flags or "warmup_epochs" in given:
        return flags
    if "max_train_steps" in given:  # how many epochs that is depends on the images
        share = flags.pop("warmup_epochs") / flags["num_train_epochs"]
        return flags | {"warmup_ratio": share}
    longest = LONGEST_WARMUP * given.get("num_train_epochs", float("inf"))
    return flags | {"warmup_epochs": min(flags["warmup_epochs"], longest)}


def _unfit_for(model: str, given: dict[str, Any]) -> tuple[str, ...]:
    """Returns the flags of a recipe that a model is trained without.

    Raises UserError for a model on the Hub that is not downloaded yet: nobody knows what it is.
    """
    options = {"hub_dir": given.get("hub_dir"), "revision": given.get("model_revision", "main")}
    try:
        fields = find_architecture(model, **options)
    except UserError:
        if MODEL_ID.fullmatch(model) and not Path(model).exists():
            raise
        return ()  # of a study's pretraining, which is not there yet, or wrong: loading it says so
    if fields.family != "vit":
        return ONLY_FOR_VITS
    return () if _has_mean_pooling(fields) else ("pooling",)


def _has_mean_pooling(vit: Fields) -> bool:
    """Returns whether the head of a ViT can read the mean of its patches."""
    if isinstance(vit, TimmFields):
        from cxr.models import timm_networks  # with torch, which is slow to import

        return not timm_networks.is_distilled(timm_networks.network_of(vit.architecture, vit.arguments))
    return not isinstance(vit, Dinov2Fields)


def log_recipe(args: argparse.Namespace, script: str) -> None:
    """Logs the recipe, a line per flag, with what the user has changed; nothing for the paper's."""
    for line in describe(args, script):
        logger.info("%s", line)


def describe(args: argparse.Namespace, script: str) -> Iterator[str]:
    flags = RECIPES[args.recipe][script]
    if flags:
        yield f"Recipe {args.recipe}:"
    for name, value in flags.items():
        used = getattr(args, name, None)
        if list_of(used) == list_of(value):
            yield f"  {name:<22} {spoken(value)}"
        else:
            yield f"  {name:<22} {'not used' if used is None else spoken(used)} (the recipe: {spoken(value)})"


def list_of(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def spoken(value: Any) -> str:
    """Returns a flag's value as it is written on a command line."""
    if isinstance(value, tuple | list):
        return " ".join(map(spoken, value))
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
