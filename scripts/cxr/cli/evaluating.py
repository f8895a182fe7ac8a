"""Defines the flags of evaluate_model.py, without torch."""

import argparse
from pathlib import Path

from cxr.choices import BLANK
from cxr.choices import DATASET_DEFAULTS
from cxr.choices import EVALUATION_LEVELS
from cxr.choices import LABELERS
from cxr.choices import ON_BAD_IMAGE
from cxr.choices import VIEWS
from cxr.cli import command_line
from cxr.cli.command_line import add_folder
from cxr.cli.command_line import add_number
from cxr.cli.command_line import positive_int
from mimic_cxr_dataset.errors import one_line

OWN = "(default: the model's own)"
alpha = command_line.number(float, "a number above 0 and below 1", lambda value: 0 < value < 1)


def parse_args(argv: list[str] | None, *, description: str | None = None) -> argparse.Namespace:
    parser = command_line.ArgumentParser(
        description, usage="MODEL [MODEL ...] --data_dir FOLDER [FOLDER ...] [flags]"
    )
    model = "a classifier: a model folder, a run folder, or ORG/NAME in --hub_dir or on the Hub"
    parser.add_argument("models", nargs="+", type=command_line.model_name, metavar="MODEL", help=model)
    add_folder(parser, "--hub_dir", "hub directory (a folder of models by name), searched before the Hub")
    revision = "branch, tag or commit of the models given by name"
    parser.add_argument("--model_revision", metavar="REV", default="main", help=revision)
    _add_data_arguments(parser)
    _add_label_arguments(parser)
    group = parser.add_argument_group("evaluation")
    recalibrate = "fit a temperature and a threshold on the validation split, and measure before and after"
    group.add_argument("--recalibrate", choices=("validation",), help=recalibrate)
    conformal = (
        "also give conformal prediction sets with coverage 1 - X, such as 0.1 for 90 %%, calibrated on the "
        "validation split"
    )
    add_number(group, "--conformal", alpha, conformal)
    add_number(group, "--batch_size", positive_int, "images that a model processes at once", default=64)
    command_line.add_device_argument(group)
    add_folder(group, "--output_dir", "write the report here (default: runs/evaluation-<date>-<time>)")
    args = parser.parse_args(argv)
    _check(parser, args)
    return args


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    folders = "folders whose test split the models are measured on"
    options = {"nargs": "+", "type": Path, "metavar": "FOLDER"}
    group.add_argument("--data_dir", required=True, help=folders, **options)
    equalize = (
        "equalise the histograms of all images, or of none; auto: where the model was trained on equalised "
        "images and those of a folder are not"
    )
    group.add_argument("--equalize", choices=("auto", "yes", "no"), default="auto", help=equalize)
    group.add_argument(
        "--on_bad_image",
        choices=ON_BAD_IMAGE,
        default=DATASET_DEFAULTS["on_bad_image"],
        help="at a missing or damaged image, stop with an error, or skip it",
    )
    add_folder(group, "--cache_dir", "keep the shrunk images here (default: the cache of `datasets`)")
    workers = "processes that shrink images (default: one per core)"
    add_number(group, "--preprocessing_num_workers", positive_int, workers)


def _add_label_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that replace a part of each model's own label rule."""
    group = parser.add_argument_group("labels")
    choices = {"labeler": LABELERS, "view": tuple(VIEWS), "blank": BLANK}
    choices["evaluation_level"] = EVALUATION_LEVELS
    said = {
        "labeler": "use the labels of this labeler",
        "view": "use images of these views",
        "blank": "treat a label that is blank as negative, or exclude it",
        "evaluation_level": "measure images, or studies by the mean logits of their images",
    }
    for name, help_text in said.items():
        group.add_argument(f"--{name}", choices=choices[name], help=f"{help_text} {OWN}")
    uncertain = f"treat an uncertain label by this policy, as in run_classification.py {OWN}"
    group.add_argument("--uncertain", metavar="POLICY", help=uncertain)


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuses a model or a folder that is named twice, and an output folder with another report."""
    if out := args.output_dir:
        try:
            is_taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
        except OSError as error:  # such as a name that is too long
            parser.error(f"--output_dir {out}: cannot be read ({one_line(error)}); name another folder")
        if is_taken:
            parser.error(f"--output_dir {out}: found something there, expected a new folder; name another")
    for flag, names in (("MODEL", args.models), ("--data_dir", args.data_dir)):
        seen = {}
        for name in names:
            same = Path(name).resolve() if Path(name).exists() else name
            if same in seen:
                parser.error(f"{flag} {name}: found the same as {seen[same]}; expected each once: remove one")
            seen[same] = name
