"""PneumoniaMNIST and ChestMNIST: arrays of 28 to 224 pixels in one .npz file, with the official splits."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from cxr.errors import UserError
from cxr.importing import label_maps
from cxr.importing import nih
from cxr.importing.manifest_table import Facts
from cxr.importing.manifest_table import Imported
from cxr.importing.manifest_table import Options
from cxr.importing.manifest_table import lacking
from mimic_cxr_dataset.errors import one_line

LAYOUT = "pneumoniamnist.npz or chestmnist.npz, or one of their larger sizes, such as pneumoniamnist_224.npz"
FACTS = {
    kind: Facts(
        name=name,
        license="CC BY 4.0",
        citation=f"Yang et al., MedMNIST v2, Scientific Data 2023; {source}",
        address="https://zenodo.org/records/10519652",
        layout=LAYOUT,
        equalized=False,
        derived_from=nih.FACTS.name if kind == "chestmnist" else None,
        published=dict(zip(("train images", "validation images", "test images"), published, strict=True)),
    )
    for kind, name, source, published in (
        ("pneumoniamnist", "PneumoniaMNIST", "Kermany et al., Cell 2018", (4_708, 524, 624)),
        ("chestmnist", "ChestMNIST", "Wang et al., ChestX-ray8, CVPR 2017", (78_468, 11_219, 22_433)),
    )
}
SPLITS = {"train": "train", "val": "validation", "test": "test"}  # MedMNIST's names -> ours
WHAT = ("images", "labels")  # of each split
# What NumPy raises for a file that is cut off, changed, encrypted or packed by another method.
DAMAGED = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
NOTE = "the file does not say which images are of one patient: each counts as a patient of its own"


def read(source: Path, options: Options) -> Imported:
    """Reads the file, or the one in the folder. Raises UserError."""
    path, kind = _find(source)
    arrays = _load(path, kind)
    rows = pd.concat([_rows(arrays, kind, split, options) for split in SPLITS], ignore_index=True)
    images = [image for split in SPLITS for image in arrays[f"{split}_images"]]
    pictures = dict(zip(rows["path"], images, strict=True))
    return Imported(
        facts=FACTS[kind],
        rows=rows,
        notes=(NOTE,),
        used=("keep_labels",) if kind == "chestmnist" else (),
        write_images=lambda folder, rows: _write_images(folder, rows, pictures),
    )


def _find(source: Path) -> tuple[Path, str]:
    """Returns the file, and which of FACTS it is."""
    paths = [source] if source.is_file() else sorted(source.glob("*mnist*.npz"))
    found = [(path, kind) for path in paths for kind in FACTS if path.name.startswith(kind)]
    if len(found) != 1:
        names = ", ".join(path.name for path, _ in found) or "no such file"
        raise lacking(source, names, FACTS["pneumoniamnist"])
    return found[0]


def _load(path: Path, kind: str) -> dict[str, np.ndarray]:
    """Returns the six arrays of the file. Raises UserError if they are not as published."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {f"{split}_{what}": file[f"{split}_{what}"] for split in SPLITS for what in WHAT}
    except DAMAGED as error:
        raise UserError(
            f"{path}: found no arrays of MedMNIST ({one_line(error)}); download it again"
        ) from error
    width = len(label_maps.CHESTMNIST) if kind == "chestmnist" else 1
    for split in SPLITS:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        is_right = images.dtype == np.uint8 and images.ndim == 3 and images.size > 0
        if not is_right or labels.shape != (len(images), width) or not np.isin(labels, (0, 1)).all():
            raise UserError(
                f"{path}: found {split} images {images.shape} and labels {labels.shape}, expected gray "
                f"images and {width} label{'s' * (width > 1)} of each, 0 or 1; download it again"
            )
    return arrays


def _rows(arrays: dict[str, np.ndarray], kind: str, split: str, options: Options) -> pd.DataFrame:
    labels = arrays[f"{split}_labels"].astype(int)
    ids = [f"{split}{number:06}" for number in range(len(labels))]
    rows = pd.DataFrame({"image_id": ids, "path": [f"images/{split}/{name}.png" for name in ids]})
    rows = rows.assign(subject_id=ids, study_id=ids, split=SPLITS[split])
    if kind == "pneumoniamnist":  # its images are anterior-posterior, of children
        normal, pneumonia = label_maps.PNEUMONIAMNIST.values()
        return rows.assign(view_position="AP", **{normal: 1 - labels[:, 0], pneumonia: labels[:, 0]})
    columns = label_maps.rename(label_maps.CHESTMNIST, keeps_labels=options.keep_labels)
    named = label_maps.join_columns(pd.DataFrame(labels, columns=list(columns)), columns)
    nothing = (labels == 0).all(axis=1).astype(int)
    return rows.assign(view_position="FRONTAL", **{"No Finding": nothing}).join(named)


def _write_images(folder: Path, rows: pd.DataFrame, pictures: dict[str, np.ndarray]) -> None:
    """Writes the images of the rows as PNGs; `pictures` has that of each path."""
    for path in tqdm(rows["path"], desc="writing images", unit=" image"):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pictures[path]).save(target)
