"""Draws the figures of a run folder."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """Returns an empty figure, sized in inches. Only drawing imports matplotlib, which is slow to import."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def save_figure(figure: "Figure", path: Path, *, private: bool = False) -> None:
    """Writes a PNG or SVG atomically; a `private` one is readable only by its owner (mode 0600)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch(mode=0o600 if private else 0o666)
        kind = path.suffix.removeprefix(".")
        undated = {"metadata": {"Date": None}} if kind == "svg" else {}  # equal figures make equal files
        figure.savefig(temporary, dpi=120, bbox_inches="tight", format=kind, **undated)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def plot_losses(epochs: list[dict], path: Path, *, title: str) -> None:
    """Plots the mean training and validation loss by epoch; `epochs` are the lines of `metrics.jsonl`."""
    figure = new_figure(6, 4)
    axes = figure.subplots()
    numbers = [record["epoch"] for record in epochs]
    for key, name in (("train_loss", "training"), ("eval_loss", "validation")):
        axes.plot(numbers, [record[key] for record in epochs], marker=".", label=name)
    axes.set(xlabel="epoch", ylabel="mean loss", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def plot_roc_and_precision_recall(
    labels: np.ndarray, probabilities: np.ndarray, path: Path, *, title: str
) -> None:
    """Plots both curves side by side, with the chance level; `labels` must have both classes."""
    from sklearn import metrics

    figure = new_figure(10, 4.5)
    roc, precision_recall = figure.subplots(1, 2)
    metrics.RocCurveDisplay.from_predictions(labels, probabilities, ax=roc, plot_chance_level=True)
    metrics.PrecisionRecallDisplay.from_predictions(
        labels, probabilities, ax=precision_recall, plot_chance_level=True
    )
    for axes, name in ((roc, "ROC"), (precision_recall, "precision-recall")):
        axes.set(title=name, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right" if axes is roc else "lower left", fontsize="small")
    figure.suptitle(title)
    save_figure(figure, path)


def plot_confusion_matrix(
    labels: np.ndarray,
    probabilities: np.ndarray,
    path: Path,
    *,
    thresholds: dict[str, float],
    names: list[str],
    title: str,
) -> None:
    """Plots the number of images by true and predicted label, at each named threshold."""
    from sklearn import metrics

    figure = new_figure(5 * len(thresholds), 4.2)
    all_axes = figure.subplots(1, len(thresholds), squeeze=False)
    for axes, (name, threshold) in zip(all_axes[0], thresholds.items()):
        counts = metrics.confusion_matrix(labels, probabilities >= threshold, labels=[0, 1])
        display = metrics.ConfusionMatrixDisplay(counts, display_labels=names)
        display.plot(ax=axes, cmap="Blues", colorbar=False)
        axes.set_title(f"{name}: threshold {threshold:.3f}")
    figure.suptitle(title)
    figure.tight_layout()
    save_figure(figure, path)


def plot_reconstructions(images: dict[str, np.ndarray], path: Path) -> None:
    """Draws a row per entry of `images` and a column per image: name -> gray images (N, H, W) in [0, 1]."""
    num_images = len(next(iter(images.values())))
    figure = new_figure(2.0 * num_images, 2.1 * len(images))
    all_axes = figure.subplots(len(images), num_images, squeeze=False)
    for (name, pictures), row in zip(images.items(), all_axes):
        row[0].set_ylabel(name)
        for axes, picture in zip(row, pictures):
            axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[], frame_on=False)
    figure.tight_layout(pad=0.3)
    save_figure(figure, path)


def plot_examples(examples: dict[str, list[tuple[str, np.ndarray]]], path: Path, *, title: str) -> None:
    """Draws a row per label: name -> pairs of view and gray image (H, W) in 0..255. The file is private."""
    num_columns = max(len(pictures) for pictures in examples.values())
    figure = new_figure(2.2 * num_columns, 2.9 * len(examples))
    all_axes = figure.subplots(len(examples), num_columns, squeeze=False)
    for axes in all_axes.flat:
        axes.axis("off")
    for row, (name, pictures) in zip(all_axes, examples.items()):
        for axes, (view, picture) in zip(row, pictures):
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
            axes.set_title(f"{name}, {view}" if view else name, fontsize="small")
    figure.suptitle(title)
    figure.tight_layout()
    save_figure(figure, path, private=True)
