"""Images of one's own: a folder for each class, or a table whose columns the user names."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from cxr.choices import LABELS
from cxr.data.images import user_errors
from cxr.errors import UserError
from cxr.errors import did_you_mean
from cxr.importing.manifest_table import IMAGE_SUFFIXES
from cxr.importing.manifest_table import Facts
from cxr.importing.manifest_table import Imported
from cxr.importing.manifest_table import Options
from cxr.importing.manifest_table import cut_missing_splits
from cxr.importing.manifest_table import only_found
from mimic_cxr_dataset.csv_files import parse_values
from mimic_cxr_dataset.csv_files import read_csv

SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validate": "validation"}
SPLITS |= {"validation": "validation", "test": "test"}
NORMAL = ("normal", "no finding", "no findings", "negative", "healthy")  # class names for No Finding


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a table; None: there is none, and `rows_of_table` says what takes its place."""

    path: str
    labels: tuple[str, ...]
    image_id: str | None = None
    subject_id: str | None = None
    study_id: str | None = None
    view_position: str | None = None
    split: str | None = None


def label_name(name: str) -> str:
    """Returns the name of a class or a column as one of LABELS if it is one of them, else as it is."""
    words = re.sub(r"[\s_-]+", " ", name.strip())
    known = {label.lower(): label for label in LABELS} | dict.fromkeys(NORMAL, "No Finding")
    return known.get(words.lower(), words)


def read_folder(
    source: Path, options: Options, facts: Facts, *, view: str, subject_pattern: re.Pattern | None
) -> Imported:
    """Reads SOURCE/CLASS/... or SOURCE/SPLIT/CLASS/..., where CLASS is the label of the images.

    `subject_pattern` finds the patient in a path, in its first group; without it, each image is a patient.
    Raises UserError.
    """
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    parts = [path.relative_to(source).parts for path in paths]
    has_splits = bool(parts) and all(one[0].lower() in SPLITS for one in parts)
    depth = int(has_splits)
    if not parts or any(len(one) < depth + 2 for one in parts):
        raise UserError(
            f"{source}: found {len(parts):,} images, not all of them in the folder of a class, expected "
            "SOURCE/CLASS/image.png or SOURCE/train/CLASS/image.png; move them, or import a table"
        )
    ids = ["/".join(quote(name, safe=" ()[]+,") for name in one) for one in parts]
    subjects = [_subject(name, subject_pattern) for name in ids]
    classes = pd.Series([label_name(one[depth]) for one in parts])
    split = pd.Series([SPLITS[one[0].lower()] if has_splits else "train" for one in parts])
    rows = pd.DataFrame({"image_id": ids, "path": [str(path.absolute()) for path in paths]})
    rows = rows.assign(subject_id=subjects, study_id=ids, view_position=view)
    rows["split"] = cut_missing_splits(split, rows["subject_id"], options)
    labels = pd.get_dummies(classes, dtype=int)
    notes = () if subject_pattern else ("each image counts as a patient of its own: see --subject_pattern",)
    return Imported(facts=facts, rows=rows.join(labels), notes=notes)


def _subject(name: str, pattern: re.Pattern | None) -> str:
    if pattern is None:
        return name
    if (found := pattern.search(name)) and found.groups():
        return found[1]
    raise UserError(
        f"--subject_pattern {pattern.pattern}: found no patient in {name}, expected its first group to match "
        "in each path; change it"
    )


def read_table(
    source: Path, options: Options, facts: Facts, *, columns: Columns, images_dir: Path
) -> Imported:
    """Reads a CSV file; paths are relative to `images_dir`. Raises UserError."""
    named = [getattr(columns, name) for name in vars(columns) if name != "labels"]
    with user_errors():
        table = read_csv(source, None)
        for name in [*filter(None, named), *columns.labels]:
            if name not in table:
                raise UserError(
                    f"{source}: found no column {name!r}{did_you_mean(name, table.columns)}, expected one of "
                    f"{', '.join(table.columns)}; name another"
                )
        labels = parse_values(source, table[list(columns.labels)].copy(), list(columns.labels))
    rows = pd.DataFrame({"path": table[columns.path], "image_id": table[columns.image_id or columns.path]})
    rows["subject_id"] = table[columns.subject_id] if columns.subject_id else rows["image_id"]
    rows["study_id"] = table[columns.study_id] if columns.study_id else rows["image_id"]
    rows["view_position"] = table[columns.view_position] if columns.view_position else "FRONTAL"
    split = pd.Series("train", index=rows.index)
    if columns.split:
        split = table[columns.split].str.strip().str.lower()
        if (unknown := ~split.isin(list(SPLITS))).any():
            raise UserError(
                f"{source}, column {columns.split}: found {split[unknown].iloc[0]!r}, expected one of "
                f"{', '.join(SPLITS)}; correct it, or leave --split_column out"
            )
        split = split.map(SPLITS)
    rows["split"] = cut_missing_splits(split, rows["subject_id"], options)
    paths = [(images_dir / path).absolute() for path in rows["path"]]
    rows["path"] = [str(path) if path.is_file() else None for path in paths]
    names = {name: label_name(name) for name in columns.labels}
    rows, notes = only_found(rows.join(labels.rename(columns=names).astype("Int8")))
    if rows.empty:
        raise UserError(f"{source}: found none of its images in {images_dir}; name another --images_dir")
    if not columns.subject_id:
        notes = (*notes, "each image counts as a patient of its own: see --subject_column")
    return Imported(facts=facts, rows=rows.reset_index(drop=True), notes=notes)
