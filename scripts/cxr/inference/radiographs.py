"""Files of a user as the pixels that a run evaluated: found by name, read by the dataset package, decoded."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torchvision.io import ImageReadMode
from torchvision.io import decode_jpeg

from cxr.choices import VIEWS
from cxr.data.images import user_errors
from cxr.errors import UserError
from cxr.errors import one_line
from mimic_cxr_dataset.radiographs import DICOM_MAGIC
from mimic_cxr_dataset.radiographs import DICOM_PREAMBLE
from mimic_cxr_dataset.radiographs import SUFFIXES
from mimic_cxr_dataset.radiographs import read_head
from mimic_cxr_dataset.radiographs import shrink_radiograph


class Radiograph(NamedTuple):
    pixels: torch.Tensor  # (1, H, W) uint8, air dark
    view_position: str  # of a DICOM header, such as PA, AP or LL; "" where the file says nothing


def find_radiographs(names: Iterable[str]) -> tuple[list[Path], list[str]]:
    """Returns the files that `names` stand for, each once, and the names that stand for none.

    A name is a file, of any suffix; a folder, which is searched with all below it for SUFFIXES and for DICOM
    files without one; or a pattern such as "p10/**/*.dcm", expanded here as not every shell does it. The
    order is that of the names, within one of them sorted.
    """
    found: dict[str, Path] = {}
    missing = []
    for name in names:
        # A name may have brackets in it and be no pattern. Path.glob takes no absolute ones.
        is_pattern = not os.path.lexists(name)
        matches = sorted(glob.glob(name, recursive=True)) if is_pattern else [name]  # noqa: PTH207
        paths = [path for match in matches for path in _files_of(Path(match))]
        if not paths:
            missing.append(name)
        for path in paths:
            found.setdefault(os.path.abspath(path), path)  # noqa: PTH100 (not resolved: a link has its own name)
    return list(found.values()), missing


def _files_of(path: Path) -> list[Path]:
    files = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    return sorted(filter(_is_radiograph, files)) if path.is_dir() else [path]


def _is_radiograph(path: Path) -> bool:
    """Whether a file in a folder is meant: by its suffix or, where that says nothing, by its first bytes."""
    if path.name.startswith(".") or path.name == "DICOMDIR":  # macOS puts a ._name.jpg beside a name.jpg
        return False
    if path.suffix.lower() in SUFFIXES:
        return True
    if path.suffix.strip(".0123456789"):  # the name of an exported file is often a UID: 1.2.840.10008
        return False
    try:
        return read_head(path)[DICOM_PREAMBLE:] == DICOM_MAGIC
    except OSError:
        return False


def read_radiograph(path: str | Path, *, shortest_side: int, use_window: bool = True) -> Radiograph:
    """Reads a file as `shrink_radiograph` does. Raises UserError, without its name, for a bad one."""
    with user_errors():
        content, view_position = shrink_radiograph(path, shortest_side, use_window=use_window)
    content = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    try:  # as `cxr.data.loading.ChestXrays` decodes
        return Radiograph(decode_jpeg(content, mode=ImageReadMode.GRAY), view_position)
    except RuntimeError as error:
        raise UserError(f"damaged JPEG ({one_line(error)})") from error


def describe_view(view_position: str, *, trained_view: str) -> str | None:
    """Returns a warning where a header names another view than the model has seen; None where all is well.

    `trained_view` is frontal, lateral or all, as the dataset's option `view`.
    """
    known = VIEWS[trained_view]
    if not view_position or known is None or view_position in known:
        return None
    return f"the header says view {view_position}; the model was trained on {trained_view} ones"
