"""Measures how good the frozen features of models are, without fine-tuning them.

    # A minute on a laptop: a pretraining on the synthetic sample, and the same network with random weights.
    python scripts/run_mae_pretrain.py --output_dir runs/mae
    python scripts/probe.py runs/mae vit-mae-tiny --image_size 64 --config_overrides patch_size=8

    # On MIMIC-CXR-JPG: all 14 findings, published weights beside one's own.
    python scripts/probe.py facebook/vit-mae-base runs/mae microsoft/resnet-50 \\
        --data_dir /data/mimic-cxr-jpg --dataset_config_name findings --output_dir runs/probe

Each model computes the features of all images once; they are kept beside the shrunk images. A logistic
regression and the nearest neighbours (kNN) then learn the labels from samples of the training images: the
samples that run_classification.py draws. The output folder gets probe.json, probe.csv (a line per model,
method, size and seed), probe.png and probe.svg. docs/probe.md explains the numbers.
"""

from cxr.cli import probing

if __name__ == "__main__":  # --help and a wrong flag are answered before the slow imports
    probing.parse_args(None, description=__doc__)

import argparse
import functools
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
from cxr.cli import arguments
from cxr.data.images import LabelledImages
from cxr.data.images import load_images
from cxr.data.sources import REPOSITORY
from cxr.data.sources import is_synthetic
from cxr.data.subsets import draw_sample
from cxr.errors import UserError
from cxr.errors import run_script
from cxr.evaluation import findings
from cxr.evaluation import intervals
from cxr.evaluation import probes
from cxr.inference.classifier import choose_device
from cxr.models.architectures import FIELDS
from cxr.models.architectures import VIT_MAE_CONFIGS
from cxr.models.architectures import describe_architecture
from cxr.models.features import Encoder
from cxr.models.features import cached_features
from cxr.models.features import load_encoder
from cxr.run_folder.files import make_output_dir
from cxr.run_folder.files import write_json
from cxr.run_folder.files import write_text
from cxr.run_folder.probe_record import ProbedModel
from cxr.run_folder.probe_record import ProbePoint
from cxr.run_folder.probe_record import ProbeResults
from cxr.run_folder.probe_record import SeedProbe
from cxr.run_folder.record import installed_versions
from cxr.study.probe_plots import plot_probes
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm.auto import tqdm
from transformers.utils import logging as of_transformers

Splits = dict[str, LabelledImages]
logger = logging.getLogger("cxr.probe")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    return probing.parse_args(argv, description=__doc__)


