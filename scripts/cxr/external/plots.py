"""Draws how well models do on their own images and on others: AUROC with intervals, calibration."""

import itertools
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cxr.evaluation.plots import BLUE
from cxr.evaluation.plots import ORANGE
from cxr.evaluation.plots import as_label
from cxr.evaluation.plots import new_figure
from cxr.run_folder.evaluation_record import EvaluatedFinding
from cxr.run_folder.evaluation_record import Measurement
from cxr.run_folder.evaluation_record import Metric
from cxr.study.plots import finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREEN = "#009E73"
MOST_ACROSS = 4  # panels
AurocRow = tuple[str, Metric | None, Metric | None]  # name, internal, external


def plot_aurocs(rows: list[AurocRow], path: Path, *, title: str) -> None:
    """Draws a line per row with the AUROC on the model's own images and on those of the evaluation."""
    names = ["\n".join(textwrap.wrap(row[0], 60)) for row in rows]
    most_lines = max(name.count("\n") + 1 for name in names)
    figure = new_figure(8, 1.4 + max(0.45, 0.2 * most_lines) * len(rows))
    axes = figure.subplots()
    axes.axvline(0.5, color="gray", lw=1.2, ls=":", label="chance")
    of_side = (("internal", ORANGE, "D", -0.14), ("external", BLUE, "o", 0.14))
    for number, (name, color, marker, shift) in enumerate(of_side, start=1):
        points = [(height + shift, row[number]) for height, row in enumerate(rows)]
        points = [(height, metric) for height, metric in points if metric and metric.value is not None]
        for height, metric in points:
            if metric.interval:
                axes.plot(metric.interval, [height] * 2, color=color, lw=2)
        if points:
            heights, metrics = zip(*points)
            values = [metric.value for metric in metrics]
            axes.plot(values, heights, marker, color=color, ms=6, label=name)
    axes.set_yticks(range(len(rows)), labels=[as_label(name) for name in names])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("AUROC, 95 % interval over patients")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    finish(figure, axes, path, title=as_label(title))


def plot_calibration(findings: dict[str, EvaluatedFinding], path: Path, *, title: str) -> None:
    """Draws a reliability diagram for each finding: internal, external and, if it was done, recalibrated."""
    across = min(len(findings), MOST_ACROSS)
    down = -(-len(findings) // across)
    figure = new_figure(max(5.5, 3 * across), (5 if len(findings) == 1 else 3.1 * down) + 0.6)
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axes, name in itertools.zip_longest(grid.flat, findings):
        if name is None:
            axes.set_visible(False)
            continue
        draw_calibration(axes, findings[name])
        axes.set_title("\n".join(textwrap.wrap(as_label(name), 26)), fontsize="small")
    for axes in grid[:, 0]:
        axes.set_ylabel("share of positives")
    for axes in grid.flat[max(0, len(findings) - across) : len(findings)]:
        axes.set_xlabel("probability (dot area: images)")
        axes.tick_params(labelbottom=True)
    finish(figure, grid.flat[0], path, title=as_label(title))


def draw_calibration(axes: "Axes", finding: EvaluatedFinding) -> None:
    axes.plot([0, 1], [0, 1], color="gray", lw=0.8, ls=":", label="calibrated")
    after = finding.recalibrated and finding.recalibrated.after
    sides: list[tuple[str, Measurement | None, str, str]] = [
        ("internal", finding.internal, ORANGE, "--"),
        ("external", finding.external, BLUE, "-"),
        ("external, recalibrated", after, GREEN, "-"),
    ]
    for name, measured, color, dash in sides:
        if measured and measured.reliability:
            said, was, counts = np.array(measured.reliability).T
            axes.plot(said, was, color=color, ls=dash, lw=1.4, label=name)
            axes.scatter(said, was, s=150 * counts / counts.sum(), color=color, alpha=0.6)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.grid(alpha=0.3)
