"""The defaults that fit what the user named, and the learning rate that follows from the flags."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import run_classification
import run_mae_pretrain
import torch
from cxr.cli.classification import describe_default_learning_rate
from cxr.run_folder.record import RunRecord
from cxr.training.run import Run
from transformers import ResNetConfig
from transformers import ResNetForImageClassification


def test_nothing_named_is_a_tiny_model_on_the_sample():
    for script in (run_mae_pretrain, run_classification):
        args = script.parse_args([])
        assert (args.data_dir, args.config_name, args.image_size) == (None, "vit-mae-tiny", 64)
        assert args.model_name_or_path is None


def test_data_without_a_model_is_the_papers_setting(tmp_path):
    args = run_classification.parse_args(["--data_dir", str(tmp_path)])
    assert (args.model_name_or_path, args.config_name) == ("facebook/vit-mae-base", None)
    assert (args.learning_rate, args.num_train_epochs, args.per_device_train_batch_size) == (1e-6, 20, 32)
    assert (args.augmentation, args.mask_ratio, args.lr_scheduler_type) == ("none", 0.0, "constant")


def test_pretraining_on_data_is_the_recipe_of_the_masked_autoencoder(tmp_path):
    args = run_mae_pretrain.parse_args(["--data_dir", str(tmp_path)])
    assert (args.mask_ratio, args.norm_pix_loss, args.weight_decay) == (0.75, True, 0.05)
    assert (args.base_learning_rate, args.learning_rate, tuple(args.crop_scale)) == (1.5e-4, None, (0.2, 1.0))


def test_flags_win_over_the_defaults_of_the_sample():
    args = run_classification.parse_args(["--num_train_epochs", "3", "--learning_rate", "0.5"])
    assert (args.num_train_epochs, args.learning_rate, args.config_name) == (3, 0.5, "vit-mae-tiny")


def test_one_kind_of_learning_rate_replaces_the_default_of_the_other():
    args = run_mae_pretrain.parse_args(["--learning_rate", "0.25"])
    assert (args.learning_rate, args.base_learning_rate) == (0.25, None)
    args = run_classification.parse_args(["--base_learning_rate", "0.25"])
    assert (args.learning_rate, args.base_learning_rate) == (None, 0.25)


def test_model_named_for_the_sample_gets_the_learning_rate_of_pretrained_models():
    args = run_classification.parse_args(["--model_name_or_path", "some/model"])
    assert (args.learning_rate, args.config_name, args.num_train_epochs) == (1e-6, None, 20)


@pytest.mark.parametrize(
    ("flags", "rate"),
    [
        (["--config_name", "resnet-18"], 1e-4),
        (["--config_name", "vit-mae-tiny", "--learning_rate", "1e-6"], 1e-6),  # asked for by name
        (["--config_name", "vit-mae-tiny", "--base_learning_rate", "0.5"], None),
        (["--model_name_or_path", "microsoft/resnet-18"], 1e-6),
    ],
)
def test_model_from_scratch_has_a_learning_rate_of_its_own_unless_one_is_named(flags, rate, tmp_path):
    assert run_classification.parse_args([f"--data_dir={tmp_path}", *flags]).learning_rate == rate


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--config_name=resnet-18", "0.0001, for a model from scratch (pretrained: 1e-06)"),
        ("--model_name_or_path=a/b", "1e-06, the paper's, for a pretrained model (from scratch: 0.0001)"),
    ],
)
def test_plan_says_which_learning_rate_is_the_default_and_why(flag, said):
    assert said in describe_default_learning_rate(run_classification.parse_args([flag]))


def plan_steps(args, *, num_processes):
    accelerator = SimpleNamespace(num_processes=num_processes, device=torch.device("cpu"))
    run = Run(args=args, accelerator=accelerator, record=RunRecord(Path("unused"), enabled=False))
    model = ResNetForImageClassification(ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1]))
    processor = SimpleNamespace(size={"height": 32})
    run.plan(model, processor, None, num_images=1000, betas=(0.9, 0.95))
    return run.schedule


def test_base_learning_rate_grows_with_the_images_of_a_step():
    flags = [
        "--base_learning_rate",
        "1e-3",
        "--per_device_train_batch_size",
        "16",
        "--gradient_accumulation_steps",
        "4",
    ]
    args = run_classification.parse_args([*flags, "--num_train_epochs", "2"])
    schedule = plan_steps(args, num_processes=8)
    assert schedule.images_per_step == 512
    assert schedule.peak_learning_rate == pytest.approx(2e-3)
    assert (schedule.steps_per_epoch, schedule.num_steps) == (1, 2)


def test_learning_rate_is_taken_as_it_is():
    args = run_classification.parse_args(["--learning_rate", "1e-3", "--per_device_train_batch_size", "16"])
    assert plan_steps(args, num_processes=8).peak_learning_rate == 1e-3


def test_checkpointing_steps_are_a_number_or_epoch():
    for text, value in (("epoch", "epoch"), ("50", 50)):
        assert run_classification.parse_args(["--checkpointing_steps", text]).checkpointing_steps == value


def test_switches_have_an_off_form():
    args = run_mae_pretrain.parse_args(["--no-norm_pix_loss", "--no-horizontal_flip"])
    assert (args.norm_pix_loss, args.horizontal_flip) == (False, False)
