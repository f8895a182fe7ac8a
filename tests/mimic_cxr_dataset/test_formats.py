"""Datasets of PNG and DICOM files where MIMIC-CXR-JPG has JPEG: the same rows, and files that are doubted."""

import numpy as np
import pandas as pd
import pytest
from dicom_files import write_dicom
from mimic_roots import build
from mimic_roots import image_paths
from mimic_roots import new_builder
from mimic_roots import patients
from mimic_roots import write_root
from mimic_tables import refusal
from picture_files import GRAY_ALPHA
from picture_files import RGB
from picture_files import distance
from picture_files import encode
from picture_files import encode_png
from picture_files import soft_picture

HALF_SEEN = np.where(np.arange(60) < 30, 255, 0) + np.zeros((80, 1), dtype=int)


def picture(number: int) -> np.ndarray:
    """A soft picture that tells its number."""
    return np.roll(soft_picture(), 3 * number, axis=0)


def writes(encoded):
    """Makes what writes a file out of what gives its bytes."""
    return lambda path, gray: path.write_bytes(encoded(gray))


# A file's name in place of JPG's, and what makes it of a picture.
FORMATS = {
    "JPEG": (".jpg", writes(encode)),
    "PNG": (".png", writes(encode_png)),
    "PNG of 16 bits": (".png", writes(lambda gray: encode_png(gray.astype(int) * 257, depth=16))),
    "DICOM": (".dcm", write_dicom),
    "DICOM of 12 bits": (".dcm", lambda path, gray: write_dicom(path, gray.astype(np.uint16) * 16)),
}


@pytest.fixture
def root(tmp_path):
    """12 train, 2 validation and 3 test images, raw pictures; `replace` puts in others."""
    images = patients(12) + patients(2, split="validate", start=12) + patients(3, split="test", start=14)
    root = write_root(tmp_path / "root", images)
    (root / "collection.json").write_text('{"equalized": false}', encoding="utf-8")
    for number, path in enumerate(image_paths(root)):
        path.write_bytes(encode(picture(number)))
    return root


def replace(paths, number: int, suffix: str, write) -> None:
    paths[number].unlink()
    write(paths[number].with_suffix(suffix), picture(number))


def replace_all(root, formats) -> None:
    paths = image_paths(root)
    for number in range(len(paths)):
        replace(paths, number, *FORMATS[formats[number % len(formats)]])


def columns_of(dataset):
    return dataset.remove_columns("image").to_pandas()


# Rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_size", [None, 30, 1000])
@pytest.mark.parametrize("name", FORMATS)
def test_same_pictures_in_another_format_are_nearly_the_same_dataset(
    name, image_size, root, tmp_path, caplog
):
    jpeg = build(root, tmp_path / "jpeg", image_size=image_size).as_dataset()
    expected = {split: list(map(np.asarray, jpeg[split]["image"])) for split in jpeg}
    replace_all(root, [name])
    other = build(root, tmp_path / "other", image_size=image_size).as_dataset()
    assert "used with a warning" not in caplog.text
    for split in jpeg:
        assert columns_of(other[split]).equals(columns_of(jpeg[split]))
        found = list(map(np.asarray, other[split]["image"]))
        assert max(map(distance, found, expected[split])) < 1


@pytest.mark.parametrize("image_size", [None, 30])
def test_mixed_formats_give_one_dataset_by_one_process_by_two_and_as_a_stream(image_size, root, tmp_path):
    replace_all(root, list(FORMATS))
    one = build(root, tmp_path / "one", image_size=image_size)
    two = build(root, tmp_path / "two", image_size=image_size, num_proc=2)
    stream = new_builder(root, tmp_path, image_size=image_size).as_streaming_dataset()
    for split in ("train", "validation", "test"):
        rows = one.as_dataset(split=split)
        assert rows.data.table.equals(two.as_dataset(split=split).data.table)
        streamed = list(stream[split])
        assert [row["dicom_id"] for row in streamed] == rows["dicom_id"][:]
        for number, row in enumerate(streamed):
            assert np.array_equal(np.asarray(row["image"]), np.asarray(rows[number]["image"]))


def test_jpeg_goes_before_a_file_of_another_format_beside_it(root, tmp_path):
    before = build(root, tmp_path, image_size=30)
    for path in image_paths(root):
        for suffix, write in FORMATS.values():
            if suffix != ".jpg":
                write(path.with_suffix(suffix), 255 - soft_picture())
    assert new_builder(root, tmp_path, image_size=30).cache_dir == before.cache_dir
    after = build(root, tmp_path / "after", image_size=30)
    assert after.as_dataset(split="train").data.table.equals(before.as_dataset(split="train").data.table)


def test_content_and_not_the_suffix_is_what_a_file_is_read_by(root, tmp_path):
    for number, path in enumerate(image_paths(root)):
        (write_dicom if number % 2 else lambda path, gray: path.write_bytes(encode_png(gray)))(
            path, picture(number)
        )
    for image_size in (None, 80):
        rows = build(root, tmp_path, image_size=image_size).as_dataset(split="train")
        for number, image in enumerate(rows["image"]):
            assert distance(np.asarray(image), picture(number)) < 1.5


# Bad and doubtful files -------------------------------------------------------------------------------------

