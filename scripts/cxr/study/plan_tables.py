"""Prints the tables of a plan: the cells of a study, its kinds of cells, and the presets."""

import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cxr.choices import RECIPES
from cxr.study import grid
from cxr.study import presets
from cxr.study.cells import CellFacts
from cxr.study.costs import ImageCounts
from cxr.study.costs import duration
from cxr.study.costs import wall_seconds
from cxr.study.machine import Launch
from cxr.study.runner import state_on_disk

SLOTS = (1, 4, 16)  # numbers of cells at once, of which a plan shows the time
KIND_COLUMNS = (
    "model",
    "start",
    "parameters",
    "weights",
    "image size",
    "epochs",
    "learning rate",
    "batch",
    "cells",
)


def print_cells(
    cells: list[grid.Cell],
    facts: dict[str, CellFacts],
    images: dict[str, ImageCounts],
    seconds: dict[str, float],
    output_dir: Path,
) -> None:
    """Prints a row for each cell: its training images, epochs, estimated time and state."""
    table = Table()
    for name in ("run", "training images", "epochs", "time", "state"):
        table.add_column(name, justify="left" if name in ("run", "state") else "right", no_wrap=name == "run")
    for cell in cells:
        name = cell.run_id
        epochs = str(facts[name].args.num_train_epochs)
        state = state_on_disk(output_dir / name)
        table.add_row(name, f"{images[name].train:,}", epochs, duration(seconds[name]), state)
    console().print(table)


def print_kinds(
    cells: list[grid.Cell],
    facts: dict[str, CellFacts],
    images: dict[str, ImageCounts],
    *,
    num_processes: int,
) -> None:
    """Prints a table for each script: the kinds of its cells, and the number of cells of each kind."""
    kinds: dict[str, dict[tuple[str, ...], int]] = defaultdict(lambda: defaultdict(int))
    for cell in cells:
        step = facts[cell.run_id].images_per_step(num_processes, images[cell.run_id].train)
        kinds[cell.script][kind_of(cell, facts[cell.run_id], step)] += 1
    titles = {
        grid.PRETRAINING: "Pretraining, by kind of cell",
        grid.CLASSIFICATION: "Classification, by kind of cell",
    }
    for script, rows in kinds.items():
        table = Table(title=titles[script], title_justify="left")
        for name in KIND_COLUMNS:
            justify = "left" if name in KIND_COLUMNS[:2] else "right"
            table.add_column(name, justify=justify, no_wrap=name == "model")
        for row, count in rows.items():
            table.add_row(*map(escape, row), str(count))
        console().print(table)


def kind_of(cell: grid.Cell, facts: CellFacts, images_per_step: int | None) -> tuple[str, ...]:
    """Returns the columns of a cell's row without the last, the number of cells."""
    args, num_parameters = facts.args, facts.num_parameters
    rate = args.learning_rate
    if rate is None and images_per_step:
        rate = args.base_learning_rate * images_per_step / 256
    shown = f"{rate:.3g}" if rate else f"{args.base_learning_rate:g} for 256 images"
    recipe = f", recipe {args.recipe}" if args.recipe != RECIPES[0] else ""
    head_only = getattr(args, "train_last_layer_only", False)
    return (
        cell.point.model,
        facts.start + recipe + ", last layer only" * head_only,
        f"{num_parameters / 1e6:.1f} M",
        f"{4 * num_parameters / 1e6:,.0f} MB",
        f"{facts.image_size} px",
        f"{args.max_train_steps:,} steps" if args.max_train_steps else str(args.num_train_epochs),
        f"{shown}, {args.lr_scheduler_type}",
        str(images_per_step or "auto"),
    )


def print_cost(cells: list[grid.Cell], seconds: dict[str, float], launch: Launch, *, at_once: int) -> None:
    """Prints the device hours of the cells that are left, and the wall time for several numbers at once."""
    hours = sum(seconds[cell.run_id] for cell in cells) * launch.num_processes / 3600
    times = []
    for number in sorted({at_once, *SLOTS}):
        gpus = f" ({number * launch.num_processes:,} GPUs)" * (launch.num_processes > 1)
        times.append(f"{number} at once{gpus}: about {duration(wall_seconds(cells, seconds, number))}")
    print(f"{hours:,.1f} {'process' if launch.on_cpu else 'GPU'} hours; {', '.join(times)}.")


def settings_in_words(settings: presets.Settings) -> Iterator[str]:
    """Yields each flag of a grid as it is written after --set."""
    for scope, changes in settings:
        for flag, value in changes.items():
            separator = "," if flag == "findings" else " "
            text = separator.join(map(str, value)) if isinstance(value, list) else value
            yield f"{scope}.{flag}={text}".removeprefix(".")


def preset_rows() -> list[list[str]]:
    """Returns a table of the presets, one per column: a heading, a row for each axis, and rows for flags."""
    grids = presets.GRIDS.values()
    lists = ("models", "train_sizes", "tasks", "training_modes", "views", "seeds")
    rows = [["", *presets.GRIDS], ["for", *(one.purpose for one in grids)]]
    rows += [[f"--{name}", *(spoken(getattr(one, name)) for one in grids)] for name in lists]
    for family, title in (("vit", "ViT: augmentation, share masked"), ("resnet", "ResNet: augmentation")):
        rows.append([title, *("; ".join(arm_in_words(arm) for arm in one.arms[family]) for one in grids)])
    rows.append(["--recipes", *(spoken(one.recipes) for one in grids)])
    rows.append(["--masking", *(one.masking for one in grids)])
    rows.append(["--pretrain", *(one.pretrain or "no" for one in grids)])
    rows.append(["--config_file", *(one.config_file for one in grids)])
    rows.append(["--set", *(" ".join(settings_in_words(one.settings)) for one in grids)])
    return rows


def spoken(values: tuple) -> str:
    return ", ".join("all" if value is None else str(value) for value in values)


def arm_in_words(arm: tuple[str, float]) -> str:
    augmentation, share = arm
    return f"{augmentation} {share:g}" if share else augmentation


def print_presets() -> None:
    """Prints a table for each preset, because their columns do not fit side by side on a terminal."""
    (_, *names), *rows = preset_rows()
    for column, name in enumerate(names, start=1):
        table = Table(title=f"--preset {name}", title_justify="left", show_header=False)
        for row in rows:
            table.add_row(row[0], escape(row[column]))
        console().print(table)


def console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 120)
