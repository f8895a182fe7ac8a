"""The tables of a report on other collections, for the page, Markdown and CSV."""

from collections.abc import Iterable
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cxr.evaluation.conformal import FEWEST
from cxr.evaluation.findings import MIN_LABELS
from cxr.run_folder.evaluation_record import EvaluatedFinding
from cxr.run_folder.evaluation_record import Evaluation
from cxr.run_folder.evaluation_record import Measurement
from cxr.run_folder.evaluation_record import Metric
from cxr.study.names import format_number
from cxr.study.names import plural
from cxr.study.pages import span

HEADINGS = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "ece": "ECE",
    "brier": "Brier",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
}
CALIBRATED = {name: HEADINGS[name] for name in ("ece", "brier", "sensitivity", "specificity")}
SETS = {
    "coverage": "coverage",
    "coverage_negative": "of negative",
    "coverage_positive": "of positive",
    "set_size": "labels in a set",
}
MACRO = "mean over findings"
Cell = str | Metric | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a report; the first `num_names` columns are text, the others numbers."""

    title: str
    headings: list[str]
    rows: list[list[Cell]]
    num_names: int
    note: str = ""


def as_text(cell: Cell) -> str:
    """Returns a cell as the text of one line."""
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    return f"{format_number(cell.value)} {span(cell.interval)}".strip()


def make_tables(evaluations: list[Evaluation]) -> list[Table]:
    """Returns the tables of all models on one folder."""
    found = [_main(evaluations)]
    if any(one.is_multi_label for one in evaluations):
        found.append(_by_finding(evaluations))
    findings = list(each_finding(evaluations))
    if any(finding.recalibrated for _, _, finding in findings):
        found.append(_recalibrated(findings))
    if any(finding.conformal for _, _, finding in findings):
        found.append(_conformal(findings))
    if any(finding.shift for _, _, finding in findings):
        found.append(_shift(findings))
    return found


def each_finding(evaluations: Iterable[Evaluation]) -> Iterator[tuple[str, str, EvaluatedFinding]]:
    """Yields model, name and result of the findings that have positive and negative images."""
    for one in evaluations:
        for name, finding in one.findings.items():
            if finding.has_both_classes:
                yield one.model, name, finding


def _main(evaluations: list[Evaluation]) -> Table:
    rows = []
    for one in evaluations:
        question = next(iter(one.findings))
        if one.is_multi_label:
            question = f"mean of {len(one.findings) - len(one.left_out)} findings"
        for side, internal in (("external", False), ("internal", True)):
            cells = [one.headline(name, internal=internal) for name in HEADINGS]
            if any(cells):
                where = one.internal_split or "" if internal else plural(one.num_images, "image")
                rows.append([one.model, question, side, where, *cells])
    headings = ["model", "finding", "images", "measured on", *HEADINGS.values()]
    note = (
        "Sensitivity and specificity are at the threshold that the model brought along. Brackets: 95 % "
        "intervals over patients."
    )
    if any(one.is_multi_label for one in evaluations):
        note += (
            f" A mean is over the findings with at least {MIN_LABELS} positive and as many negative labels."
        )
    return Table(title="Each model", headings=headings, rows=rows, num_names=4, note=note)


def _by_finding(evaluations: list[Evaluation]) -> Table:
    rows = []
    for one in (one for one in evaluations if one.is_multi_label):
        for _, name, finding in each_finding([one]):
            internal = finding.internal and finding.internal.metrics["auroc"]
            measured = finding.external
            in_mean = "" if name not in one.left_out else " (not in the mean)"
            cells = [internal, *(measured.metrics[metric] for metric in HEADINGS)]
            rows.append([one.model, name + in_mean, f"{measured.num_positive:,} of {measured.n:,}", *cells])
    names = ["model", "finding", "positive", "AUROC, internal", "AUROC, external"]
    headings = [*names, *[heading for name, heading in HEADINGS.items() if name != "auroc"]]
    return Table(title="Each finding", headings=headings, rows=rows, num_names=3)


def _recalibrated(findings: list[tuple[str, str, EvaluatedFinding]]) -> Table:
    rows = []
    for model, name, finding in findings:
        if (found := finding.recalibrated) is None:
            rows.append(
                [model, name, "not possible: validation has one class", *[None] * (2 + len(CALIBRATED))]
            )
            continue
        limit = " (at its limit)" * found.is_at_limit
        for side, measured, temperature in (
            ("before", finding.external, "1"),
            ("after", found.after, f"{found.temperature:.2f}{limit}"),
        ):
            cells = [measured.metrics[metric] for metric in CALIBRATED]
            rows.append([model, name, side, temperature, format_number(measured.threshold), *cells])
    note = (
        "Temperature and threshold are fitted on the validation split of the folder; the metrics are of its "
        "test split. Intervals take both as fixed. A temperature changes no order, and so no AUROC."
    )
    headings = ["model", "finding", "", "temperature", "threshold", *CALIBRATED.values()]
    return Table(title="Recalibrated on validation", headings=headings, rows=rows, num_names=3, note=note)


def _conformal(findings: list[tuple[str, str, EvaluatedFinding]]) -> Table:
    rows, alpha, is_small = [], 0.0, False
    for model, name, finding in findings:
        if found := finding.conformal:
            alpha, is_small = found.alpha, is_small or found.is_small
            count = f"{found.num_negative:,} + {found.num_positive:,}" + " †" * found.is_small
            rows.append([model, name, count, *(found.metrics[metric] for metric in SETS)])
    note = (
        f"At least {100 * (1 - alpha):g} % of the images of each class should have their label in their set, "
        "if test images are like those of validation. A set of two labels leaves an image undecided."
    )
    if is_small:
        note += (
            f" † Fewer than {FEWEST} calibration images of a class: the coverage depends much on which "
            "these are."
        )
    headings = ["model", "finding", "calibration images (negative + positive)", *SETS.values()]
    return Table(title="Conformal sets", headings=headings, rows=rows, num_names=3, note=note)


def _shift(findings: list[tuple[str, str, EvaluatedFinding]]) -> Table:
    rows = [
        [
            model,
            name,
            found.reference,
            *map(format_number, (found.reference_mean, found.mean, found.distance)),
            *map(format_number, (found.distance_negative, found.distance_positive)),
        ]
        for model, name, finding in findings
        if (found := finding.shift)
    ]
    note = (
        "Distances are Kolmogorov-Smirnov's, 0 to 1, between the probabilities here and those of the "
        "reference. Another share of positive images alone moves the distance of all, but not those by label."
    )
    headings = ["model", "finding", "reference", "mean probability there", "here", "distance"]
    headings += ["of negative", "of positive"]
    return Table(title="Shift of the probabilities", headings=headings, rows=rows, num_names=3, note=note)


# CSV --------------------------------------------------------------------------------------------------------


def csv_lines(evaluations: list[Evaluation]) -> Iterator[dict[str, Any]]:
    """Yields a line per folder, model and finding, and one for the mean over findings."""
    for one in evaluations:
        place = {"data": one.data, "model": one.model}
        if one.is_multi_label:
            numbers = columns("", one.macro) | columns("internal_", one.by_card or one.internal_macro)
            yield place | {"finding": MACRO} | numbers
        for name, finding in one.findings.items():
            line = place | {"finding": name} | measured_columns("", finding.external)
            line |= measured_columns("internal_", finding.internal)
            if not one.is_multi_label:
                line |= columns("internal_", one.by_card)
            if found := finding.recalibrated:
                line |= {"temperature": found.temperature} | measured_columns("recalibrated_", found.after)
            if found := finding.conformal:
                line |= {"conformal_alpha": found.alpha} | columns("conformal_", found.metrics)
            if found := finding.shift:
                line |= {f"shift_{field}": value for field, value in found.as_json().items()}
            yield line


def measured_columns(prefix: str, measured: Measurement | None) -> dict[str, Any]:
    if measured is None:
        return {}
    counts = {f"{prefix}{name}": getattr(measured, name) for name in ("n", "num_positive", "num_patients")}
    return counts | {f"{prefix}threshold": measured.threshold} | columns(prefix, measured.metrics)


def columns(prefix: str, metrics: dict[str, Metric]) -> dict[str, float | None]:
    found = {}
    for name, metric in metrics.items():
        low, high = metric.interval or (None, None)
        found |= {f"{prefix}{name}": metric.value, f"{prefix}{name}_low": low, f"{prefix}{name}_high": high}
    return found
