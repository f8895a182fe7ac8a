"""The start of a run, and how it ends when something is wrong."""

import argparse
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cxr.training import runtime
from tiny_runs import QUICK
from tiny_runs import TINY_VIT

SCRIPTS = Path(__file__).parents[2] / "scripts"


def arguments(output_dir: Path, **changes) -> argparse.Namespace:
    options = {"seed": 3, "resume_from_checkpoint": None, "with_tracking": False, "report_to": "tensorboard"}
    options |= dict.fromkeys(("data_dir", "model_name_or_path", "model_revision", "hub_dir"))
    return argparse.Namespace(output_dir=output_dir, **{**options, **changes})


def raising(error: BaseException):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    "error", [ValueError("found a\n  b"), FileNotFoundError("found a b"), OSError("found a b")]
)
def test_users_error_is_one_line_and_exit_status_2(error, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/somewhere/run_it.py"])
    with pytest.raises(SystemExit) as ended:
        runtime.run_script(raising(error))
    assert ended.value.code == 2
    assert capsys.readouterr().err == "run_it.py: error: found a b\n"


def test_interrupted_script_ends_with_status_130_and_no_trace(capsys):
    with pytest.raises(SystemExit) as ended:
        runtime.run_script(raising(KeyboardInterrupt()))
    assert ended.value.code == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("of torch")])
def test_our_own_errors_keep_their_trace(error):
    with pytest.raises(type(error)):
        runtime.run_script(raising(error))


def test_a_full_gpu_is_one_line_that_says_what_to_do(capsys):
    with pytest.raises(SystemExit) as ended:
        runtime.run_script(raising(torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")))
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith(
        "error: OutOfMemoryError: CUDA out of memory.; lower --per_device_train_batch_size or --image_size\n"
    )


def test_model_that_a_training_cannot_load_need_not_be_loaded(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run_it.py"])
    error = OSError("model a/b: could not be loaded (Connection reset by peer); name c")
    with pytest.raises(SystemExit):
        runtime.run_script(raising(error))
    assert capsys.readouterr().err == (
        "run_it.py: error: model a/b: could not be loaded (Connection reset by peer); name c; "
        "or train from scratch: --config_name\n"
    )


@pytest.mark.parametrize(
    ("error", "what_to_do"),
    [
        (MemoryError(), "take fewer images at once"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "take fewer images at once"),
        (OSError(28, "No space left on device"), "make room and start again"),
        (PermissionError(13, "Permission denied", "a.csv"), "that you may read and write"),
        (OSError("model a: could not be loaded (b); name c"), "name c"),
    ],
)
def test_script_that_uses_a_model_advises_no_flag_of_a_training(error, what_to_do, capsys):
    with pytest.raises(SystemExit) as ended:
        runtime.run_script(raising(error), advice=runtime.INFERENCE_ADVICE)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.count("\n") == 1 and what_to_do in said and "--" not in said


@pytest.mark.slow
def test_compiling_without_a_compiler_says_what_to_do(sample_root, tmp_path):
    flags = [*TINY_VIT, *QUICK, f"--data_dir={sample_root}", f"--output_dir={tmp_path / 'run'}"]
    environment = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(SCRIPTS / "run_classification.py"), *flags, "--torch_compile"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--torch_compile needs a C++ compiler" in done.stderr
    assert "Traceback" not in done.stderr


def test_another_process_says_which_it_is(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as ended:
        runtime.run_script(raising(ValueError("found a")))
    assert ended.value.code == 2 and capsys.readouterr().err.endswith(" [process 1]: error: found a\n")


def test_auto_batch_size_on_a_cpu_is_refused_before_anything_is_written(tmp_path):
    options = arguments(tmp_path / "run", per_device_train_batch_size="auto")
    with pytest.raises(ValueError, match=r"needs a GPU.*found cpu; name a number"):
        runtime.start_run(options, default_output_dir="x")
    assert not (tmp_path / "run").exists()


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
        raise ValueError("found a")

    with pytest.raises(SystemExit):
        runtime.run_script(main)
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
