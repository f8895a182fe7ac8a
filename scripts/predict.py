"""Predicts with a trained classifier: the probability of each of its findings, for each radiograph.

    # Train a small model on the synthetic sample and predict some of its images, on a laptop.
    python scripts/run_classification.py --output_dir runs/first
    python scripts/predict.py runs/first/model sample_data/files/p10

    # Predict DICOM files, write a table, and draw heat maps of what the model used.
    python scripts/predict.py runs/vit-1k/model "/data/study/**/*.dcm" --output study.csv --heatmap study-maps

    # Use a model by the name under which it was pushed to a local hub directory.
    python scripts/predict.py my-lab/cxr chest.png --hub_dir /data/hub --output chest.jsonl

JPEG, PNG and DICOM files are prepared exactly as in `run_classification.py`; docs/reading-files.md has the
details. The columns are path, probability (of the positive label), decision (at the model's threshold),
warning (check the image before you trust the row) and error (why this file was not used, or has no heat map).
A model of several findings has a column for the probability of each, and its decision names those that are at
or above their thresholds; --heatmap_finding chooses the one of the heat maps.
The exit status is 1 if any row has an error. Each row is written to .NAME.partial, beside the output, as soon
as it is ready: if a call was stopped, repeat it to continue. For research only, not for diagnosis.
"""

from cxr.cli import using_a_model

if __name__ == "__main__":  # --help and a wrong flag are answered before the slow imports
    using_a_model.parse_predict_args(None, description=__doc__)

import argparse
import contextlib
import hashlib
import os
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace
from itertools import chain
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from cxr.data.images import num_cores
from cxr.errors import UserError
from cxr.errors import did_you_mean
from cxr.errors import run_script
from cxr.inference import heatmaps
from cxr.inference import radiographs
from cxr.inference.classifier import DEFAULT_THRESHOLD
from cxr.inference.classifier import Classifier
from cxr.inference.classifier import load_classifier
from cxr.inference.predictions import Prediction
from cxr.inference.predictions import Table
from cxr.inference.predictions import TableHead
from cxr.inference.predictions import check_findings
from cxr.inference.predictions import partial_path
from cxr.inference.predictions import readable
from cxr.inference.radiographs import Radiograph
from cxr.inference.workers import open_pool
from cxr.models.pretrained import identify
from tqdm import tqdm

from mimic_cxr_dataset.errors import one_line
from mimic_cxr_dataset.radiographs import Reading

MOST_REASONS = 10  # the summary lists at most this many reasons of each kind


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    return using_a_model.parse_predict_args(argv, description=__doc__)


def say(message: str) -> None:
    """Prints to standard error, because standard output is for the table."""
    tqdm.write(message, file=sys.stderr)


# Predicting -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A classifier, how files are read for it, and the folder and the finding of the heat maps."""

    classifier: Classifier
    reading: Reading
    heatmap_dir: Path | None
    finding: int  # its number among the classifier's findings

    def predict_all(self, paths: list[Path], *, batch_size: int, num_workers: int) -> Iterator[Prediction]:
        """Yields one prediction per file, in their order."""
        if self.heatmap_dir is not None:
            self.heatmap_dir.mkdir(parents=True, exist_ok=True)
        side, num_ahead = self.classifier.shortest_side, 2 * max(batch_size, num_workers)
        with open_pool(len(paths), num_workers) as pool:
            files = radiographs.read_in_order(
                paths, shortest_side=side, reading=self.reading, pool=pool, num_ahead=num_ahead
            )
            while batch := list(islice(files, batch_size)):
                yield from self._predict_batch(batch)

    def _predict_batch(self, batch: list[tuple[Path, Radiograph | Exception]]) -> Iterator[Prediction]:
        classifier = self.classifier
        usable = [radiograph for _, radiograph in batch if isinstance(radiograph, Radiograph)]
        answers = iter(())
        if usable:
            images = torch.stack([classifier.prepare(radiograph.pixels) for radiograph in usable])
            probabilities = classifier.probabilities(images).tolist()
            heats = [None] * len(usable)
            if self.heatmap_dir:
                heats = heatmaps.heat_maps(classifier, images, self.finding)
            answers = iter(zip(probabilities, heats))
        for path, radiograph in batch:
            if isinstance(radiograph, Exception):
                yield Prediction(path=readable(path), error=reason(radiograph))
                continue
            probabilities, heat = next(answers)
            prediction = Prediction(
                path=readable(path),
                probabilities=tuple(probabilities),
                decision=classifier.decide(probabilities),
                warning="; ".join(classifier.find_doubts(radiograph)),
            )
            yield prediction if heat is None else self._draw(path, heat, prediction)

    def _draw(self, path: Path, heat: np.ndarray, prediction: Prediction) -> Prediction:
        drawn = self.heatmap_dir / heat_map_name(path)
        name = "".join(one if one.isprintable() else "\ufffd" for one in Path(prediction.path).name[:60])
        classifier, number = self.classifier, self.finding
        label, threshold = classifier.findings[number], classifier.thresholds[number]
        probability, decision = prediction.probabilities[number], prediction.decision
        if classifier.is_multi_label:
            decision = "positive" if probability >= threshold else "negative"
        decision = f"{decision} (threshold {threshold:.3f})"
        title = f"{name}\n{label}: {probability:.3f}, decision {decision}; research only\n"
        title += heatmaps.describe(classifier, heat)
        if prediction.warning:
            title += "\n" + textwrap.fill(f"Warning: {prediction.warning}", width=90)
        try:
            shown = radiographs.read_radiograph(path, shortest_side=heatmaps.SHOWN_SIDE, reading=self.reading)
            heatmaps.plot_heat_map(shown.pixels, heat, drawn, title=title, label=label)
        except Exception as error:  # any error: the other files go on
            return replace(prediction, error=f"no heat map: {reason(error)}")
        return replace(prediction, heat_map=readable(drawn))


