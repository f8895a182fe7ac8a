"""How the images of an optimizer step are divided among passes and processes."""

import pytest
from cxr.training.step_size import StepFlags
from cxr.training.step_size import divide_step


def refuse(limit: int) -> int:
    raise AssertionError("the device was measured")


def resolve(per_device: int | str, *, num_passes: int = 1, images_per_step: int | None = None, **changes):
    flags = StepFlags(per_device=per_device, num_passes=num_passes, images_per_step=images_per_step)
    options = {
        "num_images": 1000,
        "num_processes": 1,
        "resumed_images_per_step": None,
        "find_largest": refuse,
    }
    return flags.resolve(**options | changes)


def test_a_number_is_taken_as_it_is():
    step = resolve(32, num_passes=2, num_processes=3)
    assert (step.per_device, step.num_passes, step.images_per_step) == (32, 2, 192)


def test_a_resumed_run_keeps_the_steps_that_it_began_with():
    assert resolve("auto", num_passes=2, resumed_images_per_step=96).per_device == 48


def test_the_images_asked_for_are_accumulated():
    step = resolve(32, images_per_step=256, num_processes=2)
    assert (step.per_device, step.num_passes, step.images_per_step) == (32, 4, 256)


@pytest.mark.parametrize("num_images", [1, 5, 31, 32, 33, 65, 101, 128, 1023])
@pytest.mark.parametrize("most", [1, 8, 32, 2000])
def test_a_step_has_at_most_the_training_images_and_never_more_than_fit(num_images, most):
    step = resolve(most, images_per_step=1024, num_images=num_images)
    assert step.images_per_step <= num_images < step.images_per_step + step.num_passes
    assert step.per_device <= most


def test_one_image_per_pass_gives_no_more_than_the_images_asked_for():
    step = resolve(1, images_per_step=5, num_processes=2)
    assert (step.num_passes, step.images_per_step) == (2, 4)


def test_a_batch_that_fits_has_one_pass():
    assert resolve(64, images_per_step=20).num_passes == 1


@pytest.mark.parametrize(
    ("before", "most", "num_processes"),
    [(63, 32, 1), (63, 40, 1), (64, 32, 2), (1023, 32, 3), (1023, 500, 1), (96, 7, 4)],
)
def test_a_resumed_run_divides_the_same_images_on_any_device(before, most, num_processes):
    options = {"num_processes": num_processes, "resumed_images_per_step": before, "num_images": 5000}
    step = resolve(most, images_per_step=before + 1, **options)
    assert step.images_per_step == before
    assert step.per_device <= most


@pytest.mark.parametrize(
    ("total", "most", "num_processes"),
    [(1024, 120, 1), (1050, 120, 3), (1024, 113, 2), (256, 24, 2), (1024, 8, 4)],
)
def test_a_step_has_all_images_where_at_most_twice_the_passes_divide_them(total, most, num_processes):
    step = resolve(most, images_per_step=total, num_processes=num_processes, num_images=5000)
    assert step.images_per_step == total and step.per_device <= most
    assert step.num_passes <= 2 * -(-total // (most * num_processes))


def test_a_prime_number_of_images_is_not_divided_into_passes_of_one():
    step = resolve(32, images_per_step=1024, num_images=1021)
    assert (step.per_device, step.num_passes) == (31, 32)


def test_the_same_flags_divide_a_resumed_step_as_at_the_first_start():
    for total in range(1, 300):
        for most in (1, 7, 32):
            first = resolve(most, images_per_step=total)
            again = resolve(most, images_per_step=total, resumed_images_per_step=first.images_per_step)
            assert again == first


def test_auto_is_measured_up_to_the_images_asked_for():
    limits = []

    def find(limit: int) -> int:
        limits.append(limit)
        return 24

    step = resolve("auto", images_per_step=256, num_processes=2, find_largest=find)
    assert limits == [128]
    assert (step.per_device, step.num_passes) == (16, 8)
    assert resolve("auto", num_passes=2, find_largest=find).per_device == 24 and limits[-1] == 500


def test_a_step_is_said_in_words():
    step = divide_step(128, most_per_device=32, num_processes=1)
    said = "32 images x 4 accumulations = 128 images per step"
    assert step.describe(128, num_images=500) == said
    assert step.describe(1024, num_images=128) == (
        f"{said} (the 1,024 asked for are more than the 128 training images)"
    )
    several = divide_step(32, most_per_device=32, num_processes=2).describe(32, num_images=32)
    assert several == "16 images x 2 processes = 32 images per step"
    prime = resolve(32, images_per_step=1024, num_images=1021)
    assert prime.describe(1024, num_images=1021).endswith(
        "= 992 images per step (the 1,024 asked for are more than the 1,021 training images; 1,021 cannot be "
        "divided equally)"
    )
