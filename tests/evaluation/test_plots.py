"""Figures are whole PNG files that replace older ones."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from cxr.choices import MASKED
from cxr.evaluation import findings
from cxr.evaluation import plots
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from sklearn import metrics

LABELS = np.array([0, 0, 1, 1, 1])
PROBABILITIES = np.array([0.1, 0.6, 0.4, 0.8, 0.9])


EPOCHS = [{"epoch": epoch, "train_loss": 1 / epoch, "eval_loss": 1.1 / epoch} for epoch in (1, 2, 3)]
IMAGES = np.linspace(0, 1, 2 * 8 * 8).reshape(2, 8, 8)


def draw_curves(path: Path) -> None:
    plots.plot_roc_and_precision_recall(LABELS, PROBABILITIES, path, title="curves")


def draw_confusion(path: Path, *, rows: slice = slice(None)) -> None:
    options = {"thresholds": {"fixed": 0.5, "chosen": 0.4}, "names": ["No", "Yes"], "title": "counts"}
    plots.plot_confusion_matrix(LABELS[rows], PROBABILITIES[rows], path, **options)


def several(num_findings: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Labels and probabilities of findings; the first is masked everywhere, the second always negative."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, (60, num_findings))
    labels[:, 0], labels[:, 1] = MASKED, 0
    names = [f"finding ${number}" for number in range(num_findings)]
    return labels, generator.random(labels.shape).round(2), names


def measured(num_findings: int, labels: np.ndarray | None = None) -> dict:
    drawn, probabilities, names = several(num_findings)
    labels = drawn if labels is None else labels
    options = {"thresholds": [0.5] * num_findings}
    found = findings.finding_metrics(labels, probabilities, names, **options)
    findings.add_intervals(found, labels, probabilities, range(60), num_resamples=10)
    return found


def figure_of(monkeypatch, draw) -> Figure:
    """Returns the figure that `draw` would save."""
    saved = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: saved.append(figure))
    draw(Path("figure.png"))
    return saved[0]


DRAWINGS = {
    "losses": lambda path: plots.plot_losses(EPOCHS, path, title="loss"),
    "curves": draw_curves,
    "confusion": draw_confusion,
    "confusion of one class": lambda path: draw_confusion(path, rows=slice(2, None)),
    "ROC of one finding": lambda path: plots.plot_finding_rocs(
        LABELS[:, None], PROBABILITIES[:, None], ["Edema"], path, title="ROC"
    ),
    "ROC of 14 findings": lambda path: plots.plot_finding_rocs(*several(14), path, title="ROC"),
    "bars of 14 findings": lambda path: plots.plot_finding_bars(measured(14), path, title="AUROC"),
    "bars without an AUROC": lambda path: plots.plot_finding_bars(measured(2), path, title="AUROC"),
    "reconstructions": lambda path: plots.plot_reconstructions({"a": IMAGES, "b": 1 - IMAGES}, path),
}


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_figure_replaces_an_older_one_and_leaves_nothing_else(draw, tmp_path):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    draw(path)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 200
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10
    assert [file.name for file in tmp_path.iterdir()] == ["figure.png"]
    assert not plt.get_fignums()


def test_same_records_give_the_same_picture(tmp_path):
    for name in ("a.png", "b.png"):
        draw_curves(tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_confusion_matrix_counts_what_is_called_at_each_threshold(tmp_path, monkeypatch):
    drawn = []
    display = metrics.ConfusionMatrixDisplay

    def note(counts, **options):
        drawn.append(counts.tolist())
        return display(counts, **options)

    monkeypatch.setattr(metrics, "ConfusionMatrixDisplay", note)
    draw_confusion(tmp_path / "figure.png")
    assert drawn == [[[1, 1], [1, 2]], [[1, 1], [0, 3]]]  # rows: truth


@pytest.mark.parametrize("num_findings", [2, 6, 14])
def test_every_finding_has_a_panel_which_says_why_it_has_no_curve(num_findings, monkeypatch):
    labels, probabilities, names = several(num_findings)
    figure = figure_of(
        monkeypatch, lambda path: plots.plot_finding_rocs(labels, probabilities, names, path, title="ROC")
    )
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == num_findings
    texts = [panel.texts[0].get_text() if panel.texts else None for panel in panels]
    assert texts == ["no labels:\nno curve", "only one class:\nno curve"] + [None] * (num_findings - 2)
    for number in range(2, num_findings):
        auroc = metrics.roc_auc_score(labels[:, number], probabilities[:, number])
        heading = f"finding \\${number}\nAUROC {auroc:.3f}, {labels[:, number].sum()} positive"
        assert panels[number].get_title() == heading


def test_bars_are_sorted_and_those_outside_the_mean_are_paler_and_in_the_legend(monkeypatch):
    labels, *_ = several(6)
    labels[9:, 2] = 0  # at most nine positives
    found = measured(6, labels)
    figure = figure_of(monkeypatch, lambda path: plots.plot_finding_bars(found, path, title="AUROC"))
    (axes,) = figure.axes
    values = {line.get_label(): line for line in axes.lines}
    label = "not in the mean: fewer than 10 positive or negative"
    inside, outside = values["in the mean"], values[label]
    assert inside.get_xdata().tolist() == sorted(inside.get_xdata(), reverse=True)
    assert (inside.get_color(), outside.get_color()) == (plots.BLUE, plots.PALE)
    assert np.isfinite(inside.get_xdata()).sum() == 3 and np.isfinite(outside.get_xdata()).sum() == 1
    assert values[f"mean of 3 findings: {found['auroc']:.3f}"].get_xdata() == [found["auroc"]] * 2
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["chance", f"mean of 3 findings: {found['auroc']:.3f}", "in the mean", label]
    ticks = [tick.get_text() for tick in axes.get_yticklabels()]
    assert ticks[-2:] == ["finding \\$0 (0 positive, no AUROC)", "finding \\$1 (0 positive, no AUROC)"]


@pytest.mark.parametrize("num_findings", [2, 6, 14])
def test_no_text_of_the_figures_of_several_findings_covers_another(num_findings, monkeypatch):
    labels, probabilities, names = several(num_findings)
    names = [f"{name} Enlarged Cardiomediastinum" for name in names]
    rocs = figure_of(
        monkeypatch, lambda path: plots.plot_finding_rocs(labels, probabilities, names, path, title="ROC")
    )
    bars = figure_of(
        monkeypatch, lambda path: plots.plot_finding_bars(measured(num_findings), path, title="AUROC")
    )
    for figure in (rocs, bars):
        FigureCanvasAgg(figure).draw()
        panels = [axes for axes in figure.axes if axes.get_visible()]
        texts = [text for axes in panels for text in (axes.title, axes.xaxis.label, axes.yaxis.label)]
        texts += [*figure.texts, *(tick for axes in panels for tick in axes.get_yticklabels())]
        boxes = [text.get_window_extent() for text in texts if text.get_text() and text.get_visible()]
        for first, second in itertools.combinations(boxes, 2):
            assert not first.overlaps(second), (first, second)