def reason(error: BaseException) -> str:
    """Returns why a file could not be used; an unexpected error, perhaps a bug of ours, with its type."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"


def heat_map_name(path: Path) -> str:
    """Returns the image's name with a hash of its path, so that images of the same name do not collide."""
    digest = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:10]
    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in path.name.removesuffix(path.suffix))
    return f"{stem[:40]}-{digest}.png"  # 40 letters may take 160 bytes; a file name may have 255


# Writing ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_output(
    args: argparse.Namespace, classifier: Classifier
) -> Iterator[tuple[list[Prediction], Callable[[Prediction], None]]]:
    """Yields the predictions of an earlier call, and a function that writes one to its destination."""
    output = args.output
    findings = classifier.findings if classifier.is_multi_label else ("probability",)
    is_json = output is not None and output.suffix == ".jsonl"
    table = Table(probabilities=findings, has_maps=args.heatmap is not None, is_json=is_json)
    if output is None:
        yield [], table.open_terminal()
        return
    flags = ("images", "equalize", "dicom_window", "heatmap", "heatmap_finding")
    head = TableHead(
        model=readable(Path(args.model)),
        commit=identify(args.model, hub_dir=args.hub_dir, revision=args.model_revision),
        thresholds=list(classifier.thresholds),
        flags={name: readable(Path(str(getattr(args, name)))) for name in flags},
    )
    with table.open_file(output, head) as (done, write):
        try:
            if done:
                say(f"{partial_path(output)}: found {len(done):,} rows of an earlier call; continuing it")
            yield done, write
        except BaseException:
            say(f"{partial_path(output)} holds the rows so far: repeat the call to continue")
            raise


def summarize(predictions: list[Prediction], classifier: Classifier, output: Path | None) -> None:
    predicted = [one for one in predictions if one.probabilities]
    called = Counter(name for one in predicted for name in classifier.find_called(one.probabilities))
    refused = [one for one in predictions if not one.probabilities]
    warned = [one for one in predictions if one.warning]
    where = f" in {output}" if output else ""
    files = "1 file" if len(predictions) == 1 else f"{len(predictions):,} files"
    counts = ""
    if not classifier.is_multi_label:
        negative, positive = classifier.labels
        counts = f" ({called[positive]:,} {positive}, {len(predicted) - called[positive]:,} {negative}; "
        counts += f"threshold {classifier.thresholds[0]:.4g})"
    say(
        f"{files}{where}: {len(predicted):,} predicted{counts}, "
        f"{len(warned):,} of them with a warning, {len(refused):,} refused"
    )
    if classifier.is_multi_label:
        for finding, threshold in zip(classifier.findings, classifier.thresholds):
            say(f"  {called[finding]:,} {finding} (threshold {threshold:.4g})")
    without_map = [one for one in predicted if one.error]
    say_reasons("warning", [(one.warning, one.path) for one in warned])
    say_reasons("refused", [(one.error, one.path) for one in refused])
    say_reasons("predicted", [(one.error, one.path) for one in without_map])


