"""Writes the tables of a report as CSV: a line per row and, of several labels, a line per row and finding."""

import dataclasses
from typing import Any

import pandas as pd

from cxr.evaluation.intervals import Interval
from cxr.study.names import RowName
from cxr.study.names import TableName
from cxr.study.results import CHEXPERT5_METRICS
from cxr.study.results import OUR_METRICS
from cxr.study.results import PAPER_METRICS
from cxr.study.results import ResultTable


def csv_text(tables: list[ResultTable]) -> str:
    """Returns the CSV, a line per row and one per ensemble: place in the grid, metrics, intervals, paper."""
    lines = []
    metrics = [*PAPER_METRICS, *OUR_METRICS]
    metrics += [metric for metric in CHEXPERT5_METRICS if any(metric in table.metrics for table in tables)]
    for name, row in [(table.name, row) for table in tables for row in table.rows]:
        common = place(name, row.name) | {"seeds": len(row.runs), "seeds_planned": row.num_planned}
        common["n"] = len(row.runs[0].predictions) if row.runs else None
        line = dict(common)
        for metric in metrics:
            line |= with_ends(metric, row.values, seeds=row.over_seeds, patients=row.over_patients)
            line[f"{metric}_published"] = row.published.get(metric)
        for level, found in row.against_radiologist.items():
            line[f"auroc_radiologist_{level}"] = found.auroc
            for end in ("low", "high"):
                line[f"auroc_radiologist_{level}_patients_{end}"] = getattr(found.interval, end, None)
        lines.append(line)
        if row.ensemble:
            line = common | {"model": f"{row.name.model}, ensemble of {row.ensemble.num_models}"}
            for metric in metrics:
                line |= with_ends(metric, row.ensemble.values, patients=row.ensemble.over_patients)
            lines.append(line)
    return as_text(lines)


def with_ends(
    metric: str, values: dict[str, float | None], **intervals: dict[str, Interval | None]
) -> dict[str, float | None]:
    """Returns a metric and the ends of its intervals, by column."""
    line = {metric: values.get(metric)}
    for over, found in intervals.items():
        line |= {f"{metric}_{over}_{end}": getattr(found.get(metric), end, None) for end in ("low", "high")}
    return line


def findings_csv_text(tables: list[ResultTable]) -> str:
    """Returns the CSV of tables with several labels, a line per row and finding."""
    lines = []
    for table in tables:
        for row in table.rows:
            for finding, found in row.by_finding.items():
                line = place(table.name, row.name) | {"finding": finding}
                line |= {"n": found.n, "num_positive": found.num_positive, "in_macro": found.is_counted}
                line |= {"auroc": found.auroc}
                line |= {
                    f"auroc_patients_{end}": getattr(found.interval, end, None) for end in ("low", "high")
                }
                lines.append(line | {"view_alone_auroc": table.projection_of(finding)})
    return as_text(lines)


def place(table: TableName, row: RowName) -> dict[str, Any]:
    """Returns the place of a row in the grid, by column."""
    columns = dataclasses.asdict(table) | {"findings": ", ".join(table.findings)} | dataclasses.asdict(row)
    return {"train_size" if name == "size" else name: value for name, value in columns.items()}


def as_text(lines: list[dict[str, Any]]) -> str:
    # dtype=object, because missing values would turn a column of whole numbers into floats.
    return pd.DataFrame(lines, dtype=object).to_csv(index=False, lineterminator="\n")
