"""JPEG files: shrunk as full decoding shows them, upright and gray; what is doubted, and what is refused."""

import io

import numpy as np
import pytest
from picture_files import OTHER_PROFILE
from picture_files import SRGB_PROFILE
from picture_files import distance
from picture_files import encode
from picture_files import exif_of
from picture_files import read_pixels
from picture_files import soft_picture
from PIL import Image
from PIL import ImageOps

from mimic_cxr_dataset import radiographs
from mimic_cxr_dataset.errors import DatasetError
from mimic_cxr_dataset.gray_levels import equalize
from mimic_cxr_dataset.radiographs import check_jpeg

PICTURE = soft_picture()
SIDES = [None, 30, 1000]


@pytest.fixture
def write(tmp_path):
    def write(content):
        (tmp_path / "a.jpg").write_bytes(content)
        return tmp_path / "a.jpg"

    return write


# Shrinking --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_size", [224, 256, 512])
def test_shrunk_full_size_radiograph_is_within_40_db_of_full_decoding(tmp_path, image_size):
    y, x = np.mgrid[0:3056, 0:2544].astype("float32")
    smooth = 128 + 70 * np.sin(x / 260) + 50 * np.cos(y / 310)
    noise = np.random.default_rng(0).normal(0, 6, smooth.shape).astype("float32")
    ribs = 8 * np.sin((y + x / 3) / 12)
    image = Image.fromarray((smooth + noise + ribs).clip(0, 255).astype("uint8"))
    image.save(tmp_path / "a.jpg", quality=85)
    shrunk = Image.open(
        io.BytesIO(radiographs.shrink_radiograph(str(tmp_path / "a.jpg"), image_size).content)
    )
    with Image.open(tmp_path / "a.jpg") as original:
        reference = original.resize(shrunk.size, Image.Resampling.LANCZOS)
    assert min(shrunk.size) == image_size
    assert shrunk.size == (image_size, round(image_size * 3056 / 2544))
    error = np.asarray(shrunk, dtype=float) - np.asarray(reference, dtype=float)
    assert 10 * np.log10(255**2 / np.square(error).mean()) >= 40


@pytest.mark.parametrize("size", [(40, 48), (48, 40), (3000, 20), (64, 64)])
@pytest.mark.parametrize("image_size", [8, 20, 33, 64])
def test_shortest_side_is_image_size_and_nothing_is_enlarged(tmp_path, size, image_size):
    Image.linear_gradient("L").resize(size).save(tmp_path / "a.jpg")
    content = radiographs.shrink_radiograph(str(tmp_path / "a.jpg"), image_size).content
    shrunk = Image.open(io.BytesIO(content))
    assert shrunk.mode == "L"
    assert min(shrunk.size) == min(image_size, *size)
    assert max(shrunk.size) == pytest.approx(max(size) * min(shrunk.size) / min(size), rel=0.01, abs=0.51)
    if image_size >= min(size):
        assert content == (tmp_path / "a.jpg").read_bytes()  # not compressed twice


# What changes the pixels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_is_turned_upright(orientation, side, write):
    exif = exif_of(orientation)
    upright = Image.fromarray(PICTURE)
    upright.getexif()[0x0112] = orientation
    upright = ImageOps.exif_transpose(upright)
    found, warnings = read_pixels(write(encode(PICTURE, exif=exif)), side)
    if side == 30:
        upright = upright.resize(found.shape[::-1], Image.Resampling.LANCZOS)
    assert distance(found, np.asarray(upright)) < 2 and warnings == ()


@pytest.mark.parametrize("side", SIDES)
def test_histogram_is_equalised_at_full_size_if_that_is_asked_of_pictures_of_8_bits(side, write):
    path = write(encode(PICTURE))
    with Image.open(path) as image:
        equalized = Image.fromarray(equalize(np.asarray(image)))
    if side == 30:
        equalized = equalized.resize((30, 40), Image.Resampling.LANCZOS)
    found, warnings = read_pixels(path, side, equalizes=False, equalizes_8_bits=True)
    assert distance(found, np.asarray(equalized)) < 1.5 and warnings == ()
    assert distance(found, read_pixels(path, side)[0]) > 10


# What is doubted --------------------------------------------------------------------------------------------


def coloured(share):
    """The picture as RGB with a red part."""
    pixels = np.stack([PICTURE] * 3, axis=-1)
    pixels[: round(80 * share**0.5), : round(60 * share**0.5)] = (200, 30, 30)
    return Image.fromarray(pixels)


