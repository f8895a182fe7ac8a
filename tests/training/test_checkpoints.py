"""Checkpoints are written atomically, the newest is found by its content, and resuming restores all of it."""

import json
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from cxr.errors import UserError
from cxr.models.pretrained import load_image_processor
from cxr.run_folder.record import PROGRESS_FILE
from cxr.run_folder.record import Epoch
from cxr.training import checkpoints
from cxr.training.optimization import Warmup
from cxr.training.optimization import make_adamw
from cxr.training.optimization import make_schedule
from cxr.training.optimization import update_weights
from cxr.training.progress import Progress
from transformers import ViTConfig
from transformers import ViTForImageClassification


@pytest.fixture
def run(tmp_path):
    """A prepared tiny model with its accelerator, in an output folder."""
    accelerator = Accelerator()
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return accelerator, *accelerator.prepare(model, optimizer), tmp_path


def train_step(accelerator, model, optimizer, *, seed: int) -> None:
    inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
    accelerator.backward(model(inputs).square().mean())
    optimizer.step()
    optimizer.zero_grad()


def take_step(accelerator, model, optimizer) -> None:
    loss = model(torch.ones(4, 3)).square().mean()
    accelerator.backward(loss)
    update_weights(accelerator, model, optimizer, loss.detach(), max_grad_norm=1.0)


STEP = {"images_per_step": 8}


def save(run, step: int, *, total_limit: int = 9) -> None:
    accelerator, _, _, output_dir = run
    checkpoints.save_checkpoint(accelerator, output_dir, Progress(**STEP, step=step), total_limit=total_limit)


def names(output_dir: Path) -> list[str]:
    return sorted(path.name for path in (output_dir / "checkpoints").iterdir())


def test_resumed_run_goes_on_bit_by_bit_as_if_never_stopped(run):
    accelerator, model, optimizer, output_dir = run
    train_step(accelerator, model, optimizer, seed=1)
    progress = Progress(**STEP, step=1, loss_sum=0.5, num_losses=1, train_seconds=2.0)
    checkpoints.save_checkpoint(accelerator, output_dir, progress, total_limit=1)
    train_step(accelerator, model, optimizer, seed=2)
    expected = model.weight.detach().clone()
    train_step(accelerator, model, optimizer, seed=3)

    assert checkpoints.resume(accelerator, optimizer, output_dir, "latest", **STEP) == progress
    train_step(accelerator, model, optimizer, seed=2)
    assert torch.equal(model.weight, expected)


@pytest.mark.parametrize("was_fused", [False, True])
def test_checkpoint_of_a_machine_with_another_kind_of_adamw_goes_on_here(was_fused, tmp_path):
    weights = []
    for is_fused in (was_fused, not was_fused):
        accelerator, model = Accelerator(), torch.nn.Linear(3, 2)
        with mock.patch("torch.backends.mps.is_available", lambda is_fused=is_fused: not is_fused):
            optimizer = make_adamw(model, learning_rate=0.1, weight_decay=0, betas=(0.9, 0.95))
        run = (accelerator, *accelerator.prepare(model, optimizer), tmp_path)
        if weights:
            checkpoints.resume(accelerator, run[2], tmp_path, "latest", **STEP)
        else:
            take_step(*run[:3])
            save(run, 1)
        take_step(*run[:3])
        weights.append(run[1].weight.detach().clone())
    assert torch.allclose(*weights, atol=1e-6)


def test_run_that_does_not_resume_starts_at_step_0(run):
    accelerator, _, optimizer, output_dir = run
    assert checkpoints.resume(accelerator, optimizer, output_dir, None, **STEP) == Progress(**STEP)


def test_latest_is_the_one_of_the_most_steps_whatever_the_folders_are_called(run):
    output_dir = run[3]
    for step in (9, 10, 100):
        save(run, step)
    (output_dir / "checkpoints" / "step_100").rename(output_dir / "checkpoints" / "step_1")
    found = checkpoints.find_checkpoint(output_dir, "latest")
    assert found.name == "step_1" and Progress.read(found / PROGRESS_FILE).step == 100
    steps = [
        Progress.read(path / PROGRESS_FILE).step for path in checkpoints.complete_checkpoints(found.parent)
    ]
    assert steps == [9, 10, 100]


