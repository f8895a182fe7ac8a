"""Parses command lines; each error is one line: what was found, what was expected, what to do."""

import argparse
import re
from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cxr.errors import did_you_mean
from cxr.version import VERSION

DATA_DIR = "the MIMIC-CXR-JPG folder, or one with manifest.csv"  # the help of --data_dir
DATA_DIR += " (default: a synthetic sample, made on first use)"


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the layout of the description and adds a flag's default to its help."""

    def _get_help_string(self, action: argparse.Action) -> str:
        off = any(action.default is value for value in (None, False, argparse.SUPPRESS))  # 0 is a default
        if off or action.default in ("", []) or not action.option_strings:
            return action.help
        default = " ".join(map(str, action.default)) if isinstance(action.default, tuple) else "%(default)s"
        return f"{action.help} (default: {default})"


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage before it, with exit status 2."""

    def __init__(self, description: str | None = None, *, usage: str = "[flags]", **options):
        super().__init__(
            usage="%(prog)s " + usage,
            description=description,
            formatter_class=HelpFormatter,
            allow_abbrev=False,  # a flag added later could change what an abbreviation means
            **options,  # those that argparse passes to the parser of a subcommand
        )
        version = "show the version of this code and exit"
        self.add_argument("--version", action="version", version=f"%(prog)s {VERSION}", help=version)

    def parse_args(self, args: Sequence[str] | None = None, namespace=None) -> argparse.Namespace:
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flag = next((word for word in unknown if word.startswith("-")), unknown[0]).partition("=")[0]
            self.error(f"unrecognized arguments: {' '.join(unknown)}{did_you_mean(flag, self._flags())}")
        return parsed

    def _flags(self) -> list[str]:
        """Returns the flags of this parser and of its subcommands."""
        commands = [action.choices for action in self._actions if isinstance(action.choices, dict)]
        parsers = [self, *(parser for choices in commands for parser in choices.values())]
        return [flag for parser in parsers for flag in parser._option_string_actions]

    def error(self, message: str) -> NoReturn:
        if wrong := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            message += did_you_mean(wrong[1], re.findall(r"[^\s',]+", wrong[2]))
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (see --help)\n")


class DataDirs(argparse.Action):
    """Stores the first folder as `data_dir` and all others as `other_data_dirs`."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        namespace.data_dir, namespace.other_data_dirs = values[0], values[1:]


def check_data_dirs(parser: argparse.ArgumentParser, data_dirs: list[Path | None]) -> None:
    """Refuses data folders that are not there; None is the synthetic sample."""
    for data_dir in filter(None, data_dirs):
        if not data_dir.is_dir():
            parser.error(
                f"--data_dir {data_dir}: found no such folder; expected the MIMIC-CXR-JPG folder with "
                "files/ and the CSVs, or one with manifest.csv; leave the flag out for the synthetic sample"
            )


def add_classifier_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds MODEL and the flags for where it is looked up, for scripts that use a classifier."""
    model = "a classifier: a model folder, a run folder, or ORG/NAME in --hub_dir or on the Hub"
    parser.add_argument("model", type=model_name, metavar="MODEL", help=model)
    add_folder(parser, "--hub_dir", "hub directory (a folder of models by name), searched before the Hub")
    revision = "branch, tag or commit of a model given by name"
    parser.add_argument("--model_revision", metavar="REV", default="main", help=revision)


def model_name(text: str) -> str:
    """Returns a model's folder or name; for a run folder, the folder of the model in it."""
    folder = Path(text)
    is_run = (folder / "model" / "config.json").is_file() and not (folder / "config.json").is_file()
    return str(folder / "model") if is_run else text


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags about how radiographs are read, which `choose_reading` interprets."""
    parser.add_argument(
        "--equalize",
        choices=("auto", "yes", "no"),
        default="auto",
        help="equalise the histograms of all images, or of none; auto: of DICOM files and images of more "
        "than 8 bits if the model was trained on equalised images, and of no others",
    )
    parser.add_argument(
        "--dicom_window",
        choices=("header", "none"),
        default="header",
        help="header: apply the window or VOI look-up table in a DICOM header; none: ignore both, as for "
        "MIMIC-CXR-JPG",
    )


def add_number(
    group: argparse._ActionsContainer, flag: str, kind: Callable[[str], float], help: str, **options
) -> None:
    """Adds a flag for a number of one of the kinds below, shown as N if it is whole, else as X."""
    group.add_argument(flag, type=kind, metavar=kind.metavar, help=help, **options)


def add_folder(group: argparse._ActionsContainer, flag: str, help: str, **options) -> None:
    group.add_argument(flag, type=Path, metavar="FOLDER", help=help, **options)


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps, ...; auto: a GPU if any")


def number(kind: type, expected: str, valid: Callable[[float], bool]) -> Callable[[str], float]:
    """Returns an argparse type for numbers that are `valid`; `expected` describes them in words."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"found {text!r}, expected {expected}") from None
        if not valid(value):
            raise argparse.ArgumentTypeError(f"found {text}, expected {expected}")
        return value

    parse.metavar = "N" if kind is int else "X"
    return parse


positive_int = number(int, "a whole number from 1", lambda value: value >= 1)
non_negative_int = number(int, "a whole number from 0", lambda value: value >= 0)
seed_number = number(int, "a whole number from 0 to 4294967295", lambda value: 0 <= value < 2**32)
positive_float = number(float, "a number above 0", lambda value: 0 < value < float("inf"))
non_negative_float = number(float, "a number from 0", lambda value: 0 <= value < float("inf"))
probability = number(float, "a number in [0, 1]", lambda value: 0 <= value <= 1)
share_below_one = number(float, "a number in [0, 1)", lambda value: 0 <= value < 1)
share_above_zero = number(float, "a number in (0, 1]", lambda value: 0 < value <= 1)
