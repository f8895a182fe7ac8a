"""Tables of predictions: a row a file, written as they come, to where a second call continues.

The rows of NAME.csv or NAME.jsonl go to `.NAME.partial` beside it, below a first line that says which model
and which flags they are of. When the table is whole it gets its name, and the partial file goes.
"""

import contextlib
import csv
import io
import json
import os
import sys
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import fields
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict

from cxr.errors import UserError
from cxr.run_folder.files import write_text
from cxr.run_folder.record import Record

FORMATS = (".csv", ".jsonl")
ADVICE = "remove the file to start anew"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    path: str
    probability: float | None = None  # of the positive label; None for a file that cannot be used
    decision: str = ""
    warning: str = ""  # of what may be wrong with the file, or with the file for this model
    error: str = ""
    heat_map: str | None = None  # the picture's path, where one was asked for


COLUMNS = tuple(field.name for field in fields(Prediction))


class TableHead(Record):
    """The first line of a table that is not whole: what must be the same where it is continued."""

    model_config = ConfigDict(extra="forbid")  # what this version does not know may have changed the rows
    writer: ClassVar[str] = "predict.py"
    advice: ClassVar[str] = ADVICE

    model: str
    commit: str  # of a model on a hub; of a folder the hash of its weights
    threshold: float
    flags: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Table:
    """How predictions are written: some of the COLUMNS, as CSV or JSON lines."""

    columns: tuple[str, ...]
    is_json: bool

    @property
    def header(self) -> str:
        return "" if self.is_json else ",".join(self.columns) + "\n"

    def line(self, prediction: Prediction) -> str:
        row = {name: getattr(prediction, name) for name in self.columns}
        if self.is_json:
            return json.dumps(row) + "\n"
        # With "\n" as terminator, a "\r" in a name would have no quotes, and be the end of a row to a reader.
        csv.writer(line := io.StringIO(), lineterminator="\r\n").writerow(row.values())
        return line.getvalue().removesuffix("\r\n") + "\n"

    def read(self, text: str) -> list[Prediction]:
        """The predictions of the whole lines in `text`, without the header; the last may be cut off."""
        if self.is_json:
            rows = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        else:
            cells = list(csv.reader(io.StringIO(text, newline="")))
            is_whole = text.endswith("\n") and text.count('"') % 2 == 0  # a name may have "\n" in it
            whole = cells if is_whole else cells[:-1]
            rows = [dict(zip(self.columns, row, strict=True)) for row in whole]
            for row in rows:
                row["probability"] = float(row["probability"]) if row["probability"] else None
        if any(tuple(row) != self.columns for row in rows):
            raise ValueError("other columns")
        return [Prediction(**row) for row in rows]

    def open_terminal(self) -> Callable[[Prediction], None]:
        """Returns what writes a prediction to standard output."""
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not know a name's letters

        def write(text: str) -> None:
            try:
                print(text, end="", flush=True)
            except BrokenPipeError:  # who reads wants no more, as `| head`
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, sys.stdout.fileno())  # Python flushes once more at its end
                sys.exit(128 + 13)  # as by SIGPIPE

        write(self.header)
        return lambda prediction: write(self.line(prediction))

    @contextlib.contextmanager
    def open_file(
        self, output: Path, head: TableHead
    ) -> Iterator[tuple[list[Prediction], Callable[[Prediction], None]]]:
        """What an earlier call with the same head has written, and what writes a prediction.

        Raises UserError where an earlier call left rows of another head. `output` appears when all is well.
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
            file.seek(0)  # not by its name, which may be that of another call by now
            text = file.read()
        write_text(output, text.partition("\n")[2], private=True)
        unfinished.unlink(missing_ok=True)

    def _read_unfinished(self, path: Path, head: TableHead) -> list[Prediction]:
        first, _, text = path.read_bytes().decode("utf-8", "replace").partition("\n")
        before = TableHead.parse(first, where=path)
        if before != head:
            found = _difference(before, head)
            raise UserError(
                f"{path}: found rows of {found}; {ADVICE}, or repeat the earlier call to continue"
            )
        try:
            return self.read(text.removeprefix(self.header))
        except (ValueError, TypeError, RecursionError, csv.Error) as error:
            raise UserError(f"{path}: found rows that predict.py does not write; {ADVICE}") from error


def partial_path(output: Path) -> Path:
    return output.with_name(f".{output.name}.partial")


def _difference(before: TableHead, now: TableHead) -> str:
    """The first thing that an earlier call had otherwise, in words."""
    names = dict.fromkeys([*before.flags, *now.flags])
    words = {"images": "IMAGE"}  # as --help has it
    pairs = [(words.get(name, f"--{name}"), before.flags.get(name), now.flags.get(name)) for name in names]
    pairs += [(name, getattr(before, name), getattr(now, name)) for name in ("model", "commit", "threshold")]
    name, was, wanted = next(pair for pair in pairs if pair[1] != pair[2])
    return f"a call with {name} {str(was)[:200]}, now {str(wanted)[:200]}"


def readable(path: Path) -> str:
    """The path as text that can be written: a name in another encoding is spelled out."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