CONSTANT = "all pixels are the same"
BAD = {
    "DICOM of colours": (".dcm", lambda path, gray: write_dicom(path, np.stack([gray] * 3, -1)), "in RGB"),
    "cut-off DICOM": (
        ".dcm",
        lambda path, gray: path.write_bytes(write_dicom(path, gray).read_bytes()[:-900]),
        "DICOM",
    ),
    "constant DICOM": (".dcm", lambda path, gray: write_dicom(path, 0 * gray + 9), CONSTANT),
    "constant PNG": (".png", writes(lambda gray: encode_png(0 * gray)), CONSTANT),
    "constant JPEG": (".jpg", writes(lambda gray: encode(0 * gray)), CONSTANT),
    "deep colours": (
        ".png",
        writes(lambda gray: encode_png(np.stack([gray] * 3, -1), RGB, depth=16)),
        "PNG of 16 bits with colours",
    ),
    "empty PNG": (".png", writes(lambda gray: b""), "empty"),
}


@pytest.mark.parametrize(("image_size", "num_proc"), [(None, None), (30, 2)])
@pytest.mark.parametrize("name", BAD)
def test_bad_file_ends_the_build_in_one_line_that_names_it(name, image_size, num_proc, root, tmp_path):
    suffix, write, reason = BAD[name]
    paths = image_paths(root)
    replace(paths, 5, suffix, write)
    message = refusal(
        lambda: build(root, tmp_path, image_size=image_size, num_proc=num_proc),
        f"{paths[5].with_suffix(suffix)} is a bad image (",
        reason,
        'skip such images with on_bad_image="skip"',
    )
    assert message.count(str(root)) == 1


@pytest.mark.parametrize("num_proc", [None, 2])
@pytest.mark.parametrize("image_size", [None, 30])
def test_skip_leaves_bad_files_of_every_format_out_and_lists_their_reasons(
    image_size, num_proc, root, tmp_path, caplog
):
    paths = image_paths(root)
    for number, (suffix, write, _) in enumerate(BAD.values()):
        replace(paths, number, suffix, write)
    paths[9].unlink()
    builder = build(root, tmp_path, on_bad_image="skip", image_size=image_size, num_proc=num_proc)
    assert len(builder.as_dataset(split="train")) == 12 - len(BAD) - 1
    listed = pd.read_csv(f"{builder._output_dir}/bad_images_train.csv")
    expected = [str(path.with_suffix(suffix)) for path, (suffix, _, _) in zip(paths, BAD.values())]
    assert listed["path"].tolist() == [*expected, str(paths[9])]
    for reason, (_, _, part) in zip(listed["reason"], BAD.values()):
        assert part in reason and str(root) not in reason
    assert "train: bad images skipped: 8 (7 damaged), see " in caplog.text
    assert "used with a warning" not in caplog.text


CT = "the header says modality CT"
DOUBTFUL = {
    2: (".dcm", lambda path, gray: write_dicom(path, gray, Modality="CT"), [CT]),
    3: (
        ".png",
        writes(lambda gray: encode_png(np.stack([gray, HALF_SEEN], -1), GRAY_ALPHA)),
        ["transparent parts of the image are drawn black"],
    ),
    5: (
        ".dcm",
        lambda path, gray: write_dicom(path, gray // 16, Modality="CT", BurnedInAnnotation="YES"),
        [
            CT,
            "the header says that text is burned into the image",
            "the image has only 16 gray levels",
        ],  # sorted
    ),
    8: (
        ".jpg",
        writes(lambda gray: encode(gray, icc_profile=b"some profile")),
        ["the image's colour profile is not applied"],
    ),
}


@pytest.mark.parametrize("num_proc", [None, 2])
@pytest.mark.parametrize("image_size", [None, 30])
def test_doubtful_files_are_kept_and_listed_with_each_warning(image_size, num_proc, root, tmp_path, caplog):
    paths = image_paths(root)
    for number, (suffix, write, _) in DOUBTFUL.items():
        replace(paths, number, suffix, write)
    builder = build(root, tmp_path, image_size=image_size, num_proc=num_proc)
    assert len(builder.as_dataset(split="train")) == 12
    listed = pd.read_csv(f"{builder._output_dir}/doubtful_images_train.csv")
    assert list(listed) == ["dicom_id", "path", "reason"]
    found = listed.groupby("path", sort=False)["reason"].apply(sorted).to_dict()
    assert found == {
        str(paths[number].with_suffix(suffix)): expected for number, (suffix, _, expected) in DOUBTFUL.items()
    }
    assert [path.name for path in tmp_path.rglob("*_images_*")] == ["doubtful_images_train.csv"]
    said = [one.getMessage() for one in caplog.records if "used with a warning" in one.getMessage()]
    assert said == [
        'train: images used with a warning: 4 (2 "the header says modality CT", 1 "transparent parts of the '
        'image are drawn black", 1 "the header says that text is burned into the image" and 2 more reasons), '
        f"see {builder._output_dir}/doubtful_images_train.csv"
    ]


def test_stream_says_each_warning_and_each_bad_file_in_the_log(root, tmp_path, caplog):
    paths = image_paths(root)
    for number, (suffix, write, _) in DOUBTFUL.items():
        replace(paths, number, suffix, write)
    replace(paths, 0, *BAD["constant PNG"][:2])
    builder = new_builder(root, tmp_path, on_bad_image="skip", image_size=30)
    assert len(list(builder.as_streaming_dataset(split="train"))) == 11
    for number, (suffix, _, expected) in DOUBTFUL.items():
        for warning in expected:
            path = paths[number].with_suffix(suffix)
            assert f"{path} is used with a warning: {warning}." in caplog.text
    assert f"{paths[0].with_suffix('.png')} is a bad image, skipped: all pixels are the same." in caplog.text
