"""Steps with a NaN or infinite loss or gradient change nothing, are counted, and stop a run if too many."""

import json
import stat
import sys
from types import SimpleNamespace
from unittest import mock

import pytest
import run_classification
import run_mae_pretrain
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from cxr.data.loading import ChestXrays
from cxr.training import nonfinite
from cxr.training import optimization
from cxr.training import run as run_module
from poison import PoisonedNormalizer
from safetensors.torch import load_file
from tiny_runs import QUICK
from tiny_runs import TINY_RESNET
from tiny_runs import TINY_VIT
from tiny_runs import read_epochs
from tiny_runs import run_main
from torch import nn


def prepared(scaler=None, *, is_apple=False) -> tuple[Accelerator, nn.Module, AcceleratedOptimizer]:
    accelerator = Accelerator()
    accelerator.scaler = scaler
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    with mock.patch("torch.backends.mps.is_available", lambda: is_apple):
        optimizer = optimization.make_adamw(model, learning_rate=0.1, weight_decay=0.1, betas=(0.9, 0.95))
    return accelerator, *accelerator.prepare(model, optimizer)


def step(accelerator, model, optimizer, inputs: torch.Tensor, **options) -> torch.Tensor:
    loss = model(inputs).square().mean()
    accelerator.backward(loss)
    return optimization.update_weights(
        accelerator, model, optimizer, loss.detach(), **{"max_grad_norm": None, **options}
    )


def state(model, optimizer) -> list[torch.Tensor]:
    moments = [value for of in optimizer.state.values() for value in of.values()]
    return [value.detach().clone() for value in [*model.parameters(), *moments]]


@pytest.mark.parametrize("is_apple", [False, True])
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_step_that_is_not_finite_leaves_weights_and_moments_as_they_were(number, max_grad_norm, is_apple):
    accelerator, model, optimizer = prepared(is_apple=is_apple)
    assert optimizer.optimizer.defaults["fused"] is not is_apple
    options = {"max_grad_norm": max_grad_norm}
    good = torch.ones(4, 3)
    assert step(accelerator, model, optimizer, good, **options).isfinite()
    before = state(model, optimizer)
    assert step(accelerator, model, optimizer, torch.full((4, 3), number), **options).isnan()
    after = state(model, optimizer)
    assert len(before) == 8 and all(torch.equal(*pair) for pair in zip(before, after))
    assert all(parameter.grad is None for parameter in model.parameters())
    step(accelerator, model, optimizer, good, **options)
    assert not torch.equal(model.weight, before[0])


def test_finite_step_is_that_of_plain_adamw():
    accelerator, model, optimizer = prepared()
    plain = nn.Linear(3, 2)
    plain.load_state_dict(model.state_dict())
    reference = optimization.make_adamw(plain, learning_rate=0.1, weight_decay=0.1, betas=(0.9, 0.95))
    for seed in range(5):
        inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        step(accelerator, model, optimizer, inputs)
        plain(inputs).square().mean().backward()
        reference.step()
        reference.zero_grad()
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), plain.parameters()))


def test_gradient_that_overflows_beside_a_finite_loss_is_the_scalers_business():
    accelerator, model, optimizer = prepared(torch.amp.GradScaler("cpu", init_scale=2.0**127))
    before = model.weight.detach().clone()
    loss = step(accelerator, model, optimizer, torch.full((4, 3), 100.0))
    assert loss.isfinite() and torch.equal(model.weight, before)
    assert accelerator.scaler.get_scale() == 2.0**126


@pytest.fixture
def poison(monkeypatch):
    def set_steps(*steps: int) -> None:
        monkeypatch.setattr(PoisonedNormalizer, "poisoned", steps)
        monkeypatch.setattr(PoisonedNormalizer, "num_calls", 0)
        monkeypatch.setattr(run_module, "Normalizer", PoisonedNormalizer)

    return set_steps


@pytest.mark.parametrize(
    ("script", "model"),
    [(run_mae_pretrain, TINY_VIT), (run_classification, TINY_VIT), (run_classification, TINY_RESNET)],
    ids=["pretraining", "ViT", "ResNet"],
)
def test_run_skips_its_bad_steps_and_names_their_images_in_private(
    script, model, poison, sample_root, tmp_path
):
    poison(2, 4)
    flags = [*model, *QUICK, "--num_train_epochs=1", f"--data_dir={sample_root}"]
    results = run_main(script, tmp_path / "run", *flags)
    assert results["bad_steps"] == 2
    assert all(epoch["train_loss"] < 3 for epoch in read_epochs(tmp_path / "run"))
    path = tmp_path / "run" / "bad_steps.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    sample = json.loads((tmp_path / "run" / "samples.json").read_text(encoding="utf-8"))["dicom_ids"]
    images = [name for line in lines for name in line["dicom_ids"]]
    assert len(set(images)) == 16 and set(images) < set(sample)
    log = (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    assert "Skipped step 4: its loss or gradient is NaN or infinite. Its images are in " in log
    assert not [name for name in sample if name in log]
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())  # batch normalisation's statistics, too


