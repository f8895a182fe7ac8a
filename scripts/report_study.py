"""Turns a study, or any finished runs, into tables with intervals, figures and a page.

    python scripts/report_study.py runs/paper
    python scripts/report_study.py runs/vit-1k runs/resnet-1k --output_dir runs/side-by-side

A run is a folder with results.json; a folder without one stands for the runs in it, and for those that its
plan.json names. Writes report.html (one file, for any browser), report.md, report.csv and figures/*.png.
Runs that differ only in their seed make up a row; rows that differ only in model, augmentation or masking, a
table. Nothing here needs torch, and no image or id of a patient gets into what it writes.
"""

import base64
import csv
import dataclasses
import io
import itertools
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from cxr import intervals
from cxr import published
from cxr import study_plots
from cxr.command_line import ArgumentParser
from cxr.command_line import positive_int
from cxr.grid import CLASSIFICATION
from cxr.grid import Cell
from cxr.grid import read_plan
from cxr.grid import size_name
from cxr.intervals import Difference
from cxr.intervals import Interval
from cxr.intervals import SeedNoise
from cxr.records import FREE_TO_CHANGE
from cxr.records import RunRecord
from cxr.records import read_json
from cxr.records import write_text
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

# The columns of the paper's tables, and what is ours; the heading of each.
PAPER_METRICS = {
    "accuracy": "Accuracy",
    "precision": "Precision",
    "f1": "F1",
    "recall": "Recall",
    "auroc": "AUC",
}
OUR_METRICS = {"average_precision": "Average precision", "brier": "Brier", "ece": "ECE"}
LOWER_IS_BETTER = ("brier", "ece")
RUN_METRICS = ("n", "accuracy", "precision", "recall", "f1", "auroc", "average_precision")
VIEWS = ("AP", "PA")
PREDICTION_COLUMNS = ("dicom_id", "subject_id", "view_position", "label", "probability")
PAPER_NAMES = {"facebook/vit-mae-base": "MAE ViT", "microsoft/resnet-18": "ResNet"}
TASKS = {"finding": "Finding vs No Finding", "pleural_effusion": "Pleural Effusion vs No Finding"}
SIGNIFICANT = 0.05
LONGEST = 1000  # characters of a flag: it may become the name of a row
MOST_SAID = 4  # differences in a sentence; all are in a table
DEFAULT_LABEL_OPTIONS = {"labeler": "negbio", "uncertain": "negative"}
DEFAULT_LABELS = ", uncertain ".join(DEFAULT_LABEL_OPTIONS.values())

TEMPLATES = Path(__file__).parent / "cxr" / "templates"


@dataclass(frozen=True, order=True)
class TableName:
    """What the rows of a table have in common."""

    task: str
    view: str
    training_mode: str
    labels: str  # labeler and what uncertain counts as
    split: str
    size: str  # "all" or a number

    @property
    def group(self) -> "TableName":
        """The name without the size: what a learning curve has in common."""
        return dataclasses.replace(self, size="")

    @property
    def title(self) -> str:
        sizes = {"": [], "all": ["all training images"]}
        parts = [TASKS.get(self.task, self.task)]
        parts += sizes[self.size] if self.size in sizes else [f"{int(self.size):,} training images"]
        return ", ".join([*parts, f"{self.view} views", *self.unusual(), f"{self.split} split"])

    @property
    def slug(self) -> str:
        split = [self.split] * (self.split != "test")
        parts = [self.task, *[self.view] * (self.view != "frontal"), *self.unusual(), *split, self.size]
        return "-".join(re.sub(r"[^a-z0-9]+", "-", part.lower()) for part in parts if part)

    def unusual(self) -> list[str]:
        mode = ["last layer only"] * (self.training_mode == "last_layer")
        return mode + [self.labels] * (self.labels != DEFAULT_LABELS)


