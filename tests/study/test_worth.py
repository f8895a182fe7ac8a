"""What pretraining is worth in labels: read from learning curves, with intervals, and in words."""

import math
import types
from dataclasses import dataclass

import numpy as np
import pytest
import report_study
from cxr.study import worth
from cxr.study.measuring import measure_tables
from cxr.study.results import gather_rows
from cxr.study.worth import Curve
from cxr.study.worth import images_needed
from finished_runs import write_run

SIZES = np.array([100, 1000, 10_000])


def needed(*curve: float, auroc: float) -> float:
    return images_needed(SIZES, np.array(curve)[:, None], np.array([auroc]))[0]


@pytest.mark.parametrize(
    ("auroc", "images"),
    [
        (0.5, 0),  # the curve begins above it
        (0.6, 100),
        (0.65, 100 * math.sqrt(10)),  # half of the way on a logarithmic scale
        (0.7, 1000),
        (0.775, 1000 * 10**0.75),
        (0.9, math.inf),
    ],
)
def test_images_needed_are_interpolated_on_a_logarithmic_scale(auroc, images):
    assert needed(0.6, 0.7, 0.8, auroc=auroc) == pytest.approx(images)


def test_of_a_curve_that_falls_the_first_crossing_counts():
    assert needed(0.6, 0.8, 0.7, auroc=0.7) == pytest.approx(100 * math.sqrt(10))


def test_each_resample_has_its_own_curve():
    two = np.array([[0.6, 0.7], [0.7, 0.8], [0.8, 0.9]])
    assert images_needed(SIZES, two, np.array([0.7, 0.7])).tolist() == pytest.approx([1000, 100])


def test_a_resample_with_one_class_does_not_widen_the_interval():
    resamples = [0.7, math.nan, math.nan, 0.7]  # the first one is measured
    scratch = curve_of({100: {0: [0.6] * 4}, 1000: {0: resamples}, 10_000: {0: [0.8] * 4}})
    (one,) = worth.compare(None, curve_of({100: {0: resamples}}), scratch)
    assert (one.times, one.low, one.high) == pytest.approx((10, 10, 10))


def test_only_seeds_that_have_finished_with_every_size_count():
    by_size = {100: {0: [0.6, 0.6]}, 1000: {0: [0.7, 0.7]}, 10_000: {0: [0.8, 0.8]}}
    (alone,) = worth.compare(None, curve_of({100: {0: [0.75, 0.75]}}), curve_of(by_size))
    by_size[100][1] = by_size[1000][1] = [0.9, 0.9]  # a seed that lacks the largest size
    pretrained = curve_of({100: {0: [0.75, 0.75], 1: [0.95, 0.95]}, 1000: {1: [0.95, 0.95]}})
    assert list(worth.compare(None, pretrained, curve_of(by_size))) == [alone]


def curve_of(by_size: dict[int, dict[int, list[float]]]) -> Curve:
    """Returns a curve of rows that have the AUROCs, (1 + R), of each seed with each training size."""
    rows = []
    for size, by_seed in by_size.items():
        run = types.SimpleNamespace(results=types.SimpleNamespace(num_train_images=size))
        aurocs = {seed: np.array(values) for seed, values in by_seed.items()}
        rows.append(types.SimpleNamespace(label="a", architecture="b", runs=[run], aurocs=aurocs))
    return Curve(rows=rows)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A pretrained model with 100 images is as good as from scratch with 1,000."""
    folder = tmp_path_factory.mktemp("runs")
    scratch = {"model": "vit-mae-tiny", "pretrained": False, "augmentation": "mae"}
    pretrained = {"model": "vit-mae-tiny", "pretrained": True, "augmentation": "mae"}
    other = {"model": "resnet-18", "pretrained": False, "augmentation": "classic"}
    for size, quality in ((100, 0.4), (1000, 1.2), (10_000, 2.4)):
        for seed in (0, 1, 2):
            write_run(
                folder / f"s{size}-{seed}", quality=quality, seed=seed, num_train_images=size, **scratch
            )
            write_run(folder / f"o{size}-{seed}", quality=quality, seed=seed, num_train_images=size, **other)
    for size, quality in ((100, 1.2), (1000, 3.2)):
        for seed in (0, 1, 2):
            run = folder / f"p{size}-{seed}"
            write_run(run, quality=quality, seed=seed, num_train_images=size, **pretrained)
    return folder


@pytest.fixture(scope="module")
def found(runs):
    return worth.worths(measure_tables(gather_rows([runs]), 200))


def test_a_pretrained_model_is_compared_with_those_that_are_trained_in_the_same_way(found):
    assert [(one.pretrained, one.other, one.num_images) for one in found] == [
        ("vit-mae-tiny, augmented (mae)", "vit-mae-tiny, from scratch, augmented (mae)", size)
        for size in (100, 1000)
    ]


def test_times_are_images_needed_per_image(found):
    few, many = found
    assert few.times == pytest.approx(10)  # the same predictions as from scratch with 1,000
    assert few.low == few.high == few.times  # the same resamples
    assert (many.times, many.in_words(many.times)) == (math.inf, "more than 10")


def test_sentence_tells_of_the_fewest_labels(found):
    assert worth.sentence(found).startswith(
        "With 100 labels, pretraining is worth 10 times the labels, 95 % interval [10, 10] (vit-mae-tiny, "
    )
    assert worth.sentence([]) == ""


@dataclass(frozen=True)
class Table:
    title: str


def told(table: str, other: str, times: float, *, num_images: int = 100, same_network: bool = False):
    limits = {"low": times / 2, "high": times * 2, "least": 1, "most": 100}
    return worth.Worth(
        table=Table(title=table),
        pretrained="a ViT",
        other=other,
        same_network=same_network,
        num_images=num_images,
        auroc=0.8,
        times=times,
        **limits,
    )


def test_sentence_leads_with_the_same_network_and_its_interval_and_has_the_others_behind_it():
    found = [told("Edema", "a ResNet", 3), told("Edema", "the ViT", 4, same_network=True)]
    first = "With 100 labels, pretraining is worth 4 times the labels, 95 % interval [2, 8] "
    first += "(a ViT against the ViT)"
    assert worth.sentence(found) == f"{first}; 1 other comparison gives 3 times."
    found += [told("Edema", "a CNN", math.inf), told("Edema", "the ViT", 9, num_images=500)]
    assert worth.sentence(found) == f"{first}; 2 other comparisons give 3 to more than 100 times."


def test_each_task_has_a_sentence_with_its_own_fewest_labels():
    found = [told("Edema", "the ViT", 4), told("Pneumonia", "the ViT", 2, num_images=500)]
    said = "With {} labels, pretraining is worth {} (a ViT against the ViT)."
    assert worth.sentence(found) == " ".join(
        [
            f"Edema: {said.format(100, '4 times the labels, 95 % interval [2, 8]')}",
            f"Pneumonia: {said.format(500, '2 times the labels, 95 % interval [1, 4]')}",
        ]
    )


@pytest.mark.slow
def test_report_shows_what_pretraining_is_worth(runs, tmp_path, capsys):
    report_study.main([str(runs), f"--output_dir={tmp_path}", "--num_resamples=50"])
    assert "worth 10 times the labels" in " ".join(capsys.readouterr().out.split())
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "worth 10 times the labels" in text
        assert "more than 10" in text
