"""Draws how good frozen features are: AUROC against training images."""

from pathlib import Path

import numpy as np

from cxr.evaluation.intervals import Interval
from cxr.evaluation.plots import as_label
from cxr.evaluation.plots import new_figure
from cxr.run_folder.probe_record import ProbedModel
from cxr.study.plots import COLORS
from cxr.study.plots import MARKERS
from cxr.study.plots import Curve
from cxr.study.plots import finish

METHODS = {"linear": ("linear probe", "-"), "knn": ("kNN", "--")}  # name and dash
SHIFT = 0.02  # between the curves, in decades, so that no interval hides another


def plot_probes(models: list[ProbedModel], path: Path, *, title: str) -> None:
    """Draws a colour per model, solid for the linear probe and dashed for kNN, as PNG and SVG."""
    figure = new_figure(8, 5)
    axes = figure.subplots()
    curves = [
        (color, method, curve)
        for color, model in enumerate(models)
        for method in METHODS
        if (curve := curve_of(model, method)).points  # none where every AUROC is undefined
    ]
    for number, (color, method, curve) in enumerate(curves):
        axes.errorbar(
            np.log10(curve.sizes) + SHIFT * (number - (len(curves) - 1) / 2),
            curve.values,
            yerr=curve.errors,
            label=as_label(curve.label),
            color=COLORS[color % len(COLORS)],
            marker=MARKERS[color % len(MARKERS)],
            ls=METHODS[method][1],
            ms=5,
            capsize=2.5,
            lw=1.4,
            elinewidth=1,
        )
    axes.axhline(0.5, color="gray", lw=1.2, ls=":", label="chance")
    sizes = sorted({point.num_train_images for model in models for point in model.points})
    axes.set_xticks(np.log10(sizes), [f"{size:,}" for size in sizes])
    axes.set(xlabel="training images", ylabel="test AUROC, 95 % interval over patients")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    finish(figure, axes, path, title=title)


def curve_of(model: ProbedModel, method: str) -> Curve:
    points = [
        (point.num_train_images, point.test_auroc, point.interval and Interval(low=low, high=high))
        for point in model.points
        if point.method == method and point.test_auroc is not None
        for low, high in [point.interval or (None, None)]
    ]
    label = f"{model.model}: {METHODS[method][0]}"
    return Curve(panel=model.model, label=label, full_label=label, points=points)
