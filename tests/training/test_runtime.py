"""The start of a run, and how it ends when something is wrong."""

import argparse
import json
import logging
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cxr.errors import UserError
from cxr.errors import run_script
from cxr.errors import undo_nothing
from cxr.errors import undo_on_user_error
from cxr.training import runtime


def arguments(output_dir: Path, **changes) -> argparse.Namespace:
    options = {"seed": 3, "resume_from_checkpoint": None, "with_tracking": False, "report_to": "tensorboard"}
    options |= dict.fromkeys(("data_dir", "model_name_or_path", "model_revision", "hub_dir"))
    options |= {"per_device_train_batch_size": 8, "push_to_hub": False, "other_data_dirs": []}
    return argparse.Namespace(output_dir=output_dir, **{**options, **changes})


def test_auto_batch_size_on_a_cpu_is_refused_before_anything_is_written(tmp_path):
    options = arguments(tmp_path / "run", per_device_train_batch_size="auto")
    with pytest.raises(ValueError, match=r"needs an NVIDIA or AMD GPU, found cpu; give a number"):
        runtime.start_run(options, default_output_dir="x")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "leave it out there .* and use --torch_compile"),
        ("ACCELERATE_USE_DEEPSPEED", "true", r"found DeepSpeed .*; use accelerate_configs/fsdp_bf16\.yaml"),
    ],
)
def test_what_accelerate_config_offers_and_does_not_work_here_is_refused(
    variable, value, said, monkeypatch, tmp_path
):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=said):
        runtime.start_run(arguments(tmp_path / "run"), default_output_dir="x")
    assert not (tmp_path / "run").exists()


def test_flags_that_are_too_long_for_the_record_are_one_line(tmp_path):
    runtime.start_run(arguments(tmp_path / "a", findings=["Edema " * 5] * 200), default_output_dir="x")
    with pytest.raises(UserError, match=r"cannot be recorded: found .* expected at most 10,000 printable"):
        runtime.start_run(arguments(tmp_path / "b", findings=["Edema " * 5] * 400), default_output_dir="x")


def test_start_writes_the_arguments_and_begins_the_log(tmp_path):
    _, record = runtime.start_run(arguments(tmp_path / "run"), default_output_dir="x")
    logging.getLogger("cxr.anything").info("a line")
    written = json.loads((record.output_dir / "args.json").read_text(encoding="utf-8"))
    assert written["origin"]["dataset"] == "synthetic-radiographs"
    assert written["seed"] == 3 and written["output_dir"] == str(tmp_path / "run")
    assert "a line" in (record.output_dir / "train.log").read_text(encoding="utf-8")
    assert record.enabled and record.output_dir == tmp_path / "run"


def test_start_seeds_the_initial_weights(tmp_path):
    weights = []
    for name in ("a", "b"):
        runtime.start_run(arguments(tmp_path / name), default_output_dir="x")
        weights.append(torch.nn.Linear(4, 4).weight)
    assert torch.equal(*weights)


def test_users_error_is_traced_in_the_log(tmp_path):
    def main():
        runtime.start_run(arguments(tmp_path / "run"), default_output_dir="x")
        undo_on_user_error(undo_nothing)  # as at the first step
        raise UserError("found a")

    with pytest.raises(SystemExit):
        run_script(main)
    assert "Traceback" in (tmp_path / "run" / "train.log").read_text(encoding="utf-8")


def test_resuming_with_other_flags_is_refused_and_keeps_the_first_arguments(tmp_path):
    runtime.start_run(arguments(tmp_path), default_output_dir="x")
    before = (tmp_path / "args.json").read_bytes()
    resumed = arguments(tmp_path, seed=4, resume_from_checkpoint="latest")
    with pytest.raises(ValueError, match=r"--seed: found 4, but .* began with 3; use the same flags"):
        runtime.start_run(resumed, default_output_dir="x")
    assert (tmp_path / "args.json").read_bytes() == before


def test_resuming_with_the_same_flags_is_accepted(tmp_path):
    runtime.start_run(arguments(tmp_path), default_output_dir="x")
    runtime.start_run(arguments(tmp_path, resume_from_checkpoint="latest"), default_output_dir="x")


def test_folder_of_a_run_that_ended_before_its_first_step_can_be_used_again(tmp_path):
    runtime.start_run(arguments(tmp_path), default_output_dir="x")
    runtime.start_run(arguments(tmp_path, seed=4), default_output_dir="x")


def test_resuming_where_there_is_no_run_says_so_and_makes_nothing(tmp_path):
    with pytest.raises((ValueError, OSError), match="--resume_from_checkpoint"):
        runtime.start_run(
            arguments(tmp_path / "typo", resume_from_checkpoint="latest"), default_output_dir="x"
        )
    assert not (tmp_path / "typo").exists()


def test_trackers_write_into_the_run_folder(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    accelerator, _ = runtime.start_run(
        arguments(tmp_path / "run", with_tracking=True), default_output_dir="x"
    )
    accelerator.log({"loss": 0.5}, step=1)
    accelerator.end_training()
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))
    assert not list((tmp_path / "elsewhere").iterdir())


def test_full_output_folder_is_refused_and_left_as_it_was(tmp_path):
    (tmp_path / "mine").write_text("1", encoding="utf-8")
    with pytest.raises(ValueError, match="is not empty"):
        runtime.start_run(arguments(tmp_path), default_output_dir="x")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_fp16_on_a_cpu_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ValueError, match="fp16 needs a GPU, found a CPU"):
        runtime.start_run(arguments(tmp_path), default_output_dir="x")


def test_measuring_is_in_full_precision_and_training_as_before():
    torch.set_float32_matmul_precision("high")
    with runtime.full_precision():
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision("highest")


def test_processes_wait_for_the_slowest_through_the_store(monkeypatch):
    store, order = torch.distributed.HashStore(), []
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_get_default_store", lambda: store)

    def arrive(rank: int) -> None:
        runtime.wait_for_all(SimpleNamespace(num_processes=2, process_index=rank), "images")
        order.append(rank)

    first = threading.Thread(target=arrive, args=(0,))
    first.start()
    first.join(3 * runtime.POLLING_SECONDS)
    assert order == []
    arrive(1)
    first.join()
    assert sorted(order) == [0, 1]
