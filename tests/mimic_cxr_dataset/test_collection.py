"""collection.json: what it says of images is understood or refused, and decides how they are read."""

import numpy as np
import pytest
from dicom_files import write_dicom
from mimic_roots import build
from mimic_roots import image_paths
from mimic_roots import new_builder
from mimic_roots import patients
from mimic_roots import write_root
from mimic_tables import refusal
from picture_files import distance
from picture_files import encode
from picture_files import encode_png
from picture_files import soft_picture

from mimic_cxr_dataset.collection import read_collection
from mimic_cxr_dataset.gray_levels import equalize

RAW = soft_picture()
EQUALIZED = equalize(RAW)
SAID = {
    "no file": (None, None),
    "nothing": ("{}", None),
    "null": ('{"equalized": null}', None),
    "yes": ('{"equalized": true}', True),
    "no": ('{"equalized": false}', False),
    "British": ('{"equalised": false}', False),
    "among others": ('{"name": "ours", "equalized": true, "year": 2020, "views": ["PA"]}', True),
}
GARBAGE = {
    "empty": ("", "eof"),
    "no JSON": ("equalized: false", "invalid JSON"),
    "cut off": ('{"equalized": fal', "invalid JSON"),
    "bytes": (bytes(range(256)), "invalid JSON"),
    "list": ("[true]", "object"),
    "word": ('"false"', "object"),
    "false as text": ('{"equalized": "false"}', "boolean"),
    "number": ('{"equalized": 0}', "boolean"),
    "other name": ('{"equalize": false}', "found 'equalize'"),
    "capital letter": ('{"Equalized": false}', "found 'Equalized'"),
    "longer name": ('{"is_equalised": false}', "found 'is_equalised'"),
    "both": ('{"equalized": true, "equalised": false}', "found 'equalized' and 'equalised'"),
    "deep": ("[" * 100_000, "recursion"),
}


def say(root, content):
    path = root / "collection.json"
    if content is None:
        path.unlink(missing_ok=True)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.fixture
def root(tmp_path):
    """Of four patients: a JPEG, a PNG of 8 bits, one of 16, and a DICOM file, all of the raw picture."""
    root = write_root(tmp_path / "root", patients(4))
    jpeg, png, deep, dicom = image_paths(root)
    jpeg.write_bytes(encode(RAW))
    png.with_suffix(".png").write_bytes(encode_png(RAW))
    deep.with_suffix(".png").write_bytes(encode_png(RAW.astype(int) * 200, depth=16))
    write_dicom(dicom.with_suffix(".dcm"), RAW)
    for path in (png, deep, dicom):
        path.unlink()
    return root


@pytest.mark.parametrize("name", SAID)
def test_file_says_yes_no_or_nothing(name, tmp_path):
    content, expected = SAID[name]
    say(tmp_path, content)
    assert read_collection(tmp_path).equalized is expected


@pytest.mark.parametrize("name", GARBAGE)
def test_file_that_says_it_otherwise_is_refused_in_one_line_before_anything_is_read(name, root, tmp_path):
    content, problem = GARBAGE[name]
    say(root, content)
    advice = 'expected JSON such as {"equalized": false}: correct it.'
    assert problem.lower() in refusal(lambda: read_collection(root), root / "collection.json", advice).lower()
    refusal(lambda: build(root, tmp_path), root / "collection.json", advice)


@pytest.mark.parametrize("image_size", [None, 60])
@pytest.mark.parametrize("name", ["no file", "yes", "no"])
def test_it_decides_whether_dicom_files_and_deep_pictures_are_equalised(name, image_size, root, tmp_path):
    content, said = SAID[name]
    say(root, content)
    dataset = build(root, tmp_path, image_size=image_size).as_dataset(split="train")
    found = [np.asarray(image) for image in dataset["image"]]
    expected = [RAW, RAW, *[RAW if said is False else EQUALIZED] * 2]
    assert max(map(distance, found, expected)) < 1.5


def test_cache_is_anothers_where_it_says_something_else_and_the_same_where_it_says_the_same(root, tmp_path):
    folders = {}
    for name, (content, _) in SAID.items():
        say(root, content)
        folders[name] = new_builder(root, tmp_path).cache_dir
    groups = [["no file", "nothing", "null"], ["yes", "among others"], ["no", "British"]]
    assert [len({folders[name] for name in group}) for group in groups] == [1, 1, 1]
    assert len(set(folders.values())) == 3


def test_stream_reads_by_it_too(root, tmp_path):
    for content, expected in (('{"equalized": true}', EQUALIZED), ('{"equalized": false}', RAW)):
        say(root, content)
        *_, last = new_builder(root, tmp_path).as_streaming_dataset(split="train")
        assert distance(np.asarray(last["image"]), expected) < 1.5
