"""Writes a study's report: the verdicts, figures, a page, Markdown and CSV."""

import base64
import dataclasses
from collections import defaultdict
from pathlib import Path

import jinja2
import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cxr.evaluation.intervals import Difference
from cxr.evaluation.intervals import Interval
from cxr.run_folder.files import write_text
from cxr.run_folder.record import RunRecord
from cxr.study import plots
from cxr.study.measuring import arrays
from cxr.study.results import OUR_METRICS
from cxr.study.results import PAPER_METRICS
from cxr.study.results import ResultTable
from cxr.study.results import TableName
from cxr.study.results import format_number

SIGNIFICANT = 0.05
MOST_SAID = 4  # differences in a sentence; all are in a table
TEMPLATES = Path(__file__).parent / "templates"


def verdict(table: ResultTable) -> str:
    """Says in a sentence which differences of AUROC are more than chance."""
    if len(table.measured) < 2:
        return "There is nothing to compare yet." if len(table.rows) > 1 else ""
    if not table.comparisons:
        return "The rows were not measured on the same images, so they are not compared."
    clear = [comparison for comparison in table.comparisons if comparison.p < SIGNIFICANT]
    total = len(table.comparisons)
    if not clear:
        none = f"None of the {total} differences of AUC is" if total > 1 else "The difference of AUC is not"
        return f"{none} distinguishable from noise (p < {SIGNIFICANT}, corrected by Holm)."
    said = [f"{one.first} over {one.second} by {signed(one.difference)}" for one in clear[:MOST_SAID]]
    more = f"; and {len(clear) - MOST_SAID} more, listed in the report" if len(clear) > MOST_SAID else ""
    return (
        f"Distinguishable from noise (p < {SIGNIFICANT}, corrected by Holm): {len(clear)} of the {total} "
        f"differences of AUC. {'; '.join(said)}{more}."
    )


def notes(table: ResultTable) -> list[str]:
    """What a reader of the table must know to take its numbers for what they are."""
    said = []
    if table.comparisons and not table.noise.freedom:
        said.append(
            "There are too few seeds to say what others would have given: differences leave that out."
        )
    if any(row.published for row in table.rows):
        said.append(
            "The paper's figures are of its own validation images, which are not known, and have no "
            "intervals; ours are of the published test split."
        )
    return said


def draw_figures(tables: list[ResultTable], folder: Path) -> dict[str, Path]:
    """Draws each table's figures, and returns those that join several tables: caption -> file."""
    folder.mkdir(exist_ok=True)
    for table in tables:
        title, slug = plots.as_label(table.name.title), table.name.slug
        epochs = {
            row.label: [RunRecord(run.folder, enabled=False).epochs() for run in row.runs]
            for row in table.measured
        }
        epochs = {label: runs for label, runs in epochs.items() if all(runs)}
        of_both_classes = [row for row in table.measured if row.values["auroc"] is not None]
        predictions = {row.label: [arrays(run.predictions) for run in row.runs] for row in of_both_classes}
        for kind, plot, rows, caption in (
            ("loss", plots.plot_mean_losses, epochs, "Mean loss by epoch; the band is the range over seeds"),
            ("roc", plots.plot_roc, predictions, "ROC curves, the mean over seeds"),
            ("calibration", plots.plot_calibration, predictions, "Reliability diagram"),
        ):
            if rows:
                table.figures[caption] = folder / f"{kind}-{slug}.png"
                plot(rows, table.figures[caption], title=title)
    return draw_learning_curves(tables, folder)


def draw_learning_curves(tables: list[ResultTable], folder: Path) -> dict[str, Path]:
    """A figure for each group of tables that differ only in the training size, if there are several."""
    groups: dict[TableName, list[ResultTable]] = defaultdict(list)
    for table in tables:
        groups[dataclasses.replace(table.name, size="")].append(table)
    figures = {}
    for group, of_group in groups.items():
        points: dict[str, list] = defaultdict(list)
        for row in (row for table in of_group for row in table.measured):
            if row.values["auroc"] is not None:
                size = row.runs[0].results.num_train_images
                interval = row.over_seeds["auroc"] or row.over_patients["auroc"]
                points[row.label].append((size, row.values["auroc"], interval))
        if len({size for of_row in points.values() for size, _, _ in of_row}) > 1:
            path = folder / f"auroc-by-size-{group.slug}.png"
            plots.plot_learning_curves(dict(points), path, title=plots.as_label(group.title))
            figures[f"AUC against training images: {group.title}"] = path
    return figures


