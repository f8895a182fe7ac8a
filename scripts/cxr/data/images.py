"""The images of a run: shrunk once by the dataset package, loaded by split, and those that are trained on."""

import contextlib
import io
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cxr.data.sources import make_sample_data_once
from cxr.data.subsets import draw_sample
from cxr.data.subsets import sample_record
from cxr.errors import UserError
from mimic_cxr_dataset.collection import read_collection
from mimic_cxr_dataset.errors import DatasetError
from mimic_cxr_dataset.gray_levels import LARGEST_DISTANCE_OF_EQUALIZED
from mimic_cxr_dataset.gray_levels import distance_from_uniform

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)
HEAD_START_SECONDS = 2
NUM_TO_LOOK_AT = 200  # training images that tell whether they were equalised


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """What the dataset package refuses, tables, options or image files, is the user's to mend."""
    try:
        yield
    except DatasetError as error:
        raise UserError(str(error)) from error


def load_images(
    data_dir: Path | None,
    *,
    config_name: str,
    shortest_side: int,
    cache_dir: Path | None,
    num_proc: int | None,
    shows_progress: bool,
    **label_options: str,
) -> "datasets.DatasetDict":
    """Loads the splits with images of `shortest_side` pixels, left encoded: `image` is {"bytes", "path"}.

    The first call shrinks every image once, into the Arrow cache; later calls, of any script, find it there.
    Several processes may call it at once: one shrinks, the others wait for its lock, however long. It is the
    one that `shows_progress`, whose terminal the user reads, as a rule. With no `data_dir` the images are
    the synthetic sample. `label_options` are the dataset's: labeler, view, uncertain, on_bad_image.
    """
    import datasets  # here: other functions of this file are for scripts that do without

    from mimic_cxr_dataset.mimic_cxr_dataset import MimicCxr

    if data_dir is None:
        data_dir = make_sample_data_once()
        logger.warning("No --data_dir given: using the synthetic sample in %s", data_dir)
    with user_errors():
        builder = MimicCxr(
            config_name=config_name,
            data_dir=str(data_dir.absolute()),
            cache_dir=str(cache_dir) if cache_dir else None,
            image_size=shortest_side,
            **label_options,
        )
        if not shows_progress and not Path(builder.cache_dir).exists():
            time.sleep(HEAD_START_SECONDS)
        builder.download_and_prepare(num_proc=num_proc or num_cores())
    logger.debug("%s", builder.info.description)  # train.log has what was left out, of a finished cache too
    splits = builder.as_dataset()
    for split in ("train", "validation"):
        if split not in splits:
            raise UserError(f"{data_dir} has no {split} images; expected some in its split CSV")
    return splits.cast_column("image", datasets.Image(decode=False))


def are_equalized(images: "datasets.Dataset", data_dir: Path | None) -> bool:
    """Whether the histograms of training images were equalised, as MIMIC-CXR-JPG's were.

    By collection.json where it says so, else by the images: what the model's config.json keeps.
    """
    with user_errors():
        said = read_collection(data_dir).equalized if data_dir else None
    if said is not None:
        logger.info("Images: %s, as collection.json says", "equalised" if said else "not equalised")
        return said
    chosen = images.select(np.linspace(0, len(images) - 1, min(NUM_TO_LOOK_AT, len(images)), dtype=int))
    distances = []
    for image in chosen["image"]:
        with Image.open(io.BytesIO(image["bytes"])) as opened:
            distances.append(distance_from_uniform(np.asarray(opened.convert("L"))))
    distance = float(np.mean(distances))
    found = distance <= LARGEST_DISTANCE_OF_EQUALIZED
    logger.info(
        "Images: %s, as the histograms of %d lie %.2f from uniform in the mean (equalised: at most %.2f)",
        "equalised" if found else "not equalised",
        len(chosen),
        distance,
        LARGEST_DISTANCE_OF_EQUALIZED,
    )
    return found


def draw_training_images(
    images: "datasets.Dataset", *, num_samples: int | None, seed: int
) -> tuple["datasets.Dataset", dict]:
    """Returns the images to train on (see `cxr.data.subsets`) and the content of `samples.json`."""
    chosen = draw_sample(images["subject_id"], images["label"], num_samples=num_samples, seed=seed)
    images = images.select(chosen)
    return images, sample_record(images["dicom_id"], seed=seed)


def first_images(images: "datasets.Dataset", num_images: int | None) -> "datasets.Dataset":
    return images if num_images is None else images.select(range(min(num_images, len(images))))


def default_cache_image_size(image_size: int) -> int:
    """256 for 224: room for random crops, yet small enough that reading is cheap."""
    return round(image_size * 8 / 7)


def num_cores() -> int:
    """The cores that this process may use, which a batch system or a container limits."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
