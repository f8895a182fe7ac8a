"""Reads finished runs and gathers them into the tables and rows of a report."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path

import numpy as np
import pandas as pd

from cxr.choices import BINARY_TASKS
from cxr.choices import LABEL_OPTIONS
from cxr.choices import VIEWS
from cxr.errors import UserError
from cxr.errors import one_line
from cxr.evaluation.intervals import Difference
from cxr.evaluation.intervals import Interval
from cxr.evaluation.intervals import SeedNoise
from cxr.run_folder import record
from cxr.run_folder.measured import Measured
from cxr.study import grid

# The columns of the paper's tables under its headings, and our own columns.
PAPER_METRICS = {
    "accuracy": "Accuracy",
    "precision": "Precision",
    "f1": "F1",
    "recall": "Recall",
    "auroc": "AUC",
}
OUR_METRICS = {"average_precision": "Average precision", "brier": "Brier", "ece": "ECE"}
LOWER_IS_BETTER = ("brier", "ece")
PREDICTION_COLUMNS = ("dicom_id", "subject_id", "view_position", "label", "probability")
PAPER_NAMES = {"facebook/vit-mae-base": "MAE ViT", "microsoft/resnet-18": "ResNet"}
DEFAULT_LABELS = f"{LABEL_OPTIONS['labeler']}, uncertain {LABEL_OPTIONS['uncertain']}"


@dataclass(frozen=True, order=True)
class TableName:
    """What the rows of a table have in common."""

    task: str
    view: str
    training_mode: str
    labels: str  # the labeler, and how uncertain labels count
    split: str
    size: str  # "all" or a number

    def order(self) -> tuple:
        """Returns the sort key of tables, small training sizes first."""
        return self.task, self.view, self.training_mode, float("inf" if self.size == "all" else self.size)

    @property
    def title(self) -> str:
        sizes = {"": [], "all": ["all training images"]}
        parts = [" vs ".join(reversed(BINARY_TASKS.get(self.task, (self.task,))))]
        parts += sizes[self.size] if self.size in sizes else [plural(int(self.size), "training image")]
        return ", ".join([*parts, f"{self.view} views", *self.unusual(), f"{self.split} split"])

    @property
    def of_any_size(self) -> "TableName":
        return dataclasses.replace(self, size="")

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
    """The first three columns of a row, as in the paper."""

    model: str
    augmentation: str
    masking: float
    masking_kind: str
    setup: str = ""  # flags that distinguish it from a row that is otherwise equal

    @property
    def augmented(self) -> str:
        return "not augmented" if self.augmentation == "none" else f"augmented ({self.augmentation})"

    @property
    def masked(self) -> str:
        erased = " erased" * (self.masking_kind == "erasing")
        return f"{self.masking:.2f}{erased}" if self.masking else ""

    @property
    def share_masked(self) -> str:
        """Returns the masking as a phrase for a sentence."""
        verb = {"patches": "masked", "erasing": "erased"}[self.masking_kind]
        return f"{self.masking:.0%} {verb}" if self.masking else "nothing masked"

    def label(self, others: Iterable["RowName"]) -> str:
        """Returns the name for sentences and legends, without an augmentation that all `others` share."""
        parts = [self.model]
        parts += [self.augmented] * any(other.augmentation != self.augmentation for other in others)
        parts += [self.share_masked] * bool(self.masking)
        return ", ".join([*parts, *[self.setup] * bool(self.setup)])


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """A finished run of run_mae_pretrain.py, from whose model a classifier started."""

    args: record.Arguments
    results: record.PretrainingResults


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run: its records, and its predictions for the reported split."""

    folder: Path
    point: grid.ClassificationPoint
    args: record.Arguments
    results: record.ClassificationResults
    pretraining: Pretraining | None  # None if there was none here, or its folder is not found
    split: str
    predictions: pd.DataFrame

    @property
    def measured(self) -> Measured:
        return getattr(self.results, self.split)


RunsByRow = dict[RowName, tuple[list[Run], int]]  # the finished runs, and the number of planned ones


