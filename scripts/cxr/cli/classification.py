"""Defines the flags of run_classification.py; a study checks them before its first run, without torch."""

import argparse
import functools
import logging
import re

from cxr.choices import AUGMENTATIONS
from cxr.choices import CLASS_WEIGHTS
from cxr.choices import EVALUATION_LEVELS
from cxr.choices import HEAD_POOLINGS
from cxr.choices import LEARNING_RATES
from cxr.choices import RANDAUGMENT
from cxr.choices import RANDAUGMENT_NAMES
from cxr.cli import arguments
from cxr.cli import command_line
from cxr.cli import defaults
from cxr.cli import recipes
from cxr.cli.command_line import ArgumentParser
from cxr.models.architectures import CONFIGS

DEFAULT_CROP_SCALE = (0.08, 1.0)  # He et al. 2022
logger = logging.getLogger(__name__)


def randaugment_name(text: str) -> str:
    found = re.fullmatch(RANDAUGMENT_NAMES, text)
    if not found or float(found[1]) > 10:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected a name such as {RANDAUGMENT}, with m up to 10 and n from 1"
        )
    return text


def parse_args(
    argv: list[str] | None,
    *,
    description: str | None = None,
    parser_class: type[ArgumentParser] = ArgumentParser,
) -> argparse.Namespace:
    parser = parser_class(description)
    known = f"{{{','.join(CONFIGS)},timm/NAME}}"
    arguments.add_model_arguments(parser, type=arguments.config_name, metavar=known)
    _add_study_arguments(parser)
    arguments.add_data_arguments(parser, data_dir=f"{command_line.DATA_DIR}; one folder only")
    training = arguments.add_training_arguments(
        parser,
        num_train_epochs=20,
        per_device_train_batch_size=32,
        weight_decay=0.01,
        lr_scheduler_type="constant",
        warmup_ratio=0.0,
    )
    defaults_in_words = "pretrained {pretrained:g}, from scratch {scratch:g}".format(**LEARNING_RATES)
    arguments.add_learning_rate_arguments(training, default=defaults_in_words)
    _add_fine_tuning_arguments(training)
    _add_evaluation_arguments(training)
    arguments.add_output_arguments(parser, default_output_dir="runs/classification")
    args = defaults.parse_with_defaults(
        parser,
        argv,
        script="classification",
        default_learning_rates={start: {"learning_rate": rate} for start, rate in LEARNING_RATES.items()},
        sample_defaults={
            **defaults.SAMPLE_MODEL,
            "num_train_epochs": 15,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.1,
        },
    )
    arguments.check_target(parser, args)
    if args.other_data_dirs:
        parser.error(
            f"--data_dir: found {1 + len(args.other_data_dirs)} folders, expected one, because collections "
            "differ in their labels; pretrain on all of them with run_mae_pretrain.py, then train here on one"
        )
    return args


