"""Measures how often the 95 % interval of the mean AUROC over findings contains the true value.

    python benchmarks/interval_coverage.py --num_draws 100        # less than a minute
    python benchmarks/interval_coverage.py --num_positives 10     # the rarest findings that are in the mean

Each draw is a new test set from the same population: patients with one to three images, and findings that are
correlated with each other and within a patient. Scores are normal, with a known AUROC for each finding.
"""

import argparse
import math
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))  # for cxr

import numpy as np
from cxr.cli import command_line
from cxr.errors import run_script
from cxr.evaluation import findings
from cxr.evaluation import intervals
from rich.progress import track

MOST_IMAGES = 3  # of a patient
OF_FINDINGS, OF_PATIENT = 0.3, 0.5  # correlation between findings, and between images of a patient
AUROCS = (0.65, 0.95)  # of the first and the last finding


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command_line.ArgumentParser(__doc__)
    positive = command_line.positive_int
    command_line.add_number(parser, "--num_draws", positive, "test sets", default=2000)
    command_line.add_number(parser, "--num_patients", positive, "patients per test set", default=1000)
    command_line.add_number(parser, "--num_positives", positive, "positive images per finding", default=50)
    command_line.add_number(parser, "--num_findings", positive, "findings", default=14)
    command_line.add_number(parser, "--num_resamples", positive, "resamples per interval", default=400)
    args = parser.parse_args(argv)
    if not findings.MIN_LABELS <= args.num_positives <= args.num_patients - findings.MIN_LABELS:
        parser.error(
            f"--num_positives: found {args.num_positives}, expected from {findings.MIN_LABELS} to "
            f"{findings.MIN_LABELS} fewer than --num_patients, as other findings are not in the mean"
        )
    return args


def measure_coverage(args: argparse.Namespace) -> dict[str, float]:
    """Returns the share of draws whose interval contains the truth, is below it and above it, and widths."""
    aurocs = np.linspace(*AUROCS, args.num_findings)
    names = [f"finding {number}" for number in range(args.num_findings)]
    truth, found, values = float(aurocs.mean()), [], []
    for seed in track(range(args.num_draws), description="Drawing test sets"):
        labels, scores, patients = draw_test_set(args, aurocs, seed)
        drawn = intervals.patient_weights(patients, num_resamples=args.num_resamples, seed=seed)
        weights = np.vstack([np.ones_like(drawn[:1]), drawn])
        resampled = findings.macro_resamples(labels, scores, names, weights)["auroc"]
        found.append(intervals.interval_of(resampled))
        values.append(float(resampled[0]))
    below = statistics.mean(high < truth for _, high in found)
    above = statistics.mean(low > truth for low, _ in found)
    coverage = 1 - below - above
    return {
        "coverage": coverage,
        "standard_error": math.sqrt(coverage * (1 - coverage) / args.num_draws),
        "below": below,
        "above": above,
        "width": statistics.mean(high - low for low, high in found),
        "bias": statistics.mean(values) - truth,
    }


def draw_test_set(
    args: argparse.Namespace, aurocs: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns labels and scores (N, K) and the patient of each image (N,).

    A score is standard normal, plus a constant for a positive label: the distance of two normal
    distributions with the finding's AUROC.
    """
    generator = np.random.default_rng(seed)
    num_images = generator.integers(1, MOST_IMAGES + 1, args.num_patients)
    patients = np.repeat(np.arange(args.num_patients), num_images)
    severity = draw_normal(generator, patients, args.num_findings)
    labels = (severity >= np.sort(severity, axis=0)[-args.num_positives]).astype(int)
    distances = [math.sqrt(2) * statistics.NormalDist().inv_cdf(auroc) for auroc in aurocs]
    return labels, draw_normal(generator, patients, args.num_findings) + distances * labels, patients


def draw_normal(generator: np.random.Generator, patients: np.ndarray, num_findings: int) -> np.ndarray:
    """Returns standard normal numbers (N, K) with the correlations OF_FINDINGS and OF_PATIENT."""
    parts = []
    for num_rows in (patients[-1] + 1, len(patients)):
        common = generator.normal(size=(num_rows, 1))
        own = generator.normal(size=(num_rows, num_findings))
        parts.append(math.sqrt(OF_FINDINGS) * common + math.sqrt(1 - OF_FINDINGS) * own)
    of_patients, of_images = parts
    return math.sqrt(OF_PATIENT) * of_patients[patients] + math.sqrt(1 - OF_PATIENT) * of_images


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    measured = measure_coverage(args)
    print(
        f"{args.num_draws:,} test sets of {args.num_patients:,} patients, {args.num_findings} findings with "
        f"{args.num_positives} positive images each, {args.num_resamples:,} resamples:\n"
        f"the interval of the mean AUROC contains the truth in {measured['coverage']:.2%} of them (standard "
        f"error {measured['standard_error']:.2%}), is below it in {measured['below']:.2%} and above it in "
        f"{measured['above']:.2%};\nmean width {measured['width']:.4f}, bias of the mean AUROC "
        f"{measured['bias']:+.5f}"
    )


if __name__ == "__main__":
    run_script(main)
