"""Writes a study's report: the answer, figures, an HTML page, Markdown and CSV."""

from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cxr.evaluation.intervals import MIN_LABELS
from cxr.evaluation.intervals import MIN_SEEDS
from cxr.evaluation.subgroups import MIN_PATIENTS
from cxr.run_folder.files import write_text
from cxr.run_folder.measured import AgainstRadiologist
from cxr.run_folder.measured import Gap
from cxr.study import worth
from cxr.study.answer import COMPARABLE
from cxr.study.answer import Answer
from cxr.study.answer import format_p
from cxr.study.answer import sentence
from cxr.study.answer import training_images
from cxr.study.by_finding import NOT_COUNTED
from cxr.study.by_finding import best
from cxr.study.by_finding import in_order
from cxr.study.by_finding import why_not_counted
from cxr.study.by_group import gap_lines
from cxr.study.by_group import group_lines
from cxr.study.by_group import group_notes
from cxr.study.figures import measured_on
from cxr.study.how_trained import how_trained
from cxr.study.names import format_number
from cxr.study.names import plural
from cxr.study.pages import make_environment
from cxr.study.pages import signed
from cxr.study.pages import span
from cxr.study.results import OUR_METRICS
from cxr.study.results import ResultTable
from cxr.study.results import Run
from cxr.study.spreadsheets import csv_text
from cxr.study.spreadsheets import findings_csv_text
from cxr.study.worth import Worth

PAPERS_WORD = (
    "The column AUC, named as in the paper, is AUROC; the column augmentation is the paper's “transformer”."
)
UNDERTRAINED = "†"
THRESHOLD_WORD = f"Accuracy, precision, F1 and recall are at a threshold of 0.5. {PAPERS_WORD}"
MACRO_WORD = (
    "Macro AUROC and macro AP (average precision) are means over the findings, CheXpert-5 AUROC over the "
    f"five of its competition; a finding counts with at least {MIN_LABELS} positive and "
    f"{MIN_LABELS} negative labels."
)
GROUPS_WORD = (
    "AUROC is the mean over seeds, with its 95 % interval over patients. A gap is the largest difference "
    f"between two groups with at least {MIN_PATIENTS} patients, {MIN_LABELS} with each class; p is "
    "corrected by Holm's method for all pairs of groups of all attributes of a model. A gap need not come "
    "from the group itself: its images may be harder, or the labels of its reports worse."
)

ENSEMBLES_WORD = "Ensembles: the mean of the probabilities that a row's seeds predict"
WORTH_WORD = (
    "A model from scratch reaches the AUROC of a pretrained one with so many times its training images, read "
    "from its learning curve on a logarithmic scale between the measured sizes; “more than” where the curve "
    "ends below that AUROC, “less than” where it begins above it. Both have the same recipe, augmentation "
    "and masking, and were measured on the same images; other flags, such as the learning rate, may differ "
    "(see how the models were trained). Only seeds that have finished at every size of the curve count, so "
    "an AUROC may differ from that of its row. The interval is over the patients of the split, and does not "
    "include the variation between seeds."
)


def why_not_compared(table: ResultTable) -> str:
    """Returns why a table has no differences, "" if it has some or has only one row."""
    if len(table.measured) < 2:
        return "There is nothing to compare yet." if len(table.rows) > 1 else ""
    return "" if table.comparisons else f"The rows are not compared: no two were {COMPARABLE}."


def general_notes(tables: list[ResultTable]) -> list[str]:
    """Returns notes on what the report cannot say because there are few labels or few seeds."""
    said = [*dict.fromkeys(table.doubt for table in tables if table.doubt)]
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
    if table.projection_auroc is not None:
        view = f"The view alone (AP or PA) reaches an AUROC{table.mean} of {table.projection_auroc:.2f}."
        said.append(view)
    if any(row.published for row in table.rows):
        said.append(
            "The paper's numbers are from its own validation images, which are not known, and have no "
            f"intervals; ours are from the {table.name.split} split."
        )
    return said


def gap_in_words(gap: Gap) -> str:
    return f"{gap.difference:.3f} [{gap.interval[0]:+.3f}, {gap.interval[1]:+.3f}]"


def of_run(run: Run, metric: str) -> str:
    """Returns a metric of one run as text, "" if a run of its task has no such metric."""
    return format_number(getattr(run.measured, metric)) if hasattr(run.measured, metric) else ""


