"""Estimates the cost of a study: its images, their FLOPs and, from a measured speed, the time."""

import heapq
import itertools
from dataclasses import dataclass
from dataclasses import replace
from pathlib import Path
from statistics import median

from cxr.choices import DATASET_DEFAULTS
from cxr.choices import LABEL_OPTIONS
from cxr.data.images import user_errors
from cxr.errors import UserError
from cxr.models.architectures import estimate_gflop
from cxr.run_folder.record import read_results
from cxr.study.cells import CellFacts
from cxr.study.grid import Cell
from cxr.study.machine import A_GPU
from cxr.study.machine import Device
from mimic_cxr_dataset.labels import index_images

USUAL_BATCH = 32  # assumed for a batch size of auto, which is not known yet
LABEL_FLAGS = LABEL_OPTIONS | {"blank": DATASET_DEFAULTS["blank"]}
START_SECONDS = 20  # before a cell trains: imports, tables, the first batch


@dataclass(frozen=True, kw_only=True)
class ImageCounts:
    """The number of images that a cell trains on, and that it is validated on after each epoch."""

    train: int
    validation: int


def count_images(cells: list[Cell], data_dir: Path) -> dict[str, ImageCounts]:
    """Returns the image counts of each cell by run_id. Raises UserError if there are too few images."""
    of_options: dict[tuple, ImageCounts] = {}
    images = {}
    for cell in cells:
        options = {name: str(cell.flags.get(name, default)) for name, default in LABEL_FLAGS.items()}
        findings = cell.flags.get("findings")
        options |= {"findings": findings and tuple(findings)}
        key = tuple(options.values())
        if key not in of_options:
            task = options.pop("dataset_config_name")
            with user_errors():
                kept, _ = index_images(data_dir, task=task, **options)
            splits = kept["split"].value_counts()
            counts = {split: int(splits.get(split, 0)) for split in ("train", "validation")}
            of_options[key] = ImageCounts(**counts)
        size = cell.flags.get("max_train_samples")
        if size is not None and size > of_options[key].train:
            raise UserError(
                f"--train_sizes {size}: found only {of_options[key].train:,} training images for "
                f"{cell.run_id}; use smaller sizes, or all"
            )
        images[cell.run_id] = replace(of_options[key], train=size or of_options[key].train)
    return images


def gflop_per_image(facts: CellFacts) -> tuple[float, float]:
    """Returns the approximate GFLOPs of training on one image once, and of evaluating it."""
    masked = 0.0 if facts.is_pretraining else facts.args.mask_ratio
    evaluated, trained = (
        estimate_gflop(facts.architecture, image_size=facts.image_size, share_seen=share)
        for share in (1.0, 1 - masked)
    )
    if facts.is_pretraining:
        forward = 0.56 * evaluated  # a quarter of the patches, plus the decoder; counted for ViT-MAE-base
        return 3 * forward, forward
    return trained if facts.args.train_last_layer_only else 3 * trained, evaluated


def num_epochs(facts: CellFacts, num_images: int) -> float:
    """Returns how many times a cell sees each training image."""
    if not facts.args.max_train_steps:
        return facts.args.num_train_epochs
    return facts.args.max_train_steps * (facts.images_per_step(1, num_images) or USUAL_BATCH) / num_images


def estimate_seconds(
    facts: dict[str, CellFacts], images: dict[str, ImageCounts], output_dir: Path, device: Device
) -> tuple[dict[str, float], str]:
    """Returns the estimated seconds of each cell, by run_id, and the basis of the estimate in words."""
    measured: dict[str, list[float]] = {}  # family -> TFLOP/s
    for name, of_cell in facts.items():
        if results := read_results(output_dir / name):
            rate = results.images_per_second * gflop_per_image(of_cell)[0] / 1e3
            measured.setdefault(of_cell.architecture.family, []).append(rate)
    rates = {name: median(of_family) for name, of_family in measured.items()}
    seconds = {}
    for name, of_cell in facts.items():
        counts, (training, evaluation) = images[name], gflop_per_image(of_cell)
        epochs, family = num_epochs(of_cell, counts.train), of_cell.architecture.family
        gflop = epochs * (counts.train * training + counts.validation * evaluation)
        seconds[name] = START_SECONDS + gflop / 1e3 / (rates.get(family) or device.tflops[family])
    shown = ", ".join(f"{name} {rate:.2g}" for name, rate in (rates or device.tflops).items())
    if rates:
        return seconds, f"from the speed of the finished cells (TFLOP/s: {shown})"
    if device == A_GPU:
        return seconds, f"for an assumed GPU (TFLOP/s: {shown}), as the jobs run elsewhere"
    return seconds, f"from a few steps of small layers on this {device.kind} (TFLOP/s: {shown})"


def wall_seconds(cells: list[Cell], seconds: dict[str, float], num_slots: int) -> float:
    """Returns when the last cell ends if `num_slots` run at once, each after its pretraining."""
    waiting = {cell.run_id: cell for cell in cells}
    running: list[tuple[float, str]] = []  # a heap of the ends
    unfinished, now = set(waiting), 0.0
    while waiting or running:
        ready = (name for name, cell in waiting.items() if cell.needs not in unfinished)
        for name in list(itertools.islice(ready, num_slots - len(running))):
            heapq.heappush(running, (now + seconds[name], name))
            del waiting[name]
        now, ended = heapq.heappop(running)
        unfinished.remove(ended)
    return now


def duration(seconds: float) -> str:
    """Returns a time as text, in a suitable unit."""
    for name, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.{1 if length >= 3600 else 0}f} {name}"
    return f"{seconds:.0f} s"
