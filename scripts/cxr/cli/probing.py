"""Defines the flags of probe.py, without torch."""

import argparse
from functools import partial

from cxr.choices import DATASET_DEFAULTS
from cxr.choices import ON_BAD_IMAGE
from cxr.choices import POOLINGS
from cxr.cli import arguments
from cxr.cli import command_line
from cxr.cli.command_line import DATA_DIR
from cxr.cli.command_line import add_folder
from cxr.cli.command_line import add_number
from cxr.cli.command_line import positive_int
from cxr.models.architectures import CONFIGS


def size_or_all(text: str) -> int | None:
    """Returns a number of training images, None for all."""
    return None if text == "all" else positive_int(text)


def parse_args(argv: list[str] | None, *, description: str | None = None) -> argparse.Namespace:
    parser = command_line.ArgumentParser(description, usage="MODEL [MODEL ...] [flags]")
    parser.add_argument(
        "models",
        nargs="+",
        type=command_line.model_name,
        metavar="MODEL",
        help="a masked autoencoder or a classifier: a model folder, a run folder, or ORG/NAME in --hub_dir "
        f"or on the Hub; or, with random weights, one of {', '.join(CONFIGS)}, or timm/NAME",
    )
    _add_model_arguments(parser)
    _add_data_arguments(parser)
    probe = parser.add_argument_group("probe")
    probe.add_argument(
        "--train_sizes",
        nargs="+",
        type=size_or_all,
        default=(100, 1000, "all"),
        metavar="N|all",
        help="learn from N images, drawn as --max_train_samples of run_classification.py does",
    )
    seeds = {"nargs": "+", "type": command_line.seed_number, "metavar": "N", "default": (0, 1, 2)}
    probe.add_argument("--seeds", **seeds, help="seeds of the samples; the result is the mean over them")
    number = partial(add_number, probe)
    number("--batch_size", positive_int, "images that a model processes at once", default=64)
    command_line.add_device_argument(probe)
    add_folder(probe, "--output_dir", "write the results here (default: runs/probe-<date>-<time>)")
    args = parser.parse_args(argv)
    arguments.check_label_arguments(parser, args)
    arguments.check_target(parser, args)
    command_line.check_data_dirs(parser, [args.data_dir])
    return args


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("models")
    add_folder(group, "--hub_dir", "hub directory (a folder of models by name), searched before the Hub")
    revision = "branch, tag or commit of the models given by name"
    group.add_argument("--model_revision", metavar="REV", default="main", help=revision)
    group.add_argument(
        "--pooling",
        choices=POOLINGS,
        help="features of a ViT: the mean of its patch tokens, or its class token (default: mean for a "
        "masked autoencoder, class for a classifier); of a ResNet always the mean of the last feature map, "
        "of timm's networks what their own head reads",
    )
    add_number(
        group,
        "--image_size",
        positive_int,
        "side of the models' input, in pixels; position embeddings of a pretrained ViT are interpolated "
        "(default: each model's own, or 224)",
    )
    group.add_argument(
        "--config_overrides",
        metavar="KEY=VALUE,...",
        help="change values of the ViTs with random weights, such as patch_size=8",
    )


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    add_folder(group, "--data_dir", DATA_DIR)
    arguments.add_label_arguments(group)
    group.add_argument(
        "--on_bad_image",
        choices=ON_BAD_IMAGE,
        default=DATASET_DEFAULTS["on_bad_image"],
        help="at a missing or damaged image, stop with an error, or skip it",
    )
    add_folder(
        group, "--cache_dir", "keep shrunk images and features here (default: the cache of `datasets`)"
    )
    workers = "processes that shrink images (default: one per core)"
    add_number(group, "--preprocessing_num_workers", positive_int, workers)
