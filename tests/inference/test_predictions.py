"""Tables of predictions: what a stopped call wrote is continued to the same table, or refused and kept."""

import json
import stat
import sys

import pytest
from cxr.choices import PREDICTION_FORMATS
from cxr.errors import UserError
from cxr.inference.predictions import Prediction
from cxr.inference.predictions import Table
from cxr.inference.predictions import TableHead
from cxr.inference.predictions import partial_path

HEAD = TableHead(model="m", commit="c0", thresholds=[0.25], flags={"images": "['a']", "equalize": "auto"})
ROWS = [
    Prediction(path="a.jpg", probabilities=(0.1,), decision="No", heat_map="maps/a.png"),
    Prediction(path="empty.jpg", error="empty"),
    Prediction(
        path='comma, "quote" and ü.jpg', probabilities=(1 / 3,), decision="Yes", warning="one; two, three"
    ),
    Prediction(path="b\r.jpg", probabilities=(1e-17,), decision="No", error="no heat map: full", warning="x"),
    Prediction(path="\n", probabilities=(0.5,), decision="Yes", heat_map="maps/\n.png"),
    Prediction(path='"\r\n', error='it says "no", and more'),
    Prediction(path="\n\n", probabilities=(0.25,), decision="Yes", warning='a "\n'),
]


def make_table(suffix: str, *, has_maps: bool) -> Table:
    return Table(has_maps=has_maps, is_json=suffix == ".jsonl")


def write_rows(table: Table, output, rows, *, stop_after: int | None = None, head: TableHead = HEAD) -> list:
    """Writes what is missing of the rows, at most `stop_after` of them; returns what was there."""
    with table.open_file(output, head) as (done, write):
        known = list(done)
        for number, row in enumerate(row for row in rows if row.path not in {one.path for one in known}):
            if number == stop_after:
                raise KeyboardInterrupt
            write(row)
    return known


def leave_rows(output, *, num_rows: int = 3) -> bytes:
    """What a stopped call leaves."""
    with pytest.raises(KeyboardInterrupt):
        write_rows(make_table(output.suffix, has_maps=True), output, ROWS, stop_after=num_rows)
    return partial_path(output).read_bytes()


@pytest.mark.parametrize("has_maps", [True, False])
@pytest.mark.parametrize("suffix", PREDICTION_FORMATS)
def test_table_that_was_cut_at_any_byte_of_its_last_rows_is_continued_to_the_same_table(
    suffix, has_maps, tmp_path
):
    table, output = make_table(suffix, has_maps=has_maps), tmp_path / f"out{suffix}"
    write_rows(table, output, ROWS)
    whole, unfinished = output.read_bytes(), partial_path(output)
    assert not unfinished.exists()
    start = HEAD.model_dump_json() + "\n" + table.header + "".join(map(table.line, ROWS[:-2]))
    last_rows = "".join(map(table.line, ROWS[-2:])).encode()
    for length in range(len(last_rows) + 1):
        unfinished.write_bytes(start.encode() + last_rows[:length])
        known = write_rows(table, output, ROWS)
        assert len(known) == len(ROWS) - 2 + (length >= len(table.line(ROWS[-2]))) + (
            length == len(last_rows)
        )
        assert output.read_bytes() == whole and not unfinished.exists()


@pytest.mark.parametrize("suffix", PREDICTION_FORMATS)
def test_rows_read_back_are_the_whole_ones_of_those_that_were_written(suffix):
    table = make_table(suffix, has_maps=True)
    lines = list(map(table.line, ROWS))
    text = "".join(lines)
    for length in range(len(text) + 1):
        read = table.read(text[:length])
        num_whole = sum(len("".join(lines[: number + 1])) <= length for number in range(len(lines)))
        assert list(map(table.line, read)) == lines[:num_whole]
    assert [(row.path, row.probabilities) for row in read] == [(row.path, row.probabilities) for row in ROWS]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
@pytest.mark.parametrize("suffix", PREDICTION_FORMATS)
def test_both_files_are_private(suffix, tmp_path):
    output = tmp_path / f"out{suffix}"
    leave_rows(output)
    assert stat.S_IMODE(partial_path(output).stat().st_mode) == 0o600
    write_rows(make_table(suffix, has_maps=True), output, ROWS)
    assert stat.S_IMODE(output.stat().st_mode) == 0o600


