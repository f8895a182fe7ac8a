"""Computes the metrics, intervals and comparisons of a report from the predictions of its runs."""

import itertools

import numpy as np
import pandas as pd

from cxr.choices import EVALUATION_LEVELS
from cxr.choices import RECIPES
from cxr.evaluation import intervals
from cxr.evaluation.intervals import SeedNoise
from cxr.evaluation.intervals import weights_of
from cxr.study import paper
from cxr.study import results
from cxr.study.by_finding import measure_findings
from cxr.study.by_group import measure_by_group
from cxr.study.names import DEFAULT_LABELS
from cxr.study.names import RowName
from cxr.study.names import TableName
from cxr.study.predictions import arrays
from cxr.study.predictions import read_predictions

RADIOLOGIST_FILES = {
    "image": "predictions_radiologist.csv",
    "study": "predictions_radiologist_study.csv",
}


def measure_tables(
    gathered: dict[TableName, results.RunsByRow], num_resamples: int
) -> list[results.ResultTable]:
    tables = []
    all_rows = {row for rows in gathered.values() for row in rows}
    for name in sorted(gathered, key=TableName.order):
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


def published_row(table: TableName, row: RowName) -> dict[str, float]:
    """Returns the paper's results for a row, {} if the paper has no such row."""
    is_papers = (table.task, table.view, table.training_mode) == ("finding", "frontal", "full")
    is_papers &= table.evaluation_level == EVALUATION_LEVELS[0] and row.recipe == RECIPES[0]
    if not is_papers or table.labels != DEFAULT_LABELS or not table.size.isdigit():
        return {}
    return paper.study_results(int(table.size), row.model, row.augmentation, row.masking)


def measure_row(row: results.Row, num_resamples: int) -> None:
    """Computes a row's values and intervals from the predictions of its runs, and stores them in the row."""
    predictions, names = [run.predictions for run in row.runs], row.runs[0].findings
    weights = weights_of_all(predictions, num_resamples)
    of_runs, row.by_finding = measure(predictions, names, weights)
    row.values, row.over_patients = summarize(of_runs)
    row.over_seeds = {
        metric: intervals.seed_interval([found[metric][0] for found in of_runs]) if is_defined else None
        for metric, is_defined in ((metric, value is not None) for metric, value in row.values.items())
    }
    if row.values["auroc"] is not None:
        row.aurocs = {run.results.seed: found["auroc"] for run, found in zip(row.runs, of_runs)}
    row.by_group = measure_by_group(predictions, names, weights[0])
    if len(predictions) > 1:
        of_ensemble, _ = measure([average(predictions, names)], names, weights[:1])
        values, over_patients = summarize(of_ensemble)
        row.ensemble = results.Ensemble(
            num_models=len(predictions), values=values, over_patients=over_patients
        )
    if all(run.results.radiologist for run in row.runs):
        row.against_radiologist = measure_against_radiologist(row.runs, num_resamples)


def measure(
    predictions: list[pd.DataFrame], names: tuple[str, ...], weights: list[np.ndarray]
) -> tuple[list[dict[str, np.ndarray]], dict[str, results.FindingResult]]:
    """Returns the metrics (1 + R,) of each run: measured, then resampled; and the results by finding."""
    if names:
        return measure_findings(predictions, names, weights)
    return [
        intervals.weighted_metrics(*arrays(one), drawn, threshold=0.5)
        for one, drawn in zip(predictions, weights)
    ], {}


def summarize(
    of_runs: list[dict[str, np.ndarray]],
) -> tuple[dict[str, float | None], dict[str, intervals.Interval | None]]:
    """Returns the mean of each metric over the runs, and its interval over patients."""
    values, over_patients = {}, {}
    for metric in of_runs[0]:
        of_metric = np.array([found[metric] for found in of_runs])  # (runs, 1 + R)
        mean, is_defined = of_metric.mean(axis=0), np.isfinite(of_metric[:, 0]).all()
        around = mean[0] if metric == "ece" else None
        values[metric] = float(mean[0]) if is_defined else None
        over_patients[metric] = intervals.percentile_interval(mean[1:], around=around) if is_defined else None
    return values, over_patients


def average(predictions: list[pd.DataFrame], names: tuple[str, ...]) -> pd.DataFrame:
    """Returns the predictions of an ensemble: the mean of the probabilities."""
    columns = list(names) or ["probability"]
    means = np.mean([one[columns].to_numpy(dtype=float) for one in predictions], axis=0)
    return predictions[0].assign(**dict(zip(columns, means.T)))


def weights_of_all(predictions: list[pd.DataFrame], num_resamples: int) -> list[np.ndarray]:
    return [weights_of(tuple(one["subject_id"]), num_resamples) for one in predictions]


def measure_against_radiologist(
    runs: list[results.Run], num_resamples: int
) -> dict[str, results.Measurement]:
    """Returns the AUROC against the radiologist's labels by image and by study."""
    found, names = {}, runs[0].findings
    for level, file in RADIOLOGIST_FILES.items():
        predictions = [
            read_predictions(run.folder / file, getattr(run.results.radiologist, level)) for run in runs
        ]
        weights = weights_of_all(predictions, num_resamples)
        if names:
            of_runs, _ = measure_findings(predictions, names, weights)
            aurocs = [means["auroc"] for means in of_runs]
        else:
            aurocs = [
                intervals.weighted_auroc(*arrays(one), drawn) for one, drawn in zip(predictions, weights)
            ]
        mean = np.mean(aurocs, axis=0)  # (1 + R,)
        is_defined = bool(np.isfinite(mean[0]))
        found[level] = results.Measurement(
            n=len(predictions[0]),
            auroc=float(mean[0]) if is_defined else None,
            interval=intervals.percentile_interval(mean[1:]) if is_defined else None,
        )
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
        num_seeds=len(seeds),
        noise=noise,
    )
    return tested and (tested, len(seeds))
