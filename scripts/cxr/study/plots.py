"""Draws the figures of a study: losses, learning curves, ROC curves, calibration, findings."""

import itertools
import textwrap
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cxr.evaluation.intervals import Interval
from cxr.evaluation.intervals import reliability
from cxr.evaluation.plots import as_label
from cxr.evaluation.plots import new_figure
from cxr.evaluation.plots import save_figure
from cxr.study.by_finding import NOT_COUNTED
from cxr.study.by_finding import FindingResult
from cxr.study.by_finding import in_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette for colour-blind readers, without its yellow, which is too pale on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
MARKERS = "osD^vP*Xph"
MOST_IN_A_PANEL = 4  # the intervals of more curves would be hard to tell apart
LABEL_WIDTH = 24  # letters
Predictions = tuple[np.ndarray, np.ndarray]  # of a run: labels (N,) in {0, 1} and probabilities (N,)


def style(number: int) -> dict[str, str]:
    """Returns the line style of row `number`: colours first, then the same colours with another dash."""
    return {"color": COLORS[number % len(COLORS)], "ls": DASHES[number // len(COLORS) % len(DASHES)]}


def plot_mean_losses(rows: dict[str, list[list[dict]]], path: Path, *, title: str) -> None:
    """Draws training and validation loss by epoch: the mean over seeds as a line, their range as a band.

    `rows` maps a row's name to the metrics.jsonl lines of each seed.
    """
    figure = new_figure(11, 4.2)
    panels = figure.subplots(1, 2)
    for axes, key, name in zip(panels, ("train_loss", "eval_loss"), ("training", "validation")):
        for number, (row, runs) in enumerate(rows.items()):
            length = min(len(epochs) for epochs in runs)
            numbers = [record["epoch"] for record in runs[0][:length]]
            # (seeds, epochs)
            losses = np.array([[record[key] for record in epochs[:length]] for epochs in runs])
            axes.plot(numbers, losses.mean(axis=0), label=as_label(row), **style(number))
            low, high, color = losses.min(axis=0), losses.max(axis=0), style(number)["color"]
            axes.fill_between(numbers, low, high, color=color, alpha=0.12, lw=0)
        axes.set(xlabel="epoch", ylabel="mean loss", title=name)
        axes.grid(alpha=0.3)
    finish(figure, panels[0], path, title=title)


@dataclass(kw_only=True)
class Curve:
    """The AUROC of a row by training size."""

    panel: str  # the row's model
    label: str  # the row's name in that panel
    full_label: str
    points: list[tuple[int, float, Interval | None]] = field(default_factory=list)  # images, AUROC, interval

    @property
    def sizes(self) -> np.ndarray:
        return np.array([size for size, _, _ in self.points])

    @property
    def values(self) -> np.ndarray:
        return np.array([value for _, value, _ in self.points])

    @property
    def errors(self) -> np.ndarray:
        """Returns the distances from each value to the ends of its interval, (2, sizes)."""
        ends = [
            (interval.low, interval.high) if interval else (value,) * 2 for _, value, interval in self.points
        ]
        low, high = np.array(ends).T
        return np.maximum([self.values - low, high - self.values], 0)


def plot_learning_curves(curves: list[Curve], path: Path, *, title: str) -> None:
    """Draws AUROC against training images: all rows in one panel or, if there are many, a panel per model.

    Each curve is named at its end. A panel also shows the curves of the other models in gray.
    """
    together = len(curves) <= MOST_IN_A_PANEL
    panels = [""] if together else list(dict.fromkeys(curve.panel for curve in curves))
    across = min(len(panels), 2 if len(panels) <= 4 else 3)
    down = -(-len(panels) // across)
    figure = new_figure(max(8, 5.2 * across), max(4.6, 3.6 * down))
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axes, panel in itertools.zip_longest(grid.flat, panels):
        if panel is None:
            axes.set_visible(False)
            continue
        own = [curve for curve in curves if together or curve.panel == panel]
        for other in [curve for curve in curves if curve not in own]:
            axes.plot(np.log10(other.sizes), other.values, color="0.82", lw=1, zorder=1)
        draw_curves(axes, own, lambda curve: curve.full_label if together else curve.label)
        axes.set_title("\n".join(textwrap.wrap(as_label(panel), 2 * LABEL_WIDTH)), fontsize="medium")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    sizes = sorted({size for curve in curves for size in curve.sizes})
    grid.flat[0].set_xticks(np.log10(sizes), [f"{size:,}" for size in sizes])
    for axes in grid[:, 0]:
        axes.set_ylabel("AUROC")
    for axes in grid.flat[max(0, len(panels) - across) :]:
        axes.set_xlabel("training images")
        axes.tick_params(labelbottom=True)
    figure.suptitle(title + "\ngray: the rows of the other panels" * (len(panels) > 1), fontsize="medium")
    figure.tight_layout()
    for axes in grid.flat[: len(panels)]:  # last, when the limits are known
        spread_labels(axes)
    save(figure, path)


def draw_curves(axes: "Axes", curves: list[Curve], name: Callable[[Curve], str]) -> None:
    """Draws curves with intervals, shifted sideways so that none hides another, and names each at its end."""
    sizes = np.unique(np.log10(np.concatenate([curve.sizes for curve in curves])))
    step = min(0.12, 0.5 / len(curves)) * (np.diff(sizes).min() if len(sizes) > 1 else 1)
    for number, curve in enumerate(curves):
        x = np.log10(curve.sizes) + step * (number - (len(curves) - 1) / 2)
        marker, of_line = MARKERS[number % len(MARKERS)], style(number)
        axes.errorbar(
            x,
            curve.values,
            yerr=curve.errors,
            marker=marker,
            ms=5,
            capsize=2.5,
            lw=1.4,
            elinewidth=1,
            **of_line,
        )
        text = "\n".join(textwrap.wrap(as_label(name(curve)), LABEL_WIDTH))
        axes.annotate(
            text,
            (x[-1], curve.values[-1]),
            xytext=(1.03, curve.values[-1]),
            textcoords=axes.get_yaxis_transform(),
            color=of_line["color"],
            fontsize="small",
            va="center",
            arrowprops={"arrowstyle": "-", "color": of_line["color"], "lw": 0.5, "alpha": 0.5},
            annotation_clip=False,
        )


def spread_labels(axes: "Axes") -> None:
    """Moves the labels at the right of a panel up or down, so that none covers another."""
    labels = sorted(axes.texts, key=lambda label: label.xyann[1])
    bottom, top = axes.get_ylim()
    line = (top - bottom) * 12 / (axes.get_window_extent().height / axes.figure.dpi * 72)  # 12 points high
    heights = [line * (label.get_text().count("\n") + 1.3) for label in labels]
    places = spread([label.xyann[1] for label in labels], heights)
    for label, place in zip(labels, places):
        label.xyann = (label.xyann[0], place)


def spread(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Returns places near the `wanted` ones, which ascend, such that labels of `heights` do not overlap."""
    blocks: list[tuple[list[float], list[float]]] = []  # labels that touch: wanted places and heights
    for place, height in zip(wanted, heights):
        blocks.append(([place], [height]))
        while len(blocks) > 1 and block_ends(*blocks[-2])[1] > block_ends(*blocks[-1])[0]:
            (places, of_places), last = blocks.pop(-2), blocks.pop()
            blocks.append((places + last[0], of_places + last[1]))
    found = []
    for places, of_places in blocks:
        ends = block_ends(places, of_places)[0] + np.cumsum(of_places)
        found += (ends - np.array(of_places) / 2).tolist()
    return found


def block_ends(places: list[float], heights: list[float]) -> tuple[float, float]:
    """Returns the lower and upper end of a stack of labels centred at the mean of their places."""
    middle, half = float(np.mean(places)), sum(heights) / 2
    return middle - half, middle + half


def plot_roc(rows: dict[str, list[Predictions]], path: Path, *, title: str) -> None:
    """Draws the ROC curve of each row: the mean sensitivity over seeds at each false positive rate."""
    from sklearn.metrics import roc_curve

    figure = new_figure(6, 6)
    axes = figure.subplots()
    grid = np.linspace(0, 1, 501)
    axes.plot([0, 1], [0, 1], color="gray", lw=0.8, ls=":", label="chance")
    for number, (row, runs) in enumerate(rows.items()):
        curves = [roc_curve(*run)[:2] for run in runs]
        mean = np.mean([np.interp(grid, false, true) for false, true in curves], axis=0)
        axes.plot([0, *grid], [0, *mean], label=as_label(row), lw=1.4, **style(number))
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal")
    axes.grid(alpha=0.3)
    finish(figure, axes, path, title=title)


def plot_calibration(rows: dict[str, list[Predictions]], path: Path, *, title: str) -> None:
    """Draws a reliability diagram: the share of positives in each bin of probability, over all seeds."""
    figure = new_figure(6, 6)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="gray", lw=0.8, ls=":", label="calibrated")
    for number, (row, runs) in enumerate(rows.items()):
        labels, probabilities = map(np.concatenate, zip(*runs))
        said, was, counts = zip(*reliability(labels, probabilities))
        axes.plot(said, was, label=as_label(row), lw=1.2, **style(number))
        areas = 200 * np.array(counts) / len(labels)
        axes.scatter(said, was, s=areas, color=style(number)["color"], alpha=0.6)
    axes.set(xlabel="probability", ylabel="share of positives (dot area: images)", aspect="equal")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    finish(figure, axes, path, title=title)


def plot_findings(rows: dict[str, dict[str, FindingResult]], path: Path, *, title: str) -> None:
    """Draws the AUROC of each finding as a dot per row with its interval over patients, the best on top."""
    names = [name for name in in_order(list(rows.values())) if any(row[name].auroc for row in rows.values())]
    figure = new_figure(8, 1.6 + len(names) * max(0.34, 0.11 * len(rows)))
    axes = figure.subplots()
    axes.axvline(0.5, color="gray", lw=0.8, ls=":")
    step = 0.7 / len(rows)
    for number, (row, results) in enumerate(rows.items()):
        color, marker = style(number)["color"], MARKERS[number % len(MARKERS)]
        shift = step * (number - (len(rows) - 1) / 2)
        shown = [(height + shift, results[name]) for height, name in enumerate(names) if results[name].auroc]
        heights, found = zip(*shown)
        aurocs = np.array([one.auroc for one in found])
        ends = np.array([(one.interval.low, one.interval.high) for one in found]).T  # (2, findings)
        errors = np.maximum([aurocs - ends[0], ends[1] - aurocs], 0)
        dots = {"fmt": marker, "color": color, "ms": 4.5, "elinewidth": 1.2}
        axes.errorbar(aurocs, heights, xerr=errors, label=as_label(row), **dots)
    counted = next(iter(rows.values()))
    labels = [name + (NOT_COUNTED if not counted[name].is_counted else "") for name in names]
    axes.set_yticks(range(len(names)), labels)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("AUROC, 95 % interval over patients")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)
    for height in range(1, len(names)):
        axes.axhline(height - 0.5, color="0.9", lw=0.8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    finish(figure, axes, path, title=title)


def finish(figure: "Figure", axes: "Axes", path: Path, *, title: str) -> None:
    """Adds the title and one legend for all panels below them, and saves the figure."""
    handles, names = axes.get_legend_handles_labels()
    columns = 1 if max(map(len, names)) > 45 else 2
    figure.suptitle("\n".join(textwrap.wrap(title, 90)), fontsize="medium")
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "frameon": False}
    figure.legend(handles, names, ncols=columns, fontsize="small", **below)
    figure.tight_layout()
    save(figure, path)


def save(figure: "Figure", path: Path) -> None:
    """Writes the PNG `path` and an SVG beside it; the same figure always gives the same SVG."""
    import matplotlib

    save_figure(figure, path)
    with matplotlib.rc_context({"svg.hashsalt": path.stem}):
        save_figure(figure, path.with_suffix(".svg"))
