"""How fast DICOM files are read, with one process and with several, as predict.py reads many files."""

import argparse
import statistics
import time
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
from cxr.inference.radiographs import open_pool
from cxr.inference.radiographs import read_in_order
from originals import CACHED_SIZE
from pydicom.dataset import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.uid import generate_uid
from rich.progress import track

from mimic_cxr_dataset.radiographs import Reading

ROWS, COLUMNS = 2500, 2000
NUM_FILES, NUM_TIMES = 50, 20  # each file is read so often in a turn
NUM_TO_START = 8  # files a process, before the clock starts


def measure_workers(args: argparse.Namespace, work_dir: Path) -> dict:
    """Returns the images a second of one process and of --num_workers, which take turns; medians."""
    paths = [draw_dicom(work_dir / f"{number:02}.dcm", seed=number) for number in range(args.num_files)]
    rates = {1: [], args.num_workers: []}
    turns = [(round_, workers) for round_ in range(args.rounds) for workers in rates]
    with open_pool(len(paths) * NUM_TIMES, 1) as one, open_pool(10**6, args.num_workers) as several:
        for _, workers in track(turns, description="Reading by turns"):
            pool = one if workers == 1 else several
            rates[workers].append(measure_rate(paths, pool, num_workers=workers))
    single, multiple = (statistics.median(values) for values in rates.values())
    return {
        "images": {"rows": ROWS, "columns": COLUMNS, "files": len(paths), "times": NUM_TIMES},
        "num_workers": args.num_workers,
        "one_process_images_per_second": single,
        "images_per_second": multiple,
        "ratio_to_one_process": multiple / single,
    }


def measure_rate(paths: list[Path], pool: Executor, *, num_workers: int) -> float:
    """Returns the images a second of the reading alone: the processes have started."""
    options = {"shortest_side": CACHED_SIZE, "reading": Reading(), "pool": pool, "num_ahead": 4 * num_workers}
    for _ in read_in_order(paths[:1] * NUM_TO_START * num_workers, **options):
        pass
    started = time.perf_counter()
    failed = [read for _, read in read_in_order(paths * NUM_TIMES, **options) if isinstance(read, Exception)]
    seconds = time.perf_counter() - started
    if failed:
        raise failed[0]
    return len(paths) * NUM_TIMES / seconds


def draw_dicom(path: Path, *, seed: int) -> Path:
    """Writes a soft picture with the noise of a detector, of 12 bits, as a detector's file is."""
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
