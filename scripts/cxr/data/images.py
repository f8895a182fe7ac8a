"""The images of a run: shrunk once by the dataset script, loaded by split, and those that are trained on."""

import logging
import os
from pathlib import Path

import datasets
from accelerate import Accelerator

from cxr.data.sources import DATASET_SCRIPT
from cxr.data.sources import make_sample_data_once
from cxr.data.subsets import draw_sample
from cxr.data.subsets import sample_record
from cxr.errors import UserError

logger = logging.getLogger(__name__)


def load_images(
    accelerator: Accelerator,
    data_dir: Path | None,
    *,
    config_name: str,
    shortest_side: int,
    cache_dir: Path | None,
    num_proc: int | None,
    **label_options: str,
) -> datasets.DatasetDict:
    """Loads the splits with images of `shortest_side` pixels, left encoded: `image` is {"bytes", "path"}.

    The first call shrinks every image once, into the Arrow cache, on one process of each machine; later
    calls, of any script, find it there. With no `data_dir` the images are the synthetic sample.
    `label_options` are the dataset script's: labeler, view, uncertain, on_bad_image.
    """
    if not accelerator.is_local_main_process:
        datasets.disable_progress_bars()
    with accelerator.local_main_process_first():
        if data_dir is None:
            data_dir = make_sample_data_once()
            logger.warning("No --data_dir given: using the synthetic sample in %s", data_dir)
        splits = datasets.load_dataset(
            str(DATASET_SCRIPT),
            config_name,
            data_dir=str(data_dir.absolute()),
            trust_remote_code=True,
            cache_dir=str(cache_dir) if cache_dir else None,
            num_proc=num_proc or num_cores(),
            image_size=shortest_side,
            **label_options,
        )
    for split in ("train", "validation"):
        if split not in splits:
            raise UserError(f"{data_dir} has no {split} images; expected some in its split CSV")
    return splits.cast_column("image", datasets.Image(decode=False))


def draw_training_images(
    images: datasets.Dataset, *, num_samples: int | None, seed: int
) -> tuple[datasets.Dataset, dict]:
    """Returns the images to train on (see `cxr.samples`) and the content of `samples.json`."""
    chosen = draw_sample(images["subject_id"], images["label"], num_samples=num_samples, seed=seed)
    images = images.select(chosen)
    return images, sample_record(images["dicom_id"], seed=seed)


def first_images(images: datasets.Dataset, num_images: int | None) -> datasets.Dataset:
    return images if num_images is None else images.select(range(min(num_images, len(images))))


def default_cache_image_size(image_size: int) -> int:
    """256 for 224: room for random crops, yet small enough that reading is cheap."""
    return round(image_size * 8 / 7)


def num_cores() -> int:
    """The cores that this process may use, which a batch system or a container limits."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
