"""Training samples: nested, by patient, stratified, functions of the seed."""

import itertools
import time

import numpy as np
import pytest
from cxr.choices import MASKED
from cxr.data.subsets import draw_sample
from cxr.data.subsets import sample_order
from cxr.data.subsets import sample_record

SEEDS = (0, 1, 2)


def make_table(num_images: int, *, seed: int, max_per_patient: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Subject ids and labels of a made-up train split: 3.7 images a patient, whose labels go together."""
    rng = np.random.default_rng(seed)
    sizes = np.minimum(rng.geometric(1 / 3.7, size=num_images), max_per_patient)
    subject_ids = np.repeat(10_000_000 + rng.permutation(num_images), sizes)[:num_images]
    how_ill = np.repeat(rng.beta(0.6, 0.4, size=num_images), sizes)[:num_images]
    rows = rng.permutation(num_images)
    return subject_ids[rows], (rng.random(num_images) < how_ill).astype(int)[rows]


@pytest.fixture(scope="module", params=SEEDS)
def table(request):
    return request.param, *make_table(20_000, seed=request.param)


def test_smaller_samples_are_part_of_larger_ones(table):
    seed, subject_ids, labels = table
    sizes = (1, 200, 1_000, 10_000, len(labels))
    samples = [set(draw_sample(subject_ids, labels, num_samples=size, seed=seed)) for size in sizes]
    assert [len(sample) for sample in samples] == list(sizes)
    assert all(small < large for small, large in itertools.pairwise(samples))


def test_a_sample_is_in_the_order_of_the_table(table):
    seed, subject_ids, labels = table
    sample = draw_sample(subject_ids, labels, num_samples=1_000, seed=seed)
    everything = draw_sample(subject_ids, labels, num_samples=None, seed=seed)
    assert (np.diff(sample) > 0).all() and everything.tolist() == list(range(len(labels)))


def test_a_sample_has_whole_patients_but_at_most_one(table):
    seed, subject_ids, labels = table
    images_of = dict(zip(*np.unique(subject_ids, return_counts=True)))
    for size in (100, 1_000, 9_999):
        chosen = subject_ids[draw_sample(subject_ids, labels, num_samples=size, seed=seed)]
        counts = zip(*np.unique(chosen, return_counts=True))
        assert sum(count < images_of[patient] for patient, count in counts) <= 1


def test_an_image_without_a_label_counts_as_one_that_is_not_positive(table):
    seed, subject_ids, labels = table
    unlabelled = np.where(np.arange(len(labels)) % 3 == 0, np.minimum(labels, MASKED), labels)
    expected = sample_order(subject_ids, np.maximum(unlabelled, 0), seed=seed)
    assert sample_order(subject_ids, unlabelled, seed=seed).tolist() == expected.tolist()


def test_every_prefix_of_200_or_more_has_the_label_share_of_the_whole_within_2_points(table):
    seed, subject_ids, labels = table
    ordered = labels[sample_order(subject_ids, labels, seed=seed)]
    shares = np.cumsum(ordered) / np.arange(1, len(labels) + 1)
    assert np.abs(shares[199:] - labels.mean()).max() < 0.02


def test_patients_of_a_small_sample_are_as_large_as_those_of_the_whole(table):
    seed, subject_ids, labels = table
    chosen = subject_ids[draw_sample(subject_ids, labels, num_samples=2_000, seed=seed)]
    per_patient = [len(ids) / len(np.unique(ids)) for ids in (chosen, subject_ids)]
    assert per_patient[0] == pytest.approx(per_patient[1], rel=0.15)


def test_another_seed_draws_other_patients():
    subject_ids, labels = make_table(20_000, seed=0)
    first, second = (set(draw_sample(subject_ids, labels, num_samples=1_000, seed=seed)) for seed in (0, 1))
    assert len(first & second) < 200


def test_order_of_the_rows_changes_at_most_the_images_of_the_one_split_patient(table):
    seed, subject_ids, labels = table
    image_ids = np.arange(len(labels))
    rows = np.random.default_rng(9).permutation(len(labels))
    before = set(image_ids[draw_sample(subject_ids, labels, num_samples=1_000, seed=seed)])
    after = set(image_ids[rows][draw_sample(subject_ids[rows], labels[rows], num_samples=1_000, seed=seed)])
    assert len(set(subject_ids[list(before ^ after)])) <= 1


def test_too_many_samples_is_an_error_with_what_was_found_and_expected():
    with pytest.raises(ValueError, match=r"--max_train_samples 9: found 4 training images; ask for at most"):
        draw_sample([1, 1, 2, 3], [0, 1, 0, 1], num_samples=9, seed=0)


def test_all_images_or_images_of_one_label_can_be_drawn():
    assert draw_sample([1, 1, 2, 3], [0, 1, 0, 1], num_samples=4, seed=0).tolist() == [0, 1, 2, 3]
    assert len(draw_sample([1, 1, 2, 3], [1, 1, 1, 1], num_samples=3, seed=0)) == 3


@pytest.mark.timing
def test_240_thousand_images_are_ordered_in_under_5_seconds():
    subject_ids, labels = make_table(240_000, seed=0)
    started = time.perf_counter()
    order = sample_order(subject_ids, labels, seed=0)
    assert time.perf_counter() - started < 5
    assert len(np.unique(order)) == 240_000


def test_record_of_a_sample_depends_on_which_images_it_has_and_not_on_their_order():
    first, same, other = (sample_record(ids, seed=4) for ids in (["b", "a"], ["a", "b"], ["a", "c"]))
    assert first == same
    assert first["dicom_ids"] == ["a", "b"] and first["num_images"] == 2 and first["seed"] == 4
    assert len(first["sha256"]) == 64 and first["sha256"] != other["sha256"]