OTHER_HEADS = {
    "images": ({"flags": {"images": "['b']", "equalize": "auto"}}, "IMAGE ['a'], now ['b']"),
    "equalize": ({"flags": {"images": "['a']", "equalize": "no"}}, "--equalize auto, now no"),
    "model": ({"model": "n"}, "model m, now n"),
    "commit": ({"commit": "c1"}, "commit c0, now c1"),
    "thresholds": ({"thresholds": [0.5]}, "thresholds [0.25], now [0.5]"),
    "flag that is new": ({"flags": {**HEAD.flags, "rotate": "no"}}, "--rotate None, now no"),
}


@pytest.mark.parametrize("name", OTHER_HEADS)
def test_rows_of_another_call_are_refused_with_the_difference_and_kept(name, tmp_path):
    changes, said = OTHER_HEADS[name]
    output = tmp_path / "out.csv"
    left = leave_rows(output)
    with pytest.raises(UserError) as error:
        write_rows(make_table(".csv", has_maps=True), output, ROWS, head=HEAD.model_copy(update=changes))
    message = str(error.value)
    assert f"{partial_path(output)}: found rows of a call with {said}; remove the file to start" in message
    assert "or repeat the earlier call to continue it" in message and "\n" not in message
    assert partial_path(output).read_bytes() == left and not output.exists()


FIRST_LINE = HEAD.model_dump_json().encode() + b"\n"
CSV_HEADER = make_table(".csv", has_maps=True).header.encode()
GARBAGE = {
    "nothing": b"",
    "zeros": bytes(500),
    "bytes": bytes(range(256)) * 9,
    "table without a head": CSV_HEADER + b"a.jpg,0.5,Yes,,,\n",
    "head of a later version": FIRST_LINE.replace(b'"model"', b'"colour":1,"model"'),
    "head that is cut off": FIRST_LINE[:30],
    "head with a threshold in words": FIRST_LINE.replace(b"0.25", b'"low"'),
    "row with too few columns": FIRST_LINE + CSV_HEADER + b"a.jpg,0.5\n",
    "probability in words": FIRST_LINE + CSV_HEADER + b"a.jpg,high,Yes,,,\n",
    "zeros after the head": FIRST_LINE + CSV_HEADER + bytes(500) + b"\n",
    "no row at all": FIRST_LINE + b"\n\n",
}
GARBAGE_OF_JSON = {
    "number": b"5\n",
    "list": b"[]\n",
    "deep list": b"[" * 100_000 + b"\n",
    "other fields": b'{"path": "a", "p": 1}\n',
    "fewer fields": b'{"path": "a"}\n',
    "no JSON": b"a.jpg,0.5\n",
}


@pytest.mark.parametrize("name", [*GARBAGE, *GARBAGE_OF_JSON])
def test_what_predict_does_not_write_is_refused_in_one_line_and_kept(name, tmp_path):
    suffix = ".csv" if name in GARBAGE else ".jsonl"
    content = GARBAGE[name] if name in GARBAGE else FIRST_LINE + GARBAGE_OF_JSON[name]
    output = tmp_path / f"out{suffix}"
    partial_path(output).write_bytes(content)
    with pytest.raises(UserError) as error:
        write_rows(make_table(suffix, has_maps=True), output, ROWS)
    message = str(error.value)
    assert message.startswith(f"{partial_path(output)}: ") and "remove the file to start again" in message
    assert "\n" not in message and len(message) < 600
    assert partial_path(output).read_bytes() == content and not output.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps an open file in its place")
def test_second_call_with_the_same_output_takes_no_row_from_the_first(tmp_path):
    table, output = make_table(".csv", has_maps=True), tmp_path / "out.csv"
    with table.open_file(output, HEAD) as (_, write):
        write(ROWS[0])
        with table.open_file(output, HEAD) as (done, write_too):
            assert done == [ROWS[0]]
            for row in ROWS[1:]:
                write(row)
            write_too(ROWS[1])
        assert output.read_text(encoding="utf-8").count("\n") == 3
    whole = table.header + "".join(map(table.line, ROWS))
    assert output.read_bytes().decode() == whole and list(tmp_path.iterdir()) == [output]


def test_finished_table_stays_until_the_next_one_is_whole(tmp_path):
    table, output = make_table(".jsonl", has_maps=False), tmp_path / "out.jsonl"
    write_rows(table, output, ROWS[:2])
    before = output.read_bytes()
    leave_rows(output)
    assert output.read_bytes() == before
    partial_path(output).unlink()
    write_rows(table, output, ROWS)
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [row["path"] for row in rows] == [row.path for row in ROWS]
