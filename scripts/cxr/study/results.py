"""Reads finished runs and gathers them into the tables and rows of a report."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path

import numpy as np
import pandas as pd

from cxr.choices import CHEXPERT5
from cxr.choices import EVALUATION_LEVELS
from cxr.choices import LABEL_OPTIONS
from cxr.choices import RECIPES
from cxr.cli.arguments import labels_in
from cxr.data.images import user_errors
from cxr.errors import UserError
from cxr.evaluation import findings
from cxr.evaluation.intervals import Difference
from cxr.evaluation.intervals import Interval
from cxr.evaluation.intervals import SeedNoise
from cxr.run_folder import record
from cxr.run_folder.measured import AgainstRadiologist
from cxr.run_folder.measured import Groups
from cxr.run_folder.measured import MeasuredFindings
from cxr.run_folder.measured import MeasuredSplit
from cxr.study import grid
from cxr.study.by_finding import FindingResult
from cxr.study.names import RowName
from cxr.study.names import TableName
from cxr.study.names import labels_in_words
from cxr.study.names import labels_of
from cxr.study.names import names_of_folders
from cxr.study.predictions import count_images
from cxr.study.predictions import read_predictions

# The columns of the paper's tables under its headings, and our own columns.
PAPER_METRICS = {
    "accuracy": "Accuracy",
    "precision": "Precision",
    "f1": "F1",
    "recall": "Recall",
    "auroc": "AUC",
}
OUR_METRICS = {"average_precision": "Average precision", "brier": "Brier", "ece": "ECE"}
MACRO_METRICS = {"auroc": "Macro AUROC", "average_precision": "Macro AP"}  # of a task with several labels
CHEXPERT5_METRICS = {"chexpert5_auroc": "CheXpert-5 AUROC"}
LOWER_IS_BETTER = ("brier", "ece")
PRETRAINED_HERE = ", pretrained here"  # the end of a row's name
PAPER_NAMES = {"facebook/vit-mae-base": "MAE ViT", "microsoft/resnet-18": "ResNet"}
# Flags that the names of the table or the row have, so that no row repeats them.
IN_NAMES = ("findings", "blank", "evaluation_level", "recipe")


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
    def measured(self) -> MeasuredSplit | MeasuredFindings:
        return getattr(self.results, self.split)

    @property
    def findings(self) -> tuple[str, ...]:
        """Returns the labels of a model with several of them, () if it has one."""
        return tuple(self.measured.findings) if isinstance(self.measured, MeasuredFindings) else ()


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The mean AUROC of a row's runs on other labels than the table's, with its interval over patients."""

    n: int  # images or studies
    auroc: float | None
    interval: Interval | None


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
    by_finding: dict[str, FindingResult] = field(default_factory=dict)
    by_group: Groups | None = None
    against_radiologist: dict[str, Measurement] = field(default_factory=dict)  # by image and by study
    aurocs: dict[int, np.ndarray] = field(default_factory=dict)  # seed -> (1 + R,): measured, then resampled
    published: dict[str, float] = field(default_factory=dict)
    ensemble: "Ensemble | None" = None  # of two or more seeds

    @property
    def images(self) -> tuple[str, ...]:
        return tuple(self.runs[0].predictions["dicom_id"]) if self.runs else ()

    @property
    def architecture(self) -> str:
        """Returns the model's name without its organisation, the same for pretrained and from scratch.

        The model of a run folder, RUN/model, has no name of its own, and is the whole path.
        """
        run = self.runs[0]
        path = run.pretraining.results.model if run.pretraining else run.point.model
        name = path.rstrip("/").rpartition("/")[2]
        return path if name == "model" else name

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


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """The metrics of the mean probability of a row's models, which differ in their seed."""

    num_models: int
    values: dict[str, float | None]
    over_patients: dict[str, Interval | None]


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
    def doubt(self) -> str:
        """Returns why intervals and p-values are not to be trusted, "" if they are."""
        first = next((row.runs[0] for row in self.measured), None)
        if first is None or first.findings:  # their means are over those with enough labels
            return ""
        labels, patients = (first.predictions[column].to_numpy() for column in ("label", "subject_id"))
        return findings.doubt_intervals(labels, patients, split=first.split)

    @property
    def with_ensembles(self) -> list[Row]:
        return [row for row in self.measured if row.ensemble]

    @property
    def n(self) -> str:
        """Returns in words the images that the rows were measured on."""
        level = self.name.evaluation_level
        counts = list(dict.fromkeys(count_images(row.runs[0].predictions, level) for row in self.measured))
        return " or ".join(f"n = {count}" for count in counts) or "nothing measured yet"

    @property
    def title(self) -> str:
        return f"{self.name.title} ({self.n})"

    @property
    def metrics(self) -> dict[str, str]:
        """Returns the metrics of the main table, with their headings."""
        if not self.name.is_multi_label:
            return PAPER_METRICS
        has_more = set(CHEXPERT5) < set(self.name.findings)
        return MACRO_METRICS | (CHEXPERT5_METRICS if has_more else {})

    @property
    def radiologist(self) -> AgainstRadiologist | None:
        """Returns how well the labelers agree with the radiologist, which is the same for all runs."""
        runs = [run for row in self.measured if row.against_radiologist for run in row.runs]
        return runs[0].results.radiologist if runs else None

    @property
    def projection_auroc(self) -> float | None:
        """Returns the AUROC of the view alone, the mean over the runs; None if a run has not measured it."""
        found = [run.measured.projection_auroc for row in self.measured for run in row.runs]
        return None if not found or None in found else sum(found) / len(found)

    def projection_of(self, finding: str) -> float | None:
        """Returns the same of one of several labels."""
        runs = [run for row in self.measured for run in row.runs]
        found = [run.measured.findings[finding].projection_auroc for run in runs]
        return None if None in found else sum(found) / len(found)

    @property
    def mean(self) -> str:
        """Returns what the AUROC of a row is the mean over, as a remark in parentheses; "" for one label."""
        return " (mean over findings)" * self.name.is_multi_label

    def is_best(self, row: Row, metric: str) -> bool:
        """Returns whether a row has the best value of a column, which is underlined as in the paper."""
        values = [other.values[metric] for other in self.measured if other.values[metric] is not None]
        if len(self.measured) < 2 or row.values.get(metric) is None:
            return False
        return row.values[metric] == (min if metric in LOWER_IS_BETTER else max)(values)


