"""Defines the flags that both training scripts share, named as in the transformers examples."""

import argparse
import logging
import re
from functools import partial
from pathlib import Path

from cxr.choices import BLANK
from cxr.choices import DATASET_DEFAULTS
from cxr.choices import DEFAULT_MODEL
from cxr.choices import LABELERS
from cxr.choices import ON_BAD_IMAGE
from cxr.choices import SCHEDULES
from cxr.choices import TASKS
from cxr.choices import TRACKERS
from cxr.choices import VIEWS
from cxr.cli import recipes
from cxr.cli.command_line import DATA_DIR
from cxr.cli.command_line import DataDirs
from cxr.cli.command_line import add_folder
from cxr.cli.command_line import add_number
from cxr.cli.command_line import check_data_dirs
from cxr.cli.command_line import model_name
from cxr.cli.command_line import non_negative_float
from cxr.cli.command_line import non_negative_int
from cxr.cli.command_line import positive_float
from cxr.cli.command_line import positive_int
from cxr.cli.command_line import seed_number
from cxr.cli.command_line import share_above_zero
from cxr.cli.command_line import share_below_one
from cxr.errors import did_you_mean
from cxr.models.architectures import CONFIGS
from cxr.models.architectures import TIMM_NAME
from cxr.models.architectures import is_untrained
from cxr.sharing.local_hub import parse_model_id
from cxr.sharing.local_hub import parse_tag
from mimic_cxr_dataset.choices import MANIFEST_FILE
from mimic_cxr_dataset.errors import DatasetError
from mimic_cxr_dataset.label_rule import LabelRule

logger = logging.getLogger(__name__)


def number_or_auto(text: str) -> str | int:
    return text if text == "auto" else positive_int(text)


def epoch_or_steps(text: str) -> str | int:
    return text if text == "epoch" else positive_int(text)


def config_name(text: str) -> str:
    """Returns the name of a model to train from scratch. Whether timm has it is known when it is made."""
    if is_untrained(text):
        return text
    is_published = TIMM_NAME.fullmatch(text)
    hint = "; a name with a tag has pretrained weights: use --model_name_or_path" if is_published else ""
    raise argparse.ArgumentTypeError(
        f"found {text!r}{did_you_mean(text, CONFIGS)}, expected one of {', '.join(CONFIGS)}, or "
        f"timm/NAME, such as timm/densenet121{hint}"
    )


def add_model_arguments(parser: argparse.ArgumentParser, **config_names: object) -> None:
    """Adds the flags of a model; `config_names` say which values --config_name has."""
    recipes.add_recipe_argument(parser)
    group = parser.add_argument_group("model")
    number = partial(add_number, group)
    which = group.add_mutually_exclusive_group()
    which.add_argument(
        "--model_name_or_path",
        type=model_name,
        metavar="NAME|FOLDER",
        help="start from this pretrained model: a model folder, a run folder, or a name in --hub_dir or on "
        f"the Hugging Face Hub (default: {DEFAULT_MODEL}; without --data_dir, a tiny model from scratch)",
    )
    which.add_argument("--config_name", help="train this model from scratch instead", **config_names)
    group.add_argument(
        "--config_overrides",
        metavar="KEY=VALUE,...",
        help="change values of the --config_name model, such as patch_size=8",
    )
    group.add_argument(
        "--model_revision",
        metavar="REV",
        default="main",
        help="branch, tag or commit of a model given by name",
    )
    number(
        "--image_size",
        positive_int,
        "side of the model's square input, in pixels; position embeddings of a pretrained ViT are "
        "interpolated (default: the pretrained model's, or 224)",
    )


