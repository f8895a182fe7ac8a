"""The cost of a study: images counted as the scripts count them, time from the speed of finished cells."""

from pathlib import Path

import pytest
from cxr.errors import UserError
from cxr.models.architectures import CONFIGS
from cxr.models.architectures import estimate_gflop
from cxr.models.architectures import find_architecture
from cxr.models.architectures import override
from cxr.study import costs
from cxr.study.cells import check_cell
from cxr.study.cells import check_cells
from cxr.study.grid import CLASSIFICATION
from cxr.study.grid import PRETRAINING
from cxr.study.grid import Cell
from cxr.study.grid import ClassificationCell
from cxr.study.grid import Point
from cxr.study.machine import Device
from cxr.study.results import point_of
from finished_runs import classification_results
from finished_runs import finish
from manifest_roots import LABELS
from manifest_roots import manifest_rows
from manifest_roots import write_manifest

START = 15.0


def classification(run_id: str = "a", *, model: str = "microsoft/resnet-18", **flags) -> ClassificationCell:
    start = "config_name" if model in CONFIGS else "model_name_or_path"
    flags = {"train_last_layer_only": False, "num_train_epochs": 20, start: model, **flags}
    point = point_of(classification_results(model=model))
    return ClassificationCell(run_id=run_id, script=CLASSIFICATION, point=point, flags=flags)


def pretraining(run_id: str = "p", *, model: str = "facebook/vit-mae-base", **flags) -> Cell:
    point = Point(model=model, view="frontal", seed=0)
    return Cell(run_id=run_id, script=PRETRAINING, point=point, flags={"model_name_or_path": model, **flags})


def gflop(cell: Cell) -> tuple[float, float]:
    return costs.gflop_per_image(check_cell(cell))


def estimate(
    cells: list[Cell], counts: dict, output_dir: Path, *, num_processes: int = 1, kind: str = "cuda"
) -> tuple[dict[str, float], str]:
    device = Device(kind=kind, tflops={"vit": 20.0, "resnet": 20.0}, start_seconds=START)
    facts = check_cells(cells)
    return costs.estimate_seconds(facts, counts, output_dir, device, num_processes=num_processes)


def counted(train: int, validation: int = 0) -> costs.ImageCounts:
    return costs.ImageCounts(train=train, validation=validation)


def training_seconds(cells: list[Cell], images: int, output_dir: Path, **machine) -> list[float]:
    """Without the start of each cell."""
    counts = {cell.run_id: counted(images) for cell in cells}
    seconds, _ = estimate(cells, counts, output_dir, **machine)
    return [seconds[cell.run_id] - START for cell in cells]


# Images -----------------------------------------------------------------------------------------------------


def test_images_are_those_of_the_task_and_view_or_the_sample(sample_root):
    cells = [
        classification("frontal", dataset_config_name="finding", view="frontal", max_train_samples=None),
        classification("all", dataset_config_name="finding", view="all", max_train_samples=None),
        classification("effusion", dataset_config_name="pleural_effusion", max_train_samples=None),
        classification("few", dataset_config_name="finding", max_train_samples=7),
        classification("surely", uncertain="exclude", max_train_samples=None),
        pretraining("pretrain", view="frontal"),
    ]
    counts = costs.count_images(cells, sample_root)
    images = {name: of_cell.train for name, of_cell in counts.items()}
    assert images["few"] == 7 and 0 < counts["few"].validation == counts["frontal"].validation
    assert images["pretrain"] == images["frontal"] < images["all"] < 96
    assert images["effusion"] < images["frontal"] and images["surely"] < images["frontal"]


def test_images_without_a_label_count_for_the_pretraining_only(tmp_path):
    rows = manifest_rows(8, split="train")
    rows[0] |= dict.fromkeys(LABELS, "")
    root = write_manifest(tmp_path, rows)
    counts = costs.count_images([pretraining(), classification(max_train_samples=None)], root)
    assert [of_cell.train for of_cell in counts.values()] == [8, 7]


def test_sample_larger_than_the_data_is_refused_with_both_numbers(sample_root):
    (counts,) = costs.count_images([classification(max_train_samples=None)], sample_root).values()
    whole = counts.train
    assert costs.count_images([classification(max_train_samples=whole)], sample_root) == {"a": counts}
    with pytest.raises(ValueError, match=rf"sizes {whole + 1}: found only {whole} .*for a; use smaller"):
        costs.count_images([classification(max_train_samples=whole + 1)], sample_root)


