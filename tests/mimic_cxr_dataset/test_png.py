"""PNG files: what header, blocks and transparency do to the pixels; what is doubted, and what is refused."""

import struct
import zlib

import numpy as np
import pytest
from picture_files import GRAY
from picture_files import GRAY_ALPHA
from picture_files import OTHER_PROFILE
from picture_files import PALETTE
from picture_files import RGB
from picture_files import RGBA
from picture_files import SRGB_PROFILE
from picture_files import distance
from picture_files import encode
from picture_files import encode_png
from picture_files import exif_of
from picture_files import png_block
from picture_files import read_pixels
from picture_files import soft_picture

from mimic_cxr_dataset.errors import DatasetError
from mimic_cxr_dataset.gray_levels import equalize
from mimic_cxr_dataset.gray_levels import scale_to_8_bits
from mimic_cxr_dataset.radiographs import shrink_radiograph

PICTURE = soft_picture()
FULL = np.full_like(PICTURE, 255)
TWELVE_BITS = PICTURE.astype(np.uint16) * 16
FALLING = png_block(b"PLTE", bytes(value for level in range(255, -1, -1) for value in [level] * 3))


def stacked(*channels):
    return np.stack(channels, axis=-1)


@pytest.fixture
def write(tmp_path):
    def write(content, name="a.png"):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


# Depths and colours -----------------------------------------------------------------------------------------

# Channels of 8 bits, how they are stored, and the blocks before them.
COLOURS = {
    "gray": (GRAY, PICTURE, b""),
    "gray and opaque alpha": (GRAY_ALPHA, stacked(PICTURE, FULL), b""),
    "RGB": (RGB, stacked(PICTURE, PICTURE, PICTURE), b""),
    "RGB and opaque alpha": (RGBA, stacked(PICTURE, PICTURE, PICTURE, FULL), b""),
    "palette": (PALETTE, 255 - PICTURE, FALLING),
    "palette and opaque alpha": (PALETTE, 255 - PICTURE, FALLING + png_block(b"tRNS", b"\xff" * 256)),
}


@pytest.mark.parametrize("name", COLOURS)
@pytest.mark.parametrize("side", [None, 30])
def test_gray_in_every_kind_of_colours_gives_the_same_picture_without_a_word(name, side, write):
    colours, pixels, blocks = COLOURS[name]
    expected = read_pixels(write(encode_png(PICTURE), "plain.png"), side)
    found = read_pixels(write(encode_png(pixels, colours, before=blocks)), side)
    assert np.array_equal(found[0], expected[0]) and found[1] == ()
    jpeg, _ = read_pixels(write(encode(PICTURE), "a.jpg"), side)
    assert distance(expected[0], jpeg) < 1.5