@dataclass(frozen=True, order=True)
class RowName:
    """The paper's first three columns."""

    model: str
    augmentation: str
    masking: float
    masking_kind: str
    setup: str = ""  # flags in which it differs from a row that is like it in all else

    @property
    def transformer(self) -> str:
        return "not augmented" if self.augmentation == "none" else f"augmented ({self.augmentation})"

    @property
    def masked(self) -> str:
        erased = " erased" * (self.masking_kind == "erasing")
        return f"{self.masking:.2f}{erased}" if self.masking else ""

    def label(self, others: Iterable["RowName"]) -> str:
        """The name in a sentence or a legend, without an augmentation that all `others` have, too."""
        verb = {"patches": "masked", "erasing": "erased"}[self.masking_kind]
        parts = [self.model]
        parts += [self.transformer] * any(other.augmentation != self.augmentation for other in others)
        parts += [f"{self.masking:.0%} {verb}"] * bool(self.masking)
        return ", ".join([*parts, *[self.setup] * bool(self.setup)])


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run: its records, and its predictions for the split that is reported."""

    folder: Path
    seed: int
    args: dict[str, Any]
    results: dict[str, Any]
    split: str
    predictions: pd.DataFrame


@dataclass(kw_only=True)
class Row:
    """What is known of a row; `values` is empty while no run of it has finished."""

    name: RowName
    label: str
    runs: list[Run]
    num_planned: int
    values: dict[str, float | None] = field(default_factory=dict)  # means over seeds
    over_seeds: dict[str, Interval | None] = field(default_factory=dict)
    over_patients: dict[str, Interval | None] = field(default_factory=dict)
    by_view: dict[str, tuple[float, Interval | None, int]] = field(default_factory=dict)  # AUROC, n
    aurocs: dict[int, np.ndarray] = field(default_factory=dict)  # seed -> (1 + R,): as measured, resampled
    published: dict[str, float] = field(default_factory=dict)

    @property
    def images(self) -> tuple[str, ...]:
        return tuple(self.runs[0].predictions["dicom_id"]) if self.runs else ()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """AUROC of the first row minus that of the second; `p` is corrected for the number in the table."""

    first: str  # labels
    second: str
    num_seeds: int  # that both rows have
    difference: Difference
    p: float

    @property
    def is_distinguishable(self) -> bool:
        return self.p < SIGNIFICANT


@dataclass(kw_only=True)
class ResultTable:
    name: TableName
    rows: list[Row]
    noise: SeedNoise
    comparisons: list[Comparison]
    figures: dict[str, Path] = field(default_factory=dict)  # caption -> file

    @property
    def measured(self) -> list[Row]:
        return [row for row in self.rows if row.values]

    @property
    def views(self) -> list[str]:
        """The views of which at least one row has both classes."""
        return [view for view in VIEWS if any(view in row.by_view for row in self.measured)]

    def is_best(self, row: Row, metric: str) -> bool:
        """Whether a row has the best value of a column, as the paper underlines."""
        values = [other.values[metric] for other in self.measured if other.values[metric] is not None]
        if len(self.measured) < 2 or row.values.get(metric) is None:
            return False
        return row.values[metric] == (min if metric in LOWER_IS_BETTER else max)(values)


# Reading ----------------------------------------------------------------------------------------------------


def find_runs(folders: list[Path]) -> list[Path]:
    """Returns the finished classification runs in `folders`. Raises FileNotFoundError when one holds none."""
    runs = []
    for folder in folders:
        inside = [folder, *sorted(path for path in folder.glob("*") if path.is_dir())]
        found = [run for run in inside if "validation" in read_json(run / "results.json")]
        if not found:
            raise FileNotFoundError(
                f"{folder}: found no results.json of a classification run in it or one level below; "
                "expected the --output_dir of run_classification.py or run_study.py, or a folder of such"
            )
        runs += found
    return list({run.resolve(): run for run in reversed(runs)}.values())[::-1]  # once, where FOLDERs overlap


def planned_runs(folders: list[Path]) -> dict[Path, Cell]:
    """Returns the classification cells of studies: run folder -> cell."""
    return {
        folder / name: cell
        for folder in folders
        for name, cell in read_plan(folder).items()
        if cell.script == CLASSIFICATION
    }


def read_run(folder: Path) -> Run:
    """Reads a finished run: the test split where it was evaluated, else validation."""
    results, args = read_json(folder / "results.json"), read_json(folder / "args.json")
    split = "test" if "test" in results else "validation"
    path = folder / f"predictions_{split}.csv"
    try:
        check_fields(results, RESULT_FIELDS)
        check_fields(results[split], METRIC_FIELDS)
        check_flags(args)
        text = {"dicom_id": str, "view_position": str}  # "" is no view, and not a missing value
        predictions = pd.read_csv(path, dtype=text, keep_default_na=False)[list(PREDICTION_COLUMNS)]
        in_range = predictions["probability"].between(0, 1).all() and predictions["label"].isin((0, 1)).all()
        if not in_range or len(predictions) != results[split]["n"] or predictions.empty:
            raise ValueError("labels, probabilities or their number are not those of the run")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}, results.json: not what a run writes (at {error}); run it again") from error
    return Run(
        folder=folder, seed=results["seed"], args=args, results=results, split=split, predictions=predictions
    )


def is_word(value: Any) -> bool:
    """Whether a value can be part of a title and of a figure's file name."""
    return isinstance(value, str) and 0 < len(value) <= 40 and value.isprintable()


