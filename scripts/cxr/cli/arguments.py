"""The command line that both main scripts share, in the vocabulary of the transformers examples."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from cxr.cli.command_line import ArgumentParser
from cxr.cli.command_line import non_negative_float
from cxr.cli.command_line import non_negative_int
from cxr.cli.command_line import positive_float
from cxr.cli.command_line import positive_int
from cxr.cli.command_line import seed_number
from cxr.cli.command_line import share_below_one
from cxr.sharing.local_hub import parse_model_id
from cxr.sharing.local_hub import parse_tag
from cxr.training.batch_size import resolve_batch_size
from cxr.training.checkpoints import resumed_images_per_step
from cxr.training.optimization import SCHEDULES
from cxr.training.optimization import Schedule
from cxr.training.optimization import make_schedule

VIEWS = ("frontal", "lateral", "all")
LABELERS = ("negbio", "chexpert")
UNCERTAIN = ("negative", "positive", "exclude")
ON_BAD_IMAGE = ("error", "skip")
# What trains when neither data nor a model is named: it learns the synthetic sample in minutes on a CPU.
SAMPLE_MODEL = {
    "config_name": "vit-mae-tiny",
    "config_overrides": "hidden_size=96,intermediate_size=384,num_hidden_layers=4,patch_size=8",
    "image_size": 64,
}


def number_or_auto(text: str) -> str | int:
    return text if text == "auto" else positive_int(text)


def epoch_or_steps(text: str) -> str | int:
    return text if text == "epoch" else positive_int(text)


def add_model_arguments(
    parser: argparse.ArgumentParser, *, default_model: str, config_names: list[str]
) -> None:
    group = parser.add_argument_group("model")
    which = group.add_mutually_exclusive_group()
    which.add_argument(
        "--model_name_or_path",
        metavar="NAME|FOLDER",
        help=f"pretrained model: a folder, or a name in --hub_dir or on the Hub (default: {default_model})",
    )
    which.add_argument("--config_name", choices=config_names, help="train this model from scratch instead")
    group.add_argument(
        "--config_overrides", metavar="KEY=VALUE,...", help="changes of the --config_name, e.g. patch_size=8"
    )
    group.add_argument(
        "--model_revision",
        metavar="REV",
        default="main",
        help="branch, tag or commit of a model given by name",
    )
    group.add_argument(
        "--image_size",
        metavar="N",
        type=positive_int,
        help="side of the model's square input in pixels (default: the pretrained model's, or 224)",
    )


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data_dir",
        metavar="FOLDER",
        type=Path,
        help="the MIMIC-CXR-JPG folder (default: a synthetic sample, made on first use)",
    )
    group.add_argument(
        "--dataset_config_name", choices=("finding", "pleural_effusion"), default="finding", help="task"
    )
    group.add_argument("--labeler", choices=LABELERS, default="negbio", help="whose labels")
    group.add_argument(
        "--view", choices=VIEWS, default="frontal", help="frontal: AP, PA; lateral: LATERAL, LL"
    )
    group.add_argument(
        "--uncertain", choices=UNCERTAIN, default="negative", help="what a label of -1.0 counts as"
    )
    group.add_argument(
        "--on_bad_image", choices=ON_BAD_IMAGE, default="error", help="missing or corrupt images"
    )
    group.add_argument(
        "--cache_image_size",
        metavar="N",
        type=positive_int,
        help="shortest side in pixels of the images in the cache (default: 8/7 of the image size)",
    )
    group.add_argument(
        "--cache_dir",
        metavar="FOLDER",
        type=Path,
        help="where the shrunk images are kept (default: that of datasets)",
    )
    group.add_argument(
        "--max_train_samples",
        metavar="N",
        type=positive_int,
        help="train on this many images: nested between sizes, by patient, stratified, drawn by --seed",
    )
    group.add_argument(
        "--max_eval_samples",
        metavar="N",
        type=positive_int,
        help="evaluate on the first images only; for trials",
    )
    group.add_argument(
        "--preprocessing_num_workers",
        metavar="N",
        type=positive_int,
        help="processes that shrink images (default: all cores)",
    )
    group.add_argument(
        "--dataloader_num_workers",
        metavar="N",
        type=non_negative_int,
        help="processes that load images (default: 0 on a CPU, else its share of the cores, at most 16)",
    )


def add_training_arguments(
    parser: argparse.ArgumentParser,
    *,
    num_train_epochs: int,
    per_device_train_batch_size: int,
    weight_decay: float,
    lr_scheduler_type: str,
    warmup_ratio: float,
) -> argparse._ArgumentGroup:
    """Adds the group "training" with a script's own defaults; returns it for what the script adds."""
    group = parser.add_argument_group("training")
    group.add_argument(
        "--num_train_epochs", type=positive_int, default=num_train_epochs, metavar="N", help="epochs"
    )
    group.add_argument(
        "--max_train_steps", metavar="N", type=positive_int, help="so many steps, whatever --num_train_epochs"
    )
    group.add_argument(
        "--per_device_train_batch_size",
        type=number_or_auto,
        default=per_device_train_batch_size,
        metavar="B|auto",
        help="images of one process in one forward pass; auto: as many as fit into the GPU",
    )
    group.add_argument(
        "--per_device_eval_batch_size",
        type=positive_int,
        default=64,
        metavar="B",
        help="the same at evaluation",
    )
    group.add_argument(
        "--gradient_accumulation_steps",
        type=positive_int,
        default=1,
        metavar="N",
        help="forward passes a step",
    )
    group.add_argument(
        "--weight_decay", type=non_negative_float, default=weight_decay, metavar="W", help="of AdamW"
    )
    group.add_argument(
        "--max_grad_norm",
        metavar="X",
        type=positive_float,
        help="clip the gradient's norm (default: no clipping)",
    )
    group.add_argument(
        "--max_bad_steps",
        metavar="N",
        type=non_negative_int,
        default=10,
        help="leave out up to so many steps whose loss or gradient is no number, then stop",
    )
    group.add_argument(
        "--lr_scheduler_type", choices=SCHEDULES, default=lr_scheduler_type, help="after the warm-up"
    )
    group.add_argument(
        "--warmup_ratio", metavar="R", type=share_below_one, default=warmup_ratio, help="share of all steps"
    )
    group.add_argument(
        "--torch_compile", action="store_true", help="compile the model: a slow first step, faster later ones"
    )
    group.add_argument(
        "--seed",
        metavar="N",
        type=seed_number,
        default=0,
        help="order, sample, augmentation, masks, weights",
    )
    return group


