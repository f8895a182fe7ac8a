"""Measures on one core how fast images are shrunk and loaded, compared with transformers' MAE example."""

import argparse
import contextlib
import functools
import io
import itertools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from cxr.data import transforms
from cxr.data.images import images_in_memory
from cxr.data.loading import ChestXrays
from cxr.data.loading import make_training_loader
from cxr.data.mixing import Mixing
from cxr.errors import UserError
from mae_example import example_transform
from originals import BATCH_SIZE
from originals import CACHED_SIZE
from originals import FULL_SIZE
from originals import IMAGE_SIZE
from originals import draw_images
from PIL import Image
from rich.progress import track
from torchvision.io import ImageReadMode
from torchvision.io import decode_jpeg

from mimic_cxr_dataset.radiographs import shrink_radiograph

NUM_CACHED = 16 * BATCH_SIZE  # shrunk images per turn


def measure_data(args: argparse.Namespace, work_dir: Path) -> dict:
    root = args.data_dir or draw_images(work_dir / "full", num_images=args.num_images, image_size=FULL_SIZE)
    paths = list(itertools.islice((root / "files").glob("p*/p*/s*/*.jpg"), args.num_images))
    small = next((path for path in paths if shortest_side(path) <= CACHED_SIZE), None)
    if small is not None or not paths:
        raise UserError(
            f"--data_dir {root}: found {small or 'no image'}, expected originals with a shortest side above "
            f"{CACHED_SIZE} pixels"
        )
    cached = [shrink_radiograph(path, CACHED_SIZE).content for path in paths]
    rates = take_turns(
        {
            "ours: shrink": paths,
            "ours: loader": cached,
            "ours: loader, RandAugment": cached,
            "ours: loader, mixing": cached,
            "example: originals": paths,
            "example: cached": cached,
            "decoder: whole, Lanczos": paths,
            "decoder: an eighth": paths,
            "decoder: cached": cached,
        },
        rounds=args.rounds,
    )
    psnr = [compare(shrunk, path) for shrunk, path in zip(cached, paths, strict=True)]
    return {
        "images": {
            "bytes": statistics.mean(path.stat().st_size for path in paths),
            "cached_bytes": statistics.mean(map(len, cached)),
        },
        "shrink": {
            "images_per_second": rates["ours: shrink"],
            "full_decode_images_per_second": rates["decoder: whole, Lanczos"],
            "decoder_floor_images_per_second": rates["decoder: an eighth"],
            "example_images_per_second": rates["example: originals"],
            "ratio_to_example": rates["ours: shrink"] / rates["example: originals"],
            "ratio_to_full_decode": rates["ours: shrink"] / rates["decoder: whole, Lanczos"],
            "psnr_db": statistics.mean(psnr),
            "lowest_psnr_db": min(psnr),
        },
        "loader": {
            "images_per_second": rates["ours: loader"],
            "rand_augment_images_per_second": rates["ours: loader, RandAugment"],
            "mixing_images_per_second": rates["ours: loader, mixing"],
            "ratio_of_mixing": rates["ours: loader, mixing"] / rates["ours: loader"],
            "decoder_floor_images_per_second": rates["decoder: cached"],
            "example_originals_images_per_second": rates["example: originals"],
            "example_cached_images_per_second": rates["example: cached"],
            "ratio_to_example_originals": rates["ours: loader"] / rates["example: originals"],
            "ratio_to_example_cached": rates["ours: loader"] / rates["example: cached"],
        },
    }


def take_turns(sides: dict[str, list], *, rounds: int) -> dict[str, float]:
    """Returns each side's median images per second over `rounds` turns, after one turn to warm up.

    Each name before the colon has its own process, so that the sides do not affect each other's memory.
    """
    rates = {name: [] for name in sides}
    context = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        pools = {
            name: stack.enter_context(ProcessPoolExecutor(1, mp_context=context, initializer=use_one_core))
            for name in dict.fromkeys(name.split(":")[0] for name in sides)
        }
        turns = list(itertools.product(range(rounds + 1), sides.items()))
        for turn, (name, images) in track(turns, description="Reading by turns"):
            rate = pools[name.split(":")[0]].submit(measure_side, name, images).result()
            if turn:
                rates[name].append(rate)
    return {name: statistics.median(values) for name, values in rates.items()}


