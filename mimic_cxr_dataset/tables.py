"""Reads the tables of MIMIC-CXR-JPG."""

# One import per line: the loader of `datasets` 3 reads "import a, b" as one package named "a, b".
import csv
import gzip
import io
import logging
import os
import reprlib
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv

from .choices import VIEWS
from .errors import DatasetError

# A fixed name, because `datasets` imports this file under a name that contains a hash.
logger = logging.getLogger("mimic_cxr_dataset")

PATIENT_IDS = ("subject_id", "study_id")
MAX_UNPACKED_BYTES = 2**28  # 4 times the largest table; a damaged .csv.gz of 1 MB may decompress to 1 GB
DESCRIPTIONS = {"PerformedProcedureStepDescription": "procedure", "StudyDate": "study_date"}
SPLITS = {"train": "train", "validate": "validation", "test": "test"}  # published name -> ours


def resolve_root(data_dir: str | Path | None) -> Path:
    """Returns the absolute path of data_dir. Raises DatasetError if it is not a folder."""
    tables = "the mimic-cxr-2.0.0-*.csv[.gz] tables"
    expected = f"expected the MIMIC-CXR-JPG folder, which holds files/ and {tables}"
    if not data_dir:
        raise DatasetError(f"No data_dir given: {expected}.")
    # Not Path.resolve(): the cache keeps image paths, and a link stays valid when the data moves elsewhere.
    # Not Path.expanduser(): it raises a RuntimeError if ~name is not a user.
    path = os.path.abspath(os.path.expanduser(data_dir))  # noqa: PTH100, PTH111
    if "::" in path:  # `datasets` puts its own class in place of Path here
        raise DatasetError(
            f"data_dir {path} contains '::', at which `datasets` would split it: rename the folder, or "
            "give a link to it."
        )
    root = Path(path)
    if not root.is_dir():
        found = "not a folder" if root.exists() else "missing"
        raise DatasetError(f"data_dir {root} is {found}: {expected}.")
    return root


def locate_csv(data_dir: str | Path, table: str) -> Path | None:
    """Returns the path of a table ("metadata", "split", "negbio" or "chexpert"), None if there is none."""
    root = resolve_root(data_dir)
    # v2.1.0 kept the names of v2.0.0. The .csv comes first: the user may have edited it.
    names = [f"mimic-cxr-{v}-{table}{ext}" for v in ("2.0.0", "2.1.0") for ext in (".csv", ".csv.gz")]
    return next((root / name for name in names if (root / name).is_file()), None)


def find_csv(data_dir: str | Path, table: str) -> Path:
    path = locate_csv(data_dir, table)
    if path is None:
        root = resolve_root(data_dir)
        missing = root / f"mimic-cxr-2.0.0-{table}.csv.gz"
        below = next((path for path in root.glob(f"*/mimic-cxr-2.?.0-{table}.csv*")), None)
        advice = f"A subfolder has it: use {below.parent}." if below else "Download it, or correct data_dir."
        raise DatasetError(
            f"{missing} is missing, and so is {missing.stem}: data_dir must hold the tables of MIMIC-CXR-JPG "
            f"(https://physionet.org/content/mimic-cxr-jpg/). {advice}"
        )
    return path


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}): make it readable.") from error


def read_csv(path: Path, columns: list[str], *, optional: tuple[str, ...] = ()) -> pd.DataFrame:
    """Returns the columns as text, blank cells as "", indexed by line number; `optional` ones may be absent.

    Arrow reads them, because pandas fills short lines with blanks, which would count as labels, and cuts long
    ones. Raises DatasetError for a damaged file.
    """
    ragged = []

    def note_ragged(row: pa_csv.InvalidRow) -> str:
        ragged.append(row)
        return "skip"  # otherwise the error quotes the line, which contains ids

    content = read_bytes(path)
    try:
        if content.startswith(b"\x1f\x8b"):  # not by name: browsers decompress a .csv.gz and keep its name
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as unpacked:
                content = unpacked.read(MAX_UNPACKED_BYTES + 1)
            if len(content) > MAX_UNPACKED_BYTES:
                raise ValueError(f"it decompresses to more than {MAX_UNPACKED_BYTES:,} bytes")
        lines = [number for number, line in enumerate(content.splitlines(), start=1) if line]
        if len(lines) < 2:
            raise ValueError("it has no rows")
        content.decode("utf-8")  # Arrow checks only the columns that it reads, and prints tracebacks
        text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="")
        header = next(filter(None, csv.reader(text)))
        columns = [*columns, *(column for column in optional if column in header)]
        wrong = [column for column in columns if header.count(column) != 1]
        if not wrong:
            table = pa_csv.read_csv(
                pa.BufferReader(content),
                read_options=pa_csv.ReadOptions(use_threads=False),  # with threads, lines have no numbers
                parse_options=pa_csv.ParseOptions(invalid_row_handler=note_ragged, newlines_in_values=True),
                convert_options=pa_csv.ConvertOptions(
                    include_columns=columns, column_types=dict.fromkeys(columns, pa.string())
                ),
            )
            if ragged:
                row = ragged[0]
                found = f"line {lines[row.number - 1]} has {row.actual_columns} fields"
                raise ValueError(f"{found}, the first line has {row.expected_columns}")
            if len(table) + 1 != len(lines):
                raise ValueError("a value spans several lines: a quote is not closed")
    except (OSError, EOFError, zlib.error, csv.Error, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"{path} is unreadable or cut off ({reason}): download it again.") from error
    if wrong:
        count = header.count(wrong[0])
        # Names with digits are not shown: if the header is missing, the first line contains ids.
        names = [name for name in header[:20] if not any(map(str.isdigit, name))]
        found = ", ".join(map(reprlib.repr, names)) or "no column names"
        raise DatasetError(
            f"{path} has {f'{count} columns' if count else 'no column'} {wrong[0]!r}; found {found}."
        )
    return table.to_pandas().set_axis(lines[1:])


