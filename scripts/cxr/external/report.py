"""Writes the report on other collections: evaluation.json, an HTML page, Markdown, CSV and figures."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cxr.evaluation.intervals import Difference
from cxr.external.plots import plot_aurocs
from cxr.external.plots import plot_calibration
from cxr.external.tables import Table
from cxr.external.tables import as_text
from cxr.external.tables import csv_lines
from cxr.external.tables import make_tables
from cxr.run_folder.evaluation_record import Evaluation
from cxr.run_folder.evaluation_record import EvaluationResults
from cxr.run_folder.evaluation_record import ModelDifference
from cxr.run_folder.files import write_json
from cxr.run_folder.files import write_text
from cxr.study.answer import equals_p
from cxr.study.names import plural
from cxr.study.pages import make_environment

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, kw_only=True)
class Section:
    """What a report says about one folder."""

    title: str
    notes: list[tuple[str, str]]  # model, what a reader must know
    tables: list[Table]
    figures: dict[str, Path]  # caption -> file


def write_report(results: EvaluationResults, output_dir: Path) -> None:
    """Writes all files; evaluation.json last."""
    figures = output_dir / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    environment = make_environment(output_dir, templates=TEMPLATES)
    environment.filters |= {"text": as_text, "difference": difference_in_words}
    content = {
        "title": "External validation",
        "sentences": [sentence(one) for one in results.evaluations],
        "results": results,
        "overview": draw_overview(results.evaluations, figures),
        "sections": [make_section(of_folder, figures) for of_folder in by_folder(results.evaluations)],
    }
    for name in ("evaluation.html", "evaluation.md"):
        write_text(output_dir / name, environment.get_template(f"{name}.j2").render(content))
    lines = pd.DataFrame(list(csv_lines(results.evaluations)), dtype=object)  # keeps whole numbers whole
    write_text(output_dir / "evaluation.csv", lines.to_csv(index=False, lineterminator="\n"))
    write_json(output_dir / "evaluation.json", results.as_json())


def by_folder(evaluations: list[Evaluation]) -> list[list[Evaluation]]:
    names = dict.fromkeys(one.data for one in evaluations)
    return [[one for one in evaluations if one.data == name] for name in names]


def sentence(one: Evaluation) -> str:
    """Returns the main result of a model on a folder in words."""
    external, internal = one.headline("auroc"), one.headline("auroc", internal=True)
    what = "a mean AUROC over findings" if one.is_multi_label else "an AUROC"
    known = " (a collection of its training)" * bool(one.overlap.same_name or one.overlap.same_origin)
    said = f"{one.model} has {what} of {as_text(external)} on {one.data}{known}"
    if internal:
        said += f", and {as_text(internal)} on {one.internal_split}"
    if external and external.interval and external.interval[1] < 0.5:
        said += ". It takes positive images for negative ones here: check the labels and the images"
    return f"{said}."


def difference_in_words(one: ModelDifference) -> str:
    found = Difference(value=one.difference, low=one.interval[0], high=one.interval[1], p=one.p)
    numbers = f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    return f"{numbers}, {equals_p(one.p_corrected)} after correction"


def make_section(evaluations: list[Evaluation], figures: Path) -> Section:
    first = evaluations[0]
    images, patients = plural(first.num_images, "image"), plural(first.num_patients, "patient")
    alike = len({(one.num_images, one.num_patients) for one in evaluations}) == 1
    counts = f": {images} of {patients}" if alike else ""
    return Section(
        title=f"{first.data}, test split{counts}",
        notes=[
            (one.model, note)
            for one in evaluations
            for note in [rule_in_words(one), *one.notes, *one_class_in_words(one)]
        ],
        tables=make_tables(evaluations),
        figures={
            caption: path for one in evaluations for caption, path in draw_figures(one, figures).items()
        },
    )


def rule_in_words(one: Evaluation) -> str:
    """Returns the label rule of an evaluation."""
    labeler = f", labeler {one.labeler}" if one.labeler else ""
    rule = f"Task {one.task}{labeler}, {one.view} views, uncertain {one.uncertain}"
    return f"{rule}{f', blank {one.blank}' * one.is_multi_label}, by {one.evaluation_level}."


def one_class_in_words(one: Evaluation) -> list[str]:
    """Returns which findings are not in the tables and figures."""
    names = [name for name, finding in one.findings.items() if not finding.has_both_classes]
    if not names:
        return []
    return [f"Not shown, because all labels of the test split are equal: {', '.join(names)}."]


def draw_overview(evaluations: list[Evaluation], folder: Path) -> dict[str, Path]:
    """Draws the main AUROC of each model on each folder, beside that on its own images."""
    rows = [
        (f"{one.model} on {one.data}", one.headline("auroc", internal=True), one.headline("auroc"))
        for one in evaluations
    ]
    plot_aurocs(rows, folder / "auroc.png", title="AUROC on the model's own images and on others")
    return {"AUROC on the model's own images (internal) and on others (external)": folder / "auroc.png"}


def draw_figures(one: Evaluation, folder: Path) -> dict[str, Path]:
    """Draws the calibration of a model on a folder and, of several findings, their AUROC."""
    title, slug = f"{one.model} on {one.data}", slug_of(one.model, one.data)
    found = {}
    measured = {name: finding for name, finding in one.findings.items() if finding.has_both_classes}
    if one.is_multi_label and measured:
        rows = [
            (name, finding.internal and finding.internal.metrics["auroc"], finding.external.metrics["auroc"])
            for name, finding in measured.items()
        ]
        found[f"AUROC by finding, {title}"] = path = folder / f"auroc-{slug}.png"
        plot_aurocs(rows, path, title=title)
    counted = {name: finding for name, finding in measured.items() if name not in one.left_out}
    if counted:
        found[f"Calibration, {title}"] = path = folder / f"calibration-{slug}.png"
        plot_calibration(counted, path, title=title)
    return found


def slug_of(*names: str) -> str:
    """Returns names as a part of a file's name; other names have another slug."""
    return "_".join(map(_slug, names))


def _slug(name: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[-60:]
    return slug if slug == name else f"{slug}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
