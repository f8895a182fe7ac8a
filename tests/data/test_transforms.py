"""Image transforms: shapes, draws, timm's numbers, and the pixels of the stored image processor."""

import pickle

import numpy as np
import pytest
import torch
from cxr.data import transforms
from cxr.models.pretrained import load_image_processor
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import v2

SIZE = 32
ENHANCEMENTS = ("contrast", "brightness", "sharpness")


def gray_image(height: int = 48, width: int = 40, *, seed: int = 0) -> torch.Tensor:
    """Smooth shades and a little noise, (1, height, width) uint8."""
    rng = np.random.default_rng(seed)
    shades = np.add.outer(np.linspace(0, 150, height), np.linspace(0, 80, width))
    return torch.from_numpy((shades + rng.uniform(0, 25, shades.shape)).astype(np.uint8))[None]


def all_transforms() -> dict[str, torch.nn.Module]:
    crop = {"crop_scale": (0.2, 1.0)}
    training, pretraining = transforms.training_transform, transforms.pretraining_transform
    return {
        **{name: training(name, SIZE, random_erasing_prob=0.5, **crop) for name in transforms.AUGMENTATIONS},
        "evaluation": transforms.evaluation_transform(SIZE),
        "pretraining": pretraining(SIZE, horizontal_flip=True, **crop),
        "pretraining without flip": pretraining(SIZE, horizontal_flip=False, **crop),
    }


def apply(transform, image: torch.Tensor, *, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return transform(image)


@pytest.mark.parametrize("name", all_transforms())
@pytest.mark.parametrize("shape", [(48, 40), (33, 80), (32, 32), (20, 16)])
def test_output_is_a_square_gray_uint8_image(name, shape):
    transform = all_transforms()[name]
    for seed in range(5):
        result = apply(transform, gray_image(*shape), seed=seed)
        assert result.shape == (1, SIZE, SIZE) and result.dtype == torch.uint8


@pytest.mark.parametrize("name", all_transforms())
def test_same_seed_same_pixels_and_so_has_a_pickled_copy(name):
    transform = all_transforms()[name]
    copy = pickle.loads(pickle.dumps(transform))
    pixels = [apply(each, gray_image(), seed=3) for each in (transform, transform, copy)]
    assert torch.equal(pixels[0], pixels[1]) and torch.equal(pixels[0], pixels[2])


@pytest.mark.parametrize("name", ["classic", "mae", "pretraining", "pretraining without flip"])
def test_other_seeds_give_other_pixels(name):
    transform = all_transforms()[name]
    results = {apply(transform, gray_image(), seed=seed).numpy().tobytes() for seed in range(10)}
    assert len(results) == 10


def test_evaluation_and_none_draw_nothing():
    none = transforms.training_transform("none", SIZE, crop_scale=(0.2, 1.0), random_erasing_prob=0.0)
    for transform in (transforms.evaluation_transform(SIZE), none):
        state = torch.get_rng_state()
        transform(gray_image())
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("shape", [(64, 52), (37, 70), (SIZE, SIZE)])
def test_evaluation_gives_the_pixel_values_of_the_stored_image_processor(shape):
    image = gray_image(*shape)
    processor = load_image_processor(None, hub_dir=None, revision="main", image_size=SIZE)
    expected = processor(Image.fromarray(image[0].numpy()), return_tensors="pt").pixel_values
    normalize = transforms.Normalizer(processor.image_mean, processor.image_std, torch.device("cpu"))
    ours = normalize(transforms.evaluation_transform(SIZE)(image)[None])
    assert ours.shape == (1, 3, SIZE, SIZE)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_normalizer_gives_each_channel_its_own_statistics_and_inverts():
    images = torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8)
    normalize = transforms.Normalizer([0.0, 0.2, 0.5], [1.0, 0.5, 0.25], torch.device("cpu"))
    expected = torch.tensor([[[[0, 0.2, 1]], [[-0.4, 0, 1.6]], [[-2, -1.2, 2]]]])
    torch.testing.assert_close(normalize(images), expected)
    torch.testing.assert_close(normalize.invert(normalize(images)), images[:, 0] / 255)


# RandAugment


