"""Reads CSV files as text, and checks and parses their values: the same for the tables of any collection."""

# One import per line: the loader of `datasets` 3 reads "import a, b" as one package named "a, b".
import csv
import gzip
import io
import reprlib
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv

from .errors import DatasetError

PATIENT_IDS = ("subject_id", "study_id")
PRIVATE = ("dicom_id", "image_id", "path", *PATIENT_IDS)  # columns whose values are in no message
MAX_UNPACKED_BYTES = 2**28  # 4 times the largest table; a damaged .csv.gz of 1 MB may decompress to 1 GB


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}): make it readable.") from error


def read_csv(
    path: Path, columns: list[str] | None, *, optional: tuple[str, ...] = (), spans_lines: bool = False
) -> pd.DataFrame:
    """Returns the columns, None is all, as text, blank cells as "", indexed by line number.

    The `optional` columns may be absent. A cell of several lines is refused, because a quote that is
    not closed would hide rows, unless `spans_lines`. Arrow reads the columns, because pandas fills short
    lines with blanks, which would count as labels, and cuts long ones. Raises DatasetError for a damaged
    file.
    """
    ragged = []

    def note_ragged(row: pa_csv.InvalidRow) -> str:
        ragged.append(row)
        return "skip"  # otherwise the error quotes the line, which contains ids

    content = read_bytes(path)
    try:
        content = _decompress(content)
        lines = _first_lines(content, spans_lines=spans_lines)
        if len(lines) < 2:
            raise ValueError("it has no rows")
        content.decode("utf-8")  # Arrow checks only the columns that it reads, and prints tracebacks
        text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="")
        header = next(filter(None, csv.reader(text)))
        columns = [*(header if columns is None else columns)]
        columns += [column for column in optional if column in header]
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
        raise DatasetError(
            f"{path} is unreadable or cut off ({reason}): download it again, or correct it."
        ) from error
    if wrong:
        count = header.count(wrong[0])
        # Names with digits are not shown: if the header is missing, the first line contains ids.
        names = [name for name in header[:20] if not any(map(str.isdigit, name))]
        found = ", ".join(map(reprlib.repr, names)) or "no column names"
        raise DatasetError(
            f"{path} has {f'{count} columns' if count else 'no column'} {wrong[0]!r}; found {found}."
        )
    return table.to_pandas().set_axis(lines[1:])


def _decompress(content: bytes) -> bytes:
    if not content.startswith(b"\x1f\x8b"):  # not by name: browsers decompress a .csv.gz and keep its name
        return content
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as unpacked:
        content = unpacked.read(MAX_UNPACKED_BYTES + 1)
    if len(content) > MAX_UNPACKED_BYTES:
        raise ValueError(f"it decompresses to more than {MAX_UNPACKED_BYTES:,} bytes")
    return content


def _first_lines(content: bytes, *, spans_lines: bool) -> list[int]:
    """Returns the number of the first line of each row, the header included."""
    if not spans_lines:
        return [number for number, line in enumerate(content.splitlines(), start=1) if line]
    reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    lines, start = [], 1
    for row in reader:
        lines += [start] * bool(row)
        start = reader.line_num + 1
    return lines


def reject(bad, path: Path, values: pd.Series, expected: str, *, called: str | None = None) -> None:
    """Raises DatasetError with the first line where `bad` holds, and with its value unless that is an id.

    The index of `values` has the lines; it may have a name that says what else it has. `called` is the name
    of the values in the file.
    """
    bad = np.asarray(bad, dtype=bool)
    if bad.any():
        row = int(np.argmax(bad))
        called, unit = called or values.name, values.index.name or "line"
        found = f"{called} is {reprlib.repr(str(values.iloc[row]))}"
        if values.name in PRIVATE:
            found = f"wrong {called}"
        raise DatasetError(
            f"{path}, {unit} {values.index[row]}: {found}; expected {expected} "
            f"({int(bad.sum()):,} such {unit}s)."
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


def parse_values(path: Path, table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Returns the table with labels as 1, 0, -1 or NaN, float32. Raises DatasetError for other values."""
    for column in columns:
        codes, texts = pd.factorize(table[column])  # a few distinct texts: parsing each once saves seconds
        numbers = parse_numbers(pd.Series(texts))
        bad = ~np.isin(numbers, (1, 0, -1)) & (pd.Series(texts).str.strip() != "").to_numpy()
        reject(bad[codes], path, table[column], "1.0, 0.0, -1.0 or blank")
        table[column] = numbers[codes].astype("float32")
    return table