def is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST and value.isprintable()


def is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= 10**9


def is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


# What a run writes, and what a cell of a plan has, as far as the report uses it.
RESULT_FIELDS = {
    **dict.fromkeys(("task", "labeler", "uncertain", "view", "augmentation"), is_word),
    **dict.fromkeys(("num_train_images", "images_per_step"), is_count),
    **dict.fromkeys(("pretrained", "train_last_layer_only"), is_flag),
    **dict.fromkeys(("mask_ratio", "random_erasing_prob"), is_share),
    "model": is_name,
    "seed": lambda value: type(value) is int and 0 <= value < 2**32,
}
METRIC_FIELDS = {name: lambda value: value is None or is_share(value) for name in RUN_METRICS} | {
    "n": is_count
}
POINT_FIELDS = {
    **dict.fromkeys(("task", "view", "augmentation"), is_word),
    **dict.fromkeys(("from_scratch", "own_pretraining"), is_flag),
    "model": is_name,
    "masking": is_share,
    "masking_kind": lambda value: value in ("patches", "erasing"),
    "train_size": lambda value: value is None or is_count(value),
    "training_mode": lambda value: value in ("full", "last_layer"),
}


def check_fields(values: dict[str, Any], fields: dict[str, Callable[[Any], bool]]) -> None:
    """Raises KeyError or TypeError for values that no run wrote."""
    for name, is_valid in fields.items():
        if not is_valid(values[name]):
            raise TypeError(f"{name} {values[name]!r:.50}")


def check_flags(args: dict[str, Any]) -> None:
    """Raises TypeError for flags that cannot name a row."""
    for name, value in args.items():
        text = f"{name} {value}"
        if len(text) > LONGEST or not text.isprintable():
            raise TypeError(f"args.json, {text!r:.50}")


def point_of(results: dict[str, Any]) -> dict[str, Any]:
    """Where in a grid a run is that no plan names, as a plan's cells have it."""
    erasing = results["random_erasing_prob"]
    return {
        "model": results["model"],
        "from_scratch": not results["pretrained"],
        "own_pretraining": False,
        "augmentation": results["augmentation"],
        "masking": results["mask_ratio"] or erasing,
        "masking_kind": "patches" if results["mask_ratio"] or not erasing else "erasing",
        "train_size": results["num_train_images"],
        "task": results["task"],
        "training_mode": "last_layer" if results["train_last_layer_only"] else "full",
        "view": results["view"],
    }


def row_name(point: dict[str, Any]) -> RowName:
    model = PAPER_NAMES.get(point["model"], point["model"])
    if point["own_pretraining"]:
        model += ", pretrained here"
    elif point["from_scratch"]:
        model += ", from scratch"
    return RowName(model, point["augmentation"], point["masking"], point["masking_kind"])


def gather_rows(
    runs: list[Path], plan: dict[Path, Cell]
) -> dict[TableName, dict[RowName, tuple[list[Run], int]]]:
    """Groups finished and planned runs: table -> row -> (finished runs, number planned)."""
    tables: dict[TableName, dict[RowName, tuple[list[Run], int]]] = defaultdict(dict)
    finished = set(runs)
    for folder in [*plan, *(run for run in runs if run not in plan)]:
        run = read_run(folder) if folder in finished else None
        cell = plan.get(folder)
        try:
            options = run.results if run else cell.flags
            point = cell.point if cell else point_of(run.results)
            check_fields(point, POINT_FIELDS)
            table = TableName(
                task=point["task"],
                view=point["view"],
                training_mode=point["training_mode"],
                labels=", uncertain ".join(
                    options.get(name, default) for name, default in DEFAULT_LABEL_OPTIONS.items()
                ),
                split=run.split if run else "test",
                size=size_name(point["train_size"]),
            )
            row = row_name(point)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{folder}: its results.json, or the plan.json above it, is not what is written there (at "
                f"{error}); expected a run of run_classification.py"
            ) from error
        known, num_planned = tables[table].get(row, ([], 0))
        tables[table][row] = ([*known, run] if run else known, num_planned + 1)
    return {
        table: dict(split for row, known in rows.items() for split in split_by_setup(row, *known))
        for table, rows in tables.items()
    }


