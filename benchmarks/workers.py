"""Measures how fast predict.py reads many DICOM files, with one process and with several."""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cxr.inference.workers import NUM_FOR_PROCESSES
from cxr.inference.workers import open_pool
from originals import CACHED_SIZE
from pydicom.dataset import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.uid import generate_uid
from rich.progress import track

from mimic_cxr_dataset.radiographs import shrink_radiograph

ROWS, COLUMNS = 2500, 2000
NUM_FILES, NUM_TIMES = 50, 20  # files, and how often a turn reads each of them
NUM_TO_START = 8  # files per process to warm up, before timing starts


def measure_workers(args: argparse.Namespace, work_dir: Path) -> dict:
    """Returns the median images per second of one process and of --num_workers, which take turns."""
    paths = [draw_dicom(work_dir / f"{number:02}.dcm", seed=number) for number in range(args.num_files)]
    read = functools.partial(shrink_radiograph, shortest_side=CACHED_SIZE)
    with open_pool(NUM_FOR_PROCESSES, args.num_workers) as pool:
        list(pool.map(read, paths[:1] * NUM_TO_START * args.num_workers))
        sides = {"one": map, "several": pool.map}
        rates = {name: [] for name in sides}
        for name in track(list(sides) * args.rounds, description="Reading by turns"):
            rates[name].append(measure_rate(sides[name], read, paths * NUM_TIMES))
    one, several = (statistics.median(values) for values in rates.values())
    return {
        "images": {"rows": ROWS, "columns": COLUMNS, "files": len(paths), "times": NUM_TIMES},
        "num_workers": args.num_workers,
        "one_process_images_per_second": one,
        "images_per_second": several,
        "ratio_to_one_process": several / one,
    }


def measure_rate(apply: Callable, read: Callable, paths: list[Path]) -> float:
    """Returns the images per second of reading alone; `apply` is `map`, or the `map` of a pool."""
    started = time.perf_counter()
    for _ in apply(read, paths):
        pass
    return len(paths) / (time.perf_counter() - started)


def draw_dicom(path: Path, *, seed: int) -> Path:
    """Writes a soft 12-bit image with detector noise, in the form of a detector's file."""
    rows, columns = np.mgrid[0:ROWS, 0:COLUMNS]
    waves = np.sin(rows / 260 + seed) + np.cos(columns / 310)
    noise = np.random.default_rng(seed).normal(0, 20, waves.shape)
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID = ComputedRadiographyImageStorage
    header.SOPInstanceUID = generate_uid()
    header.Modality = "CR"
    header.Rows, header.Columns = ROWS, COLUMNS
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 12, 11
    header.PixelRepresentation = 0
    header.PixelData = (2048 + 900 * waves + noise).clip(0, 4095).astype("<u2").tobytes()
    header.save_as(path, enforce_file_format=True)
    return path
