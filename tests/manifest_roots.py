"""Writes small data folders with a manifest, whose images lie elsewhere as JPEG, PNG and DICOM files."""

import json
from pathlib import Path

import numpy as np
from dicom_files import write_dicom
from mimic_tables import write_csv
from PIL import Image

COLUMNS = ["image_id", "path", "subject_id", "study_id", "view_position", "split"]
LABELS = ["No Finding", "Edema", "Hernia", "Pleural Effusion"]  # Hernia is none of MIMIC-CXR-JPG's
FORMATS = (".jpg", ".png", ".dcm")


def manifest_rows(count: int = 24, *, folder: Path | str = "images", **columns) -> list[dict]:
    """Returns rows of images by format, each of its own patient; two in four have Edema."""
    rows = []
    for number in range(count):
        is_ill, split = number % 4 < 2, "train" if number < count / 2 else "validation"
        split = "test" if number >= 3 * count / 4 else split
        row = {
            "image_id": f"image {number:03}",
            "path": str(Path(folder, f"{number:03}{FORMATS[number % 3]}")),
            "subject_id": f"p{number:03}",
            "study_id": f"s{number:03}",
            "view_position": "PA",
            "split": split,
            "No Finding": 0 if is_ill else 1,
            "Edema": 1 if is_ill else 0,
            "Hernia": number % 2,
            "Pleural Effusion": -1 if number % 4 == 3 else int(number % 8 == 0),
        }
        rows.append({**row, **columns})
    return rows


def write_manifest(root: Path, rows: list[dict], **collection) -> Path:
    """Writes manifest.csv, and collection.json if fields are given; draws no image."""
    root.mkdir(parents=True, exist_ok=True)
    names = list(rows[0])
    write_csv(root / "manifest.csv", names, [[row[name] for name in names] for row in rows])
    if collection:
        (root / "collection.json").write_text(json.dumps(collection), encoding="utf-8")
    return root


def draw_images(root: Path, rows: list[dict], *, side: int = 48) -> None:
    for number, row in enumerate(rows):
        path = root / row["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(number)
        pixels = np.add.outer(np.arange(side), np.arange(side)) + rng.integers(0, 40, (side, side))
        pixels = (pixels + 60 * row["Edema"]).astype("uint8")
        if path.suffix == ".dcm":
            write_dicom(path, pixels)
        else:
            Image.fromarray(pixels).save(path)
