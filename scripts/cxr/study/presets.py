"""The grid of a study: its axes, the presets, and changes by the user."""

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

from cxr import choices
from cxr.cli.recipes import RECIPES
from cxr.cli.recipes import REPLACED_BY

# The scopes of a setting: all runs of a script, classifiers from random or from pretrained weights, all runs
# of a model family, classifiers of a recipe. Another scope is a training size.
SCOPES = ("pretraining", "classification", "scratch", "pretrained", "vit", "resnet", *choices.RECIPES)
Settings = tuple[tuple[str, dict[str, Any]], ...]  # (scope, flags of the scripts); later ones override


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The axes of a study. An arm is (augmentation, share masked); all models of its family have it."""

    purpose: str
    models: tuple[str, ...]
    arms: dict[str, tuple[tuple[str, float], ...]]  # family -> arms
    train_sizes: tuple[int | None, ...]  # None: all images
    tasks: tuple[str, ...]
    training_modes: tuple[str, ...]
    views: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: Settings
    config_file: str  # in accelerate_configs/
    masking: str = "patches"
    pretrain: str | None = None
    recipes: tuple[str, ...] = choices.RECIPES[:1]  # of the classifiers
    # What the user has given; a recipe other than the paper's has these, but not the preset's values.
    augmentations: tuple[str, ...] = ()
    mask_ratios: tuple[float, ...] = ()
    given: Settings = ()


PAPER = Grid(
    purpose="the tables of Fradkin and Boxer (2023)",
    models=("facebook/vit-mae-base", "microsoft/resnet-18"),
    arms={
        "vit": (("mae", 0.25), ("mae", 0.5), ("mae", 0.75), ("none", 0.0)),
        "resnet": (("classic", 0.0), ("none", 0.0)),
    },
    train_sizes=(1_000, 10_000, None),
    tasks=("finding", "pleural_effusion"),
    training_modes=choices.TRAINING_MODES,
    views=("frontal",),
    seeds=(0, 1, 2),
    # Section 5 of the paper, which also names AdamW. The paper's models are pretrained; a model from scratch
    # would not learn at their learning rate.
    settings=(
        ("classification", {"num_train_epochs": 20, "per_device_train_batch_size": 32}),
        *((start, {"learning_rate": rate}) for start, rate in choices.LEARNING_RATES.items()),
        ("pretraining", {"num_train_epochs": 100}),
    ),
    config_file="single_gpu_fp16.yaml",
)
# Section 8 of the paper: larger models and lateral views. Some cells are also in the paper's grid.
FUTURE = dataclasses.replace(
    PAPER,
    purpose="the paper's outlook: larger models, lateral views",
    models=(
        *(f"facebook/vit-mae-{size}" for size in ("base", "large", "huge")),
        *(f"microsoft/resnet-{depth}" for depth in (18, 34, 50, 152)),
    ),
    tasks=("finding",),
    training_modes=("full",),
    views=("frontal", "lateral"),
)
# Pretrained models and models from scratch, each trained until it converges. The values suit small models and
# hundreds of images.
COMPARE = Grid(
    purpose="comparing small models of your choice on few images",
    models=("vit-mae-tiny", "resnet-18"),
    arms={"vit": (("classic", 0.0),), "resnet": (("classic", 0.0),)},
    train_sizes=(100, None),
    tasks=("finding",),
    training_modes=("full",),
    views=("frontal",),
    seeds=(0, 1, 2),
    settings=(
        ("", {"lr_scheduler_type": "cosine", "warmup_ratio": 0.1}),
        ("classification", {"num_train_epochs": 50, "per_device_train_batch_size": 32}),
        ("classification", {"learning_rate": 1e-4}),
        ("pretraining", {"num_train_epochs": 200, "learning_rate": 1e-3}),
    ),
    config_file="single_gpu_fp16.yaml",
)
# The best that was found on the validation split of a small set for an hour on two cores; docs/results.md
# says what was tried. Images of 28 pixels are enlarged, and the report has the ensemble of the three seeds.
MEDMNIST = Grid(
    purpose="a MedMNIST chest set of 28 pixels, within an hour on a CPU",
    models=("resnet-18",),
    arms={"vit": (("classic", 0.0),), "resnet": (("classic", 0.0),)},
    train_sizes=(None,),
    tasks=("finding",),
    training_modes=("full",),
    views=("frontal",),
    seeds=(0, 1, 2),
    settings=(
        (
            "classification",
            {
                "image_size": 64,
                "max_train_steps": 1300,
                "per_device_train_batch_size": 64,
                "per_device_eval_batch_size": 256,
                "learning_rate": 1e-3,
                "lr_scheduler_type": "cosine",
                "warmup_ratio": 0.1,
                "weight_decay": 0.05,
                "label_smoothing": 0.1,
                "ema_decay": 0.998,
            },
        ),
    ),
    config_file="cpu.yaml",
)
SMOKE = Grid(
    purpose="testing that everything works, in minutes on a CPU",
    models=("vit-mae-tiny", "resnet-18"),
    arms={"vit": (("mae", 0.5), ("none", 0.0)), "resnet": (("classic", 0.0),)},
    train_sizes=(64, None),
    tasks=PAPER.tasks,
    training_modes=("full",),
    views=("frontal",),
    seeds=(0,),
    settings=(
        ("", {"image_size": 32, "learning_rate": 1e-3, "warmup_ratio": 0.1}),
        (
            "vit",
            {
                "config_overrides": "hidden_size=64,intermediate_size=256,num_hidden_layers=4,"
                "num_attention_heads=4,patch_size=4,decoder_hidden_size=64,decoder_intermediate_size=256"
            },
        ),
        ("classification", {"num_train_epochs": 6, "lr_scheduler_type": "cosine"}),
        ("pretraining", {"num_train_epochs": 10}),
    ),
    config_file="cpu.yaml",
    pretrain="instead",
)
GRIDS = dict(zip(choices.PRESETS, (PAPER, COMPARE, MEDMNIST, FUTURE, SMOKE)))


def change_grid(
    grid: Grid,
    *,
    augmentations: list[str] | None,
    mask_ratios: list[float] | None,
    settings: Settings,
    **axes: list | str | None,
) -> Grid:
    """Returns the grid with every axis replaced that is not None, and with `settings` as the given ones.

    The new arms combine each augmentation with each mask ratio; if one of the two is None, its values in the
    grid's arms are used. A model without patches, such as a ResNet, has no masking.
    """
    arms = dict(grid.arms)
    if augmentations or mask_ratios:
        for name, old in grid.arms.items():
            kept = augmentations or unique(augmentation for augmentation, _ in old)
            shares = (mask_ratios or unique(share for _, share in old)) if name == "vit" else [0.0]
            arms[name] = tuple(itertools.product(kept, shares))
    given = {name: value for name, value in axes.items() if value is not None}
    changes = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return dataclasses.replace(
        grid,
        arms=arms,
        augmentations=tuple(augmentations or ()),
        mask_ratios=tuple(mask_ratios or ()),
        given=settings,
        **changes,
    )


def arms_of(grid: Grid, family: str, recipe: str) -> tuple[tuple[str, float], ...]:
    """Returns the arms of a family; a recipe has its own augmentation, unless the user has named others."""
    if recipe == choices.RECIPES[0]:
        return grid.arms[family]
    augmentations = grid.augmentations or (RECIPES[recipe]["classification"]["augmentation"],)
    return tuple(itertools.product(augmentations, (grid.mask_ratios if family == "vit" else ()) or (0.0,)))


def settings_of(grid: Grid, recipe: str, script: str) -> Settings:
    """Returns the settings for cells of a recipe: those of the preset that it leaves open, and the given."""
    flags = RECIPES.get(recipe, {}).get(script, {})  # an unknown one is refused when the cells are checked
    decided = {*flags, *itertools.chain(*(REPLACED_BY.get(name, ()) for name in flags))}
    kept = (
        (scope, {name: value for name, value in changes.items() if name not in decided})
        for scope, changes in grid.settings
    )
    return (*kept, *grid.given)


def unique(values) -> list:
    return list(dict.fromkeys(values))
