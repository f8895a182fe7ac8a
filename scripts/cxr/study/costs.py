"""Estimates the cost of a study: its images, their FLOPs and, from a measured speed, the time."""

import heapq
import itertools
from collections import defaultdict
from collections.abc import Hashable
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace
from pathlib import Path
from statistics import median
from statistics import median_low

from cxr.choices import DATASET_DEFAULTS
from cxr.choices import LABEL_OPTIONS
from cxr.data.images import user_errors
from cxr.errors import UserError
from cxr.models.architectures import estimate_gflop
from cxr.run_folder.record import read_results
from cxr.study.cells import CellFacts
from cxr.study.grid import PRETRAINING
from cxr.study.grid import Cell
from cxr.study.machine import A_GPU
from cxr.study.machine import Device
from mimic_cxr_dataset.labels import index_images

USUAL_BATCH = 32  # assumed for a batch size of auto, which is not known yet
LABEL_FLAGS = LABEL_OPTIONS | {"blank": DATASET_DEFAULTS["blank"]}
# Flags in which cells that cost the same may differ: first those of other seeds, then of other lengths.
SEED_FLAGS = {"seed", "model_name_or_path"}  # a model pretrained here has another folder for each seed
LENGTH_FLAGS = SEED_FLAGS | {"max_train_samples", "num_train_epochs", "max_train_steps", "learning_rate"}
LENGTH_FLAGS |= set(LABEL_FLAGS) | {"findings"}


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
        options |= {"findings": findings and tuple(findings), "keeps_unlabelled": cell.script == PRETRAINING}
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


def num_epochs(facts: CellFacts, num_images: int, num_processes: int) -> float:
    """Returns how many times a cell sees each training image."""
    if not facts.args.max_train_steps:
        return facts.args.num_train_epochs
    step = facts.images_per_step(num_processes, num_images) or USUAL_BATCH * num_processes
    return facts.args.max_train_steps * step / num_images


class Speeds:
    """What the finished cells of a study took: TFLOP/s, and seconds without training and validation."""

    def __init__(self, facts: dict[str, CellFacts], images: dict[str, ImageCounts], output_dir: Path):
        self.rates: dict[Hashable, list[float]] = defaultdict(list)
        self.starts: dict[Hashable, list[float]] = defaultdict(list)
        for name, of_cell in facts.items():
            if not (results := read_results(output_dir / name)):
                continue
            training, evaluation = gflop_per_image(of_cell)
            rate = results.images_per_second * training / 1e3
            validated = (results.num_epochs or 1) * images[name].validation * evaluation / 1e3
            for kind in kinds_of(of_cell):
                self.rates[kind].append(rate)
            if results.other_seconds is not None:
                for kind in (*kinds_of(of_cell), of_cell.is_pretraining):
                    self.starts[kind].append(max(0.0, results.other_seconds - validated / rate))

    def rate(self, facts: CellFacts) -> float | None:
        """Returns the median TFLOP/s of the finished cells that are most like this one, None without any."""
        found = [self.rates[kind] for kind in kinds_of(facts) if kind in self.rates]
        return median(found[0]) if found else None

    def start(self, facts: CellFacts) -> float | None:
        """Returns the median start of the finished cells that are most like this one.

        A single cell does not count, because the first one may have shrunk the images of all.
        """
        kinds = (*kinds_of(facts), facts.is_pretraining)
        found = [self.starts[kind] for kind in kinds if len(self.starts.get(kind, [])) > 1]
        return median_low(found[0]) if found else None


def kinds_of(facts: CellFacts) -> Iterator[Hashable]:
    """Yields keys of cells that are alike: in all but the seed or the length, in the model, in the family."""
    flags, model = vars(facts.args), (repr(facts.architecture), facts.image_size)
    for free in (SEED_FLAGS, LENGTH_FLAGS):
        yield (*model, repr([(name, flags[name]) for name in sorted(flags.keys() - free)]))
    yield (*model, facts.is_pretraining)
    yield model
    yield facts.architecture.family


def estimate_seconds(
    facts: dict[str, CellFacts],
    images: dict[str, ImageCounts],
    output_dir: Path,
    device: Device,
    *,
    num_processes: int,
) -> tuple[dict[str, float], str]:
    """Returns the estimated seconds of each cell, by run_id, and the basis of the estimate in words.

    Each process of a cell has a `device`, but the processes on a CPU share it.
    """
    num_devices = 1 if device.kind == "cpu" else num_processes
    speeds, seconds = Speeds(facts, images, output_dir), {}
    for name, of_cell in facts.items():
        counts, (training, evaluation) = images[name], gflop_per_image(of_cell)
        epochs = num_epochs(of_cell, counts.train, num_processes)
        gflop = epochs * (counts.train * training + counts.validation * evaluation)
        rate, start = speeds.rate(of_cell), speeds.start(of_cell)
        seconds[name] = (device.start_seconds if start is None else start) + gflop / 1e3 / (
            rate or num_devices * device.tflops[of_cell.architecture.family]
        )
    families = {name: median(speeds.rates[name]) for name in device.tflops if name in speeds.rates}
    shown = ", ".join(f"{name} {rate:.2g}" for name, rate in (families or device.tflops).items())
    if families:
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


def compare(estimated: float, took: float) -> str:
    """Returns an estimate beside the time that was taken, in words."""
    difference = took / estimated - 1
    direction = "more" if difference > 0 else "less"
    return f"Estimated {duration(estimated)}, took {duration(took)} ({abs(difference):.0%} {direction})."


def duration(seconds: float) -> str:
    """Returns a time as text, in a suitable unit."""
    for name, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.{1 if length >= 3600 else 0}f} {name}"
    return f"{seconds:.0f} s"