def _add_study_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags for what is done to training images and tokens, and for which layers learn."""
    study = parser.add_argument_group("options that the study compares")
    number = functools.partial(command_line.add_number, study)
    study.add_argument(
        "--augmentation", choices=AUGMENTATIONS, default="none", help="augmentation of the training images"
    )
    arguments.add_crop_scale(study, "the random crop of --augmentation mae", default=DEFAULT_CROP_SCALE)
    study.add_argument(
        "--randaugment",
        type=randaugment_name,
        metavar="NAME",
        default=RANDAUGMENT,
        help="RandAugment of --augmentation mae, by timm's names: magnitude m from 0 to 10, its standard "
        "deviation mstd, number of operations n (default of n: 2)",
    )
    erased = "probability that a rectangle of a training image is replaced by noise"
    number("--random_erasing_prob", command_line.probability, erased, default=0.0)
    hidden = "share of the patches hidden from a ViT in training; in an evaluation it sees all"
    number("--mask_ratio", command_line.share_below_one, hidden, default=0.0)
    study.add_argument(
        "--pooling",
        choices=HEAD_POOLINGS,
        help="what the head of a ViT reads: its class token, or the mean of its patches (default: the "
        "pretrained classifier's, else token)",
    )
    study.add_argument(
        "--train_last_layer_only",
        action="store_true",
        help="train only the classifier's head",
    )
    blend = "blend each training image with another one (mixup)"
    paste = "replace a rectangle of each training image by another image's (CutMix)"
    for flag, what in (("--mixup", blend), ("--cutmix", paste)):
        strength = "X is the parameter of the beta distribution; 0: off"
        number(flag, command_line.non_negative_float, f"{what}; {strength}", default=0.0)


def _add_fine_tuning_arguments(training: argparse._ArgumentGroup) -> None:
    """Adds the parts of the literature's fine-tuning; each is off by default."""
    number = functools.partial(command_line.add_number, training)
    training.add_argument(
        "--sync_batchnorm",
        action="store_true",
        help="compute the statistics of batch normalisation over all GPUs, not on each",
    )
    number(
        "--layer_decay",
        command_line.share_above_zero,
        "learning rate of a layer, as a share of that of the layer above it (default: the same for all)",
    )
    number(
        "--drop_path",
        command_line.share_below_one,
        "probability of skipping the last block's residual branches in training; lower for earlier blocks",
        default=0.0,
    )
    number(
        "--label_smoothing",
        command_line.share_below_one,
        "label smoothing: share of the target that is spread over both classes",
        default=0.0,
    )
    number(
        "--ema_decay",
        command_line.share_below_one,
        "evaluate and save a moving average of the weights; X is the share that it keeps per step, such as "
        "0.999 (default: no average)",
    )
    number(
        "--early_stopping_patience",
        command_line.positive_int,
        "stop when N epochs in a row were not better than the best one (default: train all epochs)",
    )
    training.add_argument(
        "--class_weights",
        choices=CLASS_WEIGHTS,
        help="weigh the loss so that both values of a label count equally",
    )


def _add_evaluation_arguments(training: argparse._ArgumentGroup) -> None:
    """Adds the flags for what is measured at the end."""
    training.add_argument(
        "--evaluate_test",
        action="store_true",
        help="also evaluate the best epoch on the test split and, where its table is, against the "
        "radiologist's labels of MIMIC-CXR-JPG 2.1.0",
    )
    training.add_argument(
        "--evaluation_level",
        choices=EVALUATION_LEVELS,
        default=EVALUATION_LEVELS[0],
        help="evaluate each image, or each study: the mean of the logits of its images",
    )
    command_line.add_folder(
        training,
        "--patients_dir",
        "the folder hosp/ of MIMIC-IV: measure also by sex, age and race",
    )


def warn_of_flags_without_effect(args: argparse.Namespace) -> None:
    """Warns about flags that have no effect in this run."""
    if args.crop_scale != DEFAULT_CROP_SCALE and args.augmentation != "mae":
        logger.warning("--crop_scale has no effect without --augmentation mae")
    if args.randaugment != RANDAUGMENT and args.augmentation != "mae":
        logger.warning("--randaugment has no effect without --augmentation mae")
    for flag in ("drop_path", "layer_decay"):
        if getattr(args, flag) and args.train_last_layer_only:
            logger.warning("--%s has no effect with --train_last_layer_only", flag)
    arguments.warn_of_flags_without_effect(args)


def describe_default_learning_rate(args: argparse.Namespace) -> str:
    """Returns in words which default the learning rate has for this model, given or not, and why."""
    if rate := recipes.RECIPES[args.recipe]["classification"].get("base_learning_rate"):
        return f"{rate:g} for 256 images per step, that of the recipe {args.recipe}"
    pretrained, scratch = LEARNING_RATES["pretrained"], LEARNING_RATES["scratch"]
    if args.config_name:
        return f"{scratch:g}, for a model from scratch (pretrained: {pretrained:g})"
    return f"{pretrained:g}, the paper's, for a pretrained model (from scratch: {scratch:g})"
