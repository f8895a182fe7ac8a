"""Statistics of metrics: 95 % intervals over seeds and over patients, paired differences, calibration.

Arrays have one entry per image of a split: `labels` 0 or 1, `probabilities` of class 1. The bootstrap draws
patients with replacement, not images, because images of one patient are not independent; the weight of an
image in a resample is how often its patient was drawn.
"""

import functools
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
METRICS = ("accuracy", "precision", "f1", "recall", "auroc", "average_precision", "brier", "ece")
NUM_BINS = 10  # of a reliability diagram, of equal width
NUM_RESAMPLES = 2000
# Of each class: with fewer, the bootstrap underestimates the variance. Patients count, or, for a finding in a
# mean, images.
MIN_LABELS = 10
MIN_SEEDS = 3  # for an interval over seeds; with two it is too wide to be useful (t = 12.7)
BLOCK = 200_000  # weights that are processed at once


@dataclass(frozen=True, kw_only=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Difference(Interval):
    """A mean difference in AUROC between two rows of a table, with its interval and p-value."""

    value: float
    p: float


@dataclass(frozen=True, kw_only=True)
class SeedNoise:
    """The variance of a run's AUROC over seeds; with 0 degrees of freedom it is unknown."""

    variance: float
    freedom: int


def patient_weights(subject_ids: Sequence[int | str], *, num_resamples: int, seed: int) -> np.ndarray:
    """Returns how often each image occurs in each resample of the patients: (num_resamples, N), uint8.

    The resamples depend only on the patients and the seed, so all rows of a table share them.
    """
    patients, patient_of_image = np.unique(np.asarray(subject_ids), return_inverse=True)
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(len(patients), np.full(len(patients), 1 / len(patients)), num_resamples)
    return counts.astype(np.uint8)[:, patient_of_image]


def count_patients(subject_ids: Sequence[int | str], labels: np.ndarray) -> tuple[int, int]:
    """Returns how many patients have an image with label 1, and how many have one with label 0."""
    ids = np.asarray(subject_ids)
    return len(np.unique(ids[labels == 1])), len(np.unique(ids[labels == 0]))


@functools.lru_cache(maxsize=4)
def weights_of(subject_ids: tuple[int | str, ...], num_resamples: int = NUM_RESAMPLES) -> np.ndarray:
    """Returns weights (1 + num_resamples, N): 1 for every image, then `patient_weights` of seed 0.

    The array is shared by all that is measured on the same images: do not change it.
    """
    drawn = patient_weights(subject_ids, num_resamples=num_resamples, seed=0)
    return np.vstack([np.ones_like(drawn[:1]), drawn])


def weighted_metrics(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray, *, threshold: float
) -> dict[str, np.ndarray]:
    """Returns METRICS of every resample: arrays (R,), for `weights` (R, N).

    The definitions are scikit-learn's with `weights` as sample weights: precision, recall and F1 are 0 where
    they would divide by zero. AUROC and average precision are NaN if a resample has only one class. "ece" is
    the expected calibration error over the bins of `reliability`.
    """
    called = probabilities >= threshold
    gaps = np.eye(NUM_BINS)[bin_of(probabilities)] * (probabilities - labels)[:, None]  # (N, bins)
    sums = np.stack(  # per image, what is summed with weights: the counts at the threshold, squared errors
        [np.ones(len(labels)), labels, called, called & (labels == 1), (probabilities - labels) ** 2], axis=1
    )
    parts = []
    for block in in_blocks(weights):
        total, positives, alarms, hits, squares = (block @ sums).T
        auroc, average_precision = _areas(labels, probabilities, block)
        total = np.where(total, total, np.nan)  # a resample may have no labelled image
        parts.append(
            {
                "accuracy": (total - positives - alarms + 2 * hits) / total,
                "precision": _ratio(hits, alarms),
                "f1": _ratio(2 * hits, positives + alarms),
                "recall": _ratio(hits, positives),
                "auroc": auroc,
                "average_precision": average_precision,
                "brier": squares / total,
                "ece": np.abs(block @ gaps).sum(axis=1) / total,
            }
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in METRICS}


def weighted_auroc(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns only the AUROC of every resample, (R,), as `weighted_metrics` computes it."""
    return weighted_areas(labels, probabilities, weights)["auroc"]


def weighted_areas(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns only AUROC and average precision of every resample, (R,), as `weighted_metrics` does."""
    parts = [_areas(labels, probabilities, block) for block in in_blocks(weights)]
    return dict(zip(("auroc", "average_precision"), map(np.concatenate, zip(*parts))))


def weighted_f1(labels: np.ndarray, called: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the F1 of every resample, (R,), for calls (N,) of 0 or 1; NaN where neither has a positive."""
    sums = np.stack([labels * called, labels + called], axis=1)
    hits, both = np.concatenate([block @ sums for block in in_blocks(weights)]).T
    return np.divide(2 * hits, both, out=np.full(len(weights), np.nan), where=both > 0)


def weighted_rates(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray, *, threshold: float
) -> dict[str, np.ndarray]:
    """Returns sensitivity and specificity of every resample, (R,) each; NaN where they are undefined."""
    correct = (probabilities >= threshold) == labels
    sums = np.stack([labels == 1, labels == 0, (labels == 1) & correct, (labels == 0) & correct], axis=1)
    counts = np.concatenate([block @ sums for block in in_blocks(weights)])
    with np.errstate(invalid="ignore"):
        sensitivity, specificity = (counts[:, 2:] / counts[:, :2]).T
    return {"sensitivity": sensitivity, "specificity": specificity}


def in_blocks(weights: np.ndarray) -> Iterator[np.ndarray]:
    """Yields blocks of resamples as float64, small enough for the processor's cache."""
    for block in np.array_split(weights, -(-weights.size // BLOCK)):
        yield block.astype(np.float64)


def _areas(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns AUROC and average precision, (R,) each, NaN if a resample has only one class.

    Both are means over the positive images: of the share of negative images below the positive one, where
    equal probabilities count half, and of the precision if all images from this one upwards are called. So
    they take little time for a rare finding.
    """
    order = np.argsort(probabilities, kind="stable")
    positive, negative = order[labels[order] == 1], order[labels[order] == 0]
    high, low = probabilities[positive], probabilities[negative]
    drawn = weights[:, positive]  # (R, positives)
    hits_below, alarms_below = _sums_before(drawn), _sums_before(weights[:, negative])
    positives, negatives = hits_below[:, -1], alarms_below[:, -1]
    below = alarms_below[:, np.searchsorted(low, high)]  # (R, positives)
    equal_or_below = alarms_below[:, np.searchsorted(low, high, side="right")]
    hits = positives[:, None] - hits_below[:, np.searchsorted(high, high)]
    called = hits + negatives[:, None] - below
    with np.errstate(invalid="ignore", divide="ignore"):
        auroc = (drawn * (below + equal_or_below)).sum(axis=1) / (2 * positives * negatives)
        average_precision = (drawn * hits / np.maximum(called, 1)).sum(axis=1) / positives
        average_precision = np.minimum(average_precision, 1)  # rounded numbers may exceed it
    one_class = (positives == 0) | (negatives == 0)
    return np.where(one_class, np.nan, auroc), np.where(one_class, np.nan, average_precision)


def _sums_before(weights: np.ndarray) -> np.ndarray:
    """Returns the sum of the first 0, 1, ..., N weights of every resample: (R, N + 1)."""
    sums = np.zeros((len(weights), weights.shape[1] + 1))
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator > 0)


def percentile_interval(resampled: np.ndarray, *, around: float | None = None) -> Interval | None:
    """Returns the middle 95 % of a metric's resamples (R,); None if no resample is defined.

    `around` is for a metric that resampling biases upwards, such as the calibration error: the resamples are
    shifted so that this value, computed without resampling, is their mean, within [0, 1].
    """
    defined = resampled[np.isfinite(resampled)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if around is not None:
        low, high = np.clip(np.array([low, high]) + around - defined.mean(), 0, 1)
    return Interval(low=float(low), high=float(high))


def value_of(values: np.ndarray) -> float | None:
    """Returns a metric: the first of `values` (1 + R,), None if it is undefined; the others are resamples."""
    return None if np.isnan(values[0]) else float(values[0])


def interval_of(values: np.ndarray) -> list[float] | None:
    """Returns [low, high] of a metric: `values` (1 + R,) are its value and its resamples."""
    interval = None if np.isnan(values[0]) else percentile_interval(values[1:])
    return interval and [interval.low, interval.high]


def patient_intervals(
    labels: np.ndarray, probabilities: np.ndarray, subject_ids: Sequence[int | str], *, threshold: float
) -> dict[str, list[float] | None]:
    """Returns [low, high] over patients of each of METRICS for one run; None if no resample defines it."""
    weights = patient_weights(subject_ids, num_resamples=NUM_RESAMPLES, seed=0)
    resampled = weighted_metrics(labels, probabilities, weights, threshold=threshold)
    whole = weighted_metrics(labels, probabilities, np.ones((1, len(labels))), threshold=threshold)
    intervals = {
        name: percentile_interval(values, around=whole[name][0] if name == "ece" else None)
        for name, values in resampled.items()
    }
    return {name: interval and [interval.low, interval.high] for name, interval in intervals.items()}


def seed_interval(values: Sequence[float]) -> Interval | None:
    """Returns the t interval of a metric's mean over seeds, within [0, 1]; None for fewer than MIN_SEEDS."""
    if len(values) < MIN_SEEDS:
        return None
    from scipy import stats  # half a second, which --help does not wait for

    half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values)
    low, high = np.clip(np.mean(values) + np.array([-half, half]), 0, 1)
    return Interval(low=float(low), high=float(high))


def seed_noise(by_seed: Sequence[dict[int, float]]) -> SeedNoise:
    """Estimates the variance over seeds of one run; `by_seed` has seed -> AUROC for each row of a table.

    It is the residual variance of the AUROCs after an effect of the row and an effect of the seed, which is
    that of the training sample that all rows share. All rows are pooled, because three seeds of one row say
    little about its variance; this assumes that all rows have about the same variance.
    """
    seeds = sorted({seed for row in by_seed for seed in row})
    runs = [(number, seed, value) for number, row in enumerate(by_seed) for seed, value in row.items()]
    effects = np.zeros((len(runs), len(by_seed) + len(seeds)))
    for line, (number, seed, _) in zip(effects, runs):
        line[number] = line[len(by_seed) + seeds.index(seed)] = 1
    values = np.array([value for *_, value in runs])
    fitted, _, rank, _ = np.linalg.lstsq(effects, values, rcond=None)
    freedom = len(runs) - int(rank)
    squares = float(((values - effects @ fitted) ** 2).sum())
    return SeedNoise(variance=squares / freedom if freedom else 0.0, freedom=freedom)


def paired_difference(
    value: float, resampled: np.ndarray, *, num_patients: int, num_seeds: int, noise: SeedNoise
) -> Difference | None:
    """Tests the difference between two means over runs with `num_seeds` seeds, measured on the same images.

    `resampled` (R,) is the difference in each resample of patients. The variance is the sum of two parts: the
    choice of test patients and the choice of seeds. A side with several runs of a seed has the variance
    of one run: runs of the same sample and start are not independent. The degrees of freedom are
    Satterthwaite's; the t test is two-sided. Returns None if fewer than two resamples are defined.
    """
    from scipy import stats

    resampled = resampled[np.isfinite(resampled)]
    if len(resampled) < 2:
        return None
    components = [(np.var(resampled, ddof=1), num_patients - 1)]  # variance, degrees of freedom
    if noise.freedom:
        components.append((2 * noise.variance / num_seeds, noise.freedom))
    variance = sum(part for part, _ in components)
    if variance == 0:  # equal predictions
        return Difference(value=value, low=value, high=value, p=float(value == 0))
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in components)
    error = np.sqrt(variance)
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom) * error)
    p = float(2 * stats.t.sf(abs(value) / error, freedom))
    return Difference(value=value, low=value - half, high=value + half, p=p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns the p-values corrected for multiple comparisons (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    corrected = np.asarray(p_values, dtype=float)
    corrected[order] = np.minimum(np.maximum.accumulate(corrected[order] * np.arange(len(order), 0, -1)), 1.0)
    return corrected.tolist()


def bin_of(probabilities: np.ndarray) -> np.ndarray:
    return np.minimum((probabilities * NUM_BINS).astype(int), NUM_BINS - 1)


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> list[tuple[float, float, int]]:
    """Returns (mean probability, share of positives, number of images) of each bin that has images.

    The expected calibration error, "ece", is the mean absolute difference of the first two over all images.
    """
    bins = bin_of(probabilities)
    inside = [bins == one for one in np.unique(bins)]
    return [(float(probabilities[one].mean()), float(labels[one].mean()), int(one.sum())) for one in inside]
