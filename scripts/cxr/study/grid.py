"""The cells of a study: the runs of a grid, with their flags and names."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated
from typing import Any
from typing import ClassVar
from typing import Literal

from pydantic import Field
from pydantic import model_validator
from typing_extensions import Self

from cxr import choices
from cxr.errors import UserError
from cxr.models.architectures import TIMM_NAME
from cxr.models.architectures import find_architecture
from cxr.models.architectures import is_untrained
from cxr.run_folder import fields
from cxr.study.presets import Grid
from cxr.study.presets import Settings
from cxr.study.presets import arms_of
from cxr.study.presets import settings_of

PRETRAINING, CLASSIFICATION = "run_mae_pretrain.py", "run_classification.py"


class Point(fields.Record):
    """The place of a pretraining in the grid."""

    model: fields.Name
    view: fields.Word
    seed: fields.Seed


class ClassificationPoint(Point):
    """The place of a classifier in the grid."""

    from_scratch: bool
    own_pretraining: bool
    augmentation: fields.Word
    masking: fields.Share
    masking_kind: Literal[tuple(choices.MASKINGS)]
    recipe: fields.Word = choices.RECIPES[0]
    train_size: Annotated[int, Field(gt=0, le=10**9)] | None  # None: all images
    task: fields.Word
    training_mode: Literal[choices.TRAINING_MODES]


class Cell(fields.Record):
    """One run; here a pretraining, from which several classifiers may start."""

    run_id: fields.Name
    script: Literal[PRETRAINING]
    point: Point
    flags: dict[str, Any] = Field(description="flags that args.json of the run must have")
    needs: fields.Name | None = Field(default=None, description="run_id of the pretraining it starts from")


class ClassificationCell(Cell):
    """A cell that trains a classifier."""

    script: Literal[CLASSIFICATION]
    point: ClassificationPoint


class Plan(fields.Record):
    """`plan.json`: the cells of a study, by name, of all calls of run_study.py together."""

    writer: ClassVar[str] = "run_study.py"
    advice: ClassVar[str] = "restore it"
    cells: dict[str, Annotated[ClassificationCell | Cell, Field(discriminator="script")]]
    jobs: dict[str, str] = Field(default={}, description="the last Slurm job of each cell that has had one")

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for name, cell in self.cells.items():  # the names are used as names of folders
            expected = run_id if isinstance(cell, ClassificationCell) else pretraining_id
            if not name == cell.run_id == expected(cell.point):
                raise ValueError("found a cell under another name than its point's")
        return self


def plan_cells(grid: Grid, *, data_dir: Path, output_dir: Path) -> list[Cell]:
    """Returns the cells in running order: small sizes first, a pretraining before the cells that need it.

    Raises UserError if two different cells would have the same name, or a model is not known.
    """
    settings = (*grid.settings, *grid.given)
    flags = {name: value for _, changes in settings for name, value in changes.items()}
    families = {model: find_architecture(model, **where_to_look(flags)).family for model in grid.models}
    arms = [
        (model, own, recipe, *arm)
        for model in grid.models
        for own in choices.PRETRAINING_STARTS[grid.pretrain if families[model] == "vit" else None]
        for recipe in grid.recipes
        for arm in arms_of(grid, families[model], recipe)
    ]
    sizes = sorted(grid.train_sizes, key=lambda size: size or float("inf"))
    check_scopes(grid)
    axes = (sizes, grid.tasks, grid.training_modes, grid.views, grid.seeds, arms)
    cells: dict[str, Cell] = {}
    for size, task, mode, view, seed, arm in itertools.product(*axes):
        model, own, recipe, augmentation, share = arm
        point = ClassificationPoint(
            model=model,
            from_scratch=is_untrained(model),
            own_pretraining=own,
            augmentation=augmentation,
            masking=share,
            masking_kind=grid.masking
            if share
            else "patches",  # without masking, the kind makes no difference
            recipe=recipe,
            train_size=size,
            task=task,
            training_mode=mode,
            view=view,
            seed=seed,
        )
        start = "pretrained" if own or not point.from_scratch else "scratch"
        scopes = ["classification", start, families[model], size_name(size), recipe]
        of_recipe = settings_of(grid, recipe, "classification")
        planned = [classification_cell(point, of_recipe, scopes, data_dir, output_dir)]
        if own:
            scopes = ["pretraining", families[model]]
            named = add_settings({}, grid.given, scopes).get("recipe", choices.RECIPES[0])
            of_recipe = settings_of(grid, named, "pretraining")
            planned.insert(0, pretraining_cell(point, of_recipe, scopes, data_dir))
        for cell in planned:
            if cells.setdefault(cell.run_id, cell) != cell:
                raise UserError(
                    f"two different cells would have the name {cell.run_id}; expected --models whose names "
                    "differ in their first 24 letters, and --mask_ratios of at most three digits; rename a "
                    "model's folder, or round the ratios"
                )
    return list(cells.values())


def check_scopes(grid: Grid) -> None:
    """Raises UserError if the user has set a flag for a training size or a recipe that is not in the grid."""
    sizes = {size_name(size) for size in grid.train_sizes}
    for scope, _ in grid.given:
        if (scope == "all" or scope.isdecimal()) and scope not in sizes:
            raise UserError(f"--set {scope}.: found no such training size; use one of --train_sizes")
        if scope in choices.RECIPES and scope not in grid.recipes:
            raise UserError(f"--set {scope}.: found no such recipe; use one of --recipes")


def where_to_look(flags: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of `find_architecture` for the flags of a cell."""
    hub_dir = flags.get("hub_dir")
    return {"hub_dir": Path(hub_dir) if hub_dir else None, "revision": flags.get("model_revision", "main")}


