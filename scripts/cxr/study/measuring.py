"""Measures the rows of a report: metrics, intervals and comparisons, from the predictions of their runs."""

import itertools
from collections import defaultdict

import numpy as np
import pandas as pd

from cxr.choices import VIEWS
from cxr.evaluation import intervals
from cxr.evaluation.intervals import Interval
from cxr.evaluation.intervals import SeedNoise
from cxr.study import paper
from cxr.study.results import DEFAULT_LABELS
from cxr.study.results import Comparison
from cxr.study.results import ResultTable
from cxr.study.results import Row
from cxr.study.results import RowName
from cxr.study.results import Run
from cxr.study.results import TableName
from cxr.study.results import check_row
from cxr.study.results import check_samples


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
        row.aurocs = {run.results.seed: np.array([value, *redrawn]) for run, value, redrawn in of_runs}
    row.by_view = auroc_by_view(row, resamples)


def arrays(predictions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return predictions["label"].to_numpy(), predictions["probability"].to_numpy(dtype=float)


def auroc_by_view(row: Row, resamples: "Resamples") -> dict[str, tuple[float, Interval | None, int]]:
    """AUROC of the AP and of the PA images, each where it has both classes."""
    found = {}
    for view in VIEWS["frontal"]:
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
            differences = [first.aurocs[seed] - second.aurocs[seed] for seed in seeds]
            difference = np.mean(differences, axis=0)  # (1 + R,)
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
    of_size = paper.STUDY_RESULTS.get(int(table.size), {})
    figures = of_size.get((row.model, row.augmentation, row.masking))
    return dict(zip(paper.STUDY_COLUMNS, figures)) if figures else {}


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
