"""Reads from the Accelerate configuration how cells are started, and measures the speed of the machine."""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from cxr.data.sources import REPOSITORY
from cxr.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How cells are started: values of the Accelerate configuration, and the slots for parallel cells."""

    config_file: Path
    on_cpu: bool
    num_machines: int  # of one cell
    num_processes: int  # on all of them
    mixed_precision: str
    gpus: list[str | None]  # one per slot; None: Accelerate chooses
    num_threads: int | None  # per cell; None: torch chooses
    meeting: tuple[str, ...] = ()  # flags of the launcher: where the processes of a cell meet


@dataclass(frozen=True, kw_only=True)
class Device:
    """The device of a cell: its type, the TFLOP/s that it sustains for each model family, and its start."""

    kind: str  # cpu, cuda or mps
    tflops: dict[str, float]
    start_seconds: float = 20.0  # of a cell: imports, tables, the last evaluation; see `STARTS_PER_IMPORT`


# A cell without its training takes about so many times as long as Python with torch needs to start. Measured
# on two cores: 24 and 3 seconds.
STARTS_PER_IMPORT = 8
# A GPU of a cluster, which the machine that submits does not have; not measured, but a cautious guess.
A_GPU = Device(kind="cuda", tflops={"vit": 60.0, "resnet": 20.0})


def plan_launch(config_file: Path, parallel: int) -> Launch:
    """Reads the Accelerate configuration. Raises UserError if it is not valid or contradicts --parallel."""
    try:
        config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
        on_cpu, num_processes = bool(config["use_cpu"]), int(config["num_processes"])
        num_machines = int(config.get("num_machines") or 1)
        mixed_precision = str(config.get("mixed_precision") or "no").lower()
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"--config_file {config_file}: found no Accelerate configuration ({error}); use one as in "
            "accelerate_configs/"
        ) from error
    if num_processes % num_machines:
        raise UserError(
            f"--config_file {config_file}: found num_machines {num_machines} and num_processes "
            f"{num_processes}, expected a multiple; num_processes counts those of all machines"
        )
    if num_processes > 1 and parallel > 1:
        raise UserError(
            f"--parallel {parallel} needs cells of one process, but {config_file} has num_processes "
            f"{num_processes}; use single_gpu_fp16.yaml, or leave out --parallel"
        )
    return Launch(
        config_file=config_file,
        on_cpu=on_cpu,
        num_machines=num_machines,
        num_processes=num_processes,
        mixed_precision=mixed_precision,
        gpus=slots(parallel, on_cpu=on_cpu, one_process=num_processes == 1),
        num_threads=max(1, (os.cpu_count() or 1) // parallel) if on_cpu and parallel > 1 else None,
    )


def slots(parallel: int, *, on_cpu: bool, one_process: bool) -> list[str | None]:
    """Returns the GPU of each parallel cell. Raises UserError if there are fewer GPUs than cells."""
    if on_cpu:
        return [None] * parallel
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if parallel == 1:
        # Otherwise gpu_ids of the configuration would override the user's CUDA_VISIBLE_DEVICES.
        return [visible.split(",")[0] if visible and one_process else None]
    names = visible.split(",") if visible else [str(number) for number in range(count_gpus() or parallel)]
    if len(names) < parallel:
        raise UserError(
            f"--parallel {parallel}: found only the GPUs {', '.join(names)}, expected one per cell; use "
            f"--parallel {len(names)}"
        )
    return names[:parallel]


def count_gpus() -> int:
    """Returns the number of GPUs that the NVIDIA driver lists, 0 if there is no driver."""
    with contextlib.suppress(OSError):
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).stdout.count(b"\n")
    return 0


def measure_device(launch: Launch) -> Device:
    """Measures the device in a subprocess, to keep torch out of this one. Raises UserError if torch fails."""
    command = [sys.executable, "-m", "cxr.training.device_speed", launch.mixed_precision]
    environment = dict(os.environ)
    if launch.num_threads:
        environment["OMP_NUM_THREADS"] = str(launch.num_threads)
    done = subprocess.run(
        [*command, "--cpu"] if launch.on_cpu else command,
        cwd=REPOSITORY / "scripts",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise UserError(
            f"torch failed on this machine: {last[:300]}; expected it to train a small layer; install the "
            "packages of requirements.txt, or end other programs that use the device"
        )
    found = json.loads(done.stdout.splitlines()[-1])
    start_seconds = STARTS_PER_IMPORT * found["import_seconds"]
    return Device(kind=found["device"], tflops=found["tflops"], start_seconds=start_seconds)