def test_images_of_a_bad_step_are_those_that_it_was_fed(poison, sample_root, tmp_path, monkeypatch):
    fed = []
    read = ChestXrays.__getitems__

    def note(self, keys):
        fed.append([self.images["dicom_id"][index] for _, index in keys])
        return read(self, keys)

    monkeypatch.setattr(ChestXrays, "__getitems__", note)
    poison(3)
    run_main(run_mae_pretrain, tmp_path / "run", *TINY_VIT, *QUICK, f"--data_dir={sample_root}")
    (line,) = (tmp_path / "run" / "bad_steps.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {"step": 3, "dicom_ids": fed[2]}


def test_more_bad_steps_than_allowed_stop_the_run_with_the_last_good_checkpoint(
    poison, sample_root, tmp_path
):
    flags = [*TINY_VIT, *QUICK, f"--data_dir={sample_root}", "--max_bad_steps=1", "--checkpointing_steps=2"]
    poison(4, 5)
    found = r"after step 6: found 2 steps .*expected at most --max_bad_steps 1,.*good checkpoint: .*step_4"
    with pytest.raises(ValueError, match=found):
        run_main(run_mae_pretrain, tmp_path / "run", *flags)
    poison()
    resumed = run_main(run_mae_pretrain, tmp_path / "run", *flags, "--resume_from_checkpoint=latest")
    assert resumed["bad_steps"] == 1


def test_epoch_of_nothing_but_bad_steps_stops_the_run(poison, sample_root, tmp_path):
    poison(1, 2)
    flags = [*TINY_VIT, *QUICK, f"--data_dir={sample_root}", "--max_train_samples=16"]
    with pytest.raises(ValueError, match=r"found 2 steps .*a good step in each epoch"):
        run_main(run_mae_pretrain, tmp_path / "run", *flags)


@pytest.mark.parametrize("logging_steps", [1, 2, 10])
def test_first_step_of_an_epoch_may_be_bad_however_often_the_loss_is_read(
    logging_steps, poison, sample_root, tmp_path
):
    poison(1)
    flags = [*TINY_VIT, *QUICK, f"--data_dir={sample_root}", f"--logging_steps={logging_steps}"]
    results = run_main(run_mae_pretrain, tmp_path / "run", *flags, "--max_train_steps=3")
    assert results["bad_steps"] == 1


def test_scale_of_fp16_that_keeps_falling_stops_the_run(sample_root, tmp_path, monkeypatch):
    scale = SimpleNamespace(get_scale=lambda: 2.0**-30)
    check = nonfinite.check_training
    monkeypatch.setattr(
        nonfinite,
        "check_training",
        lambda accelerator, *args, **options: check(SimpleNamespace(scaler=scale), *args, **options),
    )
    flags = [*TINY_VIT, *QUICK, f"--data_dir={sample_root}"]
    with pytest.raises(ValueError, match="found fp16 gradients that overflow at every loss scale"):
        run_main(run_mae_pretrain, tmp_path / "run", *flags)


def test_nan_loss_of_an_evaluation_stops_the_run(sample_root, tmp_path, monkeypatch):
    def nan(model, pixel_values, outputs, *, by_image=False):
        loss = real(model, pixel_values, outputs, by_image=by_image)
        return loss * float("nan") if by_image else loss

    real = run_mae_pretrain.reconstruction_loss
    monkeypatch.setattr(run_mae_pretrain, "reconstruction_loss", nan)
    flags = [*TINY_VIT, *QUICK, f"--data_dir={sample_root}"]
    with pytest.raises(ValueError, match="the loss on validation is nan, expected a finite number; lower"):
        run_main(run_mae_pretrain, tmp_path / "run", *flags)


def test_infinite_weight_stops_the_run_before_it_is_saved(sample_root, tmp_path):
    flags = [*TINY_VIT, *QUICK, "--learning_rate=1e38", "--checkpointing_steps=1", "--warmup_ratio=0"]
    with pytest.raises(ValueError, match="found a NaN or infinite weight"):
        run_main(run_mae_pretrain, tmp_path / "run", *flags, f"--data_dir={sample_root}")
    for path in (tmp_path / "run").rglob("*.safetensors"):
        assert all(weight.isfinite().all() for weight in load_file(path).values())