def read_plan(study_dir: Path) -> dict[str, Cell]:
    """Returns the cells of a study by run_id, {} without plan.json. Raises UserError as `Plan.read` does."""
    path = study_dir / "plan.json"
    return Plan.read(path).cells if path.is_file() else {}


def pretraining_cell(of: Point, settings: Settings, scopes: list[str], data_dir: Path) -> Cell:
    """Returns the pretraining, on all training images, that the classifier at `of` starts from."""
    point = Point(model=of.model, view=of.view, seed=of.seed)
    planned = {"data_dir": str(data_dir), "view": point.view, "seed": point.seed, **model_flags(point.model)}
    flags = add_settings(planned, settings, scopes)
    return Cell(run_id=pretraining_id(point), script=PRETRAINING, point=point, flags=flags)


def classification_cell(
    point: ClassificationPoint, settings: Settings, scopes: list[str], data_dir: Path, output_dir: Path
) -> ClassificationCell:
    needs = pretraining_id(point) if point.own_pretraining else None
    start = {"model_name_or_path": str(output_dir / needs / "model")} if needs else model_flags(point.model)
    planned = {
        "data_dir": str(data_dir),
        "dataset_config_name": point.task,
        "view": point.view,
        "seed": point.seed,
        "max_train_samples": point.train_size,
        "augmentation": point.augmentation,
        choices.MASKINGS[point.masking_kind]: point.masking,
        "train_last_layer_only": point.training_mode == "last_layer",
        "evaluate_test": True,
        "recipe": point.recipe,
        **start,
    }
    flags = add_settings(planned, settings, scopes)
    if needs:
        flags.pop("model_revision", None)  # it is that of the model which the pretraining starts from
    if point.recipe == choices.RECIPES[0]:
        del flags["recipe"]  # the default, which earlier plans do not name
    return ClassificationCell(
        run_id=run_id(point), script=CLASSIFICATION, point=point, flags=flags, needs=needs
    )


def model_flags(model: str) -> dict[str, str]:
    """Returns the flag that names a model: a name of an untrained one, or a pretrained one."""
    if is_untrained(model):
        return {"config_name": model}
    return {"model_name_or_path": str(Path(model).absolute()) if Path(model).is_dir() else model}


def add_settings(planned: dict[str, Any], settings: Settings, scopes: list[str]) -> dict[str, Any]:
    """Returns `planned` with the settings for a cell of these scopes; later settings override earlier ones.

    Raises UserError for a flag that the study sets itself, because the run's name would then be wrong.
    """
    flags = dict(planned)
    for changes in [changes for scope, changes in settings if scope in ("", *scopes)]:
        if taken := changes.keys() & {*planned, "output_dir", "resume_from_checkpoint"}:
            raise UserError(
                f"--set {min(taken)}: found a flag that the study sets itself; use --models or another "
                "axis, --data_dir or --output_dir instead"
            )
        for one, other in itertools.permutations(("learning_rate", "base_learning_rate")):
            if one in changes:
                flags.pop(other, None)  # a script accepts only one of them
        flags |= changes
    if "config_name" not in flags or TIMM_NAME.fullmatch(flags["config_name"]):
        flags.pop("config_overrides", None)  # a pretrained model and one of timm have their own configuration
    return flags


def to_words(flags: dict[str, Any]) -> Iterator[str]:
    for name, value in flags.items():
        if value is True:
            yield f"--{name}"
        elif isinstance(value, list):
            yield f"--{name}"
            yield from map(str, value)
        elif value is False and name in ("norm_pix_loss", "horizontal_flip"):  # the only ones on by default
            yield f"--no-{name}"
        elif value is not None and value is not False:
            yield f"--{name}={value}"


def slug(model: str) -> str:
    """Returns a short name of a model that is valid in file names on any system."""
    if is_untrained(model):  # the name differs from that of the pretrained model
        return re.sub(r"[/_]", "-", f"{model}-scratch")
    path = Path(model)
    name = path.parent.name if path.name == "model" and path.parent.name else path.name
    return re.sub(r"[^a-z0-9]+", "-", name.lower())[:24].strip("-") or "model"


def size_name(size: int | None) -> str:
    return "all" if size is None else str(size)


def pretraining_id(point: Point) -> str:
    """Returns the name of a pretraining's folder, such as vit-mae-base_pretrain_s0."""
    view = [point.view] * (point.view != "frontal")
    return "_".join([slug(point.model), "pretrain", *view, f"s{point.seed}"])


def run_id(point: ClassificationPoint) -> str:
    """Returns the name of a classifier's folder, such as vit-mae-base_mae_p25_1000_finding_s0."""
    return f"{arm_name(point, size_name(point.train_size))}_s{point.seed}"


def arm_name(point: ClassificationPoint, *size: str) -> str:
    """Returns a run_id without the seed and, unless `size` is given, without the training size."""
    parts = [slug(point.model) + "-pre" * point.own_pretraining, point.augmentation]
    parts += [f"recipe-{point.recipe.replace('_', '-')}"] * (point.recipe != choices.RECIPES[0])
    if point.masking:
        parts.append(f"{point.masking_kind[0]}{100 * point.masking:.3g}".replace(".", "-"))
    parts += [*size, point.task.removeprefix("pleural_")]
    parts += ["head"] * (point.training_mode == "last_layer")
    parts += [point.view] * (point.view != "frontal")
    return "_".join(parts)
