"""Writes tables of predictions, one row per file, so that a stopped call can be continued.

The rows of NAME.csv or NAME.jsonl first go to `.NAME.partial` beside it, below a line with the model and the
flags. When the table is complete, it is written to its own name and the partial file is removed.
"""

import contextlib
import csv
import io
import json
import os
import sys
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import fields
from pathlib import Path
from typing import Any
from typing import ClassVar

from pydantic import ConfigDict

from cxr.errors import UserError
from cxr.run_folder.fields import Record
from cxr.run_folder.files import write_text

ADVICE = "remove the file to start again"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    path: str
    probabilities: tuple[float, ...] = ()  # of each finding; empty for a file that cannot be used
    decision: str = ""
    warning: str = ""  # about the file itself, or about its use with this model
    error: str = ""
    heat_map: str | None = None  # its path, with --heatmap


TEXTS = tuple(field.name for field in fields(Prediction) if field.name != "probabilities")


def check_findings(findings: Sequence[str], *, model: str) -> None:
    """Raises UserError if a finding has the name of another column."""
    if taken := [name for name in findings if name in TEXTS]:
        raise UserError(
            f"model {model}: found a label named {taken[0]}, which is a column of the table; expected the "
            "names of findings: rename it in the model's config.json"
        )


class TableHead(Record):
    """The first line of an unfinished table: what must be the same in the call that continues it."""

    model_config = ConfigDict(extra="forbid")  # a field of another version may mean different rows
    writer: ClassVar[str] = "predict.py"
    advice: ClassVar[str] = ADVICE

    model: str
    commit: str  # for a model from a hub; for a folder, the hash of its weights
    thresholds: list[float]
    flags: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Table:
    """The format of a table of predictions: its columns, as CSV or JSON lines."""

    probabilities: tuple[str, ...] = ("probability",)  # the columns of a prediction's probabilities
    has_maps: bool
    is_json: bool

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(name for name in TEXTS if self.has_maps or name != "heat_map")

    @property
    def columns(self) -> tuple[str, ...]:
        path, *others = self.texts
        return (path, *self.probabilities, *others)

    @property
    def header(self) -> str:
        return "" if self.is_json else self._csv_line(self.columns)

    def line(self, prediction: Prediction) -> str:
        values = prediction.probabilities or (None,) * len(self.probabilities)
        row = dict.fromkeys(self.columns) | dict(zip(self.probabilities, values, strict=True))
        row |= {name: getattr(prediction, name) for name in self.texts}
        return json.dumps(row) + "\n" if self.is_json else self._csv_line(row.values())

    def _csv_line(self, cells: Iterable[object]) -> str:
        # With "\n" as terminator, csv would not quote a "\r" in a file name, which would end the row.
        csv.writer(line := io.StringIO(), lineterminator="\r\n").writerow(cells)
        return line.getvalue().removesuffix("\r\n") + "\n"

    def read(self, text: str) -> list[Prediction]:
        """Returns the predictions of the complete rows of `text`, which has no header and may be cut off."""
        if self.is_json:
            rows = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        else:
            cells = list(csv.reader(io.StringIO(text, newline="")))
            is_whole = text.endswith("\n") and text.count('"') % 2 == 0  # a file name may contain "\n"
            whole = cells if is_whole else cells[:-1]
            rows = [dict(zip(self.columns, row, strict=True)) for row in whole]
            for row in rows:
                row |= {name: float(row[name]) if row[name] else None for name in self.probabilities}
        if any(tuple(row) != self.columns for row in rows):
            raise ValueError("other columns")
        return list(map(self._prediction, rows))

    def _prediction(self, row: dict[str, Any]) -> Prediction:
        values = tuple(row[name] for name in self.probabilities)
        texts = {name: row[name] for name in self.texts}
        return Prediction(**texts, probabilities=() if None in values else values)

    def open_terminal(self) -> Callable[[Prediction], None]:
        """Writes the header to standard output and returns a function that writes a prediction there."""
        sys.stdout.reconfigure(errors="backslashreplace")  # the terminal may lack letters of a file name

        def write(text: str) -> None:
            try:
                print(text, end="", flush=True)
            except BrokenPipeError:  # the reader has stopped, such as `| head`
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, sys.stdout.fileno())  # Python flushes once more when it exits
                sys.exit(128 + 13)  # the exit status after SIGPIPE

        write(self.header)
        return lambda prediction: write(self.line(prediction))

    @contextlib.contextmanager
    def open_file(
        self, output: Path, head: TableHead
    ) -> Iterator[tuple[list[Prediction], Callable[[Prediction], None]]]:
        """Yields the predictions of an earlier call with the same head, and a function that writes one.

        `output` is written when the block ends without an error. Raises UserError if an earlier call with
        another head left rows.
        """
        unfinished = partial_path(output)
        done = self._read_unfinished(unfinished, head) if unfinished.exists() else []
        lines = [head.model_dump_json() + "\n", self.header, *map(self.line, done)]
        write_text(unfinished, "".join(lines), private=True)
        with unfinished.open("a+", encoding="utf-8", newline="") as file:

            def write(prediction: Prediction) -> None:
                file.write(self.line(prediction))
                file.flush()

            yield done, write
            file.seek(0)  # not opened by name again: another call may have replaced the file
            text = file.read()
        write_text(output, text.partition("\n")[2], private=True)
        unfinished.unlink(missing_ok=True)

    def _read_unfinished(self, path: Path, head: TableHead) -> list[Prediction]:
        first, _, text = path.read_bytes().decode("utf-8", "replace").partition("\n")
        before = TableHead.parse(first, where=path)
        if before != head:
            found = _difference(before, head)
            raise UserError(
                f"{path}: found rows of {found}; {ADVICE}, or repeat the earlier call to continue it"
            )
        try:
            return self.read(text.removeprefix(self.header))
        except (ValueError, TypeError, RecursionError, csv.Error) as error:
            raise UserError(f"{path}: found rows that predict.py did not write; {ADVICE}") from error


def partial_path(output: Path) -> Path:
    return output.with_name(f".{output.name}.partial")


def _difference(before: TableHead, now: TableHead) -> str:
    """Returns in words the first difference between an earlier call and this one."""
    names = dict.fromkeys([*before.flags, *now.flags])
    words = {"images": "IMAGE"}  # its name in --help
    pairs = [(words.get(name, f"--{name}"), before.flags.get(name), now.flags.get(name)) for name in names]
    pairs += [(name, getattr(before, name), getattr(now, name)) for name in ("model", "commit", "thresholds")]
    name, was, wanted = next(pair for pair in pairs if pair[1] != pair[2])
    return f"a call with {name} {str(was)[:200]}, now {str(wanted)[:200]}"


def readable(path: Path) -> str:
    """Returns the path as text that can be written; bytes that are not UTF-8 become escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
