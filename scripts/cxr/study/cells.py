"""Checks the flags of each cell as its script does, and finds out which model the cell trains."""

import argparse
import functools
from dataclasses import dataclass
from typing import NoReturn

from cxr.cli import classification
from cxr.cli import pretraining
from cxr.cli.arguments import label_rule
from cxr.cli.command_line import ArgumentParser
from cxr.errors import UserError
from cxr.errors import did_you_mean
from cxr.models.architectures import Fields
from cxr.models.architectures import VitMaeFields
from cxr.models.architectures import default_image_size
from cxr.models.architectures import find_architecture
from cxr.models.architectures import override
from cxr.models.parameters import count_parameters
from cxr.study.grid import CLASSIFICATION
from cxr.study.grid import PRETRAINING
from cxr.study.grid import Cell
from cxr.study.grid import to_words
from cxr.study.grid import where_to_look
from cxr.training.step_size import StepFlags

PARSERS = {PRETRAINING: pretraining.parse_args, CLASSIFICATION: classification.parse_args}


@dataclass(frozen=True, kw_only=True)
class CellFacts:
    """The facts about a cell that are known before it starts."""

    args: argparse.Namespace  # the parsed flags of its script, with all defaults
    architecture: Fields
    image_size: int
    start: str  # scratch, pretrained, or pretrained here

    @property
    def is_pretraining(self) -> bool:
        return not hasattr(self.args, "train_last_layer_only")

    @property
    def num_parameters(self) -> int:
        num_labels = None if self.is_pretraining else len(label_rule(self.args).label_names)
        return count_parameters(self.architecture, num_labels=num_labels)

    def images_per_step(self, num_processes: int, num_images: int) -> int | None:
        """Returns the images per optimizer step, None if they depend on the device's memory ("auto")."""
        flags = StepFlags.of(self.args)
        if flags.per_device == "auto":
            return flags.images_per_step and min(flags.images_per_step, num_images)
        return flags.resolve(num_images=num_images, num_processes=num_processes).images_per_step


class SettingsParser(ArgumentParser):
    """Parses the flags of a cell; its errors name --set, by which the user sets them."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"--set: {message.removeprefix('argument ')}")


def check_cells(cells: list[Cell]) -> dict[str, CellFacts]:
    """Returns the facts of each cell, by run_id. In `cells`, a pretraining comes before those that need it.

    Raises UserError for a flag that the script does not have, a value that it refuses, and an image size that
    the model does not support.
    """
    facts: dict[str, CellFacts] = {}
    for cell in cells:
        facts[cell.run_id] = check_cell(cell, facts.get(cell.needs))
    return facts


def check_cell(cell: Cell, pretrained: CellFacts | None = None) -> CellFacts:
    """Returns the facts of a cell; `pretrained` are the facts of the pretraining that it starts from."""
    for flag in cell.flags.keys() - flags_of(cell.script):
        others = [script for script in PARSERS if flag in flags_of(script)]
        scope = "pretraining" if others == [PRETRAINING] else "classification"
        raise UserError(
            f"--set {flag}: {cell.script} has no such flag{did_you_mean(flag, flags_of(cell.script))}; "
            + (f"write {scope}.{flag}=..." if others else f"use one that {cell.script} --help lists")
        )
    args = PARSERS[cell.script](list(to_words(cell.flags)), parser_class=SettingsParser)
    architecture = pretrained.architecture if pretrained else architecture_of(cell)
    architecture = override(architecture, None, image_size=args.image_size)
    if cell.script == PRETRAINING and not isinstance(architecture, VitMaeFields):
        raise UserError(f"--pretrain: found {cell.point.model}, expected a ViT-MAE; leave that model out")
    start = "pretrained here" if pretrained else "from scratch" if args.config_name else "pretrained"
    own_size = getattr(architecture, "image_size", None)
    image_size = own_size or args.image_size or default_image_size(architecture)
    return CellFacts(args=args, architecture=architecture, image_size=image_size, start=start)


@functools.cache
def flags_of(script: str) -> frozenset[str]:
    return frozenset(vars(PARSERS[script]([])))


def architecture_of(cell: Cell) -> Fields:
    """Returns the architecture of the model that a cell names, with the cell's overrides."""
    named = find_architecture(cell.point.model, **where_to_look(cell.flags))
    if "config_name" not in cell.flags:
        return named
    return override(named, cell.flags.get("config_overrides"), image_size=cell.flags.get("image_size"))
