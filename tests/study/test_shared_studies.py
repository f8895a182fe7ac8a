"""Machines that share a study: each cell runs once, and the one of a dead machine is taken over."""

import contextlib
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from conftest import SCRIPTS
from finished_runs import classification_results
from finished_runs import measured

FLAGS = ["--preset=smoke", "--models", "resnet-18", "--tasks=finding", "--augmentations=none"]
FLAGS += [
    "--set",
    "per_device_train_batch_size=8",
    "--mask_ratios=0",
    "--train_sizes=16",
    "--seeds",
    *map(str, range(6)),
]
# A cell notes that it was begun, and where; on the machine `hangs` it never ends.
CELL = """
import json, pathlib, sys, time
run, results, machine = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
run.mkdir(parents=True, exist_ok=True)
with (run.parent / "logs" / "begun").open("a") as file:
    file.write(f"{run.name} {machine}\\n")
time.sleep(600 if machine == "hangs" else 0.3)
(run / "results.json").write_text(results)
"""
# A machine whose file locks do not count for the others, with quick heartbeats and no real training.
MACHINE = """
import socket, sys
from cxr.run_folder import lock
from cxr.run_folder.heartbeat import Claims
from cxr.study import runner
from cxr.study.costs import ImageCounts
from cxr.study.machine import Device
import run_study
machine, cell, results, *flags = sys.argv[1:]
socket.gethostname = lambda: machine
lock._lock_file = lambda file: None
quick = {}
lock._claims_in = lambda folder: quick.setdefault(folder, Claims(folder, beat=0.1, stale=1.5))
runner.LOOK_SECONDS = 0.1
words = [sys.executable, "-I", "-S", "-c", cell]
runner.command = lambda of, run, *_, **__: [*words, str(run), results, machine]
run_study.measure_device = lambda launch: Device(kind="cpu", tflops={"vit": 1.0, "resnet": 1.0})
run_study.count_images = lambda cells, _: {of.run_id: ImageCounts(train=16, validation=7) for of in cells}
run_study.report = lambda folder: True
run_study.main(flags)
"""


def start(machine: str, data: Path, folder: Path) -> subprocess.Popen:
    results = json.dumps(classification_results(test=measured()).as_json())
    words = [sys.executable, "-c", MACHINE, machine, CELL, results, f"--data_dir={data}"]
    return subprocess.Popen(
        [*words, f"--output_dir={folder}", *FLAGS], cwd=SCRIPTS, stdout=subprocess.PIPE, text=True
    )


def begun(folder: Path) -> list[list[str]]:
    file = folder / "logs" / "begun"
    return [line.split() for line in file.read_text().splitlines()] if file.is_file() else []


def turn_off(process: subprocess.Popen) -> None:
    for one in (process, *psutil.Process(process.pid).children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.communicate()


@pytest.mark.slow
def test_two_machines_share_a_study_and_take_over_the_cell_of_one_that_died(sample_root, tmp_path):
    folder = tmp_path / "study"
    dead = start("hangs", sample_root, folder)
    until = time.monotonic() + 60
    while not begun(folder) and dead.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    machines = {name: start(name, sample_root, folder) for name in ("one", "other")}
    turn_off(dead)
    said = {name: machine.communicate(timeout=60)[0] for name, machine in machines.items()}
    assert [machine.returncode for machine in machines.values()] == [0, 0], said

    (first, where), *rest = begun(folder)
    assert where == "hangs"
    times = Counter(name for name, _ in rest)
    assert len(times) == 6 and set(times.values()) == {1} and first in times
    assert {machine for _, machine in rest} == {"one", "other"}
    everything = " ".join(" ".join(said.values()).split())
    assert f"{first} is running in another process (pid {dead.pid} on hangs since" in everything
    assert "AUROC 0." in everything and "in another process; " in everything
