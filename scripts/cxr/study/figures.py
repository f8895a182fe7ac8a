"""Chooses and draws the figures of a report."""

import dataclasses
from collections import defaultdict
from pathlib import Path

from cxr.run_folder.record import RunRecord
from cxr.study import plots
from cxr.study.names import TableName
from cxr.study.predictions import arrays
from cxr.study.results import ResultTable


def draw_figures(tables: list[ResultTable], folder: Path) -> dict[str, Path]:
    """Draws the figures of each table; returns the figures over several tables: caption -> file."""
    folder.mkdir(exist_ok=True)
    for table in tables:
        title, slug = plots.as_label(table.title), table.name.slug
        epochs = {
            row.label: [RunRecord(run.folder, enabled=False).epochs() for run in row.runs]
            for row in table.measured
        }
        epochs = {label: runs for label, runs in epochs.items() if all(runs)}
        of_both_classes = [row for row in table.measured if row.values["auroc"] is not None]
        of_one_label = of_both_classes if not table.name.is_multi_label else []
        predictions = {row.label: [arrays(run.predictions) for run in row.runs] for row in of_one_label}
        by_finding = {row.label: row.by_finding for row in of_both_classes if row.by_finding}
        of_seeds = ", the mean over seeds" if any(len(row.runs) > 1 for row in table.measured) else ""
        spread = "; the band is the range over seeds" if of_seeds else ""
        for kind, plot, rows, caption in (
            ("loss", plots.plot_mean_losses, epochs, f"Mean loss by epoch{spread}"),
            ("roc", plots.plot_roc, predictions, f"ROC curves{of_seeds}, {table.n}"),
            ("calibration", plots.plot_calibration, predictions, f"Reliability diagram, {table.n}"),
            ("findings", plots.plot_findings, by_finding, f"AUROC by finding{of_seeds}, {table.n}"),
        ):
            if rows:
                table.figures[caption] = folder / f"{kind}-{slug}.png"
                plot(rows, table.figures[caption], title=title)
    return draw_learning_curves(tables, folder)


def draw_learning_curves(tables: list[ResultTable], folder: Path) -> dict[str, Path]:
    """Draws a figure for each group of tables that differ only in the training size; caption -> file."""
    groups: dict[TableName, list[ResultTable]] = defaultdict(list)
    for table in tables:
        groups[table.name.of_any_size].append(table)
    figures = {}
    for group, of_group in groups.items():
        rows = [row for table in of_group for row in table.measured if row.values["auroc"] is not None]
        over_seeds = all(row.over_seeds["auroc"] for row in rows)  # the same kind of bar for all
        curves: dict[str, plots.Curve] = {}
        for row in rows:
            label = dataclasses.replace(row.name, model="").label(one.name for one in rows).removeprefix(", ")
            curve = plots.Curve(panel=row.name.model, label=label or row.architecture, full_label=row.label)
            size = row.runs[0].results.num_train_images
            interval = (row.over_seeds if over_seeds else row.over_patients)["auroc"]
            curves.setdefault(row.label, curve).points.append((size, row.values["auroc"], interval))
        if len({size for curve in curves.values() for size in curve.sizes}) > 1:
            path = folder / f"auroc-by-size-{group.slug}.png"
            title = f"{group.title} ({measured_on(of_group)})"
            plots.plot_learning_curves(list(curves.values()), path, title=plots.as_label(title))
            bars = "seeds" if over_seeds else "patients"
            caption = f"AUROC{of_group[0].mean} against training images: {title}. "
            figures[f"{caption}The bars are 95 % intervals over {bars}"] = path
    return figures


def measured_on(tables: list[ResultTable]) -> str:
    return " or ".join(dict.fromkeys(table.n for table in tables if table.measured))
