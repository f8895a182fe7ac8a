"""Images of one's own: a folder for each class, or a table whose columns the user names."""

import hashlib
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from cxr.data.images import user_errors
from cxr.errors import UserError
from cxr.importing.manifest_table import Facts
from cxr.importing.manifest_table import Imported
from cxr.importing.manifest_table import Options
from cxr.importing.manifest_table import cut_missing_splits
from cxr.importing.manifest_table import find_paths
from cxr.importing.manifest_table import only_found
from cxr.importing.manifest_table import shares_for
from mimic_cxr_dataset.csv_files import parse_values
from mimic_cxr_dataset.csv_files import read_csv
from mimic_cxr_dataset.manifest import COLUMNS
from mimic_cxr_dataset.manifest import MAX_ID_LENGTH
from mimic_cxr_dataset.manifest import NORMAL
from mimic_cxr_dataset.manifest import check_label_names
from mimic_cxr_dataset.manifest import check_rows
from mimic_cxr_dataset.manifest import label_name
from mimic_cxr_dataset.radiographs import SUFFIXES

SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validate": "validation"}
SPLITS |= {"validation": "validation", "test": "test"}
MASKS = {"mask", "masks"}  # words in the names of folders that have no radiographs


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a table; None: there is none, and `read_table` says what takes its place."""

    path: str
    labels: tuple[str, ...]
    image_id: str | None = None
    subject_id: str | None = None
    study_id: str | None = None
    view_position: str | None = None
    split: str | None = None


def read_folder(
    source: Path, options: Options, facts: Facts, *, view: str, subject_pattern: re.Pattern | None
) -> Imported:
    """Reads SOURCE/CLASS/... or SOURCE/SPLIT/CLASS/..., where CLASS is the label of the images.

    `subject_pattern` finds the patient in a path, in its first group; without it, each image is a patient.
    Raises UserError.
    """
    root = Path(os.path.abspath(source))  # noqa: PTH100 - without "..", as `find_paths`
    found, others = find_paths(root, facts)
    paths = [Path(path) for path in sorted(found)]
    parts = [path.relative_to(root).parts for path in paths]
    depth = _depth_of_splits(source, {one[0] for one in parts})
    if any(len(one) < depth + 2 for one in parts):
        raise UserError(
            f"{source}: found {len(parts):,} images, not all of them in the folder of a class, expected "
            "SOURCE/CLASS/image.png or SOURCE/train/CLASS/image.png; move them, or import a table"
        )
    names = ["/".join(one) for one in parts]
    ids = [image_id_of(name) for name in names]
    subjects = [_subject(name, subject_pattern) for name in names] if subject_pattern else ids
    below = Counter("/".join(one[: depth + 2]) for one in parts if len(one) > depth + 2)
    for folders in sorted({one[:-1] for one in parts}):
        _check_subfolders(source, folders, depth)
    classes = pd.Series([label_name(one[depth]) for one in parts])
    _check_names(source, sorted({*classes}))
    split = pd.Series([SPLITS[one[0].lower()] if depth else "train" for one in parts])
    rows = pd.DataFrame({"image_id": ids, "path": [str(path) for path in paths]})
    rows = rows.assign(subject_id=subjects, study_id=ids, view_position=view)
    rows["split"] = cut_missing_splits(split, rows["subject_id"], options)
    labels = pd.get_dummies(classes, dtype=int)
    notes = () if subject_pattern else ("each image counts as a patient of its own: see --subject_pattern",)
    if "No Finding" not in labels:
        notes = (*notes, f"no class is named {', '.join(NORMAL)}: each image counts as one with a finding")
    notes = (*_describe_subfolders(below), *_describe_others(others), *notes)
    return Imported(facts=facts, rows=rows.join(labels), notes=notes, used=shares_for(split))


def image_id_of(path: str) -> str:
    """Returns a relative path as an image id, whose other characters are percent-encoded.

    Of a path that is too long, it is a hash of the path and its end.
    """
    quoted = quote(path, safe="/ ()[]+,")
    if len(quoted) <= MAX_ID_LENGTH:
        return quoted
    return f"{hashlib.sha256(path.encode('utf-8')).hexdigest()[:20]}-{quoted[-100:]}"


def _check_subfolders(source: Path, folders: tuple[str, ...], depth: int) -> None:
    """Raises UserError for masks, and for a split in the folder of a class, which is folders[depth]."""
    expected = ""
    if any(MASKS & {*re.split(r"[\W_]+", name.lower())} for name in folders[depth:]):
        expected = "radiographs and no masks"
    elif any(name.lower() in SPLITS for name in folders[depth + 1 :]):
        expected = "the folders of classes in those of splits"
    if expected:
        raise UserError(
            f"{source}: found images in {'/'.join(folders)}, expected {expected}; move them, or import a "
            "table"
        )


def _describe_subfolders(num_images: Counter[str], *, most: int = 5) -> tuple[str, ...]:
    """Returns a note about the folders in those of the classes, given with their numbers of images."""
    if not num_images:
        return ()
    first = [f"{name} ({num_images[name]:,})" for name in sorted(num_images)[:most]]
    more = f" and {len(num_images) - most:,} more folders" * (len(num_images) > most)
    return (f"images in folders below a class have its label, too: {', '.join(first)}{more}",)


def _describe_others(num_files: Counter[str], *, most: int = 5) -> tuple[str, ...]:
    """Returns a note about the files without one of the SUFFIXES, given with their numbers."""
    if not num_files:
        return ()
    kinds = [f"{count:,} {suffix or 'without a suffix'}" for suffix, count in num_files.most_common(most)]
    return (
        f"files that are not used: {', '.join(kinds)}; if they are images, save them as "
        f"{', '.join(SUFFIXES)}",
    )


def _depth_of_splits(source: Path, folders: set[str]) -> int:
    """Returns 1 if the first folders are the splits, 0 if they are the classes. Raises UserError for both."""
    splits = sorted(name for name in folders if name.lower() in SPLITS)
    classes = sorted(folders - set(splits))
    if splits and classes:
        raise UserError(
            f"{source}: found {classes[0]} beside {splits[0]}, expected only folders of splits "
            f"({', '.join(SPLITS)}) or only folders of classes; move or rename one"
        )
    return int(bool(splits))


def _subject(name: str, pattern: re.Pattern) -> str:
    if (found := pattern.search(name)) and found[1]:
        return found[1]
    raise UserError(
        f"--subject_pattern {pattern.pattern}: found no patient in {name}, expected its first group to match "
        r"in each path; put one group around all alternatives, as in (person\d+|case\d+)"
    )


def read_table(
    source: Path, options: Options, facts: Facts, *, columns: Columns, images_dir: Path
) -> Imported:
    """Reads a CSV file; paths are relative to `images_dir`. Raises UserError."""
    names = {name: label_name(name) for name in columns.labels}
    _check_names(source, [label_name(name) for name in columns.labels])
    named = [getattr(columns, name) for name in vars(columns) if name != "labels"]
    named = dict.fromkeys((*filter(None, named), *columns.labels))
    with user_errors():
        table = read_csv(source, list(named), spans_lines=True)
        labels = parse_values(source, table[list(columns.labels)].copy(), list(columns.labels))
    paths = table[columns.path].str.strip()
    ids = table[columns.image_id].str.strip() if columns.image_id else paths.map(image_id_of)
    rows = pd.DataFrame({"path": paths, "image_id": ids})
    rows["subject_id"] = table[columns.subject_id].str.strip() if columns.subject_id else ids
    rows["study_id"] = table[columns.study_id].str.strip() if columns.study_id else ids
    rows["view_position"] = "FRONTAL"
    if columns.view_position:
        rows["view_position"] = table[columns.view_position].str.split().str.join(" ")
    rows["split"] = "train"
    if columns.split:
        split = table[columns.split].str.strip().str.lower()
        if (unknown := ~split.isin(list(SPLITS))).any():
            raise UserError(
                f"{source}, column {columns.split}: found {split[unknown].iloc[0]!r}, expected one of "
                f"{', '.join(SPLITS)}; correct it, or leave --split_column out"
            )
        rows["split"] = split.map(SPLITS)
    with user_errors():
        check_rows(source, rows, called=_names_in_table(columns))
    used = shares_for(rows["split"])
    rows["split"] = cut_missing_splits(rows["split"], rows["subject_id"], options)
    paths = [str((images_dir / path).absolute()) for path in rows["path"]]
    rows["path"] = [path if os.path.isfile(path) else None for path in paths]  # noqa: PTH113 - any text
    rows, notes = only_found(rows.join(labels.rename(columns=names).astype("Int8")), images_dir)
    if not columns.subject_id:
        notes = (*notes, "each image counts as a patient of its own: see --subject_column")
    if num_unlabelled := int(rows[list(names.values())].isna().all(axis=1).sum()):
        notes = (*notes, f"{num_unlabelled:,} images have no label: only a pretraining uses them")
    return Imported(facts=facts, rows=rows.reset_index(drop=True), notes=notes, used=used)


def _names_in_table(columns: Columns) -> dict[str, str]:
    """Returns what the user calls the values of each column of the manifest."""
    instead = columns.image_id or columns.path
    return {name: f"value in the column {getattr(columns, name) or instead!r}" for name in COLUMNS}


def _check_names(source: Path, names: list[str]) -> None:
    """Raises UserError for two columns of one label, and for a name that a label cannot have."""
    for name in names:
        if names.count(name) > 1 or name in COLUMNS:
            raise UserError(
                f"{source}: found {names.count(name)} labels named {name}, expected one, and none named "
                f"{', '.join(COLUMNS)}; rename it, or leave it out"
            )
    with user_errors():
        check_label_names(source, names)