def split_by_setup(
    row: RowName, runs: list[Run], num_planned: int
) -> list[tuple[RowName, tuple[list[Run], int]]]:
    """Makes a row of its own of runs that differ in a flag, which is then part of the row's name."""
    # The model of a study's own pretraining has the seed in its name; any other is in the row's.
    free = {*FREE_TO_CHANGE, "seed", "model_name_or_path"}
    setups = [
        {name: value for name, value in run.args.items() if name not in free}
        | {"images_per_step": run.results["images_per_step"]}
        for run in runs
    ]
    names = sorted({name for setup in setups for name in setup})
    differing = [name for name in names if len({str(setup.get(name)) for setup in setups}) > 1]
    groups: dict[str, list[Run]] = defaultdict(list)
    for run, setup in zip(runs, setups):
        groups[", ".join(f"{name} {setup.get(name)}" for name in differing)].append(run)
    unfinished = num_planned - len(runs)
    of_setups = [
        (dataclasses.replace(row, setup=setup), (of_setup, len(of_setup)))
        for setup, of_setup in groups.items()
    ]
    if unfinished and len(of_setups) == 1:
        return [(of_setups[0][0], (runs, num_planned))]
    return of_setups + [(row, ([], unfinished))] * bool(unfinished)


def check_row(row: Row) -> None:
    """Raises ValueError when runs that should differ in their seed only do not."""
    first = row.runs[0]
    for number, other in enumerate(row.runs):
        if other.seed in {run.seed for run in row.runs[:number]}:
            found = f"both have seed {other.seed}"
        elif not other.predictions["dicom_id"].equals(first.predictions["dicom_id"]):
            found = "were measured on other images"
        else:
            continue
        raise ValueError(
            f"{first.folder} and {other.folder} would make up one row, but {found}; expected runs that "
            "differ in their seed only: report them apart"
        )


def check_samples(rows: list[Row], table: TableName) -> None:
    """Raises ValueError when runs of one seed and size were not trained on the same images."""
    seen: dict[int, tuple[str, Path]] = {}
    for run in (run for row in rows for run in row.runs):
        sample = read_json(run.folder / "samples.json").get("sha256", "")
        expected, first = seen.setdefault(run.seed, (sample, run.folder))
        if sample != expected:
            raise ValueError(
                f"{run.folder} and {first} are in one table ({table.title}) but were trained on other "
                "images; expected the same sample: report them apart"
            )


# Measuring --------------------------------------------------------------------------------------------------


def measure_row(row: Row, resamples: "Resamples") -> None:
    """Fills in a row's values and intervals from the predictions of its runs."""
    by_seed: dict[str, list[float]] = defaultdict(list)
    resampled: dict[str, list[np.ndarray]] = defaultdict(list)
    for run in row.runs:
        labels, probabilities = arrays(run.predictions)
        weights = resamples.of(run.predictions)
        found = intervals.weighted_metrics(labels, probabilities, weights, threshold=0.5)
        for metric, values in found.items():
            by_seed[metric].append(float(values[0]))
            resampled[metric].append(values[1:])
    for metric, values in by_seed.items():
        defined = bool(np.isfinite(values).all())
        row.values[metric] = float(np.mean(values)) if defined else None
        row.over_seeds[metric] = intervals.seed_interval(values) if defined else None
        over_runs = np.mean(resampled[metric], axis=0)
        around = row.values[metric] if metric == "ece" else None
        row.over_patients[metric] = (
            intervals.percentile_interval(over_runs, around=around) if defined else None
        )
    if row.values["auroc"] is not None:
        of_runs = zip(row.runs, by_seed["auroc"], resampled["auroc"])
        row.aurocs = {run.seed: np.array([value, *redrawn]) for run, value, redrawn in of_runs}
    row.by_view = auroc_by_view(row, resamples)