def test_absent_data_are_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        costs.count_images([classification()], tmp_path / "nowhere")


# Arithmetic -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "gflop"),  # twice the published multiply-adds: He et al. 2015; ViT papers
    [
        ("microsoft/resnet-18", 3.6),
        ("microsoft/resnet-50", 7.6),
        ("resnet-152", 22.6),
        ("facebook/vit-mae-base", 35),
        ("facebook/vit-mae-large", 123),
        ("facebook/vit-mae-huge", 334),
    ],
)
def test_forward_pass_takes_about_what_is_published(model, gflop):
    assert cost(model) == pytest.approx(gflop, rel=0.1)


def cost(model, *, image_size=224, overrides=None, share_seen=1.0):
    architecture = override(find_architecture(model), overrides, image_size=image_size)
    return estimate_gflop(architecture, image_size=image_size, share_seen=share_seen)


def test_smaller_images_fewer_patches_and_overrides_cost_less():
    assert cost("resnet-18", image_size=112) == pytest.approx(cost("resnet-18") / 4)
    assert cost("vit-mae-base", share_seen=0.25) < cost("vit-mae-base") / 3.5
    assert cost("vit-mae-base", overrides="num_hidden_layers=6") == pytest.approx(cost("vit-mae-base") / 2)


def test_training_the_head_is_a_forward_pass_and_training_all_is_three():
    full, head = classification(), classification(train_last_layer_only=True)
    forward = gflop(head)[0]
    assert gflop(head) == (forward, forward)
    assert gflop(full) == (pytest.approx(3 * forward), forward)


def test_pretraining_on_an_image_takes_about_half_of_fine_tuning_on_it():
    fine_tuning, _ = gflop(classification(model="facebook/vit-mae-base"))
    assert 0.4 < gflop(pretraining())[0] / fine_tuning < 0.7


def test_masked_patches_save_time_and_erased_ones_do_not():
    vit = {"model": "facebook/vit-mae-base"}
    whole, masked, erased = (
        gflop(classification(**vit, **flags))
        for flags in ({}, {"mask_ratio": 0.75}, {"random_erasing_prob": 0.75})
    )
    assert masked[0] < 0.3 * whole[0] and erased == whole
    assert masked[1] == whole[1]  # at evaluation a ViT sees all patches


# Time -------------------------------------------------------------------------------------------------------


def test_without_a_finished_cell_the_estimate_is_by_the_speed_of_the_device_and_says_so(tmp_path):
    cell = classification()
    seconds, basis = estimate([cell], {"a": counted(1000)}, tmp_path)
    assert basis == "from a few steps of small layers on this cuda (TFLOP/s: vit 20, resnet 20)"
    assert seconds["a"] == pytest.approx(START + 20 * 1000 * 3 * cost("resnet-18") / 20e3)


def test_estimate_follows_from_the_speed_of_finished_cells(tmp_path):
    done, same = classification("a"), classification("b")
    head = classification("c", train_last_layer_only=True)
    finish(tmp_path / "a", classification_results(images_per_second=500.0))
    _, of_same, of_head = training_seconds([done, same, head], 10_000, tmp_path)
    assert of_same == pytest.approx(10_000 * 20 / 500)
    assert of_head == pytest.approx(of_same / 3)
    _, basis = estimate([done], {"a": counted(1)}, tmp_path)
    assert basis == "from the speed of the finished cells (TFLOP/s: resnet 5.4)"


def test_speed_of_a_resnet_says_nothing_about_a_vit(tmp_path):
    resnet, vit = classification("a"), classification("b", model="facebook/vit-mae-base")
    before = training_seconds([resnet, vit], 100, tmp_path)
    finish(tmp_path / "a", classification_results(images_per_second=1.0))
    after = training_seconds([resnet, vit], 100, tmp_path)
    assert after[0] != before[0] and after[1] == before[1]


def test_one_slow_cell_of_many_does_not_move_the_estimate(tmp_path):
    cells = [classification(name) for name in "abcd"]
    for cell, speed in zip(cells, (100.0, 100.0, 1.0)):
        finish(tmp_path / cell.run_id, classification_results(images_per_second=speed))
    assert training_seconds(cells, 100, tmp_path)[3] == pytest.approx(100 * 20 / 100)


