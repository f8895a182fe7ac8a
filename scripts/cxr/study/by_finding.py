"""Measures the rows of a table with several labels: finding by finding, and the means over findings."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cxr.evaluation import findings
from cxr.evaluation.intervals import Interval
from cxr.evaluation.intervals import percentile_interval
from cxr.study.predictions import finding_arrays

NOT_COUNTED = "‡"  # marks a finding that is not in the means
Areas = dict[str, dict[str, np.ndarray]]  # of a run: finding -> metric -> (1 + R,)


@dataclass(frozen=True, kw_only=True)
class FindingResult:
    """How well the runs of a row recognise a finding."""

    n: int  # images or studies with a label
    num_positive: int
    is_counted: bool  # whether the finding is in the means over findings
    auroc: float | None  # the mean over seeds
    interval: Interval | None  # over patients


def measure_findings(
    predictions: list[pd.DataFrame], names: tuple[str, ...], weights: list[np.ndarray]
) -> tuple[list[dict[str, np.ndarray]], dict[str, FindingResult]]:
    """Returns the means over findings of each run, metric -> (1 + R,), and the results of each finding.

    `weights` (1 + R, N) of a run are 1 for every image, then the resamples.
    """
    labels = [finding_arrays(one, names)[0] for one in predictions]
    areas: list[Areas] = [
        findings.finding_areas(*finding_arrays(one, names), names, drawn)
        for one, drawn in zip(predictions, weights)
    ]
    means = [
        findings.macro_means(of_run, findings.left_out(known, names)) for of_run, known in zip(areas, labels)
    ]
    without = findings.left_out(labels[0], names)
    results = {}
    for number, name in enumerate(names):
        auroc = np.mean([of_run[name]["auroc"] for of_run in areas], axis=0)  # (1 + R,)
        is_defined = bool(np.isfinite(auroc[0]))
        results[name] = FindingResult(
            n=int((labels[0][:, number] >= 0).sum()),
            num_positive=int((labels[0][:, number] == 1).sum()),
            is_counted=name not in without,
            auroc=float(auroc[0]) if is_defined else None,
            interval=percentile_interval(auroc[1:]) if is_defined else None,
        )
    return means, results


def in_order(rows: list[dict[str, FindingResult]]) -> list[str]:
    """Returns the findings of `rows`, the highest mean AUROC first, and last those that are not counted."""

    def key(name: str) -> tuple[bool, float]:
        found = [row[name] for row in rows]
        aurocs = [one.auroc for one in found if one.auroc is not None]
        return not found[0].is_counted, -np.mean(aurocs) if aurocs else 0.0

    return sorted(rows[0], key=key)


def best(rows: list[dict[str, FindingResult]], name: str) -> float | None:
    """Returns the highest AUROC of a finding, which is underlined; None if there is nothing to compare."""
    aurocs = [row[name].auroc for row in rows if row[name].auroc is not None]
    return max(aurocs) if len(aurocs) > 1 else None


def why_not_counted(rows: list[dict[str, FindingResult]]) -> str:
    """Returns in words which findings are not in the means and why, "" if all are."""
    first = rows[0]
    out = [
        f"{name} ({findings.few_labels(found.num_positive, found.n - found.num_positive)})"
        for name, found in first.items()
        if not found.is_counted
    ]
    reason = f"fewer than {findings.MIN_LABELS} positive or negative labels"
    return f"{NOT_COUNTED} Not in the means over findings, with {reason}: {', '.join(out)}." if out else ""
