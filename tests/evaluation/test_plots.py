"""Figures are whole PNG files that replace older ones."""

from pathlib import Path

import numpy as np
import pytest
from cxr.evaluation import plots
from matplotlib import pyplot as plt
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


DRAWINGS = {
    "losses": lambda path: plots.plot_losses(EPOCHS, path, title="loss"),
    "curves": draw_curves,
    "confusion": draw_confusion,
    "confusion of one class": lambda path: draw_confusion(path, rows=slice(2, None)),
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