@pytest.mark.parametrize("operation", transforms.OPERATIONS)
@pytest.mark.parametrize("strength", [0.6, 0.9, 1.0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_each_operation_keeps_shape_and_type_and_its_input(operation, strength, sign):
    image = gray_image()
    before = image.clone()
    result = transforms.apply_operation(operation, image, strength, sign)
    assert result.shape == image.shape and result.dtype == torch.uint8
    assert torch.equal(image, before)


def test_each_of_timms_15_operations_is_applied_half_of_the_time_at_about_magnitude_9(monkeypatch):
    def note(operation, image, strength, sign):
        calls.append((transforms.OPERATIONS.index(operation), strength, sign))
        return image

    calls, numbers = [], []
    monkeypatch.setattr(transforms, "apply_operation", note)
    torch.manual_seed(0)
    for _ in range(4000):
        before = len(calls)
        transforms.RandAugment()(torch.zeros(1, 4, 4, dtype=torch.uint8))
        numbers.append(len(calls) - before)
    shares = np.bincount(numbers, minlength=3) / len(numbers)
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.025)
    chosen, strengths, signs = map(np.array, zip(*calls))
    assert np.bincount(chosen) / len(chosen) == pytest.approx(np.full(15, 1 / 15), abs=0.015)
    assert (strengths.mean(), strengths.std()) == pytest.approx((0.9, 0.05), abs=0.01)
    assert strengths.max() <= 1.0
    assert (signs == 1).mean() == pytest.approx(0.5, abs=0.03) and set(signs) == {-1, 1}


def test_a_name_of_timm_decides_the_number_of_operations_and_their_magnitude(monkeypatch):
    strengths, numbers = [], []

    def note(operation, image, strength, sign):
        strengths.append(strength)
        return image

    monkeypatch.setattr(transforms, "apply_operation", note)
    torch.manual_seed(0)
    for _ in range(1000):
        before = len(strengths)
        transforms.RandAugment("rand-m6-n3-mstd0.5-inc1")(torch.zeros(1, 4, 4, dtype=torch.uint8))
        numbers.append(len(strengths) - before)
    assert max(numbers) == 3 and np.mean(numbers) == pytest.approx(1.5, abs=0.1)
    assert (np.mean(strengths), np.std(strengths)) == pytest.approx((0.6, 0.05), abs=0.01)
    exact = transforms.RandAugment("rand-m7-inc1")
    assert (exact.magnitude, exact.magnitude_std, exact.num_operations) == (7.0, 0.0, 2)


def every_gray() -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8).view(1, 16, 16)


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("posterize", [0] * 128 + [128] * 128),  # one bit is left
        ("solarize", [*range(26), *range(229, -1, -1)]),
        ("solarize_add", [*range(99, 99 + 128), *range(128, 256)]),
        ("color", list(range(256))),
    ],
)
def test_what_becomes_of_every_gray_at_strength_09(operation, expected):
    grays = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    assert transforms.apply_operation(operation, grays, 0.9, 1).flatten().tolist() == expected


def shear(angle, translate, scale, angles):
    return np.tan(np.radians(angles)).tolist()


@pytest.mark.parametrize(
    ("operation", "function", "value", "expected"),
    [
        ("rotate", "rotate", lambda angle: angle, [27.0, -27.0, 30.0, -30.0]),
        *[(name, f"adjust_{name}", lambda by: by, [1.81, 0.19, 1.9, 0.1]) for name in ENHANCEMENTS],
        ("shear_x", "affine", lambda *args: shear(*args)[0], [0.27, -0.27, 0.3, -0.3]),
        ("shear_y", "affine", lambda *args: shear(*args)[1], [0.27, -0.27, 0.3, -0.3]),
    ],
)
def test_operations_are_as_strong_as_timms(monkeypatch, operation, function, value, expected):
    found = []
    monkeypatch.setattr(transforms.F, function, lambda image, *args, **_: found.append(value(*args)))
    for strength, sign in ((0.9, 1), (0.9, -1), (1.0, 1), (1.0, -1)):
        transforms.apply_operation(operation, gray_image(), strength, sign)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(("sign", "shift"), [(1, (40, 81)), (-1, (-40, -81))])