@dataclass(kw_only=True)
class Row:
    """A row with its runs and metrics; `values` is empty as long as no run has finished."""

    name: RowName
    label: str
    runs: list[Run]
    num_planned: int
    values: dict[str, float | None] = field(default_factory=dict)  # means over seeds
    over_seeds: dict[str, Interval | None] = field(default_factory=dict)
    over_patients: dict[str, Interval | None] = field(default_factory=dict)
    by_view: dict[str, tuple[float, Interval | None, int]] = field(default_factory=dict)  # AUROC, n
    aurocs: dict[int, np.ndarray] = field(default_factory=dict)  # seed -> (1 + R,): measured, then resampled
    published: dict[str, float] = field(default_factory=dict)

    @property
    def images(self) -> tuple[str, ...]:
        return tuple(self.runs[0].predictions["dicom_id"]) if self.runs else ()

    @property
    def architecture(self) -> str:
        """Returns the model's name without its organisation, the same for pretrained and from scratch."""
        run = self.runs[0]
        name = run.pretraining.results.model if run.pretraining else run.point.model
        return name.rstrip("/").rpartition("/")[2]

    @property
    def start(self) -> int:
        """Returns 0 if pretrained here, 1 if pretrained elsewhere, 2 if trained from scratch."""
        point = self.runs[0].point
        return 0 if point.own_pretraining else 2 if point.from_scratch else 1

    @property
    def undertrained(self) -> str:
        """Returns in words why training had not converged, "" if there is no sign of it."""
        reasons = [run.results.undertrained for run in self.runs if run.results.undertrained]
        of = f"{len(reasons)} of {len(self.runs)} seeds: " if 0 < len(reasons) < len(self.runs) else ""
        return of + "; ".join(dict.fromkeys(reasons))


@dataclass
class Comparison:
    """The AUROC of a row minus that of another; `p` is corrected for the comparisons of the table."""

    first: str  # labels
    second: str
    num_seeds: int  # number of seeds that both rows have
    difference: Difference
    p: float = 1.0


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
    def undertrained(self) -> list[Row]:
        return [row for row in self.measured if row.undertrained]

    @property
    def n(self) -> str:
        """Returns in words the images that the rows were measured on."""
        counts = list(dict.fromkeys(count_images(row.runs[0].predictions) for row in self.measured))
        return " or ".join(f"n = {count}" for count in counts) or "nothing measured yet"

    @property
    def title(self) -> str:
        return f"{self.name.title} ({self.n})"

    @property
    def views(self) -> list[str]:
        """Returns the views with an AUROC in at least one row."""
        return [view for view in VIEWS["frontal"] if any(view in row.by_view for row in self.measured)]

    def is_best(self, row: Row, metric: str) -> bool:
        """Returns whether a row has the best value of a column, which is underlined as in the paper."""
        values = [other.values[metric] for other in self.measured if other.values[metric] is not None]
        if len(self.measured) < 2 or row.values.get(metric) is None:
            return False
        return row.values[metric] == (min if metric in LOWER_IS_BETTER else max)(values)


def find_runs(folders: list[Path]) -> list[Path]:
    """Returns the finished classification runs in `folders`. Raises UserError if a folder has none."""
    runs = []
    for folder in folders:
        inside = [folder, *sorted(path for path in folder.glob("*") if path.is_dir())]
        found = [run for run in inside if isinstance(record.read_results(run), record.ClassificationResults)]
        if not found:
            raise UserError(
                f"{folder}: found no finished classification run (results.json) in it or one level below; "
                "name the --output_dir of run_classification.py or run_study.py, or a folder of such runs"
            )
        runs += found
    return list({run.resolve(): run for run in reversed(runs)}.values())[
        ::-1
    ]  # each run once, if FOLDERs overlap


def read_run(folder: Path, cell: grid.ClassificationCell | None) -> Run:
    """Reads a finished run, with its test split if evaluated, else validation. Raises UserError."""
    results = record.ClassificationResults.read(folder / "results.json")
    split = "test" if results.test else "validation"
    return Run(
        folder=folder,
        point=cell.point if cell else point_of(results),
        args=record.Arguments.read(folder / "args.json"),
        results=results,
        pretraining=find_pretraining(folder, results, needs=cell.needs if cell else None),
        split=split,
        predictions=read_predictions(folder / f"predictions_{split}.csv", getattr(results, split).n),
    )


def find_pretraining(
    folder: Path, results: record.ClassificationResults, *, needs: str | None
) -> Pretraining | None:
    """Returns the pretraining run of a classifier, from its recorded path or, in a moved study, beside it."""
    model = Path(results.model)
    folders = [model.parent if model.name == "model" else model] * results.pretrained
    folders += [folder.parent / needs] if needs else []
    for found in folders:
        if isinstance(its_results := record.read_results(found), record.PretrainingResults):
            return Pretraining(args=record.Arguments.read(found / "args.json"), results=its_results)
    return None