def add_data_arguments(parser: argparse.ArgumentParser, *, data_dir: str = DATA_DIR) -> None:
    group = parser.add_argument_group("data")
    number, folder = partial(add_number, group), partial(add_folder, group)
    folder("--data_dir", data_dir, nargs="+", action=DataDirs)
    parser.set_defaults(other_data_dirs=[])
    add_label_arguments(group)
    group.add_argument(
        "--on_bad_image",
        choices=ON_BAD_IMAGE,
        default=DATASET_DEFAULTS["on_bad_image"],
        help="at a missing or damaged image, stop with an error, or skip it",
    )
    number(
        "--cache_image_size",
        positive_int,
        "shortest side of the cached images, in pixels (default: 8/7 of the image size)",
    )
    folder("--cache_dir", "keep the shrunk images here (default: the cache of `datasets`)")
    folder("--stage_dir", "read a copy of the shrunk images here, on a disk of the machine itself")
    number(
        "--max_train_samples",
        positive_int,
        "train on N images, drawn with --seed by patient, with the share of positive labels kept; a smaller "
        "sample is part of every larger one (default: all)",
    )
    number("--max_eval_samples", positive_int, "evaluate on the first N images of a split (default: all)")
    number(
        "--preprocessing_num_workers",
        positive_int,
        "processes that shrink images (default: one per core)",
    )
    number(
        "--dataloader_num_workers",
        non_negative_int,
        "processes that load images, per training process (default: its share of the cores, at most 16; 0 "
        "if the model trains on a CPU)",
    )


def add_crop_scale(group: argparse._ActionsContainer, crop: str, *, default: tuple[float, float]) -> None:
    group.add_argument(
        "--crop_scale",
        type=share_above_zero,
        nargs=2,
        default=default,
        metavar=("MIN", "MAX"),
        help=f"smallest and largest share of the image's area that {crop} covers",
    )