def add_output_arguments(parser: argparse.ArgumentParser, *, default_output_dir: str) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output_dir",
        metavar="FOLDER",
        type=Path,
        help=f"new folder of this run (default: {default_output_dir}-<date>-<time>)",
    )
    group.add_argument(
        "--checkpointing_steps",
        type=epoch_or_steps,
        default="epoch",
        metavar="N|epoch",
        help="how often to save",
    )
    group.add_argument(
        "--checkpoints_total_limit",
        metavar="N",
        type=positive_int,
        default=1,
        help="keep the newest ones only",
    )
    group.add_argument(
        "--resume_from_checkpoint",
        metavar="latest|FOLDER",
        help="continue the run in --output_dir, from its newest complete checkpoint or the one named",
    )
    group.add_argument(
        "--logging_steps",
        metavar="N",
        type=positive_int,
        default=10,
        help="steps between two readings of the loss",
    )
    group.add_argument("--with_tracking", action="store_true", help="log to --report_to as well")
    group.add_argument(
        "--report_to",
        choices=("tensorboard", "wandb", "mlflow", "all"),
        default="tensorboard",
        help="tracker",
    )

    hub = parser.add_argument_group("hub")
    hub.add_argument(
        "--push_to_hub",
        action="store_true",
        help="share the model: as a new revision in --hub_dir or, without it, privately on the Hub",
    )
    hub.add_argument("--hub_model_id", type=parse_model_id, metavar="ORG/NAME", help="the name to push to")
    hub.add_argument(
        "--hub_dir",
        metavar="FOLDER",
        type=Path,
        help="Hub-like local directory to push to and to load names from",
    )
    hub.add_argument(
        "--hub_revision", type=parse_tag, metavar="TAG", help="a lasting name for the revision that is pushed"
    )
    hub.add_argument(
        "--hub_strategy",
        choices=("end", "every_save"),
        default="end",
        help="push at the end, or with every checkpoint, too",
    )


def add_learning_rate_arguments(group: argparse._ArgumentGroup, *, default: str) -> None:
    which = group.add_mutually_exclusive_group()
    which.add_argument(
        "--learning_rate", type=positive_float, metavar="LR", help=f"peak (default: {default})"
    )
    which.add_argument(
        "--base_learning_rate",
        type=positive_float,
        metavar="LR",
        help="peak for 256 images a step; it is scaled",
    )