# Measuring --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is the same for all models: training samples, test labels, and resamples of the test patients.

    The first row of `weights` (1 + R, N) is no resample, but all images once.
    """

    sizes: list[int]
    seeds: list[int]
    labels: np.ndarray
    names: tuple[str, ...]
    weights: np.ndarray

    @classmethod
    def of(cls, splits: Splits, *, sizes: list[int | str | None], seeds: list[int]) -> "Plan":
        """Raises UserError without test images, and if there is no training size of `sizes`."""
        if "test" not in splits:
            raise UserError(
                "found no test images; expected some in the split CSV or manifest: name another --data_dir"
            )
        test = splits["test"]
        return cls(
            sizes=choose_sizes(sizes, len(splits["train"])),
            seeds=seeds,
            labels=probes.hard_labels(test.labels),
            names=test.label_names,
            weights=intervals.weights_of(tuple(test["subject_id"])),
        )

    def areas(self, scores: np.ndarray) -> np.ndarray:
        """Returns the AUROC of scores, and of each resample: (1 + R,)."""
        return probes.resampled_areas(self.labels, scores, self.names, self.weights)

    def left_out(self) -> list[str]:
        """Returns the findings that are not in the mean, and says why."""
        if self.labels.ndim == 1:
            return []
        thresholds, anything = [0.5] * len(self.names), np.zeros(self.labels.shape)
        measured = findings.finding_metrics(self.labels, anything, self.names, thresholds=thresholds)
        findings.warn_left_out(measured, split="test")
        return measured["left_out"]


def choose_sizes(asked: list[int | str | None], num_images: int) -> list[int]:
    """Returns the training sizes that there are, ascending. Raises UserError if there is none."""
    sizes = {num_images if size in (None, "all") else size for size in asked}
    if found := sorted(size for size in sizes if size <= num_images):
        return found
    raise UserError(
        f"--train_sizes {' '.join(map(str, asked))}: found {num_images} training images; name a smaller "
        "number, or all"
    )


def probe_model(
    encoder: Encoder, splits: Splits, plan: Plan, args: argparse.Namespace, *, name: str
) -> ProbedModel:
    """Computes the features of a model and probes them with each method, size and seed."""
    of_splits = {
        split: probes.Split(
            features=cached_features(
                encoder,
                images,
                cache_dir=(args.cache_dir or Path(datasets.config.HF_DATASETS_CACHE)) / "features",
                batch_size=args.batch_size,
                what=f"{name}, {split}",
            ),
            labels=probes.hard_labels(images.labels),
        )
        for split, images in splits.items()
    }
    jobs = [(method, size) for method in probes.PROBES for size in plan.sizes]
    config = encoder.network.config
    return ProbedModel(
        model=name,
        architecture=describe_architecture(FIELDS[config.model_type].model_validate(config.to_dict())),
        sha256=encoder.digest,
        image_size=encoder.image_size,
        pooling=encoder.pooling,
        width=of_splits["train"].features.shape[1],
        rankme=max(1.0, probes.rankme(of_splits["train"].features)),
        points=[
            probe_point(method, of_splits, splits["train"], plan, size=size)
            for method, size in tqdm(jobs, desc=f"{name}, probes", leave=False)
        ],
    )


def probe_point(
    method: str,
    of_splits: dict[str, probes.Split],
    train_images: LabelledImages,
    plan: Plan,
    *,
    size: int,
) -> ProbePoint:
    """Probes samples of one size; of all images there is one sample only."""
    resampled, by_seed = [], []
    validation = of_splits["validation"]
    for seed in plan.seeds if size < len(train_images) else plan.seeds[:1]:
        chosen = draw_sample(train_images["subject_id"], train_images["label"], num_samples=size, seed=seed)
        train = of_splits["train"].select(chosen)
        found = probes.probe(
            method, train=train, validation=validation, test_features=of_splits["test"].features
        )
        resampled.append(plan.areas(found.test))
        by_seed.append(
            SeedProbe(
                seed=seed,
                settings=found.settings,
                validation_auroc=probes.whole_area(validation.labels, found.validation, plan.names),
                **with_interval(resampled[-1]),
            )
        )
    mean = with_interval(np.mean(resampled, axis=0))
    return ProbePoint(method=method, num_train_images=size, seeds=by_seed, **mean)


def with_interval(areas: np.ndarray) -> dict[str, float | list[float] | None]:
    """Returns the AUROC and its interval of `Plan.areas`."""
    return {"test_auroc": intervals.value_of(areas), "interval": intervals.interval_of(areas)}


# Showing ----------------------------------------------------------------------------------------------------


def write_results(results: ProbeResults, output_dir: Path) -> None:
    """Writes the figure, the table and, last, probe.json."""
    of_test = f"{results.num_images['test']:,} test images of {results.num_test_patients:,} patients"
    title = f"Frozen features, {results.task}: {of_test}"
    plot_probes(results.models, output_dir / "probe.png", title=title + ", synthetic" * results.is_synthetic)
    lines = [
        {
            "model": model.model,
            "method": point.method,
            "num_train_images": point.num_train_images,
            "seed": one.seed,
            "setting": ";".join("" if value is None else f"{value:g}" for value in one.settings),
            "validation_auroc": one.validation_auroc,
            "test_auroc": one.test_auroc,
            "low": one.interval and one.interval[0],
            "high": one.interval and one.interval[1],
            "rankme": model.rankme,
        }
        for model in results.models
        for point in model.points
        for one in point.seeds
    ]
    write_text(output_dir / "probe.csv", pd.DataFrame(lines).to_csv(index=False, lineterminator="\n"))
    write_json(output_dir / "probe.json", results.as_json())


def make_table(results: ProbeResults) -> Table:
    """Returns a row per model and method, and a column per training size."""
    sizes = sorted({point.num_train_images for model in results.models for point in model.points})
    table = Table(title=f"Test AUROC of frozen features, {results.task}, by training images")
    for name in ("model", "RankMe", "method"):
        table.add_column(name, overflow="fold")
    for size in sizes:
        table.add_column(f"{size:,}", justify="right")
    for model in results.models:
        for method in probes.PROBES:
            points = {one.num_train_images: one for one in model.points if one.method == method}
            of_width = f"{model.rankme:.1f} of {model.width}"
            table.add_row(escape(model.model), of_width, method, *(cell(points[size]) for size in sizes))
    return table


def cell(point: ProbePoint) -> str:
    if point.test_auroc is None:
        return "undefined"
    interval = f"\n({point.interval[0]:.3f} to {point.interval[1]:.3f})" if point.interval else ""
    return f"{point.test_auroc:.3f}{interval}"


# The script -------------------------------------------------------------------------------------------------


def load_encoders(args: argparse.Namespace) -> dict[str, Encoder]:
    """Returns the encoder of each model by its name."""
    if args.config_overrides and not {*args.models} & {*VIT_MAE_CONFIGS}:
        logger.warning("--config_overrides has no effect without a ViT with random weights")
    device = choose_device(args.device)
    return {
        name: load_encoder(
            name,
            pooling=args.pooling,
            image_size=args.image_size,
            overrides=args.config_overrides,
            device=device,
            **arguments.source_of(args),
        )
        for name in args.models
    }


def measure(args: argparse.Namespace, encoders: dict[str, Encoder]) -> ProbeResults:
    """Loads the images, once for each size that a model needs, and probes all models."""

    @functools.cache
    def load(shortest_side: int) -> Splits:
        options = arguments.data_options(args)
        return load_images(args.data_dir, shortest_side=shortest_side, shows_progress=True, **options)

    splits = load(next(iter(encoders.values())).shortest_side)
    plan = Plan.of(splits, sizes=args.train_sizes, seeds=args.seeds)
    return ProbeResults(
        task=args.dataset_config_name,
        labeler=args.labeler if arguments.labels_in(args.data_dir) is None else None,
        **{name: getattr(args, name) for name in ("view", "uncertain", "blank")},
        label_names=list(plan.names),
        left_out=plan.left_out(),
        is_synthetic=is_synthetic(args.data_dir),
        num_images={split: len(images) for split, images in splits.items()},
        num_test_patients=len(set(splits["test"]["subject_id"])),
        models=[
            probe_model(encoder, load(encoder.shortest_side), plan, args, name=name)
            for name, encoder in encoders.items()
        ],
        versions=installed_versions(),
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    logging.basicConfig(format="%(message)s")
    of_transformers.set_verbosity_error()
    of_transformers.disable_progress_bar()
    output_dir = args.output_dir or REPOSITORY / "runs" / f"probe-{time.strftime('%Y%m%d-%H%M%S')}"
    make_output_dir(output_dir)
    results = measure(args, load_encoders(args))
    write_results(results, output_dir)
    Console().print(make_table(results))
    print(f"Figure, table and probe.json: {output_dir}")


if __name__ == "__main__":
    run_script(main)
