"""The study's grid: presets, and the cells that a grid means, each with its flags and its name."""

import dataclasses
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr.errors import UserError
from cxr.models.architectures import RESNET_CONFIGS
from cxr.models.architectures import VIT_MAE_CONFIGS
from cxr.models.architectures import family
from cxr.run_folder.files import read_json

PRETRAINING, CLASSIFICATION = "run_mae_pretrain.py", "run_classification.py"
SCOPES = {"pretraining": PRETRAINING, "classification": CLASSIFICATION}
CONFIGS = (*VIT_MAE_CONFIGS, *RESNET_CONFIGS)
TASKS = ("finding", "pleural_effusion")
VIEWS = ("frontal", "lateral", "all")
AUGMENTATIONS = ("none", "classic", "mae")
TRAINING_MODES = ("full", "last_layer")
# What a share of masking means (the paper's text says patches, its code erases): the flag that it sets.
MASKINGS = {"patches": "mask_ratio", "erasing": "random_erasing_prob"}
# Whether a ViT starts as it is named, from the study's own pretraining, or once from each.
STARTS = {None: (False,), "beside": (False, True), "instead": (True,)}
Settings = tuple[tuple[str, dict[str, Any]], ...]  # (scope, flags of the scripts), later ones count


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The axes. An arm is (augmentation, share masked); the models of its family are trained with it."""

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


PAPER = Grid(
    models=("facebook/vit-mae-base", "microsoft/resnet-18"),
    arms={
        "vit": (("mae", 0.25), ("mae", 0.5), ("mae", 0.75), ("none", 0.0)),
        "resnet": (("classic", 0.0), ("none", 0.0)),
    },
    train_sizes=(1_000, 10_000, None),
    tasks=("finding", "pleural_effusion"),
    training_modes=("full", "last_layer"),
    views=("frontal",),
    seeds=(0, 1, 2),
    # Section 5 of the paper, which also names AdamW.
    settings=(
        (
            "classification",
            {"num_train_epochs": 20, "learning_rate": 1e-6, "per_device_train_batch_size": 32},
        ),
        ("pretraining", {"num_train_epochs": 100}),
    ),
    config_file="single_gpu_fp16.yaml",
)
PRESETS = {
    "paper": PAPER,
    # Section 8: larger models and lateral views. It shares its first cells with the paper's grid.
    "future": dataclasses.replace(
        PAPER,
        models=(
            *(
                "facebook/vit-mae-base",
                "facebook/vit-mae-large",
                "facebook/vit-mae-huge",
                "microsoft/resnet-18",
            ),
            *("microsoft/resnet-34", "microsoft/resnet-50", "microsoft/resnet-152"),
        ),
        tasks=("finding",),
        training_modes=("full",),
        views=("frontal", "lateral"),
    ),
    "smoke": Grid(
        models=("vit-mae-tiny", "resnet-18"),
        arms={"vit": (("mae", 0.5), ("none", 0.0)), "resnet": (("classic", 0.0),)},
        train_sizes=(64, None),
        tasks=("finding", "pleural_effusion"),
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
    ),
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run: a point of the grid, or a pretraining that several of them start from."""

    run_id: str
    script: str
    point: dict[str, Any]  # where in the grid it is
    flags: dict[str, Any]  # what `args.json` must hold
    needs: str | None = None  # the run_id of the pretraining whose model it starts from


def change_grid(
    grid: Grid,
    *,
    augmentations: list[str] | None,
    mask_ratios: list[float] | None,
    settings: Settings,
    **axes: Any,
) -> Grid:
    """Returns the grid with the axes that are not None replaced, and `settings` after its own.

    Augmentations and mask ratios are crossed; the one that is None keeps the values of the grid's arms. A
    ResNet has no patches, so it has no masking.
    """
    arms = grid.arms
    if augmentations or mask_ratios:
        arms = {}
        for name, old in grid.arms.items():
            kept = augmentations or unique(augmentation for augmentation, _ in old)
            shares = (mask_ratios or unique(share for _, share in old)) if name == "vit" else [0.0]
            arms[name] = tuple(itertools.product(kept, shares))
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in axes.items()}
    changes = {name: value for name, value in lists.items() if value is not None}
    return dataclasses.replace(grid, arms=arms, settings=(*grid.settings, *settings), **changes)


def unique(values) -> list:
    return list(dict.fromkeys(values))


def plan_cells(grid: Grid, *, data_dir: Path, output_dir: Path) -> list[Cell]:
    """Returns the cells in the order of running: small sizes first, a pretraining before what needs it.

    Raises UserError when two different cells would have one name.
    """
    arms = [
        (model, own, *arm)
        for model in grid.models
        for own in STARTS[grid.pretrain if family(model) == "vit" else None]
        for arm in grid.arms[family(model)]
    ]
    sizes = sorted(grid.train_sizes, key=lambda size: size or float("inf"))
    for scope, _ in grid.settings:
        if scope.isdecimal() and int(scope) not in sizes:
            raise UserError(f"--set {scope}.: found no such training size; expected one of --train_sizes")
    axes = (sizes, grid.tasks, grid.training_modes, grid.views, grid.seeds, arms)
    cells: dict[str, Cell] = {}
    for size, task, mode, view, seed, (model, own, augmentation, share) in itertools.product(*axes):
        point = {
            "model": model,
            "from_scratch": model in CONFIGS,
            "own_pretraining": own,
            "augmentation": augmentation,
            "masking": share,
            "masking_kind": grid.masking if share else "patches",  # none of either is one cell
            "train_size": size,
            "task": task,
            "training_mode": mode,
            "view": view,
            "seed": seed,
        }
        planned = [classification_cell(grid.settings, point, data_dir, output_dir)]
        if own:
            planned.insert(0, pretraining_cell(grid.settings, point, data_dir))
        for cell in planned:
            if cells.setdefault(cell.run_id, cell) != cell:
                raise UserError(
                    f"two different cells would have the name {cell.run_id}; expected --models whose names "
                    "differ in their first 24 letters and --mask_ratios of three digits: rename a folder"
                )
    return list(cells.values())


