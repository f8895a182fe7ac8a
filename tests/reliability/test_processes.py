"""Several real processes against one: the same images, losses, predictions; signals and deaths among them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import torch
from cxr.training.progress import has_checkpoint
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import TINY_RESNET
from tiny_runs import TINY_VIT
from tiny_runs import read_epochs
from tiny_runs import read_results

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = REPOSITORY / "scripts"
GLOBAL_BATCH = 32
NUM_STEPS = 24
ENVIRONMENT = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONWARNINGS": "ignore"}
pytestmark = pytest.mark.slow


def torchrun(script: str, output_dir: Path, *flags: object, num_processes: int) -> list[str]:
    """The command that runs a script as `num_processes` processes that talk over gloo."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(num_processes)]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", str(SCRIPTS / script)]
    command += [f"--per_device_train_batch_size={GLOBAL_BATCH // num_processes}"]
    return [*command, *map(str, flags), f"--output_dir={output_dir}"]


def launch_node(rank: int, port: int, output_dir: Path, *flags: object) -> list[str]:
    """The command of the README on one of two machines, for CPUs: each has one process here."""
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--num_processes=2",
        "--mixed_precision=no",
    ]
    command += ["--config_file", str(REPOSITORY / "accelerate_configs" / "multi_node_fp16.yaml")]
    command += [f"--machine_rank={rank}", "--main_process_ip=127.0.0.1", f"--main_process_port={port}"]
    command += [str(SCRIPTS / "run_mae_pretrain.py"), f"--per_device_train_batch_size={GLOBAL_BATCH // 2}"]
    return [*command, *map(str, flags), f"--output_dir={output_dir}"]