def find_runs(folders: list[Path]) -> dict[Path, Path]:
    """Returns the finished classification runs in `folders`: resolved path -> path as it is first named.

    Raises UserError if a folder has none.
    """
    runs: dict[Path, Path] = {}
    for folder in folders:
        inside = [folder, *sorted(path for path in folder.glob("*") if path.is_dir())]
        found = [run for run in inside if isinstance(record.read_results(run), record.ClassificationResults)]
        if not found:
            raise UserError(
                f"{folder}: found no finished classification run (results.json) in it or one level below; "
                "name the --output_dir of run_classification.py or run_study.py, or a folder of such runs"
            )
        for run in found:
            runs.setdefault(run.resolve(), run)
    return runs


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
        predictions=read_predictions(folder / f"predictions_{split}.csv", getattr(results, split)),
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


def point_of(results: record.ClassificationResults) -> grid.ClassificationPoint:
    """Returns the place in a grid of a run that no plan names."""
    erasing = results.random_erasing_prob * (results.recipe == RECIPES[0])  # else it is a part of the recipe
    return grid.ClassificationPoint(
        model=results.model,
        from_scratch=not results.pretrained,
        own_pretraining=False,
        augmentation=results.augmentation,
        masking=results.mask_ratio or erasing,
        masking_kind="patches" if results.mask_ratio or not erasing else "erasing",
        recipe=results.recipe,
        train_size=results.num_train_images,
        task=results.task,
        training_mode="last_layer" if results.train_last_layer_only else "full",
        view=results.view,
        seed=results.seed,
    )


