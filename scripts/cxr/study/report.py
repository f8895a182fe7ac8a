"""Writes a study's report: the answer, figures, an HTML page, Markdown and CSV."""

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

from cxr.evaluation.intervals import MIN_SEEDS
from cxr.evaluation.intervals import Difference
from cxr.evaluation.intervals import Interval
from cxr.run_folder.files import write_text
from cxr.run_folder.record import RunRecord
from cxr.study import plots
from cxr.study.answer import Answer
from cxr.study.answer import format_p
from cxr.study.answer import sentence
from cxr.study.answer import training_images
from cxr.study.how_trained import how_trained
from cxr.study.measuring import arrays
from cxr.study.results import OUR_METRICS
from cxr.study.results import PAPER_METRICS
from cxr.study.results import ResultTable
from cxr.study.results import TableName
from cxr.study.results import format_number
from cxr.study.results import plural

TEMPLATES = Path(__file__).parent / "templates"
PAPERS_WORD = (
    "The column AUC, named as in the paper, is AUROC; the column augmentation is the paper's “transformer”."
)
UNDERTRAINED = "†"


def why_not_compared(table: ResultTable) -> str:
    """Returns why a table has no differences, "" if it has some or has only one row."""
    if len(table.measured) < 2:
        return "There is nothing to compare yet." if len(table.rows) > 1 else ""
    return (
        ""
        if table.comparisons
        else "The rows were not measured on the same images, so they are not compared."
    )


def general_notes(tables: list[ResultTable]) -> list[str]:
    """Returns notes on what the report cannot say because there are few seeds."""
    said = []
    rows = [row for table in tables for row in table.measured]
    if few := [row for row in rows if len(row.runs) < MIN_SEEDS]:
        who = "All rows have" if len(few) == len(rows) else f"{len(few)} of the {len(rows)} rows have"
        said.append(
            f"{who} fewer than {MIN_SEEDS} seeds, too few for an interval over seeds; their intervals are "
            "over patients only and do not include the variation between seeds."
        )
    if any(table.comparisons and not table.noise.freedom for table in tables):
        said.append(
            "In tables with one seed per row, differences do not include the variation between seeds."
        )
    return said


