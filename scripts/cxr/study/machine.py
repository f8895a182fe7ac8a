"""The machine that a study's cells run on: what accelerate's configuration says, and how fast it is."""

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
    """How cells are started: what is read from accelerate's configuration, and the slots that they get."""

    config_file: Path
    on_cpu: bool
    num_processes: int
    mixed_precision: str
    gpus: list[str | None]  # of each slot; None: as accelerate chooses
    num_threads: int | None  # of a cell; None: as torch chooses


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a cell finds: the kind of device, and the TFLOP/s that it sustains for each family of models."""

    kind: str  # cpu, cuda or mps
    tflops: dict[str, float]


def plan_launch(config_file: Path, parallel: int) -> Launch:
    """Raises UserError for a file that is no accelerate config, or one that does not go with --parallel."""
    try:
        config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
        on_cpu, num_processes = bool(config["use_cpu"]), int(config["num_processes"])
        mixed_precision = str(config.get("mixed_precision") or "no").lower()
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"--config_file {config_file}: found no accelerate config ({error}); expected one as in "
            "accelerate_configs/"
        ) from error
    if num_processes > 1 and parallel > 1:
        raise UserError(
            f"--parallel {parallel} runs cells of one process each, but {config_file} has num_processes "
            f"{num_processes}; use single_gpu_fp16.yaml, or leave out --parallel"
        )
    return Launch(
        config_file=config_file,
        on_cpu=on_cpu,
        num_processes=num_processes,
        mixed_precision=mixed_precision,
        gpus=slots(parallel, on_cpu=on_cpu, one_process=num_processes == 1),
        num_threads=max(1, (os.cpu_count() or 1) // parallel) if on_cpu and parallel > 1 else None,
    )


def slots(parallel: int, *, on_cpu: bool, one_process: bool) -> list[str | None]:
    """The GPU of each cell that runs at once. Raises UserError where there are fewer."""
    if on_cpu:
        return [None] * parallel
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if parallel == 1:
        # The config's gpu_ids would count for more than what the user made visible.
        return [visible.split(",")[0] if visible and one_process else None]
    names = visible.split(",") if visible else [str(number) for number in range(count_gpus() or parallel)]
    if len(names) < parallel:
        raise UserError(f"--parallel {parallel}: found the GPUs {', '.join(names)}; expected one for each")
    return names[:parallel]


def count_gpus() -> int:
    """The GPUs that the driver lists; 0 where it cannot be asked."""
    with contextlib.suppress(OSError):
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).stdout.count(b"\n")
    return 0


def measure_device(launch: Launch) -> Device:
    """Measures in a process of its own, as this one has no torch. Raises UserError where torch fails."""
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
            f"torch failed on this machine: {last[:300]}; expected a step of a small layer: install what "
            "requirements.txt names, or free the device"
        )
    found = json.loads(done.stdout.splitlines()[-1])
    return Device(kind=found["device"], tflops=found["tflops"])
