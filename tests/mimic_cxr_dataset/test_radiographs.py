"""Files of users: which are found, what becomes of their pixels, and which are refused, for what reason."""

import io
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cxr.errors import UserError
from cxr.inference.radiographs import find_radiographs
from cxr.inference.radiographs import read_radiograph
from dicom_files import make_header
from dicom_files import write_dicom
from PIL import Image
from torchvision.io import ImageReadMode
from torchvision.io import decode_jpeg

from mimic_cxr_dataset import dicom as dicom_reading
from mimic_cxr_dataset import gray_levels
from mimic_cxr_dataset.dicom import read_dicom
from mimic_cxr_dataset.radiographs import Reading
from mimic_cxr_dataset.radiographs import shrink_radiograph


@pytest.fixture
def gray():
    """A soft picture (80, 60) uint8 that has all values from 0 to 255."""
    rows, columns = np.mgrid[:80, :60]
    waves = np.sin(rows / 9) + np.cos(columns / 7) + rows / 40
    return np.rint(255 * (waves - waves.min()) / np.ptp(waves)).astype(np.uint8)


def twelve_bits(gray: np.ndarray) -> np.ndarray:
    return (gray.astype(np.uint16) * 16 + 3).astype(np.uint16)


# --- JPEG and PNG


def test_jpeg_has_the_very_pixels_that_a_run_evaluates(gray, tmp_path):
    path = tmp_path / "large.jpg"
    Image.fromarray(gray).resize((600, 800)).save(path, quality=92)
    content = shrink_radiograph(str(path), 37).content
    expected = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.GRAY)
    assert torch.equal(read_radiograph(path, shortest_side=37).pixels, expected)
    assert expected.shape == (1, 49, 37)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16"])
def test_png_of_every_kind_gives_nearly_the_pixels_of_the_jpeg(mode, gray, tmp_path):
    Image.fromarray(gray).save(tmp_path / "a.jpg", quality=95)
    picture = Image.fromarray(twelve_bits(gray)) if mode == "I;16" else Image.fromarray(gray).convert(mode)
    picture.save(tmp_path / "a.png")
    options = {"shortest_side": 30, "reading": Reading(equalizes=False)}
    jpeg, png = (read_radiograph(tmp_path / name, **options).pixels for name in ("a.jpg", "a.png"))
    assert png.dtype == torch.uint8 and png.shape == jpeg.shape == (1, 40, 30)
    assert (png.int() - jpeg.int()).abs().float().mean() < 2


def test_content_and_not_the_suffix_tells_the_format_and_a_small_image_keeps_its_size(gray, tmp_path):
    Image.fromarray(gray).save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.jpg")
    a, b = (read_radiograph(tmp_path / name, shortest_side=256).pixels for name in ("a.png", "b.jpg"))
    assert torch.equal(a, b) and a.shape == (1, 80, 60)


# --- DICOM


def test_dicom_is_scaled_truncated_and_equalised_as_mimic_cxr_jpg_was(gray, tmp_path):
    values = twelve_bits(gray)
    path = write_dicom(tmp_path / "a.dcm", values)
    shifted = values.astype(np.float64) - values.min()
    scaled = (255 * shifted / shifted.max()).astype(np.uint8)
    found = read_dicom(path)[0]
    assert np.array_equal(found, gray_levels.equalize(scaled))
    assert found.min() == 0 and found.max() == 255


@pytest.mark.parametrize(
    "tags", [{"PhotometricInterpretation": "MONOCHROME1"}, {"voi_table": list(range(255, -1, -1))}]
)
def test_header_that_turns_the_values_round_gives_the_picture_of_the_inverse(gray, tmp_path, tags):
    plain = read_dicom(write_dicom(tmp_path / "a.dcm", 255 - gray))[0]
    assert np.array_equal(read_dicom(write_dicom(tmp_path / "b.dcm", gray, **tags))[0], plain)


def test_window_of_the_header_clips_unless_it_is_left_out(gray, tmp_path):
    values = twelve_bits(gray)
    path = write_dicom(tmp_path / "a.dcm", values, WindowCenter=2048, WindowWidth=1000)
    windowed, stored = read_dicom(path)[0], read_dicom(path, use_window=False)[0]
    outside = (values < 2048 - 510, values > 2048 + 510)
    assert [np.ptp(windowed[part]) for part in outside] == [0, 0]
    assert np.array_equal(stored, read_dicom(write_dicom(tmp_path / "b.dcm", values))[0])
    assert not np.array_equal(stored, windowed)


