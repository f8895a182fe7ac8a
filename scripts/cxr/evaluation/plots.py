"""Draws the figures of a run folder."""

import itertools
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any

import numpy as np

from cxr.choices import MASKED
from cxr.evaluation.findings import MIN_LABELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE = "#0072B2", "#D55E00"  # of Okabe and Ito's palette for colour-blind readers
PALE = "#8FBBD9"  # the blue, for findings that are not in a mean
MOST_ACROSS = 5  # panels of a grid
TITLE_WIDTH = 24  # letters of a panel's title


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
    """Plots the mean training and validation loss by epoch; `epochs` are the lines of `metrics.jsonl`.

    Where features were probed during the training, their AUROC and effective rank are beside the loss.
    """
    probed = [record for record in epochs if "rankme" in record]
    figure = new_figure(15 if probed else 6, 4)
    panels = figure.subplots(1, 3 if probed else 1, squeeze=False)[0]
    numbers = [record["epoch"] for record in epochs]
    for key, name in (("train_loss", "training"), ("eval_loss", "validation")):
        panels[0].plot(numbers, [record[key] for record in epochs], marker=".", label=name)
    panels[0].set(ylabel="mean loss")
    panels[0].legend()
    names = {"probe_auroc": "validation AUROC, linear probe", "rankme": "RankMe (effective rank)"}
    for axes, (key, name) in zip(panels[1:], names.items()):
        values = [np.nan if record[key] is None else record[key] for record in probed]
        axes.plot([record["epoch"] for record in probed], values, marker=".", color=BLUE)
        axes.set(ylabel=name)
    for axes in panels:
        axes.set(xlabel="epoch", xlim=panels[0].get_xlim())
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.tight_layout()
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


def plot_finding_rocs(
    labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str], path: Path, *, title: str
) -> None:
    """Plots a small ROC curve for each finding; arrays are (N, K), and `labels` 1, 0 or MASKED."""
    across = min(len(names), MOST_ACROSS)
    down = -(-len(names) // across)
    figure = new_figure(max(2.3 * across, 5), 2.75 * down + 0.5)
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for number, (axes, name) in enumerate(itertools.zip_longest(grid.flat, names)):
        if name is None:
            axes.set_visible(False)
            continue
        labelled = labels[:, number] != MASKED
        _draw_roc(axes, labels[labelled, number], probabilities[labelled, number], name=name)
    for axes in grid[:, 0]:
        axes.set_ylabel("sensitivity")
    for axes in grid.flat[max(0, len(names) - across) : len(names)]:  # the lowest of each column
        axes.set_xlabel("1 - specificity")
        axes.tick_params(labelbottom=True)
    figure.suptitle("\n".join(textwrap.wrap(as_label(title), 22 * across + 20)))
    figure.tight_layout()
    save_figure(figure, path)


def _draw_roc(axes: "Axes", labels: np.ndarray, probabilities: np.ndarray, *, name: str) -> None:
    """Draws the curve of one finding, or says why it has none."""
    from sklearn import metrics

    num_positive = int(labels.sum())
    below = f"{num_positive:,} positive"
    if 0 < num_positive < len(labels):
        false_positive_rate, true_positive_rate, _ = metrics.roc_curve(labels, probabilities)
        axes.plot([0, 1], [0, 1], color="gray", lw=0.8, ls=":")
        axes.plot(false_positive_rate, true_positive_rate, color=BLUE, lw=1.5)
        below = f"AUROC {metrics.auc(false_positive_rate, true_positive_rate):.3f}, {below}"
    else:
        reason = "only one class" if len(labels) else "no labels"
        axes.text(0.5, 0.5, f"{reason}:\nno curve", ha="center", va="center", color="0.35")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1], aspect="equal")
    heading = textwrap.wrap(as_label(name), TITLE_WIDTH)
    axes.set_title("\n".join([*heading, below]), fontsize="small")
    axes.grid(alpha=0.3)


def plot_finding_bars(measured: dict[str, Any], path: Path, *, title: str) -> None:
    """Plots the AUROC of each finding with its 95 % interval, the highest at the top, and their mean.

    `measured` is that of a split with several findings and intervals. Findings that are not in the mean are
    paler; one without an AUROC has no point.
    """
    rows = sorted(measured["findings"].items(), key=lambda row: -(row[1]["auroc"] or 0))
    names, left_out = set(measured["findings"]), set(measured["left_out"])
    figure = new_figure(7.5, 1.5 + 0.3 * len(rows))
    axes = figure.subplots()
    axes.axvline(0.5, color="gray", lw=1.2, ls=":", label="chance")
    if measured["auroc"] is not None:
        num_counted = len(rows) - len(left_out)
        mean = f"mean of {num_counted} finding{'s' * (num_counted != 1)}: {measured['auroc']:.3f}"
        axes.axvline(measured["auroc"], color=ORANGE, lw=1.2, ls="--", label=mean)
    is_rare = f"not in the mean: fewer than {MIN_LABELS} positive or negative"
    _draw_dots(axes, rows, only=names - left_out, color=BLUE, marker="o", label="in the mean")
    _draw_dots(axes, rows, only=left_out, color=PALE, marker="D", label=is_rare)
    ticks = [
        f"{as_label(name)} ({found['num_positive']:,} positive{', no AUROC' * (found['auroc'] is None)})"
        for name, found in rows
    ]
    axes.set_yticks(range(len(rows)), labels=ticks)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("AUROC, 95 % interval over patients")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "frameon": False}
    figure.legend(*axes.get_legend_handles_labels(), ncols=2, fontsize="small", **below)
    figure.suptitle("\n".join(textwrap.wrap(as_label(title), 80)))
    figure.tight_layout()
    save_figure(figure, path)


def _draw_dots(
    axes: "Axes", rows: list[tuple[str, dict]], *, only: set[str], color: str, marker: str, label: str
) -> None:
    """Draws the AUROC and its interval of the findings in `only`; row 0 is at height 0."""
    drawn = [(height, found) for height, (name, found) in enumerate(rows) if name in only]
    for height, found in drawn:
        if found["intervals"]["auroc"]:
            axes.plot(found["intervals"]["auroc"], [height] * 2, color=color, lw=2)
    if drawn:
        values = [np.nan if found["auroc"] is None else found["auroc"] for _, found in drawn]
        heights = [height for height, _ in drawn]
        axes.plot(values, heights, marker, color=color, ms=6, label=label)


def as_label(name: str) -> str:
    """Escapes a name for matplotlib: "$" would start a formula, a leading "_" would hide it in the legend."""
    return f"\u200b{name}".replace("$", r"\$") if name.startswith("_") else name.replace("$", r"\$")


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