def read_plan(study_dir: Path) -> dict[str, Cell]:
    """Returns the cells of a study's plan.json by run_id. Raises UserError for what no study writes."""
    cells = {}
    path = study_dir / "plan.json"
    try:
        for name, fields in read_json(path).get("cells", {}).items():
            cells[name] = Cell(**fields)
            expected = run_id if cells[name].script == CLASSIFICATION else pretraining_id
            if expected(cells[name].point) != name or not isinstance(cells[name].flags, dict):
                raise UserError(f"{name} is another cell")
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"{path}: found what run_study.py does not write ({error}); restore it") from error
    return cells


def pretraining_cell(settings: Settings, point: dict[str, Any], data_dir: Path) -> Cell:
    """The pretraining on all training images that the point's classifier starts from."""
    point = {name: point[name] for name in ("model", "view", "seed")}
    planned = {
        "data_dir": str(data_dir),
        "view": point["view"],
        "seed": point["seed"],
        **model_flags(point["model"]),
    }
    flags = add_settings(planned, settings, PRETRAINING, point["model"])
    return Cell(run_id=pretraining_id(point), script=PRETRAINING, point=point, flags=flags)


def classification_cell(settings: Settings, point: dict[str, Any], data_dir: Path, output_dir: Path) -> Cell:
    needs, start = None, model_flags(point["model"])
    if point["own_pretraining"]:
        needs = pretraining_id(point)
        start = {"model_name_or_path": str(output_dir / needs / "model")}
    planned = {
        "data_dir": str(data_dir),
        "dataset_config_name": point["task"],
        "view": point["view"],
        "seed": point["seed"],
        "max_train_samples": point["train_size"],
        "augmentation": point["augmentation"],
        MASKINGS[point["masking_kind"]]: point["masking"],
        "train_last_layer_only": point["training_mode"] == "last_layer",
        "evaluate_test": True,
        **start,
    }
    flags = add_settings(planned, settings, CLASSIFICATION, point["model"], size=point["train_size"])
    return Cell(run_id=run_id(point), script=CLASSIFICATION, point=point, flags=flags, needs=needs)


def model_flags(model: str) -> dict[str, str]:
    """A configuration's name trains from scratch, any other name or a folder is pretrained."""
    if model in CONFIGS:
        return {"config_name": model}
    return {"model_name_or_path": str(Path(model).absolute()) if Path(model).is_dir() else model}


def add_settings(
    planned: dict[str, Any], settings: Settings, script: str, model: str, *, size: int | None = 0
) -> dict[str, Any]:
    """Returns `planned` and the settings whose scope holds; later ones replace earlier ones.

    Raises UserError for a setting of what the study plans itself: a run's name would not be true.
    """
    flags = dict(planned)
    for scope, changes in settings:
        if scope in ("", family(model), size_name(size)) or SCOPES.get(scope) == script:
            if taken := changes.keys() & {*planned, "output_dir", "resume_from_checkpoint"}:
                raise UserError(
                    f"--set {min(taken)}: found a flag that the study itself sets; use --models or another "
                    "axis, --data_dir or --output_dir instead"
                )
            for one, other in itertools.permutations(("learning_rate", "base_learning_rate")):
                if one in changes:
                    flags.pop(other, None)  # a script takes one of them
            flags |= changes
    if "config_name" not in flags:
        flags.pop("config_overrides", None)  # a pretrained model has its own configuration
    return flags


def slug(model: str) -> str:
    """A short part of a file name that any system takes."""
    if model in CONFIGS:
        return f"{model}-scratch"  # beside the pretrained model of the same name
    path = Path(model)
    name = path.parent.name if path.name == "model" and path.parent.name else path.name
    return re.sub(r"[^a-z0-9]+", "-", name.lower())[:24].strip("-") or "model"


def size_name(size: int | None) -> str:
    return "all" if size is None else str(size)


def pretraining_id(point: dict[str, Any]) -> str:
    view = [] if point["view"] == "frontal" else [point["view"]]
    return "_".join([slug(point["model"]), "pretrain", *view, f"s{point['seed']}"])


def run_id(point: dict[str, Any]) -> str:
    """The name of a cell's folder, such as vit-mae-base_mae_p25_1000_finding_s0."""
    return f"{arm_name(point, size_name(point['train_size']))}_s{point['seed']}"


def arm_name(point: dict[str, Any], *size: str) -> str:
    """A run_id without the seed and, unless it is given, without the training size."""
    parts = [slug(point["model"]) + "-pre" * point["own_pretraining"], point["augmentation"]]
    if point["masking"]:
        parts.append(f"{point['masking_kind'][0]}{100 * point['masking']:.3g}".replace(".", "-"))
    parts += [*size, point["task"].removeprefix("pleural_")]
    parts += ["head"] * (point["training_mode"] == "last_layer")
    parts += [point["view"]] * (point["view"] != "frontal")
    return "_".join(parts)