@contextlib.contextmanager
def started(command: list[str], log: Path) -> Iterator[subprocess.Popen]:
    """Starts a command with its output in `log`; kills what is left of it at the end."""
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen) -> None:
    """As a machine that goes down: the launcher and all that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            one.kill()
    process.wait()


def run(command: list[str], log: Path) -> None:
    with started(command, log) as process:
        assert process.wait(timeout=300) == 0, log.read_text(encoding="utf-8")[-3000:]


def wait_until(condition, *, seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8")[-3000:]
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def losses_by_step(output_dir: Path) -> list[float]:
    """The loss of each step, from the running means that --logging_steps 1 sends to TensorBoard."""
    (file,) = output_dir.rglob("events.out.tfevents.*.0")
    events = EventAccumulator(str(file.parent))
    events.Reload()
    means = [event.value for event in events.Scalars("train_loss")]
    steps_per_epoch = read_epochs(output_dir)[0]["step"]
    sums = [mean * (step % steps_per_epoch + 1) for step, mean in enumerate(means)]
    return [
        after - (0.0 if step % steps_per_epoch == 0 else before)
        for step, (before, after) in enumerate(pairwise([0.0, *sums]))
    ]


# One process against two ------------------------------------------------------------------------------------


# Without drop path, whose draws belong to a process.
PARTS = ["--mixup=0.8", "--cutmix=1", "--label_smoothing=0.1", "--layer_decay=0.75", "--ema_decay=0.9"]
PARTS += ["--augmentation=mae", "--randaugment=rand-m6-mstd0.5-inc1", "--min_learning_rate=1e-5"]
PARTS += ["--warmup_epochs=2.5", "--early_stopping_patience=8", "--evaluate_test"]
AUGMENTED = ["--augmentation=mae", "--random_erasing_prob=0.5", "--mask_ratio=0.25", "--evaluate_test"]
OF_TWO_RUNS = {
    "pretraining": ("run_mae_pretrain.py", []),
    "classification": ("run_classification.py", AUGMENTED),
    "classification with all parts": ("run_classification.py", PARTS),
}


@pytest.fixture(scope="module", params=OF_TWO_RUNS)
def two_runs(request, sample_root, tmp_path_factory):
    script, others = OF_TWO_RUNS[request.param]
    folder = tmp_path_factory.mktemp("processes")
    flags = [*TINY_VIT, f"--max_train_steps={NUM_STEPS}", "--learning_rate=1e-3", f"--data_dir={sample_root}"]
    flags += ["--with_tracking", "--logging_steps=1", *others]
    for number in (1, 2):
        command = torchrun(script, folder / str(number), *flags, num_processes=number)
        run(command, folder / f"{number}.log")
    return folder


def test_two_processes_have_the_loss_of_one_at_every_step(two_runs):
    one, two = (losses_by_step(two_runs / name) for name in ("1", "2"))
    assert len(one) == read_epochs(two_runs / "1")[-1]["step"]
    assert two == pytest.approx(one, abs=1e-4)


def test_two_processes_have_the_losses_and_metrics_of_one(two_runs):
    one, two = (read_epochs(two_runs / name) for name in ("1", "2"))
    assert one[-1]["step"] > NUM_STEPS / 3  # early stopping ends one of the runs
    for before, after in zip(one, two, strict=True):
        for name, value in before.items():
            assert after[name] == pytest.approx(value, abs=1e-4), name


def test_two_processes_evaluate_every_image_once(two_runs):
    results = [read_results(two_runs / name) for name in ("1", "2")]
    for split in {"validation", "test"} & set(results[0]):  # pretraining writes no predictions
        tables = [(two_runs / name / f"predictions_{split}.csv").read_text("utf-8") for name in ("1", "2")]
        ids = [[line.split(",")[0] for line in table.splitlines()] for table in tables]
        assert ids[0] == ids[1]
        assert len(set(ids[1])) == len(ids[1]) == results[1][split]["n"] + 1


def test_two_processes_train_on_the_same_sample_and_write_one_record(two_runs):
    folders = [two_runs / name for name in ("1", "2")]
    one, two = (json.loads((folder / "samples.json").read_text(encoding="utf-8")) for folder in folders)
    assert one == two
    one, two = (sorted(path.name for path in folder.iterdir()) for folder in folders)
    assert one == two
    one, two = (load_file(folder / "model" / "model.safetensors").keys() for folder in folders)
    assert one == two


def test_two_processes_draw_other_numbers_for_drop_path(two_runs):
    last = read_epochs(two_runs / "2")[-1]["step"]
    folder = two_runs / "2" / "checkpoints" / f"step_{last}"
    states = [torch.load(folder / f"random_states_{rank}.pkl", weights_only=False) for rank in (0, 1)]
    assert not torch.equal(*(state["torch_manual_seed"] for state in states))


def test_two_processes_evaluate_the_average_with_the_saved_statistics_of_batch_normalisation(
    sample_root, tmp_path
):
    flags = [*TINY_RESNET, "--max_train_steps=8", "--learning_rate=1e-3", "--ema_decay=0.9"]
    command = torchrun(
        "run_classification.py", tmp_path / "run", *flags, f"--data_dir={sample_root}", num_processes=2
    )
    run(command, tmp_path / "log")
    results, epochs = read_results(tmp_path / "run"), read_epochs(tmp_path / "run")
    of_best = epochs[results["best_epoch"] - 1]["eval_loss"]
    assert results["validation"]["loss"] == pytest.approx(of_best, abs=1e-5)


# Signals and deaths -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_run(sample_root, tmp_path_factory) -> tuple[list[str], list[dict]]:
    """Flags of a run of some seconds, and the epochs that one process has with them."""
    flags = [*TINY_VIT, "--num_train_epochs=60", "--learning_rate=1e-3", f"--data_dir={sample_root}"]
    folder = tmp_path_factory.mktemp("whole")
    run(torchrun("run_mae_pretrain.py", folder / "run", *flags, num_processes=1), folder / "log")
    return flags, read_epochs(folder / "run")


def assert_same_losses(output_dir: Path, expected: list[dict]) -> None:
    epochs = read_epochs(output_dir)
    assert [epoch["step"] for epoch in epochs] == [epoch["step"] for epoch in expected]
    for before, after in zip(expected, epochs, strict=True):
        assert after == pytest.approx(before, abs=1e-3)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_signal_to_one_process_of_two_saves_and_ends_both(long_run, tmp_path):
    flags, expected = long_run
    output_dir, log = tmp_path / "run", tmp_path / "log"
    command = torchrun("run_mae_pretrain.py", output_dir, *flags, num_processes=2)
    with started(command, log) as launcher:
        wait_until(lambda: has_checkpoint(output_dir), seconds=120, log=log)
        workers = psutil.Process(launcher.pid).children()
        second = next(worker for worker in workers if worker.environ().get("RANK") == "1")
        second.send_signal(signal.SIGTERM)
        launcher.wait(timeout=60)
        assert not [worker for worker in workers if worker.is_running()]
    said = log.read_text(encoding="utf-8")
    assert "Stopped by SIGTERM after step" in said and "--resume_from_checkpoint latest" in said
    assert not (output_dir / "results.json").exists()
    run([*command, "--resume_from_checkpoint=latest"], log)
    assert_same_losses(output_dir, expected)


def test_two_nodes_train_as_one_process_does(long_run, tmp_path):
    flags, expected = long_run
    port = free_port()
    logs = [tmp_path / f"{rank}.log" for rank in (0, 1)]
    with contextlib.ExitStack() as nodes:
        processes = [
            nodes.enter_context(started(launch_node(rank, port, tmp_path / "run", *flags), logs[rank]))
            for rank in (0, 1)
        ]
        for process, log in zip(processes, logs, strict=True):
            assert process.wait(timeout=200) == 0, log.read_text(encoding="utf-8")[-3000:]
    assert_same_losses(tmp_path / "run", expected)


@pytest.mark.parametrize("victim", [0, 1])
def test_node_whose_peer_is_killed_ends_with_a_line_and_the_run_resumes(victim, long_run, tmp_path):
    flags, expected = long_run
    output_dir, port = tmp_path / "run", free_port()
    logs = [tmp_path / f"{rank}.log" for rank in (0, 1)]
    with contextlib.ExitStack() as nodes:
        processes = [
            nodes.enter_context(started(launch_node(rank, port, output_dir, *flags), logs[rank]))
            for rank in (0, 1)
        ]
        wait_until(lambda: has_checkpoint(output_dir), seconds=120, log=logs[0])
        kill(processes[victim])
        began = time.monotonic()
        assert processes[1 - victim].wait(timeout=60) != 0
        print(f"The other node ended after {time.monotonic() - began:.1f} s")
    said = logs[1 - victim].read_text(encoding="utf-8")
    assert "another process of this run has ended: see its last lines, and continue with --resume" in said
    resumed = [*flags, "--resume_from_checkpoint=latest"]
    run(torchrun("run_mae_pretrain.py", output_dir, *resumed, num_processes=2), tmp_path / "resumed.log")
    assert_same_losses(output_dir, expected)