def reject(bad, path: Path, values: pd.Series, expected: str) -> None:
    """Raises DatasetError with the first line where `bad` holds, and with its value unless that is an id."""
    bad = np.asarray(bad, dtype=bool)
    if bad.any():
        row = int(np.argmax(bad))
        is_id = values.name in ("dicom_id", *PATIENT_IDS)
        found = f"wrong {values.name}" if is_id else f"{values.name} is {reprlib.repr(str(values.iloc[row]))}"
        raise DatasetError(
            f"{path}, line {values.index[row]}: {found}; expected {expected} ({int(bad.sum()):,} such lines)."
        )


def differs_from_first(table: pd.DataFrame, column: str, *, within: str) -> np.ndarray:
    """Returns whether `column` differs from its value in the first row with the same `within`."""
    first = table.drop_duplicates(within).set_index(within)[column]
    return (table[column] != table[within].map(first)).to_numpy(dtype=bool)


def parse_numbers(values: pd.Series) -> np.ndarray:
    """Returns text as float64, NaN where it is blank or not a number."""
    return pd.to_numeric(values, errors="coerce").to_numpy(dtype="float64", na_value=np.nan)


def parse_ids(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Returns the table with its subject_id and study_id, if any, as int64, or raises DatasetError."""
    for column in table.columns.intersection(PATIENT_IDS):
        numbers = parse_numbers(table[column])
        is_id = (numbers > 0) & (numbers < 2**53) & (numbers == np.floor(numbers))
        reject(~is_id, path, table[column], "a whole number")
        table[column] = numbers.astype("int64")
    return table


def read_images(data_dir: str | Path) -> pd.DataFrame:
    """Returns every image in the metadata's order: dicom_id, subject_id, study_id, view_position, split.

    Also `procedure` and `study_date`, which are "" if the metadata lack them, as those of a collection may.
    """
    path, split_path = find_csv(data_dir, "metadata"), find_csv(data_dir, "split")
    columns = ["dicom_id", *PATIENT_IDS, "ViewPosition"]
    images = parse_ids(path, read_csv(path, columns, optional=tuple(DESCRIPTIONS)))
    # Paths are built from ids: this check keeps them inside the folder.
    is_hex = images["dicom_id"].str.fullmatch("[0-9a-f-]{1,64}").astype(bool)
    reject(~is_hex, path, images["dicom_id"], "at most 64 hexadecimal digits and dashes")
    reject(images["dicom_id"].duplicated(), path, images["dicom_id"], "one row per image")
    is_other = differs_from_first(images, "subject_id", within="study_id")
    reject(is_other, path, images["subject_id"], "one patient per study")

    table = parse_ids(split_path, read_csv(split_path, ["dicom_id", "split"], optional=PATIENT_IDS))
    reject(~table["split"].isin(list(SPLITS)), split_path, table["split"], " or ".join(SPLITS))
    reject(table["dicom_id"].duplicated(), split_path, table["dicom_id"], "one row per image")
    position = pd.Index(table["dicom_id"]).get_indexer(images["dicom_id"])
    lost = images.index[position == -1]
    if len(lost):
        raise DatasetError(
            f"{split_path} lacks {len(lost):,} images of {path.name}, the first is in line {lost[0]} there: "
            "download both tables again."
        )
    if len(table) > len(images):
        # Not an error: the user may have kept only some lines of the metadata. But it may also be cut off.
        logger.warning(
            f"{path} lacks {len(table) - len(images):,} images of {split_path.name}: they are not used."
        )
    table = table.iloc[position]  # one row per image, in the order of `images`
    for column in table.columns.intersection(PATIENT_IDS):
        is_other = table[column].to_numpy() != images[column].to_numpy()
        reject(is_other, split_path, table[column], f"the same as in {path.name}")
    images["split"] = table["split"].map(SPLITS).to_numpy()
    is_other = differs_from_first(images, "split", within="subject_id")
    reject(is_other, split_path, table["split"], "each patient in one split")
    images["view_position"] = images.pop("ViewPosition").str.strip()
    for column, name in DESCRIPTIONS.items():
        images[name] = images.pop(column) if column in images else ""
    return images.reset_index(drop=True)


def read_study_splits(data_dir: str | Path, *, images: pd.DataFrame) -> pd.DataFrame:
    """Returns `subject_id` and `split` of every study, also of studies whose images the metadata lack."""
    path = find_csv(data_dir, "split")
    table = parse_ids(path, read_csv(path, ["split"], optional=PATIENT_IDS))
    if not {*PATIENT_IDS} <= {*table}:
        table = images[[*PATIENT_IDS, "split"]]
    else:
        table["split"] = table["split"].map(SPLITS)
    return table.drop_duplicates("study_id").set_index("study_id")


def published_paths(images: pd.DataFrame, data_dir: str | Path) -> pd.Series:
    """Where each image's JPEG is in the tree as published."""
    subject, study = images["subject_id"].astype(str), images["study_id"].astype(str)
    folder = f"{resolve_root(data_dir)}/files/p" + subject.str[:2] + "/p" + subject + "/s" + study + "/"
    return folder + images["dicom_id"] + ".jpg"


def group_images(images: pd.DataFrame) -> pd.Series:
    """The group of each image, in which its pixels are cached: frontal, lateral or other."""
    groups = {code: view for view in ("frontal", "lateral") for code in VIEWS[view]}
    return images["view_position"].map(groups).fillna("other")