def notes(table: ResultTable) -> list[str]:
    """Returns notes that a reader needs to interpret the table."""
    said = [why_not_compared(table)] * bool(why_not_compared(table))
    said += [f"{UNDERTRAINED} {row.label} is undertrained: {row.undertrained}." for row in table.undertrained]
    if any(row.published for row in table.rows):
        said.append(
            "The paper's numbers are from its own validation images, which are not known, and have no "
            "intervals; ours are from the published test split."
        )
    return said


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
        predictions = {row.label: [arrays(run.predictions) for run in row.runs] for row in of_both_classes}
        of_seeds = ", the mean over seeds" if any(len(row.runs) > 1 for row in table.measured) else ""
        spread = "; the band is the range over seeds" if of_seeds else ""
        for kind, plot, rows, caption in (
            ("loss", plots.plot_mean_losses, epochs, f"Mean loss by epoch{spread}"),
            ("roc", plots.plot_roc, predictions, f"ROC curves{of_seeds}, {table.n}"),
            ("calibration", plots.plot_calibration, predictions, f"Reliability diagram, {table.n}"),
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
            figures[f"AUROC against training images: {title}. The bars are 95 % intervals over {bars}"] = path
    return figures


def measured_on(tables: list[ResultTable]) -> str:
    return " or ".join(dict.fromkeys(table.n for table in tables if table.measured))


def signed(difference: Difference) -> str:
    return f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def span(interval: Interval | None) -> str:
    return f"[{interval.low:.3f}, {interval.high:.3f}]" if interval else ""


def embed(path: Path) -> str:
    """Returns a PNG as a data URL, to embed it in the page."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def csv_text(tables: list[ResultTable]) -> str:
    """Returns the CSV, a line per row: its place in the grid, metrics, intervals and the paper's results."""
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
    # dtype=object, because missing values would turn a column of whole numbers into floats.
    table = pd.DataFrame(lines, dtype=object).rename(columns={"size": "train_size"})
    return table.to_csv(index=False, lineterminator="\n")


def write_report(
    tables: list[ResultTable],
    answers: list[Answer],
    figures: dict[str, Path],
    output_dir: Path,
    *,
    title: str,
    num_resamples: int,
) -> None:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name.startswith("report.html"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": format_number, "signed": signed, "span": span, "embed": embed}
    environment.filters |= {"p": format_p, "plural": plural}
    # Escapes a name in a Markdown table.
    environment.filters["cell"] = lambda text: str(text).replace("|", "/").replace("<", "&lt;")
    environment.filters["relative"] = lambda path: path.relative_to(output_dir).as_posix()
    common, differing = how_trained(tables)
    content = {
        "title": title,
        "answers": grouped(answers),
        "num_answers": len(answers),
        "sentence": sentence(answers, tables),
        "training_images": training_images,
        "measured_on": measured_on(tables),
        "common": common,
        "differing": differing,
        "tables": tables,
        "figures": figures,
        "paper_metrics": PAPER_METRICS,
        "our_metrics": OUR_METRICS,
        "notes": notes,
        "general_notes": general_notes(tables),
        "papers_word": PAPERS_WORD,
        "undertrained": UNDERTRAINED,
        "view_headings": lambda table: [f"AUROC, {view}" for view in table.views],
        "num_resamples": num_resamples,
        "runs": [run for table in tables for row in table.rows for run in row.runs],
        "missing": sum(row.num_planned - len(row.runs) for table in tables for row in table.rows),
    }
    for name in ("report.html", "report.md"):
        write_text(output_dir / name, environment.get_template(f"{name}.j2").render(content))
    write_text(output_dir / "report.csv", csv_text(tables))


def grouped(answers: list[Answer]) -> dict[str, list[Answer]]:
    """Groups the answers by heading: the question, the images measured and, if they differ, the task."""
    names = {one.table.name.of_any_size for one in answers}
    groups: dict[str, list[Answer]] = defaultdict(list)
    for one in answers:
        name = one.table.name.of_any_size
        context = name.title if len(names) > 1 else f"{name.split} split"
        groups[f"{one.question} ({context}, {one.table.n})"].append(one)
    return groups


def print_answer(answers: list[Answer], tables: list[ResultTable], console: Console) -> None:
    """Prints the answer in one sentence, then a row per difference."""
    console.print(f"The answer: {sentence(answers, tables)}", highlight=False, markup=False, style="bold")
    for heading, of_question in grouped(answers).items():
        shown = Table(title=escape(heading), title_justify="left")
        for name in ("training images", "compared", "difference of AUROC, 95 %", "p, corrected", "verdict"):
            shown.add_column(
                name, overflow="fold", justify="left" if name in ("compared", "verdict") else "right"
            )
        for one in of_question:
            numbers = (signed(one.difference), format_p(one.p))
            shown.add_row(*map(Text, (training_images(one.table), one.compared, *numbers, one.verdict)))
        console.print(shown)
    for said in general_notes(tables):
        console.print(said, highlight=False, markup=False)


def print_table(table: ResultTable, console: Console) -> None:
    is_wide = console.width >= 100
    shown = Table(title=escape(table.title))
    shown.add_column("", overflow="fold", min_width=20)
    metrics = PAPER_METRICS if is_wide else {"auroc": "AUROC"}
    intervals = {"patients": "over_patients"} | ({"seeds": "over_seeds"} if is_wide else {})
    intervals = {
        over: name
        for over, name in intervals.items()
        if any(getattr(row, name).get("auroc") for row in table.measured)
    }
    for heading in ("seeds", *metrics.values(), *(f"AUROC, 95 % over {over}" for over in intervals)):
        shown.add_column(heading, justify="right", overflow="fold")
    for row in table.rows:
        seeds = f"{len(row.runs)} of {row.num_planned}" if len(row.runs) != row.num_planned else len(row.runs)
        cells = [
            Text(format_number(row.values[metric]), style="underline" if table.is_best(row, metric) else "")
            if row.values
            else Text("not run", style="dim")
            for metric in metrics
        ]
        spans = [Text(span(getattr(row, name).get("auroc"))) for name in intervals.values()]
        label = row.label + f" {UNDERTRAINED}" * bool(row.undertrained)
        shown.add_row(Text(label), str(seeds), *cells, *spans)
    console.print(shown)
    for said in notes(table):
        console.print(said, highlight=False, markup=False)
