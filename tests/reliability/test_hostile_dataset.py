"""The loading script on hostile input: mutated tables and image files, accepted rightly or one clear line.

What must come out of a mutated table is said by an oracle: a second reading of its bytes in plain Python.

A link is followed for reading wherever it is, at ROOT, files/, a patient, a study or an image, as large data
sets lie on other disks. So a link may lead out of ROOT, but an id in a table never does, and nothing is
written through any of them.
"""

import csv
import gzip
import io
import itertools
import os
import re
import struct
import sys
import tracemalloc
import zlib
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from mimic_tables import encode_csv
from mimic_tables import refusal
from PIL import ExifTags
from PIL import Image
from PIL import ImageOps
from torchvision.io import ImageReadMode
from torchvision.io import decode_jpeg

from mimic_cxr_dataset import choices
from mimic_cxr_dataset import csv_files
from mimic_cxr_dataset import mimic_cxr_dataset as mimic
from mimic_cxr_dataset import radiographs
from mimic_cxr_dataset.errors import DatasetError
from mimic_cxr_dataset.labels import index_images

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on garbage in the EXIF

LABELS = choices.LABELS
IDS = ("dicom_id", "subject_id", "study_id")


def cases(count):
    """Repeatable hypothesis settings: `count` cases, the same in every run."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=checks
    )


# Tables -----------------------------------------------------------------------------------------------------


def dicom_id(number):
    return f"{number:08x}-0dc0ffee-00000000-00000000-0000abcd"


def sound_tables():
    """Tables of ten images of six studies of five patients: {name: rows, the header first}."""
    studies = [0, 0, 1, 2, 2, 3, 3, 4, 5, 5]
    patients = [0, 0, 1, 2, 3, 4]  # of each study
    splits = ["train", "train", "train", "validate", "test"]  # of each patient
    views = ["PA", "LATERAL", "AP", "PA", "LL", "AP", "", "PA", "AP", "LATERAL"]
    columns = ["dicom_id", "subject_id", "study_id", "Procedure", "ViewPosition", "Rows"]
    metadata, split, negbio = [columns], [["dicom_id", "study_id", "subject_id", "split"]], []
    negbio.append(["subject_id", "study_id", *LABELS])
    for number, (study, view) in enumerate(zip(studies, views)):
        patient = patients[study]
        ids = [str(10000011 + patient), str(50000021 + study)]
        metadata.append([dicom_id(number), *ids, "CHEST (PA AND LAT)", view, "48"])
        split.append([dicom_id(number), *ids[::-1], splits[patient]])
    values = [{"No Finding": "1.0"}, {"Edema": "1.0"}, {"Edema": "-1.0"}, {"Pleural Effusion": "1.0"}]
    values.append({"Pleural Effusion": "-1.0", "No Finding": "1.0"})  # the last study has no row
    for study, of_study in enumerate(values):
        ids = [str(10000011 + patients[study]), str(50000021 + study)]
        negbio.append([*ids, *(of_study.get(name, "") for name in LABELS)])
    return {"metadata": metadata, "split": split, "negbio": negbio}


def encode(tables):
    return {name: encode_csv(rows) for name, rows in tables.items()}


def write_tables(root, contents):
    for name, content in contents.items():
        (root / f"mimic-cxr-2.0.0-{name}.csv").write_bytes(content)


class RefusedError(Exception):
    """The oracle's: the tables must be refused."""


def require(condition, reason):
    if not condition:
        raise RefusedError(reason)


def oracle_rows(content, columns, optional=()):
    """Dicts of the columns, one a line."""
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
            raise RefusedError("packed badly") from error
    try:
        text = content.decode("utf-8-sig").replace("\x00", "\ue000")
    except UnicodeDecodeError as error:
        raise RefusedError("no UTF-8") from error
    rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    num_lines = sum(bool(line.strip("\r\n")) for line in io.StringIO(text, newline=""))
    require(len(rows) == num_lines, "a value over several lines")
    require(len(rows) > 1, "no rows")
    header = rows[0]
    columns = [*columns, *(column for column in optional if column in header)]
    require(all(header.count(column) == 1 for column in columns), "columns")
    require(all(len(row) == len(header) for row in rows), "ragged")
    return [{column: row[header.index(column)] for column in columns} for row in rows[1:]]


def oracle_number(text):
    """The number, or None."""
    space = r"[ \t\n\r\f\v]*"
    is_number = re.fullmatch(rf"{space}[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?{space}", text, re.ASCII)
    return float(text) if is_number else None


def oracle_ids(rows):
    for row in rows:
        for column in {"subject_id", "study_id"} & row.keys():
            number = oracle_number(row[column])
            require(number is not None and 0 < number < 2**53 and number == int(number), "id")
            row[column] = int(number)


def oracle_code(number, uncertain):
    """1, 0, smooth or None: not used."""
    if number == -1:
        return {"negative": 0, "positive": 1, "exclude": None}.get(uncertain, uncertain)
    return int(number == 1)