def signed(difference: Difference) -> str:
    return f"{difference.value:.3f} [{difference.low:.3f}, {difference.high:.3f}]"


def span(interval: Interval | None) -> str:
    return f"[{interval.low:.3f}, {interval.high:.3f}]" if interval else ""


def embed(path: Path) -> str:
    """A PNG as text that stands in the page itself."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def csv_text(tables: list[ResultTable]) -> str:
    """A line a row: where it is in the grid, and every metric with its intervals and the paper's figure."""
    lines = []
    for name, row in [(table.name, row) for table in tables for row in table.rows]:
        line = dataclasses.asdict(name) | dataclasses.asdict(row.name)
        line |= {"seeds": len(row.runs), "seeds_planned": row.num_planned}
        line["n"] = len(row.runs[0].predictions) if row.runs else None
        for metric in (*PAPER_METRICS, *OUR_METRICS):
            line[metric] = row.values.get(metric)
            for over, intervals in (("seeds", row.over_seeds), ("patients", row.over_patients)):
                for end in ("low", "high"):
                    line[f"{metric}_{over}_{end}"] = getattr(intervals.get(metric), end, None)
            line[f"{metric}_published"] = row.published.get(metric)
        lines.append(line)
    # As objects: a whole number stays one beside what is missing.
    table = pd.DataFrame(lines, dtype=object).rename(columns={"size": "train_size"})
    return table.to_csv(index=False, lineterminator="\n")


def write_report(
    tables: list[ResultTable], figures: dict[str, Path], output_dir: Path, *, title: str, num_resamples: int
) -> None:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name.startswith("report.html"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": format_number, "signed": signed, "span": span, "embed": embed}
    # A cell of a Markdown table, in which a name is text and no markup.
    environment.filters["cell"] = lambda text: str(text).replace("|", "/").replace("<", "&lt;")
    environment.filters["relative"] = lambda path: path.relative_to(output_dir).as_posix()
    content = {
        "title": title,
        "tables": tables,
        "figures": figures,
        "paper_metrics": PAPER_METRICS,
        "our_metrics": OUR_METRICS,
        "verdict": verdict,
        "notes": notes,
        "view_headings": lambda table: [f"AUC of {view}" for view in table.views],
        "num_resamples": num_resamples,
        "runs": [run for table in tables for row in table.rows for run in row.runs],
        "missing": sum(row.num_planned - len(row.runs) for table in tables for row in table.rows),
    }
    for name in ("report.html", "report.md"):
        write_text(output_dir / name, environment.get_template(f"{name}.j2").render(content))
    write_text(output_dir / "report.csv", csv_text(tables))


def print_table(table: ResultTable, console: Console) -> None:
    metrics = PAPER_METRICS if console.width >= 100 else {"auroc": "AUC"}
    shown = Table(title=escape(table.name.title))
    shown.add_column("", overflow="fold", min_width=20)
    for heading in ("seeds", *metrics.values(), "AUC, 95 %"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in table.rows:
        seeds = f"{len(row.runs)} of {row.num_planned}" if len(row.runs) != row.num_planned else len(row.runs)
        cells = [
            Text(format_number(row.values[metric]), style="underline" if table.is_best(row, metric) else "")
            if row.values
            else Text("not run", style="dim")
            for metric in metrics
        ]
        interval = row.over_seeds.get("auroc") or row.over_patients.get("auroc")
        shown.add_row(Text(row.label), str(seeds), *cells, Text(span(interval)))
    console.print(shown)
    for said in (verdict(table), *notes(table)):
        console.print(said, highlight=False, markup=False)
