"""The moving average of the weights: its numbers, skipped steps, resumed runs."""

import shutil
from argparse import Namespace
from types import SimpleNamespace

import pytest
import run_classification
import torch
from accelerate import Accelerator
from accelerate import DistributedType
from cxr.errors import UserError
from cxr.training import optimization
from cxr.training.average import WeightAverage
from cxr.training.run import Run
from safetensors.torch import load_file
from tiny_runs import QUICK
from tiny_runs import TINY_RESNET
from tiny_runs import TINY_VIT
from tiny_runs import read_epochs
from tiny_runs import run_main
from torch import nn

FINITE, SKIPPED = torch.tensor(0.5), torch.tensor(float("nan"))


def decay_of(update, highest):
    """timm's ModelEmaV3 with its warm-up, whose first update copies the weights."""
    return min(highest, max(0.0, 1 - update ** (-2 / 3)))


def test_average_is_the_exponential_one_with_timms_warmup():
    model = nn.Linear(3, 2)
    average, expected = WeightAverage(model, decay=0.6), None
    for update in range(1, 12):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update(model, FINITE)
        decay = decay_of(update, 0.6)
        expected = model.weight.clone() if update == 1 else decay * expected + (1 - decay) * model.weight
        torch.testing.assert_close(average.model.weight, expected)
    assert decay == 0.6 > decay_of(3, 0.6)


def test_a_skipped_step_changes_neither_the_average_nor_its_warmup():
    models = [nn.Linear(2, 2), nn.Linear(2, 2)]
    models[1].load_state_dict(models[0].state_dict())
    averages = [WeightAverage(model, decay=0.9) for model in models]
    for step in range(6):
        for model, average, skips in zip(models, averages, (False, True)):
            if skips and step in (2, 3):
                average.update(model, SKIPPED)
            with torch.no_grad():
                model.weight.add_(step)
            average.update(model, FINITE)
    torch.testing.assert_close(averages[0].model.weight, averages[1].model.weight)


def test_a_step_whose_gradients_overflow_in_fp16_changes_neither_the_average_nor_its_warmup():
    accelerator = Accelerator()
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    model = nn.Linear(3, 2)
    optimizer = optimization.make_adamw(model, learning_rate=0.1, weight_decay=0.1, betas=(0.9, 0.95))
    model, optimizer = accelerator.prepare(model, optimizer)
    average, num_updates = WeightAverage(model, decay=0.5), []
    run = SimpleNamespace(
        accelerator=accelerator,
        model=model,
        optimizer=optimizer,
        average=average,
        args=Namespace(max_grad_norm=None),
    )
    for size in (100.0, 1e-9):
        before = model.weight.detach().clone()
        loss = model(torch.full((4, 3), size)).square().mean()
        accelerator.backward(loss)
        assert Run.update_weights(run, loss.detach()).isfinite()
        assert torch.equal(model.weight, before) == (not average.num_updates)
        num_updates.append(average.num_updates.item())
    assert num_updates == [0, 1]


def test_an_average_is_refused_under_fsdp():
    accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP)
    run = SimpleNamespace(args=Namespace(ema_decay=0.9), accelerator=accelerator)
    with pytest.raises(UserError, match="--ema_decay: found FSDP, which divides the weights; leave the flag"):
        Run._make_average(run)


def test_statistics_of_batch_normalisation_are_averaged_and_its_counter_is_copied():
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model, decay=0.5)
    for _ in range(4):
        model(torch.randn(8, 2) + 3)
        average.update(model, FINITE)
    assert average.model.num_batches_tracked == model.num_batches_tracked == 4
    assert not torch.equal(average.model.running_mean, model.running_mean)
    assert (average.model.running_mean > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("model", [TINY_VIT, TINY_RESNET])
def test_a_resumed_run_with_an_average_equals_an_uninterrupted_one(model, sample_root, tmp_path):
    flags = [*model, *QUICK, "--ema_decay=0.9", "--checkpointing_steps=3", f"--data_dir={sample_root}"]
    flags += ["--checkpoints_total_limit=9"]
    whole = run_main(run_classification, tmp_path / "whole", *flags)
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    checkpoints = tmp_path / "resumed" / "checkpoints"
    for later in [path for path in checkpoints.iterdir() if path.name != "step_3"]:
        shutil.rmtree(later)
    resumed = run_main(run_classification, tmp_path / "resumed", *flags, "--resume_from_checkpoint=latest")
    assert resumed["validation"] == whole["validation"]
    for name, tensor in load_file(tmp_path / "whole" / "model" / "model.safetensors").items():
        again = load_file(tmp_path / "resumed" / "model" / "model.safetensors")[name]
        assert torch.equal(tensor, again), name


def test_the_average_is_what_is_evaluated_and_saved(sample_root, tmp_path):
    flags = [*TINY_VIT, *QUICK, "--max_train_steps=6", f"--data_dir={sample_root}"]
    plain = run_main(run_classification, tmp_path / "plain", *flags)
    averaged = run_main(run_classification, tmp_path / "averaged", *flags, "--ema_decay=0.999")
    assert plain["train_loss"] == averaged["train_loss"]  # training itself does not change
    assert plain["validation"]["loss"] != averaged["validation"]["loss"]
    weights = [load_file(tmp_path / run / "model" / "model.safetensors") for run in ("plain", "averaged")]
    assert weights[0].keys() == weights[1].keys()
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_average_is_evaluated_in_the_precision_of_the_training(sample_root, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    flags = [*TINY_VIT, *QUICK, "--max_train_steps=6", f"--data_dir={sample_root}"]
    run_main(run_classification, tmp_path / "plain", *flags)
    run_main(run_classification, tmp_path / "averaged", *flags, "--ema_decay=0")
    (plain,), (averaged,) = (read_epochs(tmp_path / run) for run in ("plain", "averaged"))
    assert plain["eval_loss"] == averaged["eval_loss"]


def test_patches_are_hidden_in_training_and_not_from_the_average(sample_root, tmp_path):
    flags = [*TINY_VIT, *QUICK, "--max_train_steps=6", "--mask_ratio=0.75", f"--data_dir={sample_root}"]
    results = run_main(run_classification, tmp_path / "run", *flags, "--ema_decay=0.5")
    [epoch] = read_epochs(tmp_path / "run")
    # The saved model, which hides no patches, gives the loss that was measured in training.
    assert epoch["eval_loss"] == pytest.approx(results["validation"]["loss"], abs=1e-6)