def oracle_label(row, task, uncertain):
    """0, 1 or None: left out."""
    numbers = {}
    for name, text in row.items():
        if name not in IDS:
            numbers[name] = oracle_number(text)
            require(numbers[name] in (1, 0, -1) or not text.strip(), "label")
    if task == "finding":
        values = [numbers[name] for name in choices.FINDINGS]
        if 1 in values or (uncertain == "positive" and -1 in values):
            return 1
        return None if uncertain == "exclude" and -1 in values else 0
    if task == "findings":
        # With `blank` negative, no label is left out but uncertain ones: a study always has other labels.
        codes = {name: oracle_code(numbers[name], uncertain) for name in choices.LABELS}
        if set(codes.values()) == {None}:
            return None
        return int(any(codes[name] in (1, "smooth") for name in choices.FINDINGS))
    effusion = numbers["Pleural Effusion"]
    if effusion == 1 or (uncertain == "positive" and effusion == -1):
        return 1
    if uncertain == "exclude" and effusion == -1:
        return None
    return 0 if numbers["No Finding"] == 1 else None


def oracle(contents, *, task, uncertain, view):
    """(dicom_id, subject_id, study_id, view_position, split, label) of each kept image; number of all."""
    images = oracle_rows(contents["metadata"], ["dicom_id", "subject_id", "study_id", "ViewPosition"])
    splits = oracle_rows(contents["split"], ["dicom_id", "split"], optional=("subject_id", "study_id"))
    names = {"finding": choices.FINDINGS, "findings": choices.LABELS}.get(
        task, ("Pleural Effusion", "No Finding")
    )
    studies = oracle_rows(contents["negbio"], ["subject_id", "study_id", *names])
    for rows in (images, splits, studies):
        oracle_ids(rows)
    for row in images:
        require(re.fullmatch("[0-9a-f-]{1,64}", row["dicom_id"]), "dicom_id")
    for row in splits:
        require(row["split"] in ("train", "validate", "test"), "split")
    for rows, key in ((images, "dicom_id"), (splits, "dicom_id"), (studies, "study_id")):
        require(max(Counter(row[key] for row in rows).values(), default=1) == 1, f"{key} twice")
    split_row = {row["dicom_id"]: row for row in splits}
    study_row = {row["study_id"]: row for row in studies}
    patient_of, split_of, kept = {}, {}, []
    labels = {study: oracle_label(row, task, uncertain) for study, row in study_row.items()}
    for image in images:
        subject, study = image["subject_id"], image["study_id"]
        require(image["dicom_id"] in split_row, "no split")
        row = split_row[image["dicom_id"]]
        require(row.get("subject_id", subject) == subject and row.get("study_id", study) == study, "torn")
        require(patient_of.setdefault(study, subject) == subject, "study of two patients")
        require(split_of.setdefault(subject, row["split"]) == row["split"], "patient in two splits")
        require(study_row.get(study, image)["subject_id"] == subject, "label of another patient")
        position = image["ViewPosition"].strip().replace("\ue000", "\x00")
        in_view = {"frontal": position in ("AP", "PA"), "lateral": position in ("LATERAL", "LL")}
        if in_view.get(view, True) and labels.get(study) is not None:
            split = {"validate": "validation"}.get(row["split"], row["split"])
            kept.append((image["dicom_id"], subject, study, position, split, labels[study]))
    return kept, len(images)


def check_against_oracle(root, contents, *, is_private=True, **options):
    """Indexes the tables; returns whether they were accepted."""
    write_tables(root, contents)
    try:
        kept, num_images = oracle(contents, **options)
    except RefusedError:
        message = refusal(lambda: index_images(root, **options), root / "mimic-cxr-2.0.0-", ".csv")
        if is_private:
            assert not re.search("0dc0ffee|100000[12][0-9]|500000[23][0-9]", message), message
        return False
    rows, exclusions = index_images(root, **options)
    columns = ["dicom_id", "subject_id", "study_id", "view_position", "split", "label"]
    assert list(rows[columns].itertuples(index=False, name=None)) == kept
    assert exclusions["images"].sum() == num_images
    assert exclusions["kept"].sum() == len(kept)
    for row in rows.itertuples():
        path = f"files/p{str(row.subject_id)[:2]}/p{row.subject_id}/s{row.study_id}/{row.dicom_id}.jpg"
        assert os.path.normpath(row.path) == row.path == str(root / path)
    return True