def arrays(predictions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return predictions["label"].to_numpy(), predictions["probability"].to_numpy(dtype=float)


def auroc_by_view(row: Row, resamples: "Resamples") -> dict[str, tuple[float, Interval | None, int]]:
    """AUROC of the AP and of the PA images, each where it has both classes."""
    found = {}
    for view in VIEWS:
        values, resampled, count = [], [], 0
        for run in row.runs:
            in_view = (run.predictions["view_position"] == view).to_numpy()
            labels, probabilities = arrays(run.predictions[in_view])
            if len(np.unique(labels)) < 2:
                break
            weights = resamples.of(run.predictions)[:, in_view]
            aurocs = intervals.weighted_auroc(labels, probabilities, weights)
            values.append(aurocs[0])
            resampled.append(aurocs[1:])
            count = len(labels)
        else:
            interval = intervals.percentile_interval(np.mean(resampled, axis=0))
            found[view] = float(np.mean(values)), interval, count
    return found


class Resamples:
    """The same resamples of patients for all runs that were measured on the same images."""

    def __init__(self, num_resamples: int, seed: int):
        self.num_resamples = num_resamples
        self.seed = seed
        self.known: dict[tuple, np.ndarray] = {}

    def of(self, predictions: pd.DataFrame) -> np.ndarray:
        """Weights (1 + R, N): every image once, as measured, then the resamples."""
        patients = tuple(predictions["subject_id"])
        if patients not in self.known:
            drawn = intervals.patient_weights(patients, num_resamples=self.num_resamples, seed=self.seed)
            self.known[patients] = np.concatenate([np.ones_like(drawn[:1]), drawn])
        return self.known[patients]


def compare(rows: list[Row], noise: SeedNoise) -> list[Comparison]:
    """Every pair of rows that were measured on the same images, the clearest difference first."""
    found = []
    for first, second in itertools.combinations(rows, 2):
        seeds = sorted(first.aurocs.keys() & second.aurocs.keys())
        if seeds and first.images == second.images:
            difference = np.mean(
                [first.aurocs[seed] - second.aurocs[seed] for seed in seeds], axis=0
            )  # (1 + R,)
            if difference[0] < 0:
                first, second, difference = second, first, -difference
            tested = intervals.paired_difference(
                float(difference[0]),
                difference[1:],
                num_patients=first.runs[0].predictions["subject_id"].nunique(),
                num_seeds=len(seeds),
                noise=noise,
            )
            if tested:
                found.append((first.label, second.label, len(seeds), tested))
    corrected = intervals.holm([difference.p for *_, difference in found])
    comparisons = [
        Comparison(first=first, second=second, num_seeds=num_seeds, difference=difference, p=p)
        for (first, second, num_seeds, difference), p in zip(found, corrected)
    ]
    return sorted(comparisons, key=lambda comparison: (comparison.p, comparison.difference.p))


def published_row(table: TableName, row: RowName) -> dict[str, float]:
    """The paper's figures for a row, where it has them."""
    is_papers = (table.task, table.view, table.training_mode) == ("finding", "frontal", "full")
    if not is_papers or table.labels != DEFAULT_LABELS or not table.size.isdigit():
        return {}
    of_size = published.STUDY_RESULTS.get(int(table.size), {})
    figures = of_size.get((row.model, row.augmentation, row.masking))
    return dict(zip(published.STUDY_COLUMNS, figures)) if figures else {}


def measure_tables(
    gathered: dict[TableName, dict[RowName, tuple[list[Run], int]]], resamples: Resamples
) -> list[ResultTable]:
    tables = []
    all_rows = {row for rows in gathered.values() for row in rows}
    for name in sorted(
        gathered, key=lambda name: (name.task, name.view, name.training_mode, images_in(name))
    ):
        rows = [
            Row(
                name=row,
                label=row.label(all_rows),
                runs=runs,
                num_planned=planned,
                published=published_row(name, row),
            )
            for row, (runs, planned) in gathered[name].items()
        ]
        check_samples(rows, name)
        for row in [row for row in rows if row.runs]:
            check_row(row)
            measure_row(row, resamples)
        by_seed = [{seed: float(aurocs[0]) for seed, aurocs in row.aurocs.items()} for row in rows]
        noise = intervals.seed_noise(by_seed)
        tables.append(ResultTable(name=name, rows=rows, noise=noise, comparisons=compare(rows, noise)))
    return tables


def images_in(name: TableName) -> float:
    return float("inf") if name.size == "all" else int(name.size)


def verdict(table: ResultTable) -> str:
    """Says in a sentence which differences of AUROC are more than chance."""
    if len(table.measured) < 2:
        return "There is nothing to compare yet." if len(table.rows) > 1 else ""
    if not table.comparisons:
        return "The rows were not measured on the same images, so they are not compared."
    clear = [comparison for comparison in table.comparisons if comparison.is_distinguishable]
    total = len(table.comparisons)
    if not clear:
        which = f"None of the {total} differences" if total > 1 else "The difference"
        not_clear = "is not" if total == 1 else "is"
        return (
            f"{which} of AUC {not_clear} distinguishable from noise (p < {SIGNIFICANT}, corrected by Holm)."
        )
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


# Figures ----------------------------------------------------------------------------------------------------


def draw_figures(tables: list[ResultTable], folder: Path) -> dict[str, Path]:
    """Draws each table's figures, and returns those that join several tables: caption -> file."""
    folder.mkdir(exist_ok=True)
    for table in tables:
        rows = {row.label: row for row in table.measured}
        losses = {label: epochs_of(row) for label, row in rows.items()}
        losses = {label: runs for label, runs in losses.items() if all(runs)}
        title, slug = study_plots.as_label(table.name.title), table.name.slug
        if losses:
            table.figures["Mean loss by epoch; the band is the range over seeds"] = (
                folder / f"loss-{slug}.png"
            )
            study_plots.plot_mean_losses(losses, folder / f"loss-{slug}.png", title=title)
        both = {label: row for label, row in rows.items() if row.values["auroc"] is not None}
        if both:
            predictions = {label: [prediction_of(run) for run in row.runs] for label, row in both.items()}
            table.figures["ROC curves, the mean over seeds"] = folder / f"roc-{slug}.png"
            study_plots.plot_roc(predictions, folder / f"roc-{slug}.png", title=title)
            table.figures["Reliability diagram"] = folder / f"calibration-{slug}.png"
            study_plots.plot_calibration(predictions, folder / f"calibration-{slug}.png", title=title)
    return draw_learning_curves(tables, folder)


def draw_learning_curves(tables: list[ResultTable], folder: Path) -> dict[str, Path]:
    """A figure for each group of tables that differ only in the training size, if there are several."""
    groups: dict[TableName, list[ResultTable]] = defaultdict(list)
    for table in tables:
        groups[table.name.group].append(table)
    figures = {}
    for group, of_group in groups.items():
        points: dict[str, list] = defaultdict(list)
        for row in (row for table in of_group for row in table.measured):
            if row.values["auroc"] is not None:
                size = row.runs[0].results["num_train_images"]
                interval = row.over_seeds["auroc"] or row.over_patients["auroc"]
                points[row.label].append((size, row.values["auroc"], interval))
        if len({size for of_row in points.values() for size, _, _ in of_row}) > 1:
            path = folder / f"auroc-by-size-{group.slug}.png"
            study_plots.plot_learning_curves(dict(points), path, title=study_plots.as_label(group.title))
            figures[f"AUC against training images: {group.title}"] = path
    return figures


def epochs_of(row: Row) -> list[list[dict[str, float]]]:
    """The lines of metrics.jsonl of each run, as far as they are drawn."""
    found = []
    for run in row.runs:
        try:
            epochs = RunRecord(run.folder, enabled=False).epochs()
            names = ("epoch", "train_loss", "eval_loss")
            found.append([{name: float(epoch[name]) for name in names} for epoch in epochs])
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(
                f"{run.folder / 'metrics.jsonl'}: not what a run writes (at {error}); run it again"
            ) from error
    return found


def prediction_of(run: Run) -> study_plots.Predictions:
    labels, probabilities = arrays(run.predictions)
    return study_plots.Predictions(labels=labels, probabilities=probabilities)


# Writing ----------------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def signed(difference: Difference) -> str:
    return f"{difference.value:.3f} [{difference.low:.3f}, {difference.high:.3f}]"


def span(interval: Interval | None) -> str:
    return f"[{interval.low:.3f}, {interval.high:.3f}]" if interval else ""


def embed(path: Path) -> str:
    """A PNG as text that stands in the page itself."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def csv_text(tables: list[ResultTable]) -> str:
    """A line a row: where it is in the grid, and every metric with its intervals and the paper's figure."""
    text = io.StringIO()
    metrics = [*PAPER_METRICS, *OUR_METRICS]
    suffixes = ("", "_seeds_low", "_seeds_high", "_patients_low", "_patients_high", "_published")
    header = ["task", "view", "training_mode", "labels", "split", "train_size"]
    header += ["model", "augmentation", "masking", "masking_kind", "setup", "seeds", "seeds_planned", "n"]
    header += [metric + suffix for metric in metrics for suffix in suffixes]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for name, row in [(table.name, row) for table in tables for row in table.rows]:
        first = row.runs[0] if row.runs else None
        cells = [*dataclasses.astuple(name), *dataclasses.astuple(row.name), len(row.runs), row.num_planned]
        cells += [len(first.predictions) if first else ""]
        for metric in metrics:
            seeds, patients = row.over_seeds.get(metric), row.over_patients.get(metric)
            cells += [row.values.get(metric), *ends(seeds), *ends(patients), row.published.get(metric)]
        writer.writerow(["" if cell is None else cell for cell in cells])
    return text.getvalue()


def ends(interval: Interval | None) -> tuple[float | None, float | None]:
    return (interval.low, interval.high) if interval else (None, None)


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
    environment.filters |= {"number": number, "signed": signed, "span": span, "embed": embed}
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
        "runs": sorted(
            (run for table in tables for row in table.rows for run in row.runs), key=lambda run: run.folder
        ),
        "missing": sum(row.num_planned - len(row.runs) for table in tables for row in table.rows),
    }
    texts = {
        name: environment.get_template(f"{name}.j2").render(content) for name in ("report.html", "report.md")
    }
    for name, text in {**texts, "report.csv": csv_text(tables)}.items():
        write_text(output_dir / name, text)