def metrics_word(tables: list[ResultTable]) -> str:
    kinds = {table.name.is_multi_label for table in tables}
    return " ".join([THRESHOLD_WORD] * (False in kinds) + [MACRO_WORD] * (True in kinds))


def radiologist_headings(table: ResultTable) -> list[str]:
    """Returns the headings of AUROC by the table's own labels, and by the radiologist's on both levels."""
    measured = next(row.against_radiologist for row in table.measured if row.against_radiologist)
    labeler = table.measured[0].runs[0].results.labeler
    counts = {level: plural(one.n, level) for level, one in measured.items()}
    return [f"{labeler}, whole split", *(f"radiologist, {count}" for count in counts.values())]


def agreement_headings(reference: AgainstRadiologist) -> list[str]:
    measured = ("positive", "kappa", "F1")
    return [f"{labeler}: {heading}" for labeler in reference.agreement for heading in measured]


def radiologist_word(table: ResultTable) -> str:
    studies = plural(table.radiologist.num_studies, "study")
    changed = plural(table.radiologist.num_changed_by_devices, "study")
    return (
        f"One radiologist read the reports of these {studies}, not the images. In {changed}, a device is all "
        "that was found: No Finding to the radiologist, a finding by the paper's rule."
    )


def write_report(
    tables: list[ResultTable],
    answers: list[Answer],
    worths: list[Worth],
    figures: dict[str, Path],
    output_dir: Path,
    *,
    title: str,
    num_resamples: int,
) -> None:
    environment = make_environment(output_dir)
    environment.filters["gap"] = gap_in_words
    common, differing = how_trained(tables)
    content = {
        "title": title,
        "answers": grouped(answers),
        "num_answers": len(answers),
        "sentence": sentence(answers, tables),
        "worths": worths,
        "worth_sentence": worth.sentence(worths),
        "worth_word": WORTH_WORD,
        "ensembles_word": ENSEMBLES_WORD,
        "training_images": training_images,
        "measured_on": measured_on(tables),
        "common": common,
        "differing": differing,
        "tables": tables,
        "figures": figures,
        "our_metrics": OUR_METRICS,
        "notes": notes,
        "general_notes": general_notes(tables),
        "metrics_word": metrics_word(tables),
        "has_several": any(table.name.is_multi_label for table in tables),
        "in_order": in_order,
        "best": best,
        "why_not_counted": why_not_counted,
        "not_counted": NOT_COUNTED,
        "group_lines": group_lines,
        "gap_lines": gap_lines,
        "group_notes": group_notes,
        "groups_word": GROUPS_WORD,
        "level_of": lambda table: plural(2, table.name.evaluation_level).removeprefix("2 "),
        "radiologist_headings": radiologist_headings,
        "radiologist_word": radiologist_word,
        "agreement_headings": agreement_headings,
        "of_run": of_run,
        "undertrained": UNDERTRAINED,
        "num_resamples": num_resamples,
        "runs": [run for table in tables for row in table.rows for run in row.runs],
        "missing": sum(row.num_planned - len(row.runs) for table in tables for row in table.rows),
    }
    for name in ("report.html", "report.md"):
        write_text(output_dir / name, environment.get_template(f"{name}.j2").render(content))
    write_text(output_dir / "report.csv", csv_text(tables))
    if content["has_several"]:
        write_text(output_dir / "report-findings.csv", findings_csv_text(tables))


def grouped(answers: list[Answer]) -> dict[str, list[Answer]]:
    """Groups the answers by heading: the question, the images measured and, if they differ, the task."""
    names = {one.table.name.of_any_size for one in answers}
    groups: dict[str, list[Answer]] = defaultdict(list)
    for one in answers:
        name = one.table.name.of_any_size
        context = name.title if len(names) > 1 else f"{name.split} split"
        mean = ", mean AUROC over findings" * name.is_multi_label
        groups[f"{one.question} ({context}{mean}, {one.table.n})"].append(one)
    return groups


def print_answer(
    answers: list[Answer], worths: list[Worth], tables: list[ResultTable], console: Console
) -> None:
    """Prints the answer in one sentence, then a row per difference."""
    bold = {"highlight": False, "markup": False, "style": "bold"}
    console.print(f"The answer: {sentence(answers, tables)}", **bold)
    if said := worth.sentence(worths):
        console.print(said, **bold)
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
    metrics = table.metrics if is_wide else {"auroc": "AUROC"}
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