OPTIONS = st.fixed_dictionaries(
    {
        "task": st.sampled_from(sorted(choices.TASKS)),
        "uncertain": st.sampled_from(["negative", "positive", "exclude"]),
        "view": st.sampled_from(sorted(choices.VIEWS)),
    }
)
ALL_IMAGES = st.just({"task": "finding", "uncertain": "negative", "view": "all", "is_private": False})
# \x1c to \x1f and \x85 are space to Python and none to Arrow.
CHARACTERS = st.characters(codec="utf-8", exclude_characters="\x1c\x1d\x1e\x1f\x85")
NUMBERS = ["", " ", "0", "-1", "1", "1.0", "-1.0", "1.5", "+1", "2", "nan", "inf", "-inf", "1e400"]
NEARLY_NUMBERS = ["true", "0x1F", "1_0", "\u0661", "\u22121.0", "1,0", "1e7", "10000011.0", "010000011", "NA"]
LARGE_NUMBERS = ["9223372036854775808", "9007199254740993", "9" * 400]
PATHS = ["../../etc/passwd", "/etc/passwd", "..", "C:\\x", "~root", "a/../../b", "files\x00"]
CONTROLS = ["\x00", "a\nb", "a\r\nb", "\n", '"', "''", "a;b"]
VALUES = ["train", "TRAIN", "val", "validate ", "PA", " AP ", "LL\t", "=cmd()", "\ufeff", "\u202etxt"]
LONG_AND_CODE = ["e" * 65, "f" * 64, "x" * 100_000, "1" * 100_000, "'; DROP TABLE images", "%s%n", "{0}"]
HOSTILE_TEXTS = st.one_of(
    st.sampled_from(NUMBERS + NEARLY_NUMBERS + LARGE_NUMBERS + PATHS + CONTROLS + VALUES + LONG_AND_CODE),
    st.text(CHARACTERS, max_size=12),
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(str),
)


@st.composite
def row_mutations(draw, tables):
    """Changes one thing in one of the tables' rows; the first row is the header."""
    rows = tables[draw(st.sampled_from(list(tables)))]
    number = draw(st.integers(0, len(rows) - 1))
    row = rows[number]
    column = draw(st.integers(0, len(row) - 1)) if row else 0
    kinds = ["set", "copy", "cut", "insert", "repeat row", "drop row", "move row", "drop column", "blank"]
    kind = draw(st.sampled_from(kinds))
    if kind == "set" and row:
        row[column] = draw(HOSTILE_TEXTS)
    elif kind == "copy" and row:  # makes doubles, and ids that belong to others
        donor = draw(st.sampled_from(rows[1:] or rows))
        row[column] = donor[min(column, len(donor) - 1)] if donor else ""
    elif kind == "cut":
        del row[column : column + 1]
    elif kind == "insert":
        row.insert(column, draw(st.sampled_from(["", "1.0", "x"])))
    elif kind == "repeat row":
        rows.insert(draw(st.integers(0, len(rows))), list(row))
    elif kind == "drop row" and len(rows) > 1:
        del rows[number]
    elif kind == "move row":
        rows.insert(draw(st.integers(1, len(rows))), rows.pop(number))
    elif kind == "drop column":
        for other in rows:
            del other[column : column + 1]
    elif kind == "blank":
        rows.insert(number, [])


@st.composite
def mutated_tables(draw):
    """Contents of the tables, changed in up to three places, and options."""
    tables, count = sound_tables(), draw(st.integers(1, 3))
    for _ in range(count):
        draw(row_mutations(tables))
    contents = encode(tables)
    return contents, {**draw(OPTIONS), "is_private": count == 1}


@st.composite
def mutated_contents(draw, tables):
    """Contents of the tables, the bytes of one of them changed."""
    contents = encode(tables)
    name = draw(st.sampled_from(list(tables)))
    content = contents[name]
    if draw(st.booleans()):
        content = gzip.compress(content, mtime=0)
    start = draw(st.integers(0, len(content)))
    some = draw(
        st.one_of(
            st.sampled_from([b'"', b'""', b"\n", b"\r", b"\r\n", b",", b"\x00", b"\xff", b"\xef\xbb\xbf"]),
            st.sampled_from([b"\xc3\xa9", b"\x1f\x8b", b"PK\x03\x04", b"<html>busy</html>", b";", b"\t"]),
            st.binary(max_size=6).filter(lambda some: not set(some) & {0x1C, 0x1D, 0x1E, 0x1F, 0x85}),
        )
    )
    before, after = content[:start], content[start:]
    changed = {
        "cut": before,
        "insert": before + some + after,
        "overwrite": before + some + after[len(some) :],
        "delete": before + after[draw(st.integers(1, 60)) :],
        "append": content + some,
        "prepend": some + content,
        "replace": some,
    }
    return {**contents, name: changed[draw(st.sampled_from(sorted(changed)))]}


