"""Computes the metrics, intervals and comparisons of a report from the predictions of its runs."""

import functools
import itertools

import numpy as np
import pandas as pd

from cxr.choices import VIEWS
from cxr.evaluation import intervals
from cxr.evaluation.intervals import Interval
from cxr.evaluation.intervals import SeedNoise
from cxr.study import paper
from cxr.study import results


def measure_tables(
    gathered: dict[results.TableName, results.RunsByRow], num_resamples: int
) -> list[results.ResultTable]:
    tables = []
    all_rows = {row for rows in gathered.values() for row in rows}
    for name in sorted(gathered, key=results.TableName.order):
        rows = [
            results.Row(
                name=row,
                label=row.label(all_rows),
                runs=runs,
                num_planned=planned,
                published=published_row(name, row),
            )
            for row, (runs, planned) in gathered[name].items()
        ]
        results.check_samples(rows, name)
        for row in [row for row in rows if row.runs]:
            results.check_row(row)
            measure_row(row, num_resamples)
        noise = intervals.seed_noise([{seed: float(a[0]) for seed, a in row.aurocs.items()} for row in rows])
        comparisons = compare(rows, noise)
        tables.append(results.ResultTable(name=name, rows=rows, noise=noise, comparisons=comparisons))
    return tables


def published_row(table: results.TableName, row: results.RowName) -> dict[str, float]:
    """Returns the paper's results for a row, {} if the paper has no such row."""
    is_papers = (table.task, table.view, table.training_mode) == ("finding", "frontal", "full")
    if not is_papers or table.labels != results.DEFAULT_LABELS or not table.size.isdigit():
        return {}
    return paper.study_results(int(table.size), row.model, row.augmentation, row.masking)


def measure_row(row: results.Row, num_resamples: int) -> None:
    """Computes a row's values and intervals from the predictions of its runs, and stores them in the row."""
    weights = [weights_of(tuple(run.predictions["subject_id"]), num_resamples) for run in row.runs]
    of_runs = [
        intervals.weighted_metrics(*arrays(run.predictions), drawn, threshold=0.5)
        for run, drawn in zip(row.runs, weights)
    ]
    for metric in intervals.METRICS:
        values = np.array([found[metric] for found in of_runs])  # (runs, 1 + R)
        mean, defined = values.mean(axis=0), np.isfinite(values[:, 0]).all()
        around = mean[0] if metric == "ece" else None
        row.values[metric] = float(mean[0]) if defined else None
        row.over_seeds[metric] = intervals.seed_interval(values[:, 0]) if defined else None
        over_patients = intervals.percentile_interval(mean[1:], around=around) if defined else None
        row.over_patients[metric] = over_patients
    if row.values["auroc"] is not None:
        row.aurocs = {run.results.seed: found["auroc"] for run, found in zip(row.runs, of_runs)}
    row.by_view = auroc_by_view(row.runs, weights)


@functools.lru_cache(maxsize=4)
def weights_of(patients: tuple, num_resamples: int) -> np.ndarray:
    """Returns weights (1 + R, N): first 1 for every image, then R resamples, the same for all rows."""
    drawn = intervals.patient_weights(patients, num_resamples=num_resamples, seed=0)
    return np.concatenate([np.ones_like(drawn[:1]), drawn])


def arrays(predictions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return predictions["label"].to_numpy(), predictions["probability"].to_numpy(dtype=float)


def auroc_by_view(
    runs: list[results.Run], weights: list[np.ndarray]
) -> dict[str, tuple[float, Interval | None, int]]:
    """Returns, for each frontal view with both classes, AUROC, its interval and the number of images."""
    found = {}
    for view in VIEWS["frontal"]:
        of_runs = []
        for run, drawn in zip(runs, weights):
            in_view = (run.predictions["view_position"] == view).to_numpy()
            labels, probabilities = arrays(run.predictions[in_view])
            if len(np.unique(labels)) == 2:
                of_runs.append(intervals.weighted_auroc(labels, probabilities, drawn[:, in_view]))
        if len(of_runs) == len(runs):
            mean = np.mean(of_runs, axis=0)
            found[view] = float(mean[0]), intervals.percentile_interval(mean[1:]), len(labels)
    return found


def compare(rows: list[results.Row], noise: SeedNoise) -> list[results.Comparison]:
    """Compares every pair of rows that were measured on the same images; returns the smallest p first."""
    found = []
    for first, second in itertools.combinations(rows, 2):
        measured = difference_of_means([first], [second], noise)
        if measured and measured[0].value < 0:
            first, second = second, first
            measured = difference_of_means([first], [second], noise)
        if measured:
            found.append(results.Comparison(first.label, second.label, measured[1], measured[0]))
    for comparison, p in zip(found, intervals.holm([one.difference.p for one in found])):
        comparison.p = p
    return sorted(found, key=lambda comparison: (comparison.p, comparison.difference.p))


def difference_of_means(
    first: list[results.Row], second: list[results.Row], noise: SeedNoise
) -> tuple[intervals.Difference, int] | None:
    """Returns the mean AUROC of the `first` rows minus that of the `second`, and the number of common seeds.

    Only seeds that all rows have count. Returns None if there are none, or if the rows were measured on
    different images.
    """
    seeds = sorted(set.intersection(*(set(row.aurocs) for row in (*first, *second))))
    if not seeds or any(row.images != first[0].images for row in (*first, *second)):
        return None
    means = [
        np.mean([row.aurocs[seed] for row in side for seed in seeds], axis=0) for side in (first, second)
    ]
    difference = means[0] - means[1]  # (1 + R,)
    tested = intervals.paired_difference(
        float(difference[0]),
        difference[1:],
        num_patients=first[0].runs[0].predictions["subject_id"].nunique(),
        num_runs=(len(first) * len(seeds), len(second) * len(seeds)),
        noise=noise,
    )
    return tested and (tested, len(seeds))