def test_translation_at_strength_09_moves_whole_pixels_by_0405_of_the_side(sign, shift):
    image = gray_image(200, 100)
    across, down = shift
    by_column, by_row = (transforms.apply_operation(f"translate_{axis}", image, 0.9, sign) for axis in "xy")
    uncovered_columns, uncovered_rows = (slice(0, s) if s > 0 else slice(s, None) for s in shift)
    expected_columns, expected_rows = image.roll(across, dims=2), image.roll(down, dims=1)
    expected_columns[:, :, uncovered_columns] = transforms.FILL
    expected_rows[:, uncovered_rows] = transforms.FILL
    assert torch.equal(by_column, expected_columns)
    assert torch.equal(by_row, expected_rows)


# Random resized crop


def crops(*, scale: tuple[float, float], height: int, width: int, num_images: int = 400) -> np.ndarray:
    """The rectangles (num_images, 4) drawn: top, left, height, width."""
    crop = transforms.RandomResizedCrop(32, scale)
    torch.manual_seed(0)
    return np.array([crop._draw(height, width) for _ in range(num_images)])


def test_crops_lie_inside_the_image_with_shares_and_shapes_as_asked():
    top, left, height, width = crops(scale=(0.2, 1.0), height=300, width=240).T
    assert min(top) >= 0 and min(left) >= 0
    assert max(top + height) <= 300 and max(left + width) <= 240
    share, aspect = height * width / (300 * 240), width / height
    assert 0.19 < share.min() < 0.25 and 0.9 < share.max() <= 1
    assert (aspect.min(), aspect.max()) == pytest.approx((3 / 4, 4 / 3), rel=0.02)


def test_crops_are_distributed_as_torchvisions():
    ours = crops(scale=(0.08, 1.0), height=256, width=300, num_images=3000)
    theirs = v2.RandomResizedCrop(32, scale=(0.08, 1.0))
    drawn = [theirs.make_params([torch.empty(1, 256, 300)]) for _ in range(3000)]
    theirs = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in drawn])
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 0.001


def test_where_no_crop_of_that_area_fits_the_largest_in_the_middle_is_taken():
    assert crops(scale=(1.0, 1.0), height=300, width=30, num_images=1).tolist() == [[130, 0, 40, 30]]


def test_a_crop_of_the_whole_image_is_a_bicubic_resize():
    image = gray_image(64, 64)
    resized = v2.functional.resize(
        image, [32, 32], interpolation=v2.InterpolationMode.BICUBIC, antialias=True
    )
    crop = transforms.RandomResizedCrop(32, (1.0, 1.0))
    crop._draw = lambda height, width: (0, 0, height, width)
    assert torch.equal(crop(image), resized)


# Random erasing


def erased_boxes(probability: float, *, num_images: int, size: int = 64) -> list[tuple[int, int]]:
    """Height and width of the rectangle of each image in which anything changed."""
    erase = transforms.RandomErasing(probability)
    image = torch.full((1, size, size), 7, dtype=torch.uint8)
    torch.manual_seed(0)
    boxes = []
    for _ in range(num_images):
        changed = (erase(image)[0] != 7).nonzero()
        if len(changed):
            boxes.append(tuple((changed.max(0).values - changed.min(0).values + 1).tolist()))
    assert (image == 7).all()
    return boxes


def test_random_erasing_has_its_probability():
    assert len(erased_boxes(0.25, num_images=2000)) / 2000 == pytest.approx(0.25, abs=0.03)
    assert len(erased_boxes(0.0, num_images=50)) == 0
    assert len(erased_boxes(1.0, num_images=200)) == 200


def test_random_erasing_covers_2_to_33_percent_with_aspects_from_03_to_33():
    heights, widths = np.array(erased_boxes(1.0, num_images=1000)).T
    areas, aspects = heights * widths / 64**2, heights / widths
    assert 0.015 < areas.min() < 0.04 and 0.28 < areas.max() < 0.345
    assert 0.25 < aspects.min() < 0.5 and 2 < aspects.max() < 4


def test_random_erasing_fills_with_noise_like_the_data():
    erase = transforms.RandomErasing(1.0)
    image = torch.full((1, 256, 256), 255, dtype=torch.uint8)
    torch.manual_seed(0)
    noise = torch.cat([values[values != 255] for values in (erase(image).float() for _ in range(20))]) / 255
    assert noise.mean().item() == pytest.approx(transforms.GRAY_MEAN, abs=0.02)
    assert noise.std().item() == pytest.approx(transforms.GRAY_STD, abs=0.03)
