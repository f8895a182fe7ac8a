"""Defines the flags of run_mae_pretrain.py; a study checks them before its first run, without torch."""

import argparse

from cxr.choices import LEARNING_RATES
from cxr.cli import arguments
from cxr.cli import command_line
from cxr.cli import defaults
from cxr.cli.command_line import DATA_DIR
from cxr.cli.command_line import ArgumentParser
from cxr.models.architectures import VIT_MAE_CONFIGS


def parse_args(
    argv: list[str] | None,
    *,
    description: str | None = None,
    parser_class: type[ArgumentParser] = ArgumentParser,
) -> argparse.Namespace:
    parser = parser_class(description)
    arguments.add_model_arguments(parser, choices=list(VIT_MAE_CONFIGS))

    mae = parser.add_argument_group("masked autoencoder")
    hidden = "share of the patches hidden from the encoder"
    command_line.add_number(mae, "--mask_ratio", command_line.share_below_one, hidden, default=0.75)
    mae.add_argument(
        "--norm_pix_loss",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="predict pixels normalised by the mean and standard deviation of their patch",
    )
    arguments.add_crop_scale(mae, "a random resized crop", default=(0.2, 1.0))
    mae.add_argument(
        "--horizontal_flip",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="mirror half of the training images",
    )

    arguments.add_data_arguments(
        parser, data_dir=f"{DATA_DIR}; of several folders, the images of all are used"
    )
    training = arguments.add_training_arguments(
        parser,
        num_train_epochs=100,
        per_device_train_batch_size=64,
        weight_decay=0.05,
        lr_scheduler_type="cosine",
        warmup_ratio=0.05,
    )
    command_line.add_number(
        training,
        "--probe_epochs",
        command_line.positive_int,
        "after every N epochs, learn the labels from the frozen features of at most 2,000 images, and "
        "measure the AUROC on as many validation images (default: never)",
    )
    arguments.add_learning_rate_arguments(training, default="--base_learning_rate 1.5e-4")
    arguments.add_output_arguments(parser, default_output_dir="runs/mae_pretrain")
    return defaults.parse_with_defaults(
        parser,
        argv,
        script="pretraining",
        default_learning_rates={start: {"base_learning_rate": 1.5e-4} for start in LEARNING_RATES},
        sample_defaults={
            **defaults.SAMPLE_MODEL,
            "num_train_epochs": 30,
            "per_device_train_batch_size": 32,
            "learning_rate": 1e-3,
        },
    )
