"""From images on disk to batches: same images, draws and order for any number of processes and workers."""

import io
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from cxr.data.images import LabelledImages
from cxr.data.images import default_cache_image_size
from cxr.data.images import draw_training_images
from cxr.data.images import first_images
from cxr.data.images import images_in_memory
from cxr.data.images import load_images
from cxr.data.loading import EVALUATION_SEED
from cxr.data.loading import ChestXrays
from cxr.data.loading import TrainingBatches
from cxr.data.loading import evaluation_batches
from cxr.data.loading import gather_in_order
from cxr.data.loading import make_evaluation_loader
from cxr.data.loading import make_training_loader
from cxr.data.transforms import evaluation_transform
from cxr.data.transforms import training_transform
from cxr.errors import UserError
from PIL import Image
from torch.utils.data import DataLoader

from mimic_cxr_dataset.label_rule import LabelRule

SCRIPTS = Path(__file__).parents[2] / "scripts"
NUM_IMAGES = 20
NUM_TRAIN = 37  # divisible by no batch size


def encoded_image(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (6, 5), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((40, 48), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def images() -> LabelledImages:
    return images_in_memory(
        [encoded_image(number) for number in range(NUM_IMAGES)],
        label=[number % 2 for number in range(NUM_IMAGES)],
        dicom_id=[f"image-{number}" for number in range(NUM_IMAGES)],
    )


def training_set(images, *, seed: int = 0, num_patches: int | None = 16) -> ChestXrays:
    transform = training_transform("mae", 24, crop_scale=(0.2, 1.0), random_erasing_prob=0.5)
    return ChestXrays(images, transform, seed=seed, num_patches=num_patches)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(torch.as_tensor(one[k]), torch.as_tensor(other[k])) for k in one
    )


# Items


def test_decoded_image_is_that_of_pillow(images):
    dataset = ChestXrays(images, torch.nn.Identity(), seed=0)
    for index in range(NUM_IMAGES):
        expected = np.asarray(Image.open(io.BytesIO(images.read([index])[0])))
        item = dataset[0, index]
        assert item["image"].dtype == torch.uint8 and item["image"].shape == (1, 48, 40)
        assert np.array_equal(item["image"][0].numpy(), expected)
        assert item["label"] == index % 2


def test_item_does_not_depend_on_what_was_drawn_before(images):
    first, second = training_set(images), training_set(images)
    expected = first[2, 7]
    for index in range(5):
        second[1, index]
    torch.rand(100)
    assert same(second[2, 7], expected)


def test_item_depends_on_seed_epoch_and_image_but_not_on_its_place(images):
    dataset = training_set(images)
    items = [dataset[0, 3], dataset[1, 3], dataset[0, 4], training_set(images, seed=1)[0, 3]]
    for one, other in itertools.combinations(items, 2):
        assert not torch.equal(one["noise"], other["noise"])
        assert not torch.equal(one["image"], other["image"])
    assert same(training_set(images.select([5, 3]))[0, 1], items[0])


def test_global_random_state_is_left_as_it_was(images):
    dataset = training_set(images)
    state = torch.get_rng_state()
    dataset[0, 0]
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_is_one_number_in_0_to_1_per_patch_if_there_are_patches(images):
    noise = training_set(images)[0, 0]["noise"]
    assert noise.shape == (16,) and noise.dtype == torch.float32
    assert noise.min() >= 0 and noise.max() < 1 and len(noise.unique()) == 16
    assert set(training_set(images, num_patches=None)[0, 0]) == {"image", "label"}


def load_all(dataset: ChestXrays, batches, *, num_workers: int) -> list[dict]:
    return list(DataLoader(dataset, batch_sampler=batches, num_workers=num_workers))


def test_batches_are_the_same_with_and_without_workers(images):
    batches = training_batches(NUM_IMAGES, num_steps=10)
    alone = load_all(training_set(images), batches, num_workers=0)
    with_workers = load_all(training_set(images), batches, num_workers=2)
    assert len(alone) == 10
    assert all(same(one, other) for one, other in zip(alone, with_workers))


def test_evaluation_gets_the_same_images_and_noise_each_time(images):
    dataset = ChestXrays(images, evaluation_transform(24), seed=EVALUATION_SEED, num_patches=16)
    batches = evaluation_batches(NUM_IMAGES, batch_size=8, num_processes=1, process_index=0)
    loader = DataLoader(dataset, batch_sampler=batches)
    first, second = list(loader), list(loader)
    assert [len(batch["label"]) for batch in first] == [8, 8, 4]
    assert all(same(one, other) for one, other in zip(first, second))


# Batches of training


def training_batches(
    num_images: int = NUM_TRAIN, *, start_step: int = 0, num_steps: int = 10, **changes
) -> TrainingBatches:
    one = {"gradient_accumulation_steps": 1, "num_processes": 1, "process_index": 0, "seed": 0}
    steps = range(start_step, num_steps)
    return TrainingBatches(num_images, images_per_step=8, steps=steps, **one | changes)


def global_steps(*, num_processes: int, accumulation: int = 1, **changes) -> list[list[tuple[int, int]]]:
    """The keys of each optimizer step, of all processes and micro-batches."""
    steps = [[] for _ in range(changes.get("num_steps", 10))]
    for process_index in range(num_processes):
        of_process = {"num_processes": num_processes, "process_index": process_index}
        batches = training_batches(**of_process, gradient_accumulation_steps=accumulation, **changes)
        micro_batches = list(batches)
        assert len(micro_batches) == len(batches)
        for number, keys in enumerate(micro_batches):
            steps[number // accumulation] += keys
    return steps


@pytest.mark.parametrize(("num_processes", "accumulation"), [(2, 1), (4, 1), (1, 2), (1, 4), (2, 2)])
def test_images_of_a_step_do_not_depend_on_how_processes_and_micro_batches_share_them(
    num_processes, accumulation
):
    alone = global_steps(num_processes=1)
    shared = global_steps(num_processes=num_processes, accumulation=accumulation)
    assert [sorted(step) for step in shared] == [sorted(step) for step in alone]


def test_an_epoch_visits_no_image_twice_and_all_that_fill_a_step():
    steps = global_steps(num_processes=2, num_steps=80)  # 4 steps of 8 in 37 images
    assert {index for step in steps for _, index in step} == set(range(NUM_TRAIN))  # sooner or later all
    for epoch in range(3):
        visited = [index for step in steps for number, index in step if number == epoch]
        assert len(visited) == len(set(visited)) == 32
        assert set(visited) <= set(range(NUM_TRAIN))


def test_each_epoch_has_its_own_order_and_each_seed_too():
    keys = [key for step in global_steps(num_processes=1, num_steps=12) for key in step]
    orders = [[index for number, index in keys if number == epoch] for epoch in range(3)]
    other = [index for step in global_steps(num_processes=1, num_steps=4, seed=1) for _, index in step]
    assert len({tuple(order) for order in [*orders, other]}) == 4
    assert orders[0] != sorted(orders[0])


@pytest.mark.parametrize("start_step", [0, 1, 4, 6, 9, 10])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_starting_later_gives_the_tail_of_the_whole_run(start_step, accumulation):
    options = {"gradient_accumulation_steps": accumulation, "num_processes": 2, "process_index": 1}
    whole, tail = list(training_batches(**options)), training_batches(**options, start_step=start_step)
    assert list(tail) == whole[start_step * accumulation :]
    assert len(tail) == (10 - start_step) * accumulation


# Batches of evaluation


class Processes:
    """Stands for the accelerator of one of several processes: gathers what all of them computed."""

    def __init__(self, all_values: list[torch.Tensor]):
        self.all_values = all_values
        self.num_processes = len(all_values)

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        assert all(len(values) == len(other) for other in self.all_values)  # as collectives need
        return torch.cat(self.all_values)


@pytest.mark.parametrize("num_processes", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_gathered_evaluation_has_every_image_once_and_in_order(num_processes, batch_size):
    for num_images in range(1, 21):
        all_values = []
        for process_index in range(num_processes):
            read = evaluation_batches(
                num_images, batch_size=batch_size, num_processes=num_processes, process_index=process_index
            )
            assert all(0 < len(keys) <= batch_size for keys in read)
            assert {epoch for keys in read for epoch, _ in keys} == {0}
            all_values.append(torch.tensor([index for keys in read for _, index in keys]))
        for values in all_values:
            gathered = gather_in_order(Processes(all_values), values, num_samples=num_images)
            assert gathered.tolist() == list(range(num_images))


def test_rows_stay_whole_when_they_are_gathered():
    all_values = [torch.tensor([[0, 1], [4, 5]]), torch.tensor([[2, 3], [4, 5]])]
    gathered = gather_in_order(Processes(all_values), all_values[0], num_samples=3)
    assert gathered.tolist() == [[0, 1], [2, 3], [4, 5]]


# The dataset and the loaders

OPTIONS = {"on_bad_image": "error", "shows_progress": True, "num_proc": 1}


@pytest.fixture(scope="module")
def splits(sample_root, tmp_path_factory):
    cache_dir = tmp_path_factory.mktemp("cache")
    return load_images(sample_root, LabelRule(), shortest_side=48, cache_dir=cache_dir, **OPTIONS)


# Workers are spawned, as from Python 3.14 on: they import the builder by its name.
PROCESS = """
import sys
from pathlib import Path
import multiprocess
from cxr.data.images import load_images
from mimic_cxr_dataset.label_rule import LabelRule
multiprocess.set_start_method("forkserver")
root, cache, rank = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
options = {"shortest_side": 40, "num_proc": 2, "shows_progress": rank == "0", "on_bad_image": "error"}
print(load_images(root, LabelRule(), cache_dir=cache, **options)["train"]["dicom_id"][:])
"""


@pytest.mark.slow
def test_of_several_processes_the_one_that_shows_progress_shrinks_and_the_others_wait(sample_root, tmp_path):
    command = [sys.executable, "-c", PROCESS, str(sample_root), str(tmp_path)]
    pipes = {"cwd": SCRIPTS, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([*command, rank], **pipes) for rank in "10"]
    (waited, said_nothing), (shrunk, said) = (process.communicate(timeout=120) for process in started)
    assert [process.returncode for process in started] == [0, 0], said + said_nothing
    assert waited == shrunk != ""
    assert "Generating frontal" in said and "Generating frontal" not in said_nothing


def test_bad_options_and_tables_are_the_users_to_mend(sample_root, tmp_path):
    options = {"shortest_side": 40, "cache_dir": tmp_path, **OPTIONS}
    with pytest.raises(UserError, match=r"csv\.gz is missing"):
        load_images(tmp_path, LabelRule(view="all"), **options)
    with pytest.raises(UserError, match="on_bad_image='ignore' is unknown"):
        load_images(sample_root, LabelRule(), **options | {"on_bad_image": "ignore"})


def test_splits_have_shrunk_encoded_images(splits):
    assert set(splits) == {"train", "validation", "test"}
    assert min(Image.open(io.BytesIO(splits["train"].read([0])[0])).size) == 48
    assert splits["train"].label_names == ("No Finding", "Finding")


def test_drawn_training_images_are_those_of_their_record(splits):
    chosen, record = draw_training_images(splits["train"], num_samples=20, seed=1)
    assert len(chosen) == record["num_images"] == 20
    assert sorted(chosen["dicom_id"]) == record["dicom_ids"]
    everything, _ = draw_training_images(splits["train"], num_samples=None, seed=1)
    assert everything["dicom_id"][:] == splits["train"]["dicom_id"][:]


def test_first_images_are_at_most_all(splits):
    validation = splits["validation"]
    assert first_images(validation, 2)["dicom_id"][:] == validation["dicom_id"][:2]
    assert len(first_images(validation, 10_000)) == len(first_images(validation, None)) == len(validation)


def test_loaders_give_every_step_and_draw_nothing_from_the_global_generator(images):
    dataset = training_set(images)
    steps = {"images_per_step": 8, "gradient_accumulation_steps": 2, "steps": range(1, 6)}
    train_loader = make_training_loader(Accelerator(), dataset, **steps, num_workers=None)
    eval_loader = make_evaluation_loader(Accelerator(), dataset, batch_size=6, num_workers=None)
    state = torch.get_rng_state()
    assert [tuple(batch["image"].shape) for batch in train_loader] == [(4, 1, 24, 24)] * 10
    assert [len(batch["label"]) for batch in eval_loader] == [6, 6, 6, 2]
    assert torch.equal(torch.get_rng_state(), state)


def test_default_cache_leaves_room_for_crops():
    assert default_cache_image_size(224) == 256
    assert default_cache_image_size(64) == 73
