"""Draws the metrics of groups of patients."""

from pathlib import Path
from typing import Any

from cxr.evaluation.plots import new_figure
from cxr.evaluation.plots import save_figure
from cxr.evaluation.subgroups import MIN_PATIENTS

COLOR = "#0072B2"


def plot_groups(groups: list[dict[str, Any]], path: Path, *, title: str, overall: float | None) -> None:
    """Plots the AUROC of each group with its 95 % interval, a block per attribute, and that of all images.

    `groups` are those of one finding, as `measure_groups` returns them. Groups without an AUROC or with fewer
    than MIN_PATIENTS patients are left out, and counted in a note. Without any other there is no figure.
    """
    shown = [
        group for group in groups if group["auroc"] is not None and group["num_patients"] >= MIN_PATIENTS
    ]
    if not shown:
        return
    attributes = list(dict.fromkeys(group["attribute"] for group in shown))
    # From the top: a heading per attribute, then its groups.
    rows = [
        row
        for attribute in attributes
        for row in (attribute, *(group for group in shown if group["attribute"] == attribute))
    ]
    figure = new_figure(7, 1.3 + 0.27 * len(rows))
    axes = figure.subplots()
    ticks = {}
    for height, row in enumerate(rows):
        if isinstance(row, str):
            ticks[height] = row
            continue
        ticks[height] = f"{row['group']} ({row['num_patients']:,} patients)"
        interval = row["intervals"].get("auroc")
        if interval:
            axes.plot(interval, [height, height], color=COLOR, lw=1.5)
        axes.plot(row["auroc"], height, "o", color=COLOR, ms=5)
    if overall is not None:
        axes.axvline(overall, color="0.4", ls="--", lw=1, label=f"all images: {overall:.3f}")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    axes.set_yticks(list(ticks), labels=list(ticks.values()))
    for label, row in zip(axes.get_yticklabels(), rows):
        if isinstance(row, str):
            label.set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    num_left_out = len(groups) - len(shown)
    note = f"\nleft out, with fewer than {MIN_PATIENTS} patients or without an AUROC: {num_left_out}"
    axes.set_xlabel("AUROC, 95 % interval over patients" + (note if num_left_out else ""))
    figure.suptitle(title)
    figure.tight_layout()
    save_figure(figure, path)
