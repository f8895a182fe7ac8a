"""Checks batches, device and disk before the first cell, so that a study does not fail after hours."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from cxr.errors import UserError
from cxr.study.cells import CellFacts
from cxr.study.costs import ImageCounts
from cxr.study.machine import Device
from cxr.study.machine import Launch

BYTES = 4  # per parameter: weights are saved in float32
JOBS_AT_ONCE = 16  # assumed for jobs without --max_jobs, of which a cluster may run any number
COPIES_WHILE_TRAINING = 6  # the last checkpoint and the next one, each with weights and two moments


def check_batches(facts: dict[str, CellFacts], images: dict[str, ImageCounts], num_processes: int) -> None:
    """Raises UserError for a cell whose images do not fill one optimizer step."""
    for name, of_cell in facts.items():
        found = images[name].train
        needed = of_cell.images_per_step(num_processes, found)
        if needed and found < needed:
            scope = "pretraining" if of_cell.is_pretraining else "classification"
            raise UserError(
                f"{name}: found {found} training images, expected at least the {needed} of one optimizer "
                f"step; add --set {scope}.per_device_train_batch_size={max(1, found // 2)}, or more images"
            )


def check_device(facts: dict[str, CellFacts], launch: Launch, device: Device) -> None:
    """Raises UserError for a precision or a flag that the device does not support."""
    if device.kind == "cpu" and launch.mixed_precision == "fp16":
        raise UserError(
            f"{launch.config_file.name}: found mixed precision fp16, which needs a GPU, but no GPU on this "
            "machine; use --config_file accelerate_configs/cpu.yaml"
        )
    for of_cell in facts.values():
        for flag, value in (("per_device_train_batch_size", "auto"), ("sync_batchnorm", True)):
            if device.kind != "cuda" and getattr(of_cell.args, flag, None) == value:
                shown = flag if value is True else f"{flag}={value}"
                raise UserError(
                    f"--set {shown}: found {device.kind}, expected an NVIDIA or AMD GPU; leave it out"
                )


@dataclass(frozen=True, kw_only=True)
class DiskSpace:
    """Bytes: what the models of the cells and the checkpoints of running cells need, and what is free."""

    models: int
    checkpoints: int
    free: int

    def __str__(self) -> str:
        needed = gigabytes(self.models + self.checkpoints)
        return (
            f"Disk: {needed} ({gigabytes(self.models)} for the models, {gigabytes(self.checkpoints)} for "
            f"checkpoints while cells run), {gigabytes(self.free)} free."
        )


def disk_space(facts: dict[str, CellFacts], output_dir: Path, at_once: int) -> DiskSpace:
    """Returns what the cells need if the largest `at_once` of them run at the same time, and what is free."""
    sizes = sorted(BYTES * of_cell.num_parameters for of_cell in facts.values())
    existing = next(folder for folder in (output_dir, *output_dir.parents) if folder.is_dir())
    return DiskSpace(
        models=sum(sizes),
        checkpoints=COPIES_WHILE_TRAINING * sum(sizes[-at_once:]),
        free=shutil.disk_usage(existing).free,
    )


def check_disk(space: DiskSpace, output_dir: Path, *, num_cells: int, at_once: int) -> None:
    """Raises UserError if the disk has no room for the models of the cells and the checkpoints in use."""
    needed = space.models + space.checkpoints
    if space.free < needed:
        raise UserError(
            f"--output_dir {output_dir}: found {gigabytes(space.free)} free, expected {gigabytes(needed)} "
            f"for the models of {num_cells} cells and the checkpoints of {min(at_once, num_cells)} at once; "
            "free some space, or use another disk"
        )


def gigabytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"