def plan_steps(
    args: argparse.Namespace,
    accelerator: Accelerator,
    model: nn.Module,
    synthetic_loss: Callable[[nn.Module, int], torch.Tensor],
    *,
    num_images: int,
    output_dir: Path,
) -> Schedule:
    """Returns the run's schedule, with the batch size that `auto` finds or a resumed run began with.

    `--base_learning_rate` grows with the images of an optimizer step.
    """
    batch_size = resolve_batch_size(
        args.per_device_train_batch_size,
        accelerator,
        model,
        synthetic_loss,
        num_images=num_images,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        resumed_images_per_step=resumed_images_per_step(output_dir, args.resume_from_checkpoint),
    )
    images_per_step = batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    return make_schedule(
        num_images,
        images_per_step=images_per_step,
        num_epochs=args.num_train_epochs,
        max_steps=args.max_train_steps,
        warmup_ratio=args.warmup_ratio,
        peak_learning_rate=args.learning_rate or args.base_learning_rate * images_per_step / 256,
        kind=args.lr_scheduler_type,
    )


def parse_with_defaults(
    parser: ArgumentParser,
    argv: list[str] | None,
    *,
    default_model: str,
    default_learning_rate: dict[str, float],
    sample_defaults: dict[str, object],
) -> argparse.Namespace:
    """Parses `argv` with the defaults that fit it, and checks it.

    Neither data nor model named: `sample_defaults`, a model so small that a CPU trains it in minutes. Data
    but no model: `default_model`. No learning rate: `default_learning_rate`, unless the sample's defaults
    have their own.
    """
    named = parser.parse_args(argv)
    defaults = {}
    if not named.model_name_or_path and not named.config_name:
        defaults = {"model_name_or_path": default_model} if named.data_dir else dict(sample_defaults)
    if not named.learning_rate and not named.base_learning_rate:
        defaults = {**default_learning_rate, **defaults}
    else:
        defaults = {name: value for name, value in defaults.items() if not name.endswith("learning_rate")}
    parser.set_defaults(**defaults)
    args = parser.parse_args(argv)
    _check_shared_arguments(parser, args)
    return args


def describe_model(args: argparse.Namespace) -> str:
    if args.config_name:
        return f"{args.config_name} from scratch" + (
            f", {args.config_overrides}" if args.config_overrides else ""
        )
    return f"{args.model_name_or_path}, pretrained"


def source_of(args: argparse.Namespace) -> dict[str, object]:
    """Returns the keywords of `cxr.models`' loading functions: where the name of a model is looked up."""
    return {"hub_dir": args.hub_dir, "revision": args.model_revision}


def data_options(args: argparse.Namespace) -> dict[str, object]:
    """Returns the keywords of `cxr.data.load_images` that come straight from flags."""
    return {
        "config_name": args.dataset_config_name,
        "labeler": args.labeler,
        "view": args.view,
        "uncertain": args.uncertain,
        "on_bad_image": args.on_bad_image,
        "cache_dir": args.cache_dir,
        "num_proc": args.preprocessing_num_workers,
    }


def loader_options(args: argparse.Namespace) -> dict[str, object]:
    """Returns the keywords of `cxr.data.make_loaders` that come straight from flags."""
    return {
        "eval_batch_size": args.per_device_eval_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "seed": args.seed,
        "num_workers": args.dataloader_num_workers,
    }


def _check_shared_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuses flags that contradict each other; each message says what to do."""
    if args.push_to_hub and not args.hub_model_id:
        parser.error("--push_to_hub needs --hub_model_id ORG/NAME, and --hub_dir DIR for a local directory")
    if not args.push_to_hub and (args.hub_model_id or args.hub_revision or args.hub_strategy != "end"):
        parser.error("--hub_model_id, --hub_revision and --hub_strategy say what --push_to_hub does; add it")
    if args.crop_scale[0] > args.crop_scale[1]:
        parser.error(
            f"--crop_scale: found {args.crop_scale[0]} {args.crop_scale[1]}, expected MIN not above MAX"
        )
    if args.config_overrides and not args.config_name:
        parser.error("--config_overrides changes a --config_name; expected one of its choices beside it")
    if args.config_overrides and not re.fullmatch(r"\w+=[^,=]+(,\w+=[^,=]+)*", args.config_overrides):
        parser.error(f"--config_overrides: found {args.config_overrides!r}, expected key=value,key=value")
    if args.data_dir and not args.data_dir.is_dir():
        parser.error(
            f"--data_dir {args.data_dir}: found no such folder; expected the MIMIC-CXR-JPG folder with "
            "files/ and the CSVs; leave the flag out to try the synthetic sample"
        )
    if args.resume_from_checkpoint and not args.output_dir:
        parser.error("--resume_from_checkpoint needs the --output_dir of the run to continue")