@pytest.mark.parametrize("colours", [GRAY, PALETTE])
@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_few_bits_are_stretched_to_the_whole_range_and_few_gray_levels_are_warned_about(
    depth, colours, write
):
    levels = PICTURE >> (8 - depth)
    expected = levels * (255 // (2**depth - 1))
    palette = png_block(b"PLTE", np.repeat(np.unique(expected), 3).astype(np.uint8).tobytes())
    content = encode_png(levels, colours, depth=depth, before=palette if colours == PALETTE else b"")
    found, warnings = read_pixels(write(content))
    assert distance(found, expected) < (4 if depth == 1 else 2)
    assert warnings == (() if depth == 8 else (f"the image has only {2**depth} gray levels",))


def test_gray_of_16_bits_is_scaled_from_its_lowest_to_its_highest_value_and_equalised_if_asked(write):
    path = write(encode_png(TWELVE_BITS + 200, depth=16))
    for asked, expected in ((False, PICTURE), (True, equalize(PICTURE))):
        for equalizes_8_bits in (False, True):  # which is not about it
            found, warnings = read_pixels(path, equalizes=asked, equalizes_8_bits=equalizes_8_bits)
            assert distance(found, expected) < 1.5 and warnings == ()
    assert np.array_equal(scale_to_8_bits(TWELVE_BITS + 200), PICTURE)


def test_picture_of_8_bits_is_equalised_only_if_that_is_asked_of_such_ones(write):
    path = write(encode_png(PICTURE))
    for equalizes in (False, True):
        assert distance(read_pixels(path, equalizes=equalizes)[0], PICTURE) < 1.5
        both = {"equalizes": equalizes, "equalizes_8_bits": True}
        assert distance(read_pixels(path, **both)[0], equalize(PICTURE)) < 1.5


def test_few_levels_are_counted_before_the_equalising_and_after_the_scaling(write):
    few = (np.minimum(PICTURE // 16, 15)).astype(np.uint16)
    for equalizes in (False, True):
        for content in (encode_png(few * 4000, depth=16), encode_png(few)):
            _, warnings = read_pixels(write(content), equalizes=equalizes, equalizes_8_bits=equalizes)
            assert warnings == ("the image has only 16 gray levels",)
    assert read_pixels(write(encode_png(PICTURE // 15)))[1] == ()  # 18


# Transparency -----------------------------------------------------------------------------------------------

HALF = np.where(np.arange(60) < 30, 255, 0) + 0 * PICTURE
DRAWN = np.where(HALF > 0, PICTURE, 0)
MIDDLE = int(PICTURE[40, 30])
TRANSPARENT = {
    "gray and alpha": (encode_png(stacked(PICTURE, HALF), GRAY_ALPHA), DRAWN),
    "RGB and alpha": (encode_png(stacked(PICTURE, PICTURE, PICTURE, HALF), RGBA), DRAWN),
    "one gray": (
        encode_png(PICTURE, before=png_block(b"tRNS", bytes([0, MIDDLE]))),
        np.where(PICTURE == MIDDLE, 0, PICTURE),
    ),
    "one colour": (
        encode_png(
            stacked(PICTURE, PICTURE, PICTURE), RGB, before=png_block(b"tRNS", bytes([0, MIDDLE] * 3))
        ),
        np.where(PICTURE == MIDDLE, 0, PICTURE),
    ),
    "one of two grays": (
        encode_png(PICTURE >> 7, depth=1, before=png_block(b"tRNS", bytes([0, 0]))),
        255 * (PICTURE >> 7),
    ),
    "entries of a palette": (
        encode_png(
            255 - PICTURE, PALETTE, before=FALLING + png_block(b"tRNS", bytes([0] * 100 + [255] * 156))
        ),
        np.where(PICTURE > 155, 0, PICTURE),
    ),
    "half": (encode_png(stacked(PICTURE, HALF // 2 + 128), GRAY_ALPHA), np.where(HALF, PICTURE, PICTURE / 2)),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparent_parts_are_drawn_over_black_with_a_warning(name, write):
    content, expected = TRANSPARENT[name]
    found, warnings = read_pixels(write(content))
    assert distance(found, expected) < 4
    assert warnings[0] == "transparent parts of the image are drawn black"


# Blocks -----------------------------------------------------------------------------------------------------


def gamma(value):
    return png_block(b"gAMA", struct.pack(">I", round(100_000 * value)))


def profile(content):
    return png_block(b"iCCP", b"any name\0\0" + (zlib.compress(content) if content else b"garbage"))


def density(across, down):
    return png_block(b"pHYs", struct.pack(">IIB", across, down, 1))


SRGB = png_block(b"sRGB", b"\0")
NO_GAMMA, NO_PROFILE = "the image's gamma is not applied", "the image's colour profile is not applied"
NOT_SQUARE = "the image's pixels are not square, but are used as if they were"
BLOCKS = {
    "gamma of screens": (gamma(1 / 2.2), None),
    "gamma of 0, which is none": (gamma(0), None),
    "linear": (gamma(1), NO_GAMMA),
    "gamma of a Macintosh": (gamma(1 / 1.8), NO_GAMMA),
    "gamma that sRGB overrules": (gamma(1) + SRGB, None),
    "sRGB": (SRGB, None),
    "gamma, and texts that are named like blocks": (
        gamma(1) + png_block(b"tEXt", b"srgb\x000") + png_block(b"tEXt", b"gamma\x000.45455"),
        NO_GAMMA,
    ),
    "text that is named like a block": (png_block(b"tEXt", b"gamma\x00of the monitor: cICP"), None),
    "code points of a video": (png_block(b"cICP", bytes([9, 16, 0, 1])), NO_GAMMA),
    "sRGB profile": (profile(SRGB_PROFILE), None),
    "sRGB profile with text of two bytes a letter": (profile(b"x" + "sRGB".encode("utf-16-be")), None),
    "gray profile": (profile(b"Generic Gray Gamma 2.2 Profile"), None),
    "linear profile": (profile(b"built-in Linear sRGB"), NO_PROFILE),
    "other profile": (profile(OTHER_PROFILE), NO_PROFILE),
    "damaged profile": (profile(b""), NO_PROFILE),
    "square pixels": (density(2835, 2834), None),
    "pixels of no size": (density(0, 3), None),
    "pixels that are not square": (density(3000, 2000), NOT_SQUARE),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_block_that_would_change_the_brightness_or_shape_on_a_screen_is_doubted(name, write):
    blocks, warning = BLOCKS[name]
    for content in (encode_png(PICTURE, before=blocks), encode_png(TWELVE_BITS, depth=16, before=blocks)):
        found, warnings = read_pixels(write(content), equalizes=False)
        assert distance(found, PICTURE) < 1.5
        assert warnings == (() if warning is None else (warning,))


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8, 77])
def test_orientation_before_or_after_the_pixels_turns_the_picture_as_it_does_a_jpegs(
    place, orientation, write
):
    exif = exif_of(orientation)
    block = png_block(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    png, warnings = read_pixels(write(encode_png(PICTURE, **{place: block})), 30)
    jpeg, _ = read_pixels(write(encode(PICTURE, exif=exif), "a.jpg"), 30)
    assert distance(png, jpeg) < 1.5 and warnings == ()
    assert png.shape == ((30, 40) if orientation in (6, 8) else (40, 30))


# Refusals ---------------------------------------------------------------------------------------------------


def animation(num_frames):
    return png_block(b"acTL", struct.pack(">II", num_frames, 0))


FRAME = png_block(b"fcTL", struct.pack(">IIIIIHHBB", 0, 60, 80, 0, 0, 1, 1, 0, 0))
TOO_DEEP = "PNG of 16 bits with colours or transparency, expected plain gray, or 8 bits"
REFUSED = {
    "RGB of 12 in 16 bits": (encode_png(stacked(*[TWELVE_BITS] * 3), RGB, depth=16), TOO_DEEP),
    "RGBA of 16 bits": (encode_png(stacked(*[TWELVE_BITS] * 4), RGBA, depth=16), TOO_DEEP),
    "gray and alpha of 16 bits": (
        encode_png(stacked(TWELVE_BITS, TWELVE_BITS), GRAY_ALPHA, depth=16),
        TOO_DEEP,
    ),
    "one transparent gray of 16 bits": (
        encode_png(TWELVE_BITS, depth=16, before=png_block(b"tRNS", b"\0\0")),
        TOO_DEEP,
    ),
    "one transparent gray of 4 bits": (
        encode_png(PICTURE >> 4, depth=4, before=png_block(b"tRNS", b"\0\x07")),
        "PNG of 4 bits with colours or transparency",
    ),
    "animation": (encode_png(PICTURE, before=animation(3) + FRAME), "PNG with 3 images, expected one"),
    "animation after a still picture": (
        encode_png(PICTURE, before=animation(1), after=FRAME),
        "PNG with 2 images, expected one",
    ),
    "constant": (encode_png(0 * PICTURE + 7), "all pixels are the same"),
    "constant of 16 bits": (encode_png(0 * TWELVE_BITS + 900, depth=16), "all pixels are the same"),
    "constant of 1 bit": (encode_png(0 * PICTURE + 1, depth=1), "all pixels are the same"),
    "all transparent": (encode_png(stacked(PICTURE, 0 * PICTURE), GRAY_ALPHA), "all pixels are the same"),
    "palette of one gray": (
        encode_png(PICTURE, PALETTE, before=png_block(b"PLTE", b"\x80" * 768)),
        "all pixels are the same",
    ),
    "no palette": (encode_png(PICTURE, PALETTE), "unreadable"),
    "empty profile after the pixels": (encode_png(PICTURE, after=png_block(b"iCCP")), "unreadable"),
    "no pixels": (encode_png(PICTURE)[:33] + png_block(b"IEND"), "cannot load this image"),
    "cut in the pixels": (encode_png(PICTURE)[:2000], "truncated"),
    "cut in the header": (encode_png(PICTURE)[:20], "."),
    "absurd size": (
        encode_png(PICTURE).replace(struct.pack(">II", 60, 80), struct.pack(">II", 10**9, 10**9)),
        ".",
    ),
    "second header that says 16 bits": (
        encode_png(PICTURE, before=png_block(b"IHDR", struct.pack(">IIBBBBB", 10, 80, 16, RGB, 0, 0, 0))),
        "with colours or transparency, expected plain gray, or 8 bits",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("side", [None, 30])
def test_png_that_would_lose_its_meaning_is_refused_in_one_line(name, side, write):
    content, reason = REFUSED[name]
    with pytest.raises(DatasetError, match=reason) as error:
        shrink_radiograph(write(content), side)
    assert "\n" not in str(error.value)


def test_animation_of_one_image_is_that_image(write):
    found, warnings = read_pixels(write(encode_png(PICTURE, before=animation(1) + FRAME)))
    assert distance(found, PICTURE) < 1.5 and warnings == ()
