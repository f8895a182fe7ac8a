"""The figures of a study: labels and points that do not cover each other, and colours for all."""

import itertools

import numpy as np
import pytest
from cxr.evaluation.intervals import Interval
from cxr.study import plots
from matplotlib.figure import Figure
from matplotlib.text import Text

OKABE_ITO = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}


def nine_curves() -> list[plots.Curve]:
    """Three models, three rows each, all of them about equal: nothing may hide anything."""
    interval = Interval(low=0.6, high=0.8)
    return [
        plots.Curve(
            panel=model,
            label=row,
            full_label=f"{model}, {row}",
            points=[(size, 0.7 + number / 1000, interval) for size in (100, 1000, 10_000)],
        )
        for number, (model, row) in enumerate(itertools.product("abc", ("one", "two", "three")))
    ]


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    drawn = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure))
    return drawn


def test_colours_can_be_told_apart_by_the_colour_blind_and_nine_rows_are_nine_styles():
    assert set(plots.COLORS) <= OKABE_ITO
    assert len({tuple(plots.style(number).values()) for number in range(28)}) == 28


def test_nine_rows_have_a_panel_a_model_and_a_name_a_curve(figures, tmp_path):
    plots.plot_learning_curves(nine_curves(), tmp_path / "a.png", title="nine")
    panels = [axes for axes in figures[0].axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["a", "b", "c"]
    assert [[text.get_text() for text in axes.texts] for axes in panels] == [["one", "two", "three"]] * 3


def test_no_point_hides_another_and_no_label_covers_another(figures, tmp_path):
    plots.plot_learning_curves(nine_curves(), tmp_path / "a.png", title="nine")
    figure = figures[0]
    figure.canvas.draw()
    for axes in figure.axes[:3]:
        own = [line for line in axes.lines if line.get_marker() in plots.MARKERS]
        points = np.concatenate([axes.transData.transform(line.get_xydata()) for line in own])
        gaps = [np.linalg.norm(a - b) for a, b in itertools.combinations(points, 2)]
        assert len(points) == 9 and min(gaps) > 5 / 72 * figure.dpi  # more than a marker
        boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the lines to the points
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_few_rows_share_one_panel(figures, tmp_path):
    plots.plot_learning_curves(nine_curves()[:4], tmp_path / "a.png", title="four")
    (axes,) = figures[0].axes
    assert [text.get_text() for text in axes.texts] == ["a, one", "a, two", "a, three", "b, one"]


def test_labels_that_do_not_touch_stay_where_they_are_and_others_share_the_room():
    assert plots.spread([0.0, 5.0], [1, 1]) == [0.0, 5.0]
    assert plots.spread([1.0, 1.0, 1.0], [1, 1, 1]) == [0.0, 1.0, 2.0]
    assert plots.spread([], []) == []


def test_equal_figures_are_equal_files_as_png_and_svg(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        plots.plot_learning_curves(nine_curves(), tmp_path / name / "a.png", title="nine")
    for name in ("a.png", "a.svg"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