def print_table(table: ResultTable, console: Console) -> None:
    metrics = PAPER_METRICS if console.width >= 100 else {"auroc": "AUC"}
    shown = Table(title=escape(table.name.title))
    shown.add_column("", overflow="fold", min_width=20)
    for heading in ("seeds", *metrics.values(), "AUC, 95 %"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in table.rows:
        seeds = f"{len(row.runs)} of {row.num_planned}" if len(row.runs) != row.num_planned else len(row.runs)
        cells = [
            Text(number(row.values[metric]), style="underline" if table.is_best(row, metric) else "")
            if row.values
            else Text("not run", style="dim")
            for metric in metrics
        ]
        interval = row.over_seeds.get("auroc") or row.over_patients.get("auroc")
        shown.add_row(Text(row.label), str(seeds), *cells, Text(span(interval)))
    console.print(shown)
    for said in (verdict(table), *notes(table)):
        console.print(said, highlight=False, markup=False)


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(__doc__, usage="FOLDER [FOLDER ...] [flags]")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a run, or a folder of runs")
    parser.add_argument(
        "--output_dir",
        type=Path,
        metavar="FOLDER",
        help="where to write the report (default: FOLDER, if it is one)",
    )
    parser.add_argument(
        "--num_resamples",
        type=positive_int,
        default=intervals.NUM_RESAMPLES,
        metavar="N",
        help="of the patients, for intervals",
    )
    args = parser.parse_args(argv)
    if len(args.folders) > 1 and not args.output_dir:
        parser.error("several folders: found no --output_dir; name one for the report")
    output_dir = (args.output_dir or args.folders[0]).expanduser()
    try:
        runs = find_runs(args.folders)
        tables = measure_tables(
            gather_rows(runs, planned_runs(args.folders)), Resamples(args.num_resamples, seed=0)
        )
        output_dir.mkdir(parents=True, exist_ok=True)
        figures = draw_figures(tables, output_dir / "figures")
        title = f"Chest X-ray study: {args.folders[0].absolute().name}"
        write_report(tables, figures, output_dir, title=title, num_resamples=args.num_resamples)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    console = Console(width=None if sys.stdout.isatty() else 140)
    for table in tables:
        print_table(table, console)
    print(f"Report: {output_dir / 'report.html'}, report.md and report.csv beside it; figures in figures/")


if __name__ == "__main__":
    main()