def test_window_applies_to_rescaled_values(gray, tmp_path):
    values = twelve_bits(gray)
    rescaled = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 3096, "WindowWidth": 2000}
    path = write_dicom(tmp_path / "a.dcm", values, **rescaled)
    plain = write_dicom(tmp_path / "b.dcm", values, WindowCenter=2048, WindowWidth=1000)
    difference = read_dicom(path)[0].astype(int) - read_dicom(plain)[0]
    assert np.abs(difference).mean() < 0.5


def test_same_picture_as_dicom_and_as_jpeg_of_its_pixels_is_nearly_the_same(gray, tmp_path):
    path = write_dicom(tmp_path / "a.dcm", twelve_bits(gray))
    Image.fromarray(read_dicom(path)[0]).save(tmp_path / "a.jpg", quality=95)
    dicom, jpeg = (read_radiograph(tmp_path / name, shortest_side=30).pixels for name in ("a.dcm", "a.jpg"))
    assert (dicom.int() - jpeg.int()).abs().float().mean() < 1


def test_8_bit_pixels_that_use_the_whole_range_are_not_changed_by_the_scaling(gray):
    assert np.array_equal(gray_levels.scale_to_8_bits(gray), gray)


# Worked by hand from OpenCV's formula, 255 / (total - darkest) times the count above the darkest.
@pytest.mark.parametrize(
    "values, expected",
    [
        ([[5, 5, 9], [9, 9, 200]], [[0, 0, 191], [191, 191, 255]]),
        ([[0, 1, 2, 3]], [[0, 85, 170, 255]]),
        ([[7, 7], [7, 7]], [[7, 7], [7, 7]]),
        ([[10, 20, 20, 30, 30, 40]], [[0, 102, 102, 204, 204, 255]]),
    ],
)
def test_equalisation_is_opencvs(values, expected):
    assert gray_levels.equalize(np.array(values, dtype=np.uint8)).tolist() == expected


@pytest.mark.parametrize(
    ("tags", "view"),
    [
        *(({"ViewPosition": view}, view.upper()) for view in ("PA", "LL", "lateral", "")),
        ({"view_meaning": "left lateral"}, "LATERAL"),
    ],
)
def test_view_comes_from_the_position_or_else_the_code_of_the_header(tags, view, gray, tmp_path):
    path = write_dicom(tmp_path / "a.dcm", gray, **tags)
    assert read_radiograph(path, shortest_side=30).view_position == view


def test_nothing_of_the_patient_is_read_or_said(gray, tmp_path, capfd, caplog, recwarn):
    """Not even by pydicom, of values that are no names or dates."""
    caplog.set_level(logging.DEBUG)
    secrets = {"PatientName": "Doe^Jane" * 20, "PatientID": "S3cret", "PatientBirthDate": "tomorrow, Doe"}
    path = write_dicom(tmp_path / "a.dcm", gray[:1, :1], valid=False, **secrets)
    for of_writing in (capfd.readouterr, caplog.clear, recwarn.clear):
        of_writing()
    with pytest.raises(UserError) as error:
        read_radiograph(path, shortest_side=30)
    said = [*capfd.readouterr(), caplog.text, str(error.value), *(str(one.message) for one in recwarn)]
    assert not any("Doe" in text or "S3cret" in text or "tomorrow" in text for text in said)
    header = dicom_reading._pydicom().dcmread(path, specific_tags=list(dicom_reading.TAGS))
    assert "PatientName" not in header and "Rows" in header


# --- What cannot be used


def holding(content):
    """Makes a file of these bytes, or of what they are of a picture."""

    def make(folder, gray):
        (folder / "a.jpg").write_bytes(content(gray) if callable(content) else content)
        return folder / "a.jpg"

    return make


def make_pipe(folder, gray):
    if not hasattr(os, "mkfifo"):
        pytest.skip("a system without named pipes")
    os.mkfifo(folder / "a.png")
    return folder / "a.png"


def cut_jpeg(gray):
    buffer = io.BytesIO()
    Image.fromarray(gray).save(buffer, format="JPEG")
    return buffer.getvalue()[:-200]


def dicom(**tags):
    return lambda folder, gray: write_dicom(folder / "a", gray, **tags)