GRAY = Image.fromarray(PICTURE)
TINTED = Image.merge("RGB", [GRAY, GRAY, GRAY.point(lambda level: level * 0.9)])
COLOURS = "the image has colours, which become gray"
NO_PROFILE = "the image's colour profile is not applied"
NOT_SQUARE = "the image's pixels are not square, but are used as if they were"
DOUBTED = {
    "gray": (encode(GRAY), None),
    "gray in RGB": (encode(GRAY.convert("RGB")), None),
    "gray in CMYK": (encode(GRAY.convert("CMYK")), None),
    "tint of paper": (encode(TINTED), None),
    "colours": (encode(coloured(1 / 4)), COLOURS),
    "colours in CMYK": (encode(coloured(1 / 4).convert("CMYK")), COLOURS),
    "letter in colours": (encode(coloured(1 / 400)), None),
    "sRGB profile": (encode(GRAY, icc_profile=SRGB_PROFILE), None),
    "other profile": (encode(GRAY, icc_profile=OTHER_PROFILE), NO_PROFILE),
    "square pixels": (encode(GRAY, dpi=(300, 300)), None),
    "pixels that are not square": (encode(GRAY, dpi=(300, 200)), NOT_SQUARE),
}


@pytest.mark.parametrize("name", DOUBTED)
@pytest.mark.parametrize("use", ["full", "shrunk", "checked"])
def test_colours_profile_and_shape_of_pixels_are_doubted_where_they_matter(use, name, write):
    content, warning = DOUBTED[name]
    path = write(content)
    warnings = (
        check_jpeg(path) if use == "checked" else read_pixels(path, {"full": None, "shrunk": 30}[use])[1]
    )
    assert warnings == (() if warning is None else (warning,))


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
@pytest.mark.parametrize("side", SIDES)
def test_gray_in_colours_is_the_gray(mode, side, write):
    found, _ = read_pixels(write(encode(GRAY.convert(mode), subsampling=0)), side)
    assert distance(found, read_pixels(write(encode(GRAY)), side)[0]) < 1.5


# What is refused --------------------------------------------------------------------------------------------

CONSTANT = Image.fromarray(0 * PICTURE + 90)
REFUSED = {
    "several images": (
        encode(GRAY, "MPO", save_all=True, append_images=[CONSTANT]),
        "JPEG with 2 images, expected one",
    ),
    "12 bits": (
        encode(GRAY).replace(b"\xff\xc0\x00\x0b\x08", b"\xff\xc0\x00\x0b\x0c"),
        "not a JPEG image of 8 bits per channel",
    ),
    "constant": (encode(CONSTANT), "all pixels are the same"),
    "constant in RGB": (encode(CONSTANT.convert("RGB")), "all pixels are the same"),
    "constant in CMYK": (encode(CONSTANT.convert("CMYK")), "all pixels are the same"),
    "constant colour": (encode(Image.new("RGB", (60, 80), (200, 30, 30))), "all pixels are the same"),
    "large and constant": (encode(CONSTANT.resize((600, 800))), "all pixels are the same"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("use", ["full", "shrunk", "equalised", "checked"])
def test_jpeg_that_is_no_picture_is_refused_in_one_line(use, name, write):
    content, reason = REFUSED[name]
    path = write(content)
    options = {"full": {}, "shrunk": {"shortest_side": 30}, "equalised": {"equalizes_8_bits": True}}
    with pytest.raises(DatasetError, match=reason) as error:
        check_jpeg(path) if use == "checked" else read_pixels(path, **options[use])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("use", [check_jpeg, lambda path: radiographs.shrink_radiograph(path, 20)])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_cut_jpeg_that_is_filled_up_with_zeros_is_refused(use, share, write):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
    content = encode(noise, quality=95)
    num_kept = int(share * len(content))
    with pytest.raises(DatasetError, match="no end-of-image marker: the file is cut off"):
        use(write(content[:num_kept] + bytes(len(content) - num_kept)))
    use(write(content + bytes(1000)))
    use(write(content + b"a text behind the end" * 500))


def test_picture_that_looks_constant_only_at_an_eighth_is_used(write):
    """Every block of 8 x 8 pixels has the same mean."""
    checkered = np.where(np.indices((512, 512)).sum(axis=0) % 2, 100, 156).astype(np.uint8)
    path = write(encode(checkered))
    with Image.open(path) as image:
        image.draft(None, (1, 1))
        assert np.ptp(np.asarray(image)) == 0
    assert check_jpeg(path) == ()
    assert read_pixels(path, 50)[0].shape == (50, 50)