def test_the_most_similar_finished_cells_say_how_fast_a_cell_is(tmp_path):
    plain, same = (classification(name, seed=seed) for seed, name in enumerate("ab"))
    longer = classification("c", num_train_epochs=40)
    augmented, other = (classification(name, augmentation="mae") for name in "de")
    finish(tmp_path / "a", classification_results(images_per_second=500.0))
    finish(tmp_path / "d", classification_results(images_per_second=100.0))
    seconds = training_seconds([plain, same, longer, augmented, other], 1000, tmp_path)
    assert seconds[1] == pytest.approx(1000 * 20 / 500) and seconds[2] == pytest.approx(2 * seconds[1])
    assert seconds[4] == pytest.approx(1000 * 20 / 100)


def test_start_is_that_of_finished_cells_without_their_validation(tmp_path):
    cells = [classification(name, seed=seed) for seed, name in enumerate("abc")]
    counts = {cell.run_id: counted(1000, 300) for cell in cells}
    for name in "ab":
        before = estimate(cells, counts, tmp_path)[0]["c"]
        results = classification_results(images_per_second=500.0, num_epochs=20, other_seconds=42.0)
        finish(tmp_path / name, results)
    # The start of the first cell alone does not count; the second one's validation is in the 42 seconds.
    assert before == pytest.approx(START + 20 * (1000 + 300 / 3) / 500)
    assert estimate(cells, counts, tmp_path)[0]["c"] == pytest.approx(42 + 20 * 1000 / 500)


def test_an_estimate_is_compared_with_the_time_taken():
    assert costs.compare(720, 660) == "Estimated 12 min, took 11 min (8% less)."
    assert costs.compare(50, 75) == "Estimated 50 s, took 75 s (50% more)."


def test_evaluating_every_epoch_is_counted(tmp_path):
    head = classification(train_last_layer_only=True)
    for validation in (0, 3000):
        counts = {"a": counted(1000, validation)}
        seconds, _ = estimate([head], counts, tmp_path)
        expected = 20 * (1000 + validation) * cost("resnet-18") / 20e3
        assert seconds["a"] == pytest.approx(START + expected)


def test_steps_count_instead_of_epochs_when_they_are_limited(tmp_path):
    by_epochs = classification("a", num_train_epochs=2)
    by_steps = classification("b", max_train_steps=10, per_device_train_batch_size=20)
    first, second = training_seconds([by_epochs, by_steps], 100, tmp_path)
    assert first == pytest.approx(second)
    unknown = classification("c", max_train_steps=10, per_device_train_batch_size="auto")
    assert training_seconds([unknown], 100, tmp_path)[0] == pytest.approx(second * 32 / 20)


def test_gpus_of_a_cell_share_its_work_also_before_a_cell_has_finished(tmp_path):
    cells = [classification("a"), classification("b")]
    alone = training_seconds(cells, 1000, tmp_path)
    assert training_seconds(cells, 1000, tmp_path, num_processes=8) == pytest.approx(
        [seconds / 8 for seconds in alone]
    )
    assert training_seconds(cells, 1000, tmp_path, num_processes=8, kind="cpu") == alone
    finish(tmp_path / "a", classification_results(images_per_second=500.0))  # of all GPUs together
    assert training_seconds(cells, 1000, tmp_path, num_processes=8)[1] == pytest.approx(1000 * 20 / 500)


@pytest.mark.parametrize("batch", [20, "auto"])
def test_a_step_has_the_images_of_all_gpus_where_steps_are_limited(batch, tmp_path):
    cell = classification("a", max_train_steps=10, per_device_train_batch_size=batch)
    alone = training_seconds([cell], 1000, tmp_path)
    assert training_seconds([cell], 1000, tmp_path, num_processes=8) == pytest.approx(alone)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (80, "80 s"), (300, "5 min"), (5399, "90 min"), (7200, "2.0 h"), (48 * 3600, "2.0 days")],
)
def test_duration_is_in_the_unit_that_one_would_say(seconds, words):
    assert costs.duration(seconds) == words


def test_wall_time_is_that_of_the_cells_at_once_with_those_that_need_another_after_it():
    cells = [pretraining("p"), classification("a"), classification("b"), classification("c")]
    cells[1:3] = [cell.model_copy(update={"needs": "p"}) for cell in cells[1:3]]
    seconds = {"p": 10.0, "a": 5.0, "b": 4.0, "c": 3.0}
    assert costs.wall_seconds(cells, seconds, 1) == 22
    assert costs.wall_seconds(cells, seconds, 2) == 15  # c beside p, then a and b at once
    assert costs.wall_seconds(cells, seconds, 100) == 15
    assert costs.wall_seconds(cells[1:3], seconds, 2) == 5  # the pretraining was finished before
    assert costs.wall_seconds([], seconds, 2) == 0
