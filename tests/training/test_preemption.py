"""SIGTERM, SIGINT and SIGUSR1 end a run after its step, with a checkpoint; a second SIGINT at once."""

import os
import signal
import subprocess
import sys

import psutil
import pytest
import run_classification
import run_mae_pretrain
from accelerate import Accelerator
from cxr.training import preemption
from cxr.training.progress import has_checkpoint
from tiny_runs import QUICK
from tiny_runs import TINY_VIT
from tiny_runs import run_main

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")

STATUS = {signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGINT: 130}


def run_until_signal(script, output_dir, number: int, *flags: object, to_all: bool = False) -> int | None:
    """Calls `script.main`, which gets the signal within its third step; returns its exit status."""
    whole_step, steps = script.train_step, []

    def step_with_signal(*args):
        steps.append(len(steps) + 1)
        loss = whole_step(*args)
        if len(steps) == 3:
            workers = psutil.Process().children() if to_all else []
            for process in [*workers, psutil.Process()]:
                os.kill(process.pid, number)
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "train_step", step_with_signal)
        try:
            run_main(script, output_dir, *flags)
        except SystemExit as ended:
            assert len(steps) == 3
            return ended.code
    return None


@pytest.mark.parametrize("script", [run_mae_pretrain, run_classification])
@pytest.mark.parametrize("number", STATUS, ids=lambda number: number.name)
def test_signal_saves_after_the_step_and_says_how_to_go_on(script, number, sample_root, tmp_path, capfd):
    handler = signal.getsignal(number)
    flags = [*TINY_VIT, *QUICK, f"--data_dir={sample_root}"]
    assert run_until_signal(script, tmp_path / "run", number, *flags) == STATUS[number]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_3"]
    said = capfd.readouterr().err
    assert f"{number.name}: saving a checkpoint after this step" in said
    advice = f"the same command with --output_dir {tmp_path / 'run'} --resume_from_checkpoint latest"
    assert f"Stopped by {number.name} after step 3. To continue: {advice}" in said
    assert "Traceback" not in said
    assert signal.getsignal(number) is handler


@pytest.mark.parametrize("number", STATUS, ids=lambda number: number.name)
def test_signal_to_all_processes_of_a_job_does_not_end_the_workers_first(number, sample_root, tmp_path):
    flags = [*TINY_VIT, *QUICK, f"--data_dir={sample_root}", "--dataloader_num_workers=2"]
    status = run_until_signal(run_mae_pretrain, tmp_path / "run", number, *flags, to_all=True)
    assert status == STATUS[number]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_3"]


@pytest.mark.parametrize("script", [run_mae_pretrain, run_classification])
@pytest.mark.parametrize("moment", ["evaluate", "plot_losses"])
def test_signal_after_the_last_step_ends_the_run_too_and_it_resumes(
    script, moment, sample_root, tmp_path, monkeypatch, capfd
):
    """In the last evaluation, of which the checkpoint is saved, and when the figures are drawn."""
    flags = [*TINY_VIT, *QUICK, "--num_train_epochs=1", f"--data_dir={sample_root}"]
    owner = script if moment == "evaluate" else script.plots
    original = getattr(owner, moment)

    def with_signal(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, moment, with_signal)
        try:
            run_main(script, tmp_path / "run", *flags)
        except SystemExit as ended:
            assert ended.code == 143
        else:
            pytest.fail("the signal was lost")
    assert "To continue: the same command" in capfd.readouterr().err
    assert not (tmp_path / "run" / "results.json").exists()
    run_main(script, tmp_path / "run", *flags, "--resume_from_checkpoint=latest")


def test_signal_while_the_processes_agree_is_asked_for_after_the_next_step(monkeypatch):
    def all_reduce(value, *args, **options):
        os.kill(os.getpid(), signal.SIGTERM)  # it comes while this process waits for the others
        monkeypatch.setattr(preemption.distributed, "all_reduce", lambda *args, **options: None)

    monkeypatch.setattr(preemption.distributed, "all_reduce", all_reduce)
    with preemption.Preemption(Accelerator()) as watch:
        watch.group = "of several processes"
        assert not watch.requested()
        assert watch.requested()


@pytest.mark.slow
def test_ctrl_c_that_ends_the_reader_of_a_pipe_too_still_saves(sample_root, tmp_path):
    flags = [*TINY_VIT, *QUICK, "--num_train_epochs=900", f"--data_dir={sample_root}"]
    command = [sys.executable, run_mae_pretrain.__file__, *flags, f"--output_dir={tmp_path / 'run'}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while not has_checkpoint(tmp_path / "run"):
            assert process.stdout.read1(1000)  # nothing, once it has ended
        process.stdout.close()  # `tee` is gone
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert "Stopped by SIGINT" in (tmp_path / "run" / "train.log").read_text(encoding="utf-8")


@pytest.mark.slow
def test_error_of_ours_with_workers_ends_with_its_trace_and_does_not_hang(sample_root, tmp_path):
    code = (
        "import sys; import run_mae_pretrain; from cxr.errors import run_script\n"
        "def fail(*args): raise TypeError('ours')\n"
        "run_mae_pretrain.train_step = fail\n"
        "run_script(lambda: run_mae_pretrain.main(sys.argv[1:]))"
    )
    flags = [*TINY_VIT, *QUICK, "--dataloader_num_workers=2", f"--data_dir={sample_root}"]
    command = [sys.executable, "-c", code, *flags, f"--output_dir={tmp_path / 'run'}"]
    scripts = os.path.dirname(run_mae_pretrain.__file__)  # noqa: PTH120
    done = subprocess.run(command, cwd=scripts, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "TypeError: ours" in done.stderr


def test_second_sigint_stops_at_once_but_the_echo_of_the_first_does_not(monkeypatch):
    with preemption.Preemption(Accelerator()) as watch:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # a launcher passes on what the terminal has sent already
        assert watch.requested()
        monkeypatch.setattr(preemption, "ECHO_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_sigint_after_sigterm_stops_at_once(monkeypatch):
    monkeypatch.setattr(preemption, "ECHO_SECONDS", 0.0)
    with preemption.Preemption(Accelerator()) as watch:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert watch.requested()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_without_a_signal_nothing_is_requested():
    with preemption.Preemption(Accelerator()) as watch:
        assert not watch.requested()