BAD = {
    "missing": (lambda folder, gray: folder / "nothing.jpg", "No such file"),
    "folder": (lambda folder, gray: folder, "directory|denied"),
    "empty": (holding(b""), "empty"),
    "pipe": (make_pipe, "a pipe, expected a file"),
    "text": (holding(b"no picture"), "neither JPEG, PNG nor DICOM"),
    "cut-off JPEG": (holding(cut_jpeg), "truncated"),
    "JPEG of garbage": (holding(b"\xff\xd8\xff" * 99), "JPEG"),
    "PNG of garbage": (holding(b"\x89PNG\r\n\x1a\n" * 9), "damaged"),
    "DICOM of garbage": (holding(b"x" * 128 + b"DICM" * 50), "DICOM"),
    "several frames": (
        lambda folder, gray: write_dicom(folder / "a", np.stack([gray, gray]), NumberOfFrames=2),
        "2 frames, expected one",
    ),
    "colour": (
        lambda folder, gray: write_dicom(folder / "a", np.stack([gray] * 3, axis=-1)),
        "in RGB, expected a gray",
    ),
    "no pixels": (lambda folder, gray: make_header(folder / "a"), "without an image"),
    "fewer pixels than said": (dicom(Rows=800), "4,800 bytes of pixels, expected 48,000"),
    "absurd size": (dicom(Rows=65535, Columns=65535), "too large"),
    "one value": (lambda folder, gray: write_dicom(folder / "a", 0 * gray), "all pixels are the same"),
    "packed without a plugin": (
        dicom(syntax="1.2.840.10008.1.2.4.80"),
        "JPEG-LS.*more packages: pip install",
    ),
    "window without width": (dicom(WindowCenter=1, WindowWidth=0), "(?i)window"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_refused_with_its_reason_in_one_line(name, gray, tmp_path):
    make, reason = BAD[name]
    with pytest.raises(UserError, match=reason) as error:
        read_radiograph(make(tmp_path, gray), shortest_side=30)
    assert "\n" not in str(error.value) and str(tmp_path) not in str(error.value)


# --- Which files are found


@pytest.fixture
def tree(gray, tmp_path):
    """A folder with images at several depths, and with what is none."""
    for name in ("b/2.JPG", "b/c/1.png", "a/3.jpeg", "b/._2.jpg", "b/notes.txt", "DICOMDIR"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * 128 + b"DICM")
    for name in ("b/IM0001", "b/1.2.840.99", "b/scan.dcm"):
        write_dicom(tmp_path / name, gray)
    (tmp_path / "b" / "README").write_text("no image", encoding="utf-8")
    return tmp_path


def test_folder_is_searched_with_all_below_it_for_images_and_dicom_without_suffix(tree):
    found, missing = find_radiographs([str(tree)])
    names = [path.relative_to(tree).as_posix() for path in found]
    assert names == ["a/3.jpeg", "b/1.2.840.99", "b/2.JPG", "b/IM0001", "b/c/1.png", "b/scan.dcm"]
    assert not missing


def test_folders_behind_links_are_searched_once_and_one_that_cannot_be_read_is_named(tree, monkeypatch):
    (tree / "a" / "link").symlink_to(tree / "b" / "c", target_is_directory=True)
    (tree / "b" / "c" / "again").symlink_to(tree, target_is_directory=True)
    (tree / "closed").mkdir()
    scan = os.scandir

    def refuse_closed(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse_closed)
    found, missing = find_radiographs([str(tree)])
    names = [path.name for path in found]
    assert sorted(names) == ["1.2.840.99", "1.png", "2.JPG", "3.jpeg", "IM0001", "scan.dcm"]
    assert missing == [str(tree / "closed")]


def test_patterns_are_expanded_and_each_file_comes_once_in_the_order_of_the_names(tree, monkeypatch):
    monkeypatch.chdir(tree)
    found, missing = find_radiographs(
        ["b/scan.dcm", "**/*.dcm", "b/../b/scan.dcm", "b/?.JPG", "x*.png", "no"]
    )
    assert [path.as_posix() for path in found] == ["b/scan.dcm", "b/2.JPG"]
    assert missing == ["x*.png", "no"]


def test_name_with_brackets_is_a_file_where_there_is_one(gray, tmp_path):
    path = tmp_path / "chest[1].png"
    Image.fromarray(gray).save(path)
    assert find_radiographs([str(path)]) == ([path], [])