def add_label_arguments(group: argparse._ActionsContainer) -> None:
    """Adds the flags that decide which images have which label."""
    task = "the task: which images are used, with which labels"
    group.add_argument(
        "--dataset_config_name", choices=list(TASKS), default=DATASET_DEFAULTS["task"], help=task
    )
    group.add_argument(
        "--labeler",
        choices=LABELERS,
        default=DATASET_DEFAULTS["labeler"],
        help="use the labels of this labeler of MIMIC-CXR-JPG",
    )
    group.add_argument(
        "--view",
        choices=list(VIEWS),
        default=DATASET_DEFAULTS["view"],
        help="use images of these views; frontal: AP and PA, lateral: LATERAL and LL",
    )
    group.add_argument(
        "--uncertain",
        metavar="POLICY",
        default=DATASET_DEFAULTS["uncertain"],
        help="treat an uncertain label (-1.0) as negative or positive, or exclude it; smooth (for the task "
        "findings): train on a number between 0.55 and 0.85. One policy for all findings, or one for each, "
        "as in exclude,Edema=positive; mix: Atelectasis=positive,Edema=positive, the others negative",
    )
    group.add_argument(
        "--findings",
        nargs="+",
        metavar="FINDING",
        help="use only these labels of the task findings, such as Edema 'Pleural Effusion'; chexpert5: the "
        "five of CheXpert's competition (default: all that the data have, of MIMIC-CXR-JPG 14)",
    )
    group.add_argument(
        "--blank",
        choices=BLANK,
        default=DATASET_DEFAULTS["blank"],
        help="for the task findings: treat a label that is blank (not mentioned) as negative, or exclude it "
        "unless No Finding decides it",
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
    """Adds the group "training" with a script's defaults; returns it, so that the script can add flags."""
    group = parser.add_argument_group("training")
    _add_batch_arguments(
        group, num_train_epochs=num_train_epochs, per_device_train_batch_size=per_device_train_batch_size
    )
    _add_optimizer_arguments(
        group, weight_decay=weight_decay, lr_scheduler_type=lr_scheduler_type, warmup_ratio=warmup_ratio
    )
    group.add_argument(
        "--torch_compile",
        action="store_true",
        help="compile the model: the first step takes a minute, later ones are faster",
    )
    add_number(
        group,
        "--seed",
        seed_number,
        "seed of new weights, training sample, image order, augmentation and masks",
        default=0,
    )
    return group


def _add_batch_arguments(
    group: argparse._ArgumentGroup, *, num_train_epochs: int, per_device_train_batch_size: int
) -> None:
    """Adds the flags for the length of training and for the images of a step."""
    number = partial(add_number, group)
    number("--num_train_epochs", positive_int, "train for N epochs", default=num_train_epochs)
    number("--max_train_steps", positive_int, "stop after N optimizer steps; overrides --num_train_epochs")
    group.add_argument(
        "--per_device_train_batch_size",
        type=number_or_auto,
        default=per_device_train_batch_size,
        metavar="N|auto",
        help="images per forward pass of each process; auto: as many as fit into the GPU's memory",
    )
    number(
        "--per_device_eval_batch_size",
        positive_int,
        "images per forward pass of each process in an evaluation",
        default=64,
    )
    number(
        "--gradient_accumulation_steps",
        positive_int,
        "forward and backward passes per optimizer step",
        default=1,
    )
    number(
        "--images_per_step",
        positive_int,
        "images per optimizer step, of all processes, in place of --gradient_accumulation_steps: in as many "
        "passes as needed; at most the training images (default: as the other two flags give)",
    )


def _add_optimizer_arguments(
    group: argparse._ArgumentGroup, *, weight_decay: float, lr_scheduler_type: str, warmup_ratio: float
) -> None:
    """Adds the flags for the optimizer and the schedule of its learning rate."""
    number = partial(add_number, group)
    number(
        "--weight_decay",
        non_negative_float,
        "weight decay of AdamW, applied to matrices and convolution kernels only",
        default=weight_decay,
    )
    number("--max_grad_norm", positive_float, "clip the gradient norm to X (default: no clipping)")
    number(
        "--max_bad_steps",
        non_negative_int,
        "skip at most N steps with a NaN or infinite loss or gradient, then stop",
        default=10,
    )
    group.add_argument(
        "--lr_scheduler_type",
        choices=SCHEDULES,
        default=lr_scheduler_type,
        help="schedule of the learning rate after the warm-up",
    )
    number(
        "--min_learning_rate",
        non_negative_float,
        "learning rate at the end of the schedule",
        default=0.0,
    )
    number(
        "--warmup_epochs",
        positive_float,
        "epochs over which the learning rate rises from 0 to its peak, instead of --warmup_ratio",
    )
    number(
        "--warmup_ratio",
        share_below_one,
        "share of the steps over which the learning rate rises to its peak",
        default=warmup_ratio,
    )


def add_output_arguments(parser: argparse.ArgumentParser, *, default_output_dir: str) -> None:
    group = parser.add_argument_group("output")
    number, folder = partial(add_number, group), partial(add_folder, group)
    folder("--output_dir", f"write this run to a new folder (default: {default_output_dir}-<date>-<time>)")
    group.add_argument(
        "--checkpointing_steps",
        type=epoch_or_steps,
        default="epoch",
        metavar="N|epoch",
        help="save a checkpoint every N steps, or after each epoch",
    )
    number("--checkpoints_total_limit", positive_int, "keep only the newest N checkpoints", default=1)
    group.add_argument(
        "--resume_from_checkpoint",
        metavar="latest|FOLDER",
        help="continue the run in --output_dir from its newest complete checkpoint, or from this one",
    )
    number("--logging_steps", positive_int, "log the loss every N steps", default=10)
    group.add_argument("--with_tracking", action="store_true", help="also log to the --report_to tracker")
    group.add_argument("--report_to", choices=TRACKERS, default=TRACKERS[0], help="the tracker")

    hub = parser.add_argument_group("hub")
    hub.add_argument(
        "--push_to_hub",
        action="store_true",
        help="push the model as a new revision to --hub_dir or, without that flag, as a private model to the "
        "Hugging Face Hub",
    )
    hub.add_argument("--hub_model_id", type=parse_model_id, metavar="ORG/NAME", help="push under this name")
    add_folder(
        hub, "--hub_dir", "hub directory (a folder of models by name), to push to and to load models from"
    )
    hub.add_argument(
        "--hub_revision", type=parse_tag, metavar="TAG", help="give the pushed revision this permanent tag"
    )
    hub.add_argument(
        "--hub_strategy",
        choices=("end", "every_save"),
        default="end",
        help="push at the end, or also with every checkpoint",
    )


def add_learning_rate_arguments(group: argparse._ArgumentGroup, *, default: str) -> None:
    which = group.add_mutually_exclusive_group()
    add_number(which, "--learning_rate", positive_float, f"peak learning rate (default: {default})")
    add_number(
        which,
        "--base_learning_rate",
        positive_float,
        "peak learning rate for 256 images per step; scaled in proportion to the images per step",
    )


def describe_model(args: argparse.Namespace) -> str:
    if args.config_name:
        return f"{args.config_name} from scratch, {args.config_overrides or 'unchanged'}"
    return f"{args.model_name_or_path}, pretrained"


def source_of(args: argparse.Namespace) -> dict[str, object]:
    """Returns where the name of a model is looked up, as keywords of `cxr.models`' loading functions."""
    return {"hub_dir": args.hub_dir, "revision": args.model_revision}


def data_options(args: argparse.Namespace) -> dict[str, object]:
    """Returns the keywords of `cxr.data.images.load_images` that come directly from flags."""
    same = ("on_bad_image", "cache_dir")
    others = {"rule": label_rule(args), "num_proc": args.preprocessing_num_workers}
    return others | {flag: getattr(args, flag) for flag in same}


def label_rule(args: argparse.Namespace) -> LabelRule:
    """Returns the rule of the flags of `add_label_arguments` for the labels of --data_dir.

    Raises DatasetError.
    """
    options = {flag: getattr(args, flag) for flag in ("labeler", "view", "uncertain", "blank")}
    findings = args.findings and tuple(args.findings)
    collection = labels_in(args.data_dir)
    return LabelRule(task=args.dataset_config_name, findings=findings, collection=collection, **options)


def labels_in(data_dir: Path | None) -> tuple[str, ...] | None:
    """Returns the labels of a manifest, None for other folders. Raises DatasetError."""
    if data_dir is None or not (data_dir / MANIFEST_FILE).is_file():
        return None
    from mimic_cxr_dataset.labels import labels_of_collection  # not at the top: --help does without pandas

    return labels_of_collection(data_dir)


def check_label_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    try:
        labels = labels_in(args.data_dir)
    except DatasetError as error:
        parser.error(str(error))
    try:
        label_rule(args)
    except DatasetError as error:
        parser.error(f"--{error}")
    if labels is not None and args.labeler != DATASET_DEFAULTS["labeler"]:
        logger.warning("--labeler %s has no effect: %s has one set of labels", args.labeler, MANIFEST_FILE)


def check_target(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuses the task finding on a manifest without a finding, where no image would be positive.

    A pretraining does without labels.
    """
    labels = labels_in(args.data_dir)
    if labels is not None and args.dataset_config_name == "finding" and not {*labels} - {"No Finding"}:
        parser.error(
            f"--dataset_config_name finding: found {'only No Finding' if labels else 'no label'} in "
            f"{args.data_dir / MANIFEST_FILE}, expected a column of a finding; add one, or name another task"
        )


def warn_of_flags_without_effect(args: argparse.Namespace) -> None:
    """Warns about flags of both scripts that have no effect in this run."""
    if args.report_to != TRACKERS[0] and not args.with_tracking:
        logger.warning("--report_to %s has no effect without --with_tracking", args.report_to)
    if args.min_learning_rate and args.lr_scheduler_type == "constant":
        logger.warning("--min_learning_rate has no effect with --lr_scheduler_type constant")


def check_shared_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuses flags that contradict each other; each message says what to do."""
    if args.push_to_hub and not args.hub_model_id:
        parser.error("--push_to_hub needs --hub_model_id ORG/NAME, and --hub_dir DIR for a local directory")
    if not args.push_to_hub and (args.hub_model_id or args.hub_revision or args.hub_strategy != "end"):
        parser.error("--hub_model_id, --hub_revision and --hub_strategy need --push_to_hub: add it")
    if args.crop_scale[0] > args.crop_scale[1]:
        parser.error(
            f"--crop_scale: found {args.crop_scale[0]} {args.crop_scale[1]}, expected MIN not above MAX"
        )
    if args.images_per_step and args.gradient_accumulation_steps != 1:
        parser.error("--images_per_step decides --gradient_accumulation_steps: leave one of them out")
    if args.config_overrides and not args.config_name:
        parser.error("--config_overrides changes the model of --config_name: add that flag")
    if args.config_overrides and not re.fullmatch(r"\w+=[^,=]+(,\w+=[^,=]+)*", args.config_overrides):
        parser.error(f"--config_overrides: found {args.config_overrides!r}, expected key=value,key=value")
    check_label_arguments(parser, args)
    check_data_dirs(parser, [args.data_dir, *args.other_data_dirs])
    if args.resume_from_checkpoint and not args.output_dir:
        parser.error("--resume_from_checkpoint needs the --output_dir of the run to continue")