def row_name(point: grid.ClassificationPoint, names: Mapping[str, str]) -> RowName:
    """Returns a row's name; `names` are those of the models that have another one in a report."""
    start = PRETRAINED_HERE if point.own_pretraining else ", from scratch" * point.from_scratch
    model = names.get(point.model, point.model)
    return RowName(model + start, point.augmentation, point.masking, point.masking_kind, recipe=point.recipe)


def gather_rows(folders: list[Path]) -> dict[TableName, RunsByRow]:
    """Groups the finished runs and the planned cells in `folders` by table and row."""
    tables: dict[TableName, RunsByRow] = defaultdict(dict)
    finished = find_runs(folders)
    cells = [(folder / name, cell) for folder in folders for name, cell in grid.read_plan(folder).items()]
    plan = {run.resolve(): cell for run, cell in cells if isinstance(cell, grid.ClassificationCell)}
    runs = {path: read_run(folder, plan.get(path)) for path, folder in finished.items()}
    known_labels = {
        plan[folder].flags.get("data_dir"): run.args.origin.labels
        for folder, run in runs.items()
        if folder in plan
    }
    points = {folder: run.point for folder, run in runs.items()}
    points = {folder: cell.point for folder, cell in plan.items()} | points
    names = PAPER_NAMES | names_of_folders({point.model for point in points.values()})
    for folder, point in points.items():
        cell, run = plan.get(folder), runs.get(folder)
        options = run.results.as_json() if run else LABEL_OPTIONS | cell.flags
        collection = run.args.origin.labels if run else labels_of_data(cell, known_labels)
        table = TableName(
            task=point.task,
            view=point.view,
            training_mode=point.training_mode,
            labels=labels_in_words(options, has_labeler=collection is None),
            split=run.split if run else "test",
            size=grid.size_name(point.train_size),
            findings=labels_of(point.task, options.get("findings"), collection),
            evaluation_level=options.get("evaluation_level", EVALUATION_LEVELS[0]),
        )
        row = row_name(point, names)
        known, num_planned = tables[table].get(row, ([], 0))
        tables[table][row] = ([*known, run] if run else known, num_planned + 1)
    for table, rows in tables.items():
        split = [split_by_setup(row, *known) for row, known in rows.items()]
        tables[table] = {row: known for rows in split for row, known in rows.items()}
    return tables


def labels_of_data(
    cell: grid.ClassificationCell, known_labels: dict[str | None, list[str] | None]
) -> Iterable[str] | None:
    """Returns the labels of the manifest of a cell that has no run yet; None for MIMIC.

    `known_labels` are those that finished runs recorded by data folder, which may not be on this machine.
    """
    data_dir = cell.flags.get("data_dir")
    if data_dir in known_labels:
        return known_labels[data_dir]
    with user_errors():
        return labels_in(data_dir and Path(data_dir))


def split_by_setup(row: RowName, runs: list[Run], num_planned: int) -> RunsByRow:
    """Splits a row whose runs differ in flags into rows that have those flags in their names.

    A run that has not recorded a flag is older than the flag, and new flags are off by default.
    """
    # The model of a study's own pretraining has the seed in its path; any other is in the row's name.
    free = {*record.FREE_TO_CHANGE, *IN_NAMES, "seed", "model_name_or_path"}
    setups = [
        {name: value for name, value in run.args.flags.items() if name not in free}
        | {"images_per_step": run.results.images_per_step}
        for run in runs
    ]
    names = sorted({name for setup in setups for name in setup})
    setups = [{name: setup.get(name) or None for name in names} for setup in setups]  # 0 and False are off
    differing = [name for name in names if len({str(setup[name]) for setup in setups}) > 1]
    groups: dict[str, list[Run]] = defaultdict(list)
    for run, setup in zip(runs, setups):
        groups[", ".join(f"{name} {setup[name]}" for name in differing)].append(run)
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
