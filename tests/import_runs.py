"""Runs import_dataset.py in process, and writes tables of one's own."""

from pathlib import Path

import import_dataset
import pandas as pd
from collection_files import draw
from mimic_tables import write_csv

from mimic_cxr_dataset.manifest import COLUMNS


def run(collection, source, out, *flags):
    """Imports a collection; returns its manifest by image_id, as text."""
    import_dataset.main([collection, str(source), str(out), *map(str, flags)])
    return pd.read_csv(out / "manifest.csv", dtype=str, keep_default_na=False).set_index("image_id")


def labels_of(manifest):
    return [name for name in manifest if name not in COLUMNS]


def write_own_table(folder: Path, columns: list[str], rows: list[list]) -> Path:
    for name, *_ in rows:
        draw(folder / str(name).strip())
    write_csv(folder / "labels.csv", columns, rows)
    return folder / "labels.csv"