@pytest.fixture(scope="module")
def table_root(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


def test_sound_tables_are_accepted_by_the_oracle_and_the_script(table_root):
    contents = encode(sound_tables())
    policies = ["negative", "positive", "exclude"]
    for task, uncertain, view in itertools.product(choices.TASKS, policies, choices.VIEWS):
        assert check_against_oracle(table_root, contents, task=task, uncertain=uncertain, view=view)
    assert len(oracle(contents, task="finding", uncertain="negative", view="all")[0]) == 8


@st.composite
def respelled_ids(draw):
    """Contents of tables in all of which one id is another text."""
    tables, column = sound_tables(), draw(st.sampled_from(range(len(IDS))))
    old, text = tables["metadata"][3][column], draw(HOSTILE_TEXTS)
    return {
        name: encode_csv([[text if value == old else value for value in row] for row in rows])
        for name, rows in tables.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mutated", "count", "at_least"),
    [
        (mutated_tables(), 450, 50),
        (st.tuples(mutated_contents(sound_tables()), OPTIONS), 300, 10),
        (st.tuples(respelled_ids(), ALL_IMAGES), 150, 10),  # no id leads out of files/
    ],
    ids=["rows", "bytes", "ids"],
)
def test_changed_tables_are_refused_in_one_line_or_read_as_the_oracle_reads_them(
    table_root, mutated, count, at_least
):
    outcomes = Counter()

    @cases(count)
    @given(mutated)
    def check(drawn):
        contents, options = drawn
        outcomes[check_against_oracle(table_root, contents, **options)] += 1

    check()
    assert min(outcomes[True], outcomes[False]) > at_least


def change_sound(root, table, change):
    """Writes sound tables but for `change(rows)` of one; returns the path of that one."""
    tables = sound_tables()
    change(tables[table])
    write_tables(root, encode(tables))
    return root / f"mimic-cxr-2.0.0-{table}.csv"


def set_cell(line, column, value):
    def change(rows):
        rows[line - 1][rows[0].index(column)] = value

    return change


@pytest.mark.parametrize(
    ("table", "change", "parts"),
    [
        ("metadata", set_cell(3, "subject_id", "10000019"), ["line 3", "one patient per study"]),
        ("split", set_cell(4, "subject_id", "10000013"), ["line 4", "subject_id", "metadata.csv"]),
        ("split", set_cell(4, "study_id", "50000099"), ["line 4", "study_id", "metadata.csv"]),
        ("negbio", set_cell(4, "subject_id", "10000019"), ["line 4", "subject_id", "the study's images"]),
        ("split", set_cell(3, "split", "test"), ["line 3", "split is 'test'", "each patient in one split"]),
        ("negbio", lambda rows: rows.append(["10000019", *rows[1][1:]]), ["line 7", "one row per study"]),
        ("negbio", lambda rows: rows[2].pop(), ["line 3 has 15 fields", "first line has 16"]),
        ("negbio", lambda rows: rows[2].insert(5, ""), ["line 3 has 17 fields", "first line has 16"]),
        ("metadata", lambda rows: rows[2].__setitem__(3, "one\ntwo"), ["several lines"]),
        ("negbio", lambda rows: rows[0].append("Edema") or [r.append("") for r in rows[1:]], ["2 columns"]),
        ("split", lambda rows: rows.insert(2, []) or rows.pop(), ["lacks 1 images", "line 11"]),
        ("metadata", lambda rows: rows.insert(2, []) or rows[4].__setitem__(1, "p1"), ["line 5"]),
        ("metadata", lambda rows: rows.pop(0), ["no column 'dicom_id'"]),
        ("metadata", set_cell(4, "dicom_id", "e" * 65), ["line 4", "64 hexadecimal"]),
        ("split", set_cell(4, "split", "x" * 100_000), ["line 4", "split is 'xxx"]),
        ("metadata", set_cell(1, "ViewPosition", "View"), ["no column 'ViewPosition'", "'View'"]),
        ("split", set_cell(5, "split", "dev"), ["line 5", "split is 'dev'", "train or validate"]),
        ("negbio", set_cell(3, "Edema", "yes"), ["line 3", "Edema is 'yes'", "1.0, 0.0, -1.0"]),
        ("negbio", set_cell(3, "Edema", "2.0"), ["line 3", "Edema is '2.0'", "1.0, 0.0, -1.0"]),
        ("metadata", set_cell(4, "subject_id", "p1"), ["line 4: wrong subject_id", "whole number"]),
        ("metadata", set_cell(2, "dicom_id", "../etc"), ["line 2: wrong dicom_id", "hexadecimal"]),
        ("metadata", lambda rows: rows.append(rows[1]), ["line 12", "one row per image"]),
        ("split", lambda rows: rows.append(rows[1]), ["line 12", "one row per image"]),
    ],
)
def test_torn_tables_are_one_line_that_names_file_and_line_and_no_id(tmp_path, table, change, parts):
    path = change_sound(tmp_path, table, change)
    message = refusal(lambda: index_images(tmp_path), path, *parts)
    assert not re.search("0dc0ffee|100000[0-9]{2}|500000[0-9]{2}", message), message


def test_shorter_metadata_and_a_split_table_without_patients_are_used(tmp_path, caplog):
    change_sound(tmp_path, "split", lambda rows: rows.__setitem__(slice(None), [r[::3] for r in rows]))
    assert len(index_images(tmp_path, view="all")[0]) == 8 and not caplog.text
    change_sound(tmp_path, "metadata", lambda rows: rows.__delitem__(slice(6, None)))
    assert len(index_images(tmp_path, view="all")[0]) == 5
    assert "lacks 5 images" in caplog.text


def test_short_line_that_is_no_utf_8_is_one_line_and_no_traceback_on_stderr(tmp_path, capfd):
    path = change_sound(tmp_path, "metadata", lambda rows: rows[2].pop())
    path.write_bytes(path.read_bytes().replace(b"CHEST", b"TH\xd3RAX"))
    refusal(lambda: index_images(tmp_path), path, "utf-8")
    assert capfd.readouterr().err == ""


def test_table_that_unpacks_without_end_is_refused_without_the_memory_that_it_claims(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_files, "MAX_UNPACKED_BYTES", 2**20)
    path = change_sound(tmp_path, "metadata", lambda rows: None)
    path.write_bytes(gzip.compress(path.read_bytes() + bytes(2**27), mtime=0))
    tracemalloc.start()
    message = refusal(lambda: index_images(tmp_path), path, "to more than 1,048,576 bytes")
    assert "download it again" in message
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()


# Image files ------------------------------------------------------------------------------------------------


def radiograph(width=40, height=48):
    """A picture that tells its eight orientations apart."""
    pixels = np.add.outer(np.arange(height) * 3.0, np.arange(width) * 1.0)
    pixels[: height // 4, : width // 4] = 255
    return Image.fromarray(pixels.clip(0, 255).astype("uint8"))


def encode_jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", **{"quality": 95, **options})
    return buffer.getvalue()


def exif_of(orientation):
    """EXIF with tags of every type, some in directories of their own."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make] = "maker"
    exif[ExifTags.Base.XResolution] = 72.0
    exif[ExifTags.Base.Copyright] = "nobody"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2180:01:01 12:00:00"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    return exif


def with_size(content, width, height):
    """The JPEG with another size in its header."""
    at = next(at for marker in (b"\xff\xc0", b"\xff\xc2") if (at := content.find(marker)) > 0)
    return content[: at + 5] + struct.pack(">HH", height, width) + content[at + 9 :]


def encode_as(file_format, mode="L"):
    buffer = io.BytesIO()
    radiograph().convert(mode).save(buffer, format=file_format)
    return buffer.getvalue()


SOUND = encode_jpeg(radiograph())
OTHER_FORMATS = {"PNG": encode_as("PNG"), "16-bit PNG": encode_as("PNG", "I;16")}  # under the name of a JPEG
radiograph().save(
    ANIMATED := io.BytesIO(), format="PNG", save_all=True, append_images=[radiograph().rotate(180)]
)
BAD_FILES = {
    "empty": b"",
    "text": b"<html>busy</html>",
    "cut in the header": SOUND[:100],
    "cut in the pixels": SOUND[: len(SOUND) * 2 // 3],
    "animated PNG": ANIMATED.getvalue(),
    "TIFF": encode_as("TIFF"),
    "16-bit TIFF": encode_as("TIFF", "I;16"),
    "GIF": encode_as("GIF"),
    "12-bit JPEG": SOUND.replace(b"\xff\xc0\x00\x0b\x08", b"\xff\xc0\x00\x0b\x0c"),
    "bomb": with_size(SOUND, 60_000, 60_000),
    "no width": with_size(SOUND, 0, 48),
    "gzip": gzip.compress(SOUND, mtime=0),
    "zeros": bytes(5000),
}


def pixels_of(content):
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.mode) == ("JPEG", "L")
        return np.asarray(image, dtype=float)


def decode_for_training(content):
    """The pixels as training reads them from the cache, by torchvision, which is stricter than Pillow."""
    return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.GRAY)


@pytest.fixture(scope="module")
def image_path(tmp_path_factory):
    return tmp_path_factory.mktemp("images") / "a.jpg"


@pytest.mark.parametrize("kind", sorted(BAD_FILES))
@pytest.mark.parametrize("image_size", [None, 16, 1000])
def test_files_that_are_no_radiograph_are_refused(tmp_path, kind, image_size):
    path = tmp_path / "a.jpg"
    path.write_bytes(BAD_FILES[kind])
    use = radiographs.shrink_radiograph if image_size else lambda path, _: radiographs.check_jpeg(path)
    assert " at 0x" not in refusal(lambda: use(str(path), image_size))  # no address of an object


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux does")
def test_decompression_bombs_are_refused_without_the_memory_that_they_claim(image_path):
    def peak_mib():
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024

    before = peak_mib()

    @cases(60)
    @given(st.integers(20_000, 65_500), st.integers(20_000, 65_500), st.booleans(), st.booleans())
    def check(width, height, in_colour, progressive):
        image = radiograph().convert("CMYK" if in_colour else "L")
        image_path.write_bytes(with_size(encode_jpeg(image, progressive=progressive), width, height))
        for use in (radiographs.check_jpeg, lambda path: radiographs.shrink_radiograph(path, 16).content):
            with pytest.raises(DatasetError):
                use(str(image_path))

    check()
    assert peak_mib() - before < 100


@pytest.mark.slow
def test_jpegs_of_any_mode_size_and_orientation_come_out_as_full_decoding_shows_them(image_path):
    @cases(120)
    @given(
        st.sampled_from(["L", "RGB", "CMYK"]),
        st.tuples(st.integers(8, 90), st.integers(8, 90)),
        st.integers(0, 9),
        st.booleans(),
        st.integers(1, 100),
    )
    def check(mode, size, orientation, progressive, image_size):
        image = radiograph(*size).convert(mode)
        content = encode_jpeg(image, exif=exif_of(orientation), progressive=progressive, subsampling=0)
        image_path.write_bytes(content)
        with Image.open(image_path) as original:
            reference = ImageOps.exif_transpose(original).convert("L")
        radiographs.check_jpeg(str(image_path))
        got = pixels_of(radiographs.shrink_radiograph(str(image_path), image_size).content)
        scale = min(1, image_size / min(size))
        shrunk = [max(1, round(side * scale)) for side in reference.size]
        assert got.shape == (shrunk[1], shrunk[0])
        reference = reference.resize(shrunk, Image.Resampling.LANCZOS)
        difference = np.abs(got - np.asarray(reference, dtype=float))
        assert difference.mean() < (6 if min(shrunk) >= 8 else 25)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("image_size", [16, 1000])
def test_garbage_in_the_exif_leaves_the_pixels_as_they_are(image_path, image_size):
    """In one of the eight orientations: which one, the garbage may say."""
    expected, outcomes = [], Counter()
    for orientation in range(1, 9):
        image_path.write_bytes(encode_jpeg(radiograph(), exif=exif_of(orientation)))
        expected.append(pixels_of(radiographs.shrink_radiograph(str(image_path), image_size).content))
    # With a density of its own, the EXIF is not looked at before the pixels.
    contents = [encode_jpeg(radiograph(), exif=exif_of(6), **more) for more in ({}, {"dpi": (72, 72)})]
    starts = [content.index(b"Exif\x00\x00") for content in contents]
    length = struct.unpack(">H", contents[0][starts[0] - 2 : starts[0]])[0] - 2
    feature = datasets.Image(mode="L")
    changes = st.dictionaries(st.integers(0, length - 1), st.integers(0, 255), min_size=1, max_size=6)

    @cases(120)
    @given(st.integers(0, 1), changes)
    def check(which, changed):
        content = bytearray(contents[which])
        for position, value in changed.items():
            content[starts[which] + position] = value
        image_path.write_bytes(content)
        got = pixels_of(radiographs.shrink_radiograph(str(image_path), image_size).content)
        match = [np.abs(got - other).mean() < 3 for other in expected if other.shape == got.shape]
        assert any(match)
        try:
            radiographs.check_jpeg(str(image_path))
            outcomes["by path"] += 1
        except DatasetError:
            return
        decoded = np.asarray(feature.decode_example({"path": str(image_path), "bytes": None}))
        assert decoded.size == 40 * 48

    check()
    assert outcomes["by path"] > 20


@pytest.mark.slow
def test_changed_bytes_of_a_jpeg_are_refused_or_give_a_gray_jpeg_that_decodes(image_path):
    images = [radiograph(), radiograph(9, 100)]
    contents = [encode_jpeg(image.convert(mode)) for image in images for mode in ("L", "RGB", "CMYK")]
    contents += [encode_jpeg(images[0], progressive=True), encode_jpeg(images[0], exif=exif_of(6))]
    contents += [encode_jpeg(image, restart_marker_blocks=3) for image in images]
    position = st.integers(2, max(map(len, contents)))
    outcomes = Counter()

    @cases(300)
    @given(
        st.sampled_from(contents),
        st.dictionaries(position, st.integers(0, 255), max_size=3),
        st.one_of(st.none(), position),
        st.sampled_from([16, 1000]),
    )
    def check(content, changed, end, image_size):
        content = bytearray(content)
        for at, value in changed.items():
            content[at % len(content)] = value
        image_path.write_bytes(content[:end])
        outcomes["cases"] += 1
        try:
            shrunk = radiographs.shrink_radiograph(str(image_path), image_size).content
        except DatasetError:
            pass
        else:
            with Image.open(image_path) as original:
                shortest = min(original.size)
            assert min(pixels_of(shrunk).shape) == min(image_size, shortest)
            assert np.array_equal(decode_for_training(shrunk)[0].numpy(), pixels_of(shrunk))
            outcomes["shrunk"] += 1
        try:
            radiographs.check_jpeg(str(image_path))
            outcomes["by path"] += 1
        except DatasetError:
            pass

    check()
    assert 30 < outcomes["shrunk"] < outcomes["cases"] - 30
    assert 30 < outcomes["by path"] < outcomes["cases"] - 30


@pytest.mark.slow
def test_jpeg_cut_anywhere_is_refused_or_has_all_its_pixels(image_path):
    image_path.write_bytes(SOUND)
    whole = {
        size: pixels_of(radiographs.shrink_radiograph(str(image_path), size).content) for size in (16, 1000)
    }

    @cases(150)
    @given(st.integers(0, len(SOUND) - 1), st.sampled_from(sorted(whole)))
    def check(end, image_size):
        image_path.write_bytes(SOUND[:end])
        with pytest.raises(DatasetError):
            radiographs.check_jpeg(str(image_path))
        try:
            shrunk = radiographs.shrink_radiograph(str(image_path), image_size).content
        except DatasetError:
            return
        assert end >= len(SOUND) - 2  # only the end marker is lost
        assert np.abs(pixels_of(shrunk) - whole[image_size]).mean() < 3

    check()


def test_small_jpeg_without_end_marker_is_refused_or_compressed_anew_as_other_decoders_need_it(image_path):
    for width in range(8, 60, 4):  # Pillow decodes some of them to the end
        pixels = np.add.outer(np.arange(48) * 3, np.arange(width)).astype("uint8")
        for quality in (50, 75):
            sound = encode_jpeg(Image.fromarray(pixels), quality=quality)
            image_path.write_bytes(sound[:-2])
            try:
                shrunk = radiographs.shrink_radiograph(str(image_path), 1000).content
            except DatasetError:
                continue
            assert shrunk.endswith(b"\xff\xd9")
            assert np.abs(pixels_of(shrunk) - pixels_of(sound)).mean() < 3


def test_small_jpeg_whose_restart_marker_is_damaged_is_compressed_anew_as_other_decoders_need_it(tmp_path):
    """It begins a segment now, which claims to go on behind the end of the file."""
    path, sound = tmp_path / "a.jpg", encode_jpeg(radiograph(), restart_marker_blocks=3)
    at = max(sound.rfind(bytes([0xFF, 0xD0 + number])) for number in range(8))
    path.write_bytes(sound[:at] + b"\xff\xe0" + sound[at + 2 :])
    with pytest.raises(RuntimeError, match="incomplete or truncated"):
        decode_for_training(path.read_bytes())
    shrunk = radiographs.shrink_radiograph(str(path), 1000).content
    assert np.abs(decode_for_training(shrunk)[0].numpy() - pixels_of(path.read_bytes())).mean() < 3


GRAY_OPTIONS = [
    {"progressive": True},
    {"restart_marker_blocks": 3},
    {"restart_marker_rows": 1, "progressive": True},
    {"comment": b"\xff\xd9 is no end in here"},
    {"exif": exif_of(1)},
]


@pytest.mark.parametrize("options", GRAY_OPTIONS)
def test_small_gray_jpeg_that_is_sound_stays_as_it_is_and_padding_is_no_damage(image_path, options):
    sound = encode_jpeg(radiograph(), **options)
    for padding in (b"", b"\x00" * 7, b"\xff\xff", b"\r\n"):
        image_path.write_bytes(sound + padding)
        radiographs.check_jpeg(str(image_path))
        assert radiographs.shrink_radiograph(str(image_path), 1000).content == sound + padding
    image_path.write_bytes(sound[:-2] + bytes(9000))
    refusal(lambda: radiographs.check_jpeg(str(image_path)), "cut off")


def test_exif_that_cannot_be_written_back_turns_the_image_all_the_same(image_path):
    sound = encode_jpeg(radiograph(), exif=exif_of(6))
    at = sound.index(struct.pack(">HH", ExifTags.Base.Copyright, 2), sound.index(b"Exif\x00\x00"))
    changed = sound[: at + 2] + struct.pack(">H", 5) + sound[at + 4 :]  # a fraction, no text
    shrunk = []
    for content in (sound, changed):
        image_path.write_bytes(content)
        shrunk.append(pixels_of(radiographs.shrink_radiograph(str(image_path), 16).content))
    assert np.array_equal(*shrunk) and shrunk[0].shape == (16, 19)


def test_exif_that_breaks_off_leaves_the_image_upright_or_names_the_reason(image_path):
    sound = encode_jpeg(radiograph(), exif=exif_of(6), dpi=(72, 72))
    image_path.write_bytes(sound.replace(b"Exif\x00\x00MM", b"Exif\x00\x00XX"))
    assert pixels_of(radiographs.shrink_radiograph(str(image_path), 16).content).shape == (19, 16)
    # By path, datasets would fail where it decodes the file.
    refusal(lambda: radiographs.check_jpeg(str(image_path)), "EXIF")


# Whole builds -----------------------------------------------------------------------------------------------


def write_tree(folder):
    """ROOT with ten sound images; returns it and their paths in the order of the metadata."""
    root = folder / "root"
    root.mkdir()
    write_tables(root, encode(sound_tables()))
    paths = []
    for row in sound_tables()["metadata"][1:]:
        path = root / f"files/p{row[1][:2]}/p{row[1]}/s{row[2]}/{row[0]}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(SOUND)
        paths.append(path)
    return root, paths


def snapshot(folder, *, without):
    """What is in a folder: {path: kind and content}, links as links, but for one folder in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if without in (path, *path.parents):
            continue
        if path.is_symlink():
            found[path] = ("link", str(path.readlink()))
        else:
            found[path] = ("folder", None) if path.is_dir() else (path.stat().st_mtime_ns, path.read_bytes())
    return found


def build(root, cache_dir, **options):
    builder = mimic.MimicCxr(data_dir=str(root), cache_dir=str(cache_dir), view="all", **options)
    builder.download_and_prepare()
    return builder


@pytest.mark.slow
def test_builds_keep_exactly_the_sound_images_and_write_into_the_cache_alone(tmp_path_factory):
    rows = oracle(encode(sound_tables()), task="finding", uncertain="negative", view="all")[0]
    labelled = {row[0]: row for row in rows}
    sound = ["sound", "link out", *OTHER_FORMATS]
    absent = ["missing", "folder", "dangling link", "link to itself"]
    # Sound ones often enough that no split is emptied.
    fates = st.sampled_from(sound * 30 + absent + sorted(BAD_FILES))
    outcomes = Counter()

    @cases(40)
    @given(st.lists(fates, min_size=10, max_size=10), st.sampled_from([None, 16]), st.booleans())
    def check(fates, image_size, skip):
        folder = tmp_path_factory.mktemp("build")
        root, paths = write_tree(folder)
        cache = folder / "cache"
        (folder / "elsewhere.jpg").write_bytes(SOUND)
        for path, fate in zip(paths, fates):
            if fate in BAD_FILES | OTHER_FORMATS:
                path.write_bytes((BAD_FILES | OTHER_FORMATS)[fate])
            elif fate != "sound":
                path.unlink()
            if fate == "folder":
                path.mkdir()
            elif fate in ("link out", "dangling link", "link to itself"):
                target = {"link out": folder / "elsewhere.jpg", "link to itself": path}
                path.symlink_to(target.get(fate, folder / "nothing"))
        before = snapshot(folder, without=cache)
        fate_of = {path.stem: fate for path, fate in zip(paths, fates) if path.stem in labelled}
        bad = {name for name, fate in fate_of.items() if fate not in sound}
        lost = {name for name in bad if fate_of[name] in absent}
        kept = [row for row in rows if row[0] not in bad]
        splits_left = {row[4] for row in kept}
        # A split of missing images alone is left out; one of damaged images is an error.
        emptied = {row[4] for row in rows if row[0] not in lost} - splits_left
        options = {"image_size": image_size, "on_bad_image": "skip" if skip else "error"}
        if (bad and not skip) or emptied or not kept:
            message = refusal(lambda: build(root, cache, **options), root)
            assert skip or "--on_bad_image skip" in message
            outcomes["refused"] += 1
        else:
            builder = build(root, cache, **options)
            built = builder.as_dataset()
            assert set(built) == splits_left
            for split, images in built.items():
                of_split = [row for row in kept if row[4] == split]
                assert [image["dicom_id"] for image in images] == [row[0] for row in of_split]
                assert [image["label"] for image in images] == [row[5] for row in of_split]
                assert {image["image"].size for image in images} == {(16, 19) if image_size else (40, 48)}
                listing = Path(builder._output_dir, f"bad_images_{split}.csv")
                listed = pd.read_csv(listing)["dicom_id"].tolist() if listing.exists() else []
                assert listed == [row[0] for row in rows if row[4] == split and row[0] in bad]
            outcomes["built"] += 1
        assert snapshot(folder, without=cache) == before

    check()
    assert min(outcomes["built"], outcomes["refused"]) >= 5


@pytest.mark.parametrize("level", ["root", "files", "shard", "patient", "study", "image"])
def test_links_that_leave_the_root_are_read_and_never_written_through(tmp_path, level):
    """A folder or an image on another disk is the user's own arrangement: it is read like any other."""
    root, paths = write_tree(tmp_path)
    image = paths[0]
    levels = {"image": image, "study": image.parent, "patient": image.parents[1], "shard": image.parents[2]}
    linked = {**levels, "files": root / "files", "root": root}[level]
    moved = tmp_path / "other disk" / linked.name
    moved.parent.mkdir()
    linked.rename(moved)
    linked.symlink_to(moved)
    before = snapshot(tmp_path, without=tmp_path / "cache")
    for image_size in (None, 16):
        built = build(root, tmp_path / "cache", image_size=image_size, on_bad_image="skip").as_dataset()
        sizes = [image["image"].size for images in built.values() for image in images]
        assert sizes == 8 * [(16, 19) if image_size else (40, 48)]
    assert snapshot(tmp_path, without=tmp_path / "cache") == before
