"""The figures of a study: losses, learning curves, ROC and calibration, with their spread."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from cxr.evaluation.intervals import Interval
from cxr.evaluation.intervals import reliability
from cxr.evaluation.plots import save_figure

COLORS = matplotlib.colormaps["tab20"].colors
COLORS = (*COLORS[::2], *COLORS[1::2])  # the ten strong ones first
MARKERS = "osD^vP*Xph"
Predictions = tuple[np.ndarray, np.ndarray]  # of a run: labels (N,) in {0, 1} and probabilities (N,)


def plot_mean_losses(rows: dict[str, list[list[dict]]], path: Path, *, title: str) -> None:
    """Mean loss by epoch, training and validation; `rows`: name -> the metrics.jsonl lines of each seed.

    The line is the mean over seeds, the band their range.
    """
    figure = Figure(figsize=(11, 4.2))
    panels = figure.subplots(1, 2)
    for axes, key, name in zip(panels, ("train_loss", "eval_loss"), ("training", "validation")):
        for number, (row, runs) in enumerate(rows.items()):
            length = min(len(epochs) for epochs in runs)
            numbers = [record["epoch"] for record in runs[0][:length]]
            # (seeds, epochs)
            losses = np.array([[record[key] for record in epochs[:length]] for epochs in runs])
            color = COLORS[number % len(COLORS)]
            axes.plot(numbers, losses.mean(axis=0), color=color, label=as_label(row))
            axes.fill_between(numbers, losses.min(axis=0), losses.max(axis=0), color=color, alpha=0.15, lw=0)
        axes.set(xlabel="epoch", ylabel="mean loss", title=name)
        axes.grid(alpha=0.3)
    finish(figure, panels[0], path, title=title)


def plot_learning_curves(
    rows: dict[str, list[tuple[int, float, Interval | None]]], path: Path, *, title: str
) -> None:
    """AUROC against training images; `rows`: name -> (images, AUROC, its interval) by size."""
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    sizes = sorted({size for points in rows.values() for size, _, _ in points})
    for number, (row, points) in enumerate(rows.items()):
        x = np.array([size for size, _, _ in points]) * 1.012 ** (number - len(rows) / 2)  # side by side
        y = np.array([value for _, value, _ in points])
        low = [y_ - (interval.low if interval else y_) for y_, (_, _, interval) in zip(y, points)]
        high = [(interval.high if interval else y_) - y_ for y_, (_, _, interval) in zip(y, points)]
        errors = np.maximum([low, high], 0)
        style = {"marker": MARKERS[number % len(MARKERS)], "color": COLORS[number % len(COLORS)]}
        axes.errorbar(
            x, y, yerr=errors, label=as_label(row), capsize=3, lw=1.4, elinewidth=0.8, ms=5, **style
        )
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set(xlabel="training images", ylabel="AUROC")
    axes.grid(alpha=0.3)
    finish(figure, axes, path, title=title)


def plot_roc(rows: dict[str, list[Predictions]], path: Path, *, title: str) -> None:
    """ROC curves over each other: sensitivity at each false positive rate, the mean over seeds."""
    figure = Figure(figsize=(6, 6))
    axes = figure.subplots()
    grid = np.linspace(0, 1, 501)
    axes.plot([0, 1], [0, 1], color="gray", lw=0.8, ls=":", label="chance")
    for number, (row, runs) in enumerate(rows.items()):
        curves = [roc_curve(*run)[:2] for run in runs]
        mean = np.mean([np.interp(grid, false, true) for false, true in curves], axis=0)
        color = COLORS[number % len(COLORS)]
        axes.plot([0, *grid], [0, *mean], color=color, label=as_label(row), lw=1.4)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal")
    axes.grid(alpha=0.3)
    finish(figure, axes, path, title=title)


def plot_calibration(rows: dict[str, list[Predictions]], path: Path, *, title: str) -> None:
    """Reliability diagram: the share of positives among images of about one probability, over all seeds."""
    figure = Figure(figsize=(6, 6))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="gray", lw=0.8, ls=":", label="calibrated")
    for number, (row, runs) in enumerate(rows.items()):
        labels, probabilities = map(np.concatenate, zip(*runs))
        said, was, counts = zip(*reliability(labels, probabilities))
        color = COLORS[number % len(COLORS)]
        axes.plot(said, was, color=color, label=as_label(row), lw=1.2)
        areas = 200 * np.array(counts) / len(labels)
        axes.scatter(said, was, s=areas, color=color, alpha=0.6)
    axes.set(xlabel="probability", ylabel="share of positives (dots: images)", aspect="equal")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    finish(figure, axes, path, title=title)


def as_label(name: str) -> str:
    """A name as matplotlib shows it: "$" begins no formula, and "_" does not keep it out of the legend."""
    return f"\u200b{name}".replace("$", r"\$") if name.startswith("_") else name.replace("$", r"\$")


def finish(figure: Figure, axes: Axes, path: Path, *, title: str) -> None:
    """Adds the title and, below, one legend for all panels; saves."""
    handles, names = axes.get_legend_handles_labels()
    columns = 1 if max(map(len, names)) > 45 else 2
    figure.suptitle(title, fontsize="medium")
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "frameon": False}
    figure.legend(handles, names, ncols=columns, fontsize="small", **below)
    figure.tight_layout()
    save_figure(figure, path)
