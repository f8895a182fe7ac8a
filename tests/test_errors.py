"""How a script ends: a user's error in one line, any other error with its trace and, if known, advice."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import run_mae_pretrain
import torch
from cxr.errors import INFERENCE_ADVICE
from cxr.errors import TRAINING_ADVICE
from cxr.errors import UserError
from cxr.errors import did_you_mean
from cxr.errors import run_script
from tiny_runs import QUICK
from tiny_runs import TINY_VIT

SCRIPTS = Path(__file__).parents[1] / "scripts"


def end_of(error: BaseException, capsys, *, advice: dict[str, str] = TRAINING_ADVICE) -> tuple[int, str]:
    """Returns the exit status and the standard error of a script that ends with an error."""

    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        run_script(main, advice=advice)
    return ended.value.code, capsys.readouterr().err


@pytest.fixture(autouse=True)
def script(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/run_it.py"])


def test_users_error_is_one_line_and_status_2(capsys):
    assert end_of(UserError("found a\n  b"), capsys) == (2, "run_it.py: error: found a b\n")


def test_another_process_says_which_it_is(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert end_of(UserError("found a"), capsys) == (2, "run_it.py [process 1]: error: found a\n")


def test_interrupted_script_ends_with_status_130_and_no_trace(capsys):
    assert end_of(KeyboardInterrupt(), capsys) == (130, "")


@pytest.mark.parametrize(
    "error", [AssertionError(), RuntimeError("of torch"), ValueError("ours"), OSError("of a library")]
)
def test_any_other_error_keeps_its_trace_and_gets_no_advice(error, capsys):
    status, said = end_of(error, capsys)
    assert status == 1
    assert said.startswith("Traceback") and type(error).__name__ in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "in_training", "in_use"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried 2 GiB"),
            "lower --per_",
            "process fewer",
        ),
        (MemoryError(), "lower --per_", "process fewer"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            "lower --per_",
            "process fewer",
        ),
        (OSError(28, "No space left on device"), "the disk is full: make room and continue", "make room"),
        (
            PermissionError(13, "Permission denied", "a.csv"),
            "--cache_dir, --stage_dir or --hub_dir",
            "may read and write",
        ),
        (torch.distributed.DistNetworkError("recv"), "another process of this run has ended", None),
        (
            RuntimeError("unable to write to file </torch_17_42_0>: No space left on device (28)"),
            "docker run --shm-size=8g, or --ipc=host), or use fewer workers",
            "make room",
        ),
        (
            RuntimeError(
                "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's "
                "workers are out of shared memory."
            ),
            "/dev/shm",
            None,
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
            "--dataloader_num_workers",
            None,
        ),
    ],
)
def test_errors_of_the_machine_end_with_what_to_do_below_the_trace(error, in_training, in_use, capsys):
    status, said = end_of(error, capsys)
    assert status == 1 and said.startswith("Traceback")
    assert said.splitlines()[-1].startswith("run_it.py: error: ") and in_training in said.splitlines()[-1]
    if in_use:
        _, said = end_of(error, capsys, advice=INFERENCE_ADVICE)
        assert in_use in said.splitlines()[-1] and "--" not in said.splitlines()[-1]


def test_the_cause_of_an_error_is_asked_too(capsys):
    error = RuntimeError("it failed")
    error.__cause__ = MemoryError()
    assert "out of memory" in end_of(error, capsys)[1].splitlines()[-1]


@pytest.mark.slow
def test_compiling_without_a_compiler_says_what_to_do(sample_root, tmp_path):
    flags = [*TINY_VIT, *QUICK, f"--data_dir={sample_root}", f"--output_dir={tmp_path / 'run'}"]
    environment = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(SCRIPTS / "run_classification.py"), *flags, "--torch_compile"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "--torch_compile needs a C++ compiler" in done.stderr.splitlines()[-1]
    assert "Traceback" in (tmp_path / "run" / "train.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("was_there", [False, True])
def test_start_that_a_user_can_mend_leaves_no_folder_behind(was_there, sample_root, tmp_path, capsys):
    output_dir = tmp_path / "run"
    if was_there:
        output_dir.mkdir()
    flags = [*TINY_VIT, *QUICK, "--mask_ratio=0", f"--data_dir={sample_root}", f"--output_dir={output_dir}"]
    with pytest.raises(SystemExit) as ended:
        run_script(lambda: run_mae_pretrain.main(flags), advice=TRAINING_ADVICE)
    assert ended.value.code == 2
    assert "error: --mask_ratio 0.0 hides 0 of 16 patches" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"] * was_there
    assert not was_there or not list(output_dir.iterdir())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vit-mae-tini", " (did you mean vit-mae-tiny?)"),
        ("resnet18", " (did you mean resnet-18?)"),
        ("x", ""),
    ],
)
def test_name_like_a_known_one_is_answered_by_it(name, said):
    assert did_you_mean(name, ["vit-mae-tiny", "resnet-18"]) == said
