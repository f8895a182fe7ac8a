"""What a study takes: images, arithmetic and, by the speed of finished cells, time."""

from pathlib import Path
from statistics import median

from cxr.architectures import DEFAULT_IMAGE_SIZE
from cxr.architectures import estimate_gflop
from cxr.architectures import family
from cxr.grid import CLASSIFICATION
from cxr.grid import PRETRAINING
from cxr.grid import Cell
from cxr.records import read_json
from cxr.sources import dataset_module

START_SECONDS = 20  # of a cell: imports, tables, the first batch
# TFLOP/s that a device sustains, until a finished cell has shown it.
ASSUMED_TFLOPS = {"cpu": 0.03, "gpu": 20}


def count_images(cells: list[Cell], data_dir: Path) -> dict[str, int]:
    """Returns the training images of each cell by run_id. Raises ValueError where a sample is too large."""
    options = ("dataset_config_name", "labeler", "view", "uncertain")
    counts: dict[tuple, int] = {}
    images = {}
    for cell in cells:
        given = {name: cell.flags[name] for name in options if name in cell.flags}
        key = tuple(sorted(given.items()))
        if key not in counts:
            if "dataset_config_name" in given:
                given["task"] = given.pop("dataset_config_name")
            kept, _ = dataset_module().index_images(data_dir, **given)
            counts[key] = int((kept["split"] == "train").sum())
        size = cell.flags.get("max_train_samples")
        if size is not None and size > counts[key]:
            raise ValueError(
                f"--train_sizes {size}: found {counts[key]:,} training images for {cell.run_id}; "
                "name smaller sizes, or all"
            )
        images[cell.run_id] = size or counts[key]
    return images


def gflop_per_image(cell: Cell) -> float:
    """Roughly what training on one image once takes."""
    masked = cell.flags.get("mask_ratio", 0.0) if cell.script == CLASSIFICATION else 0.0
    forward = estimate_gflop(
        cell.point["model"],
        image_size=number(cell, "image_size", DEFAULT_IMAGE_SIZE),
        overrides=cell.flags.get("config_overrides"),
        share_seen=1 - masked,
    )
    if cell.script == PRETRAINING:
        return 3 * 0.56 * forward  # a quarter of the patches, and the decoder: counted for ViT-MAE-base
    return forward if cell.flags["train_last_layer_only"] else 3 * forward


def number(cell: Cell, flag: str, default: int) -> float:
    """A flag's value; the default for one that is not known yet, such as a batch size of auto."""
    value = cell.flags.get(flag)
    return value if isinstance(value, int | float) else default


def estimate_seconds(
    cells: list[Cell], images: dict[str, int], output_dir: Path, device: str
) -> tuple[dict, str]:
    """Returns the seconds that each cell takes, by run_id, and in words what that rests on."""
    measured: dict[str, list[float]] = {}  # family -> TFLOP/s
    for cell in cells:
        results = read_json(output_dir / cell.run_id / "results.json")
        if results:
            rate = results["images_per_second"] * gflop_per_image(cell) / 1e3
            measured.setdefault(family(cell.point["model"]), []).append(rate)
    rates = {name: median(of_family) for name, of_family in measured.items()}
    seconds = {}
    for cell in cells:
        seen = images[cell.run_id] * number(cell, "num_train_epochs", 1)
        if steps := number(cell, "max_train_steps", 0):
            seen = steps * number(cell, "per_device_train_batch_size", 32)
        rate = rates.get(family(cell.point["model"]), ASSUMED_TFLOPS[device])
        seconds[cell.run_id] = START_SECONDS + seen * gflop_per_image(cell) / 1e3 / rate
    if rates:
        shown = ", ".join(f"{name} {rate:.2g}" for name, rate in rates.items())
        return seconds, f"from the speed of the finished cells (TFLOP/s: {shown})"
    return (
        seconds,
        f"assuming {ASSUMED_TFLOPS[device]} TFLOP/s, which may be far off, as no cell has finished yet",
    )


def duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 90:
        return f"{max(1, round(minutes))} min"
    return f"{minutes / 60:.1f} h" if minutes < 48 * 60 else f"{minutes / 60 / 24:.1f} days"
