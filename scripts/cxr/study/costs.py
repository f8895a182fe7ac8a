"""What a study takes: images, arithmetic and, by the speed of finished cells, time."""

from dataclasses import dataclass
from dataclasses import replace
from pathlib import Path
from statistics import median

from cxr.choices import LABEL_OPTIONS
from cxr.data.images import user_errors
from cxr.errors import UserError
from cxr.models.architectures import DEFAULT_IMAGE_SIZE
from cxr.models.architectures import estimate_gflop
from cxr.models.architectures import family
from cxr.run_folder.files import read_json
from cxr.study.grid import CLASSIFICATION
from cxr.study.grid import PRETRAINING
from cxr.study.grid import Cell
from mimic_cxr_dataset.tables import index_images

START_SECONDS = 20  # of a cell: imports, tables, the first batch
# TFLOP/s that a device sustains, until a finished cell has shown it.
ASSUMED_TFLOPS = {"cpu": 0.03, "gpu": 20}


@dataclass(frozen=True, kw_only=True)
class ImageCounts:
    """The images that a cell trains on and those it is validated on each epoch."""

    train: int
    validation: int


def count_images(cells: list[Cell], data_dir: Path) -> dict[str, ImageCounts]:
    """Returns the images of each cell by run_id. Raises UserError where a sample is too large."""
    of_options: dict[tuple, ImageCounts] = {}
    images = {}
    for cell in cells:
        key = tuple(cell.flags.get(name, default) for name, default in LABEL_OPTIONS.items())
        if key not in of_options:
            task, labeler, view, uncertain = key
            with user_errors():
                kept, _ = index_images(data_dir, task=task, labeler=labeler, view=view, uncertain=uncertain)
            splits = kept["split"].value_counts()
            of_options[key] = ImageCounts(
                train=int(splits.get("train", 0)), validation=int(splits.get("validation", 0))
            )
        size = cell.flags.get("max_train_samples")
        if size is not None and size > of_options[key].train:
            raise UserError(
                f"--train_sizes {size}: found {of_options[key].train:,} training images for {cell.run_id}; "
                "name smaller sizes, or all"
            )
        images[cell.run_id] = replace(of_options[key], train=size or of_options[key].train)
    return images


def gflop_per_image(cell: Cell) -> tuple[float, float]:
    """Roughly what training on one image once takes, and evaluating it."""
    masked = number(cell, "mask_ratio", 0) if cell.script == CLASSIFICATION else 0.0
    evaluated, trained = (
        estimate_gflop(
            cell.point["model"],
            image_size=number(cell, "image_size", DEFAULT_IMAGE_SIZE),
            overrides=cell.flags.get("config_overrides"),
            share_seen=share,
        )
        for share in (1.0, 1 - masked)
    )
    if cell.script == PRETRAINING:
        forward = 0.56 * evaluated  # a quarter of the patches, and the decoder: counted for ViT-MAE-base
        return 3 * forward, forward
    return trained if cell.flags["train_last_layer_only"] else 3 * trained, evaluated


def number(cell: Cell, flag: str, default: int) -> float:
    """A flag's value; the default for one that is not known yet, such as a batch size of auto."""
    value = cell.flags.get(flag)
    return value if isinstance(value, int | float) else default


def estimate_seconds(
    cells: list[Cell], images: dict[str, ImageCounts], output_dir: Path, device: str
) -> tuple[dict, str]:
    """Returns the seconds that each cell takes, by run_id, and in words what that rests on."""
    measured: dict[str, list[float]] = {}  # family -> TFLOP/s
    for cell in cells:
        speed = read_json(output_dir / cell.run_id / "results.json").get("images_per_second")
        if isinstance(speed, int | float) and 0 < speed < float("inf"):
            rate = speed * gflop_per_image(cell)[0] / 1e3
            measured.setdefault(family(cell.point["model"]), []).append(rate)
    rates = {name: median(of_family) for name, of_family in measured.items()}
    seconds = {}
    for cell in cells:
        counts, (training, evaluation) = images[cell.run_id], gflop_per_image(cell)
        epochs = number(cell, "num_train_epochs", 1)
        if steps := number(cell, "max_train_steps", 0):
            epochs = steps * number(cell, "per_device_train_batch_size", 32) / counts.train
        gflop = epochs * (counts.train * training + counts.validation * evaluation)
        rate = rates.get(family(cell.point["model"]), ASSUMED_TFLOPS[device])
        seconds[cell.run_id] = START_SECONDS + gflop / 1e3 / rate
    if rates:
        shown = ", ".join(f"{name} {rate:.2g}" for name, rate in rates.items())
        return seconds, f"from the speed of the finished cells (TFLOP/s: {shown})"
    assumed = ASSUMED_TFLOPS[device]
    return seconds, f"assuming {assumed} TFLOP/s, which may be far off, as no cell has finished yet"


def duration(seconds: float) -> str:
    """A time in the unit that fits it."""
    units = {"s": 1, "min": 60, "h": 3600, "days": 86400}
    name, length = next(
        ((name, length) for name, length in reversed(units.items()) if seconds >= 1.5 * length), ("s", 1)
    )
    return f"{seconds / length:.{1 if length >= 3600 else 0}f} {name}"
