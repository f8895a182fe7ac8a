"""What a study takes: images, arithmetic and, by the speed of finished cells, time."""

from dataclasses import dataclass
from dataclasses import replace
from pathlib import Path
from statistics import median

from cxr.choices import DEFAULT_IMAGE_SIZE
from cxr.choices import LABEL_OPTIONS
from cxr.data.images import user_errors
from cxr.errors import UserError
from cxr.models.architectures import Fields
from cxr.models.architectures import estimate_gflop
from cxr.models.architectures import find_architecture
from cxr.run_folder.record import read_results
from cxr.study.grid import PRETRAINING
from cxr.study.grid import Cell
from cxr.study.grid import where_to_look
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
        options = {name: str(cell.flags.get(name, default)) for name, default in LABEL_OPTIONS.items()}
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
                f"--train_sizes {size}: found {of_options[key].train:,} training images for {cell.run_id}; "
                "name smaller sizes, or all"
            )
        images[cell.run_id] = replace(of_options[key], train=size or of_options[key].train)
    return images


def architecture_of(cell: Cell) -> Fields:
    return find_architecture(cell.point.model, **where_to_look(cell.flags))


def gflop_per_image(cell: Cell) -> tuple[float, float]:
    """Roughly what training on one image once takes, and evaluating it."""
    is_pretraining = cell.script == PRETRAINING
    masked = 0.0 if is_pretraining else flag_number(cell, "mask_ratio", 0)
    evaluated, trained = (
        estimate_gflop(
            architecture_of(cell),
            image_size=flag_number(cell, "image_size", DEFAULT_IMAGE_SIZE),
            overrides=cell.flags.get("config_overrides"),
            share_seen=share,
        )
        for share in (1.0, 1 - masked)
    )
    if is_pretraining:
        forward = 0.56 * evaluated  # a quarter of the patches, and the decoder: counted for ViT-MAE-base
        return 3 * forward, forward
    return trained if cell.flags["train_last_layer_only"] else 3 * trained, evaluated


def flag_number(cell: Cell, flag: str, default: int) -> float:
    """A flag's value; the default for one that is not known yet, such as a batch size of auto."""
    value = cell.flags.get(flag)
    return value if isinstance(value, int | float) else default


def estimate_seconds(
    cells: list[Cell], images: dict[str, ImageCounts], output_dir: Path, device: str
) -> tuple[dict[str, float], str]:
    """Returns the seconds that each cell takes, by run_id, and in words what that rests on."""
    measured: dict[str, list[float]] = {}  # family -> TFLOP/s
    for cell in cells:
        if results := read_results(output_dir / cell.run_id):
            rate = results.images_per_second * gflop_per_image(cell)[0] / 1e3
            measured.setdefault(architecture_of(cell).family, []).append(rate)
    rates = {name: median(of_family) for name, of_family in measured.items()}
    assumed = ASSUMED_TFLOPS[device]
    seconds = {}
    for cell in cells:
        counts, (training, evaluation) = images[cell.run_id], gflop_per_image(cell)
        epochs = flag_number(cell, "num_train_epochs", 1)
        if steps := flag_number(cell, "max_train_steps", 0):
            epochs = steps * flag_number(cell, "per_device_train_batch_size", 32) / counts.train
        gflop = epochs * (counts.train * training + counts.validation * evaluation)
        rate = rates.get(architecture_of(cell).family, assumed)
        seconds[cell.run_id] = START_SECONDS + gflop / 1e3 / rate
    if rates:
        shown = ", ".join(f"{name} {rate:.2g}" for name, rate in rates.items())
        return seconds, f"from the speed of the finished cells (TFLOP/s: {shown})"
    return seconds, f"assuming {assumed} TFLOP/s, which may be far off, as no cell has finished yet"


def duration(seconds: float) -> str:
    """A time in the unit that fits it."""
    for name, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.{1 if length >= 3600 else 0}f} {name}"
    return f"{seconds:.0f} s"