def say_reasons(kind: str, reasons: list[tuple[str, str]]) -> None:
    """Prints how often each reason occurred, and the first file."""
    first = {reason: path for reason, path in reversed(reasons)}
    counts = Counter(reason for reason, _ in reasons)
    for reason, count in counts.most_common(MOST_REASONS):
        say(f"  {count:,} {kind}: {reason} (first {first[reason]})")
    if len(counts) > MOST_REASONS:
        say(f"  {len(counts) - MOST_REASONS:,} more reasons: see the table")


# The script -------------------------------------------------------------------------------------------------


def find_images(names: list[str], heatmap_dir: Path | None) -> tuple[list[Path], list[Prediction]]:
    """Returns the image files, and an error row for each name without any. Raises UserError if there is none.

    Heat maps that an earlier call wrote among the images are skipped.
    """
    paths, missing = radiographs.find_radiographs(names)
    if heatmap_dir is not None:
        maps = {(heatmap_dir / heat_map_name(path)).absolute() for path in paths}
        paths = [path for path in paths if path.absolute() not in maps]
    if not paths:
        raise UserError(
            f"found no image in {', '.join(missing[:3])}; expected JPEG, PNG or DICOM files, folders of "
            "them, or patterns that match some"
        )
    return paths, [Prediction(path=readable(Path(name)), error=_why_missing(name)) for name in missing]


def _why_missing(name: str) -> str:
    is_folder = Path(name).is_dir()
    return "no image, or a folder that cannot be read" if is_folder else "no such file, or none that matches"


def load_model(args: argparse.Namespace) -> Classifier:
    """Loads the classifier and prints which of its properties are unknown. Raises UserError."""
    source = {"hub_dir": args.hub_dir, "revision": args.model_revision}
    classifier = load_classifier(args.model, device=args.device, **source)
    check_findings(classifier.findings if classifier.is_multi_label else (), model=args.model)
    if not classifier.has_threshold:
        field = "decision_thresholds for every finding" if classifier.is_multi_label else "decision_threshold"
        say(f"{args.model} has no {field} in its config.json: using {DEFAULT_THRESHOLD}")
    if classifier.has_threshold_of_studies:
        say(f"{args.model}: its thresholds were chosen for whole studies; here, they decide on single images")
    if doubt := classifier.doubt_equalize(args.equalize):
        say(doubt)
    return classifier


def choose_finding(classifier: Classifier, name: str | None) -> int:
    """Returns the number of the finding of the heat maps. Raises UserError if the model lacks it."""
    findings = classifier.findings
    if name is None and len(findings) == 1:
        return 0
    if name not in findings:
        found = f"{name}{did_you_mean(name, findings)}" if name else "nothing"
        raise UserError(
            f"--heatmap_finding: found {found}, expected a finding of {classifier.name}: "
            f"{', '.join(findings)}; name one"
        )
    return findings.index(name)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    paths, missing = find_images(args.images, args.heatmap)
    classifier = load_model(args)
    finding = choose_finding(classifier, args.heatmap_finding) if args.heatmap else 0
    if args.heatmap:
        say(f"--heatmap: {heatmaps.describe(classifier, heatmaps.grid_of(classifier))}")
    reading = classifier.choose_reading(args.equalize, dicom_window=args.dicom_window)
    predictor = Predictor(classifier=classifier, reading=reading, heatmap_dir=args.heatmap, finding=finding)
    num_workers = args.num_workers or num_cores()
    shows_bar = args.output is not None or not sys.stdout.isatty()  # no bar between rows on the terminal
    with open_output(args, classifier) as (done, write):
        known = {prediction.path for prediction in done}
        paths = [path for path in paths if readable(path) not in known]
        missing = [prediction for prediction in missing if prediction.path not in known]
        predictions = predictor.predict_all(paths, batch_size=args.batch_size, num_workers=num_workers)
        bar = tqdm(predictions, total=len(paths), unit="image", disable=None if shows_bar else True)
        for prediction in chain(bar, missing):
            write(prediction)
            done.append(prediction)
    summarize(done, classifier, args.output)
    if any(prediction.error for prediction in done):
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