def test_partial_folders_are_not_checkpoints(run):
    output_dir = run[3]
    save(run, 5)
    shutil.copytree(output_dir / "checkpoints" / "step_5", output_dir / "checkpoints" / ".step_7.tmp")
    shutil.copytree(output_dir / "checkpoints" / "step_5", output_dir / "checkpoints" / "step_8")
    (output_dir / "checkpoints" / "step_8" / PROGRESS_FILE).unlink()
    assert checkpoints.find_checkpoint(output_dir, "latest").name == "step_5"


def test_limit_keeps_the_newest(run):
    for step in (2, 4, 6, 10):
        save(run, step, total_limit=2)
    assert names(run[3]) == ["step_10", "step_6"]


def test_all_are_kept_up_to_the_limit(run):
    for step in (1, 2, 3):
        save(run, step)
    assert names(run[3]) == ["step_1", "step_2", "step_3"]


def test_interrupted_save_keeps_the_old_checkpoint(run, monkeypatch):
    accelerator, _, _, output_dir = run
    save(run, 1, total_limit=1)
    saving = accelerator.save_state

    def stop_halfway(folder):
        saving(folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(accelerator, "save_state", stop_halfway)
        save(run, 2, total_limit=1)
    assert checkpoints.find_checkpoint(output_dir, "latest").name == "step_1"
    save(run, 2, total_limit=1)
    assert names(output_dir) == ["step_2"]


def test_oldest_is_deleted_only_after_the_new_one_is_complete(run, monkeypatch):
    output_dir = run[3]
    save(run, 1, total_limit=1)
    complete_when_deleted = []
    remove = checkpoints.files.remove_folder

    def note(path):
        complete_when_deleted.extend(names(output_dir))
        remove(path)

    monkeypatch.setattr(checkpoints.files, "remove_folder", note)
    save(run, 2, total_limit=1)
    assert complete_when_deleted == ["step_1", "step_2"]


def test_saving_a_step_again_replaces_it(run):
    accelerator, _, _, output_dir = run
    for loss_sum in (1.0, 2.0):
        progress = Progress(**STEP, step=3, loss_sum=loss_sum)
        checkpoints.save_checkpoint(accelerator, output_dir, progress, total_limit=1)
    assert names(output_dir) == ["step_3"]
    assert Progress.read(output_dir / "checkpoints" / "step_3" / PROGRESS_FILE).loss_sum == 2.0


def test_resuming_from_an_older_checkpoint_leaves_no_newer_one_to_resume_from_later(run):
    accelerator, _, optimizer, output_dir = run
    for step in (10, 20, 30):
        save(run, step, total_limit=3)
    checkpoints.resume(
        accelerator, optimizer, output_dir, str(output_dir / "checkpoints" / "step_10"), **STEP
    )
    save(run, 15, total_limit=3)
    assert checkpoints.find_checkpoint(output_dir, "latest").name == "step_15"


def test_finished_run_without_a_checkpoint_is_not_started_again(run):
    accelerator, _, optimizer, output_dir = run
    (output_dir / "results.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="found a finished run without a checkpoint, expected a checkpoint"):
        checkpoints.resume(accelerator, optimizer, output_dir, "latest", **STEP)
    assert (output_dir / "results.json").exists()


def test_resumed_run_has_the_records_of_its_checkpoint_whatever_came_later(run):
    accelerator, _, optimizer, output_dir = run
    metrics, bad_steps = output_dir / "metrics.jsonl", output_dir / "bad_steps.jsonl"
    for step in (1, 2, 3):
        metrics.write_text(f"epochs up to {step}", encoding="utf-8")
        if step == 2:
            bad_steps.write_text("step 2", encoding="utf-8")
        save(run, step)
    (output_dir / "results.json").write_text("{}", encoding="utf-8")
    for name, expected in (("step_1", False), ("step_2", True), ("step_3", True), ("step_1", False)):
        folder = output_dir / "checkpoints" / name
        checkpoints.resume(accelerator, optimizer, output_dir, str(folder), **STEP)
        assert metrics.read_text(encoding="utf-8") == f"epochs up to {name[-1]}"
        assert bad_steps.exists() is expected and not (output_dir / "results.json").exists()
    checkpoints.resume(accelerator, optimizer, output_dir, "latest", **STEP)
    assert metrics.read_text(encoding="utf-8") == "epochs up to 3"


def test_what_a_user_keeps_beside_the_checkpoints_is_left_alone(run):
    output_dir = run[3]
    save(run, 1)
    shutil.copytree(output_dir / "checkpoints" / "step_1", output_dir / "checkpoints" / "step_1_keep_this")
    for step in (2, 3):
        save(run, step, total_limit=1)
    assert names(output_dir) == ["step_1_keep_this", "step_3"]


def test_older_checkpoint_that_is_damaged_is_left_aside_with_a_warning(run, caplog):
    output_dir = run[3]
    for step in (1, 2):
        save(run, step)
    (output_dir / "checkpoints" / "step_1" / "progress.json").write_text("{", encoding="utf-8")
    assert checkpoints.find_checkpoint(output_dir, "latest").name == "step_2"
    assert "Skipped: " in caplog.text and "step_1" in caplog.text
    save(run, 3, total_limit=2)


def test_latest_without_a_checkpoint_starts_at_step_0(run, caplog):
    accelerator, _, optimizer, output_dir = run
    with caplog.at_level("INFO"):
        assert checkpoints.resume(accelerator, optimizer, output_dir, "latest", **STEP) == Progress(**STEP)
    assert "Found no complete checkpoint" in caplog.text


def test_resumed_run_has_the_best_model_of_its_checkpoint(run):
    accelerator, _, optimizer, output_dir = run
    model_dir = output_dir / "model"
    for step, content in ((1, "first"), (2, "second")):
        model_dir.mkdir(exist_ok=True)
        (model_dir / "config.json").write_text(content, encoding="utf-8")
        best = Epoch(epoch=step, step=step, auroc=0.5, eval_loss=0.5, train_loss=0.5)
        progress = Progress(**STEP, step=step, best=best)
        checkpoints.save_checkpoint(accelerator, output_dir, progress, total_limit=2)
    first = output_dir / "checkpoints" / "step_1"
    assert checkpoints.resume(accelerator, optimizer, output_dir, str(first), **STEP).best.epoch == 1
    assert (model_dir / "config.json").read_text(encoding="utf-8") == "first"
    shutil.rmtree(model_dir)  # as a kill between two renames may leave it
    checkpoints.resume(accelerator, optimizer, output_dir, "latest", **STEP)
    assert (model_dir / "config.json").read_text(encoding="utf-8") == "second"


def test_folder_that_is_no_checkpoint_is_an_error_that_names_one(tmp_path):
    with pytest.raises(
        UserError, match=r"--resume_from_checkpoint .*no.* complete checkpoint of this run.*step_100"
    ):
        checkpoints.find_checkpoint(tmp_path, str(tmp_path))


def test_checkpoint_of_another_run_is_refused(run, tmp_path_factory):
    save(run, 3)
    other = tmp_path_factory.mktemp("other")
    with pytest.raises(UserError, match="complete checkpoint of this run"):
        checkpoints.find_checkpoint(other, str(run[3] / "checkpoints" / "step_3"))


def test_checkpoint_can_be_named_by_its_folder(run):
    output_dir = run[3]
    save(run, 3)
    folder = output_dir / "checkpoints" / "step_3"
    assert checkpoints.find_checkpoint(output_dir, str(folder)) == folder


def test_checkpoints_are_due_at_epoch_ends_or_every_so_many_steps_and_at_the_end():
    schedule = make_schedule(
        32,
        images_per_step=8,
        num_epochs=2,
        max_steps=None,
        warmup=Warmup(ratio=0.0),
        peak_learning_rate=1.0,
        kind="constant",
    )
    due = {
        often: [step for step in range(1, 9) if checkpoints.is_due(often, schedule, step)]
        for often in (3, "epoch")
    }
    assert due == {3: [3, 6, 8], "epoch": [4, 8]}


def test_saved_model_loads_with_plain_transformers_and_replaces_the_last_one(tmp_path):
    accelerator = Accelerator()
    processor = load_image_processor(None, hub_dir=None, revision="main", image_size=16)
    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=16,
        patch_size=8,
    )
    model = accelerator.prepare_model(ViTForImageClassification(config))
    for value in (1.0, 2.0):
        torch.nn.init.constant_(model.classifier.bias, value)
        checkpoints.save_model(accelerator, model, processor, tmp_path / "model")
    loaded = ViTForImageClassification.from_pretrained(tmp_path / "model")
    assert (loaded.classifier.bias == 2.0).all()
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json"}
    saved = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text(encoding="utf-8"))
    assert saved["image_mean"] == [0.4978] * 3