def read_predictions(path: Path, num_images: int) -> pd.DataFrame:
    """Returns the predictions that a run wrote, a row per image. Raises UserError if they are not valid."""
    types = {"dicom_id": str, "view_position": str, "label": float, "probability": float}
    try:
        # "" means an unknown view, not a missing value.
        predictions = pd.read_csv(path, dtype=types, usecols=PREDICTION_COLUMNS, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not what a run writes: {one_line(error)}; run it again") from error
    in_range = predictions["label"].isin((0, 1)) & predictions["probability"].between(0, 1)
    if not in_range.all() or len(predictions) != num_images:
        raise UserError(
            f"{path}: not what a run writes: expected labels 0 or 1 and probabilities from 0 to 1 for the "
            f"{num_images} images of results.json; run it again"
        )
    return predictions.astype({"label": int})


def point_of(results: record.ClassificationResults) -> grid.ClassificationPoint:
    """Returns the place in a grid of a run that no plan names."""
    erasing = results.random_erasing_prob
    return grid.ClassificationPoint(
        model=results.model,
        from_scratch=not results.pretrained,
        own_pretraining=False,
        augmentation=results.augmentation,
        masking=results.mask_ratio or erasing,
        masking_kind="patches" if results.mask_ratio or not erasing else "erasing",
        train_size=results.num_train_images,
        task=results.task,
        training_mode="last_layer" if results.train_last_layer_only else "full",
        view=results.view,
        seed=results.seed,
    )


def row_name(point: grid.ClassificationPoint) -> RowName:
    start = ", pretrained here" if point.own_pretraining else ", from scratch" * point.from_scratch
    model = PAPER_NAMES.get(point.model, point.model)
    return RowName(model + start, point.augmentation, point.masking, point.masking_kind)


def gather_rows(folders: list[Path]) -> dict[TableName, RunsByRow]:
    """Groups the finished runs and the planned cells in `folders` by table and row."""
    tables: dict[TableName, RunsByRow] = defaultdict(dict)
    finished = find_runs(folders)
    cells = {folder / name: cell for folder in folders for name, cell in grid.read_plan(folder).items()}
    plan = {run: cell for run, cell in cells.items() if isinstance(cell, grid.ClassificationCell)}
    for folder in dict.fromkeys([*plan, *finished]):
        cell = plan.get(folder)
        run = read_run(folder, cell) if folder in finished else None
        point = run.point if run else cell.point
        labels = run.results.as_json() if run else LABEL_OPTIONS | cell.flags
        table = TableName(
            task=point.task,
            view=point.view,
            training_mode=point.training_mode,
            labels=f"{labels['labeler']}, uncertain {labels['uncertain']}",
            split=run.split if run else "test",
            size=grid.size_name(point.train_size),
        )
        row = row_name(point)
        known, num_planned = tables[table].get(row, ([], 0))
        tables[table][row] = ([*known, run] if run else known, num_planned + 1)
    for table, rows in tables.items():
        split = [split_by_setup(row, *known) for row, known in rows.items()]
        tables[table] = {row: known for rows in split for row, known in rows.items()}
    return tables


def split_by_setup(row: RowName, runs: list[Run], num_planned: int) -> RunsByRow:
    """Splits a row whose runs differ in flags into rows that have those flags in their names."""
    # The model of a study's own pretraining has the seed in its path; any other is in the row's name.
    free = {*record.FREE_TO_CHANGE, "seed", "model_name_or_path"}
    setups = [
        {name: value for name, value in run.args.flags.items() if name not in free}
        | {"images_per_step": run.results.images_per_step}
        for run in runs
    ]
    names = sorted({name for setup in setups for name in setup})
    differing = [name for name in names if len({str(setup.get(name)) for setup in setups}) > 1]
    groups: dict[str, list[Run]] = defaultdict(list)
    for run, setup in zip(runs, setups):
        groups[", ".join(f"{name} {setup.get(name)}" for name in differing)].append(run)
    if len(groups) == 1:
        return {dataclasses.replace(row, setup=next(iter(groups))): (runs, num_planned)}
    unfinished = {row: ([], num_planned - len(runs))} if len(runs) < num_planned else {}
    split = {dataclasses.replace(row, setup=setup): (same, len(same)) for setup, same in groups.items()}
    return split | unfinished


def check_row(row: Row) -> None:
    """Raises UserError if the runs of a row do not differ in their seed only."""
    first = row.runs[0]
    for number, other in enumerate(row.runs):
        if other.results.seed in {run.results.seed for run in row.runs[:number]}:
            found = f"seed {other.results.seed} is there twice"
        elif not other.predictions["dicom_id"].equals(first.predictions["dicom_id"]):
            found = "they were measured on different images"
        else:
            continue
        raise UserError(
            f"{first.folder} and {other.folder} would be in one row, but {found}; expected runs that differ "
            "only in their seed; report them separately"
        )


def check_samples(rows: list[Row], table: TableName) -> None:
    """Raises UserError if runs with the same seed and size were trained on different images."""
    seen: dict[int, tuple[str, Path]] = {}
    for run in (run for row in rows for run in row.runs):
        sample = record.Sample.read(run.folder / "samples.json").sha256
        expected, first = seen.setdefault(run.results.seed, (sample, run.folder))
        if sample != expected:
            raise UserError(
                f"{run.folder} and {first} would be in one table ({table.title}), but "
                "were trained on different images; expected the same sample; report them separately"
            )


def count_images(predictions: pd.DataFrame) -> str:
    """Returns the numbers of images, patients and positive images as text."""
    patients = plural(predictions["subject_id"].nunique(), "patient")
    return f"{plural(len(predictions), 'image')} of {patients}, {predictions['label'].sum():,} positive"


def plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def format_number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