def use_one_core() -> None:
    """Pins this process to one core, the same for all processes, if the system supports it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)


def measure_side(name: str, images: list) -> float:
    """Returns the images per second of a side; `images` are paths of originals or bytes of shrunk images."""
    if isinstance(images[0], bytes):
        images = list(itertools.islice(itertools.cycle(images), NUM_CACHED))
    read = SIDES[name](images)
    started = time.perf_counter()
    read()
    return len(images) / (time.perf_counter() - started)


def transform_as_example(images: list[Path | bytes]) -> Callable[[], None]:
    example = example_transform(IMAGE_SIZE, mean=transforms.GRAY_MEAN, std=transforms.GRAY_STD)

    def transform(image: Path | bytes) -> torch.Tensor:
        return example(Image.open(io.BytesIO(image) if isinstance(image, bytes) else image))

    return each(transform, images)


def each(function: Callable, images: list) -> Callable[[], None]:
    """Returns a function that calls `function` with each image."""

    def read() -> None:
        for image in images:
            function(image)

    return read


def load_cropped(contents: list[bytes], *, mixing: Mixing | None = None) -> Callable[[], None]:
    transform = transforms.pretraining_transform(IMAGE_SIZE, crop_scale=(0.2, 1.0), horizontal_flip=True)
    return iterate(contents, transform, mixing=mixing)


def load_augmented(contents: list[bytes]) -> Callable[[], None]:
    options = {"crop_scale": (0.2, 1.0), "random_erasing_prob": 0.0}
    return iterate(contents, transforms.training_transform("mae", IMAGE_SIZE, **options))


def shrink_fully(path: Path) -> bytes:
    """Returns the original, decoded at full size, as a gray JPEG with shortest side CACHED_SIZE."""
    with Image.open(path) as image:
        scale = CACHED_SIZE / min(image.size)
        size = tuple(round(side * scale) for side in image.size)
        resized = image.convert("L").resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    resized.save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


def shortest_side(path: Path) -> int:
    with Image.open(path) as image:
        return min(image.size)


def decode_eighth(path: Path) -> None:
    """Does the least work that reading an original needs: entropy decoding, and an eighth of its size."""
    with Image.open(path) as image:
        image.draft("L", tuple(side // 8 for side in image.size))
        image.load()


def decode_gray(content: bytes) -> torch.Tensor:
    return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.GRAY)


def compare(shrunk: bytes, path: Path) -> float:
    """Returns the PSNR in dB of a shrunk JPEG against the original, decoded at full size and resized."""
    with Image.open(io.BytesIO(shrunk)) as image, Image.open(path) as original:
        reference = original.convert("L").resize(image.size, Image.Resampling.LANCZOS)
        difference = np.asarray(image, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    return float(10 * np.log10(255**2 / np.square(difference).mean()))


def iterate(
    contents: list[bytes], transform: torch.nn.Module, *, mixing: Mixing | None = None
) -> Callable[[], None]:
    """Returns a function that reads one epoch from the training loader of the scripts."""
    dicom_ids = [f"{number:08x}" for number in range(len(contents))]
    images = images_in_memory(contents, label=[0] * len(contents), dicom_id=dicom_ids)
    images = ChestXrays(images, transform, seed=0, num_patches=196, mixing=mixing)

    def epoch() -> None:
        loader = make_training_loader(
            Accelerator(cpu=True),
            images,
            images_per_step=BATCH_SIZE,
            gradient_accumulation_steps=1,
            steps=range(len(images) // BATCH_SIZE),
            num_workers=0,
        )
        for _ in loader:
            pass

    return epoch


# What each side does with the images: the call prepares it and returns a function, which is timed.
SIDES = {
    "ours: shrink": functools.partial(each, functools.partial(shrink_radiograph, shortest_side=CACHED_SIZE)),
    "ours: loader": load_cropped,
    "ours: loader, RandAugment": load_augmented,
    "ours: loader, mixing": functools.partial(load_cropped, mixing=Mixing(mixup=0.8, cutmix=1.0)),
    "example: originals": transform_as_example,
    "example: cached": transform_as_example,
    "decoder: whole, Lanczos": functools.partial(each, shrink_fully),
    "decoder: an eighth": functools.partial(each, decode_eighth),
    "decoder: cached": functools.partial(each, decode_gray),
}
