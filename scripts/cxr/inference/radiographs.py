"""Finds image files by name and reads them into the same pixels that a training run evaluates."""

import contextlib
import functools
import glob
import os
from collections import deque
from collections.abc import Iterable
from collections.abc import Iterator
from concurrent.futures import Executor
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torchvision.io import ImageReadMode
from torchvision.io import decode_jpeg

from cxr.data.images import user_errors
from cxr.errors import UserError
from mimic_cxr_dataset.errors import DatasetError
from mimic_cxr_dataset.errors import one_line
from mimic_cxr_dataset.radiographs import DICOM_MAGIC
from mimic_cxr_dataset.radiographs import DICOM_PREAMBLE
from mimic_cxr_dataset.radiographs import SUFFIXES
from mimic_cxr_dataset.radiographs import Reading
from mimic_cxr_dataset.radiographs import ShrunkRadiograph
from mimic_cxr_dataset.radiographs import read_head
from mimic_cxr_dataset.radiographs import shrink_radiograph


class Radiograph(NamedTuple):
    pixels: torch.Tensor  # (1, H, W) uint8, air dark
    view_position: str  # from a DICOM header, such as PA, AP or LL; "" if unknown
    is_equalized: bool  # whether reading equalised it; the file may have been equalised before
    warnings: tuple[str, ...]  # what may be wrong with the image


def find_radiographs(names: Iterable[str]) -> tuple[list[Path], list[str]]:
    """Returns the files that `names` refer to, each once, and the names for which there is no file.

    A name is a file with any suffix; a folder, searched with its subfolders for SUFFIXES and for DICOM files
    without a suffix; or a pattern such as "p10/**/*.dcm", expanded here because not every shell does so. The
    files keep the order of the names and are sorted within each. A subfolder that cannot be read is among the
    names without a file.
    """
    found: dict[str, Path] = {}
    missing = []
    for name in names:
        # The name of an existing file may contain brackets. Path.glob does not take absolute patterns.
        is_pattern = not os.path.lexists(name)
        matches = sorted(glob.glob(name, recursive=True)) if is_pattern else [name]  # noqa: PTH207
        unreadable: list[str] = []
        paths = [path for match in matches for path in _files_of(Path(match), unreadable)]
        missing += unreadable if paths else [name]
        for path in paths:
            found.setdefault(os.path.abspath(path), path)  # noqa: PTH100 (links are kept, not resolved)
    return list(found.values()), missing


def _files_of(path: Path, unreadable: list[str]) -> list[Path]:
    """Returns the radiographs in a folder, also behind links, each folder once; or the file itself."""
    if not path.is_dir():
        return [path]
    files, places = [], set()
    walk = os.walk(path, followlinks=True, onerror=lambda error: unreadable.append(str(error.filename)))
    for folder, folders, names in walk:
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in places:  # a link to a folder that was here before
            folders.clear()
            continue
        places.add((status.st_dev, status.st_ino))
        folders.sort()
        files += [Path(folder, name) for name in names]
    return sorted(filter(_is_radiograph, files))


def _is_radiograph(path: Path) -> bool:
    """Returns whether a file in a folder is an image: by its suffix or, without one, by its first bytes."""
    if path.name.startswith(".") or path.name == "DICOMDIR":  # macOS writes a ._name.jpg beside name.jpg
        return False
    if path.suffix.lower() in SUFFIXES:
        return True
    if path.suffix.strip(".0123456789"):  # exported files are often named by a UID, such as 1.2.840.10008
        return False
    try:
        return read_head(path)[DICOM_PREAMBLE:] == DICOM_MAGIC
    except (OSError, DatasetError):
        return False


# Reading ----------------------------------------------------------------------------------------------------


def read_radiograph(path: str | Path, *, shortest_side: int, reading: Reading | None = None) -> Radiograph:
    """Reads a file as `shrink_radiograph` does. Raises UserError, without the file's name, for a bad one."""
    with user_errors():
        return _decode(shrink_radiograph(path, shortest_side, reading))


def _decode(shrunk: ShrunkRadiograph) -> Radiograph:
    content = torch.frombuffer(bytearray(shrunk.content), dtype=torch.uint8)
    try:  # as `cxr.data.loading.ChestXrays` decodes
        pixels = decode_jpeg(content, mode=ImageReadMode.GRAY)
    except RuntimeError as error:
        raise UserError(f"damaged JPEG ({one_line(error)})") from error
    return Radiograph(pixels, shrunk.view_position, shrunk.is_equalized, shrunk.warnings)


def read_in_order(
    paths: Iterable[Path], *, shortest_side: int, reading: Reading, pool: Executor, num_ahead: int
) -> Iterator[tuple[Path, Radiograph | Exception]]:
    """Yields each file with its radiograph, or with the exception: a UserError if the file is bad.

    At most `num_ahead` files are read in advance.
    """
    read = functools.partial(shrink_radiograph, shortest_side=shortest_side, reading=reading)
    remaining, waiting = iter(paths), deque()
    while True:
        missing = num_ahead - len(waiting)
        with _advice_on_killed_processes():
            waiting.extend((path, pool.submit(read, path)) for path in islice(remaining, missing))
        if not waiting:
            return
        path, future = waiting.popleft()
        with _advice_on_killed_processes():
            outcome = _outcome(future)
        yield path, outcome


@contextlib.contextmanager
def _advice_on_killed_processes() -> Iterator[None]:
    """Raises UserError if a process of the pool was killed, which submitting and waiting both report."""
    try:
        yield
    except BrokenProcessPool as error:
        raise UserError(
            "a process that reads images was killed, most likely because memory ran out: start again with "
            "fewer --num_workers"
        ) from error


def _outcome(future: Future) -> Radiograph | Exception:
    try:
        with user_errors():
            return _decode(future.result())
    except BrokenProcessPool:
        raise
    except Exception as error:  # any error: the other files go on
        return error
