"""Gives radiographs the probability that a trained classifier sees in them: files, folders, patterns.

    # A model and images of the synthetic sample, on a laptop.
    python scripts/run_classification.py --output_dir runs/first
    python scripts/predict.py runs/first/model sample_data/files/p10

    # DICOM files of a study, a table of them, and pictures of what the model looked at.
    python scripts/predict.py runs/vit-1k/model "/data/study/**/*.dcm" --output study.csv --heatmap study-maps

    # A model by name, pushed with --push_to_hub --hub_dir.
    python scripts/predict.py my-lab/cxr chest.png --hub_dir /data/hub --output chest.jsonl

JPEG, PNG and DICOM files give what `run_classification.py` would have measured on them;
mimic_cxr_dataset/radiographs.py says how. Columns are path, probability (of the positive label), decision (at
the model's threshold) and error. Rows are written as they come, to .NAME.partial beside the output, which is
renamed to NAME when it is complete. A bad file has a row with its error, the others continue, and the exit
status is 1. Not for clinical use.
"""

import argparse
import contextlib
import csv
import hashlib
import json
import os
import sys
from collections import Counter
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from dataclasses import replace
from itertools import chain
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from cxr.cli import command_line
from cxr.data.images import num_cores
from cxr.errors import UserError
from cxr.errors import one_line
from cxr.errors import run_script
from cxr.inference import heatmaps
from cxr.inference import radiographs
from cxr.inference.classifier import Classifier
from cxr.inference.classifier import load_classifier
from tqdm import tqdm

COLUMNS = ("path", "probability", "decision", "error")
FORMATS = (".csv", ".jsonl")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    path: str
    probability: float | None = None  # of the positive label; None for a file that cannot be used
    decision: str = ""
    error: str = ""
    heat_map: str | None = None  # the picture's path, where one was asked for
    warning: str | None = None  # about the view; not a column


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command_line.ArgumentParser(__doc__, usage="MODEL IMAGE [IMAGE ...] [flags]")
    command_line.add_classifier_arguments(parser)
    add, positive = parser.add_argument, command_line.positive_int
    add("images", metavar="IMAGE", nargs="+", help="files, folders with all below them, or quoted patterns")
    add("--output", metavar="FILE", type=Path, help=".csv or .jsonl (default: CSV on the terminal)")
    command_line.add_folder(parser, "--heatmap", "write a PNG an image of what the model looked at")
    add(
        "--dicom_window",
        choices=("header", "none"),
        default="header",
        help="the window of a DICOM file: that of its header, or none, as MIMIC-CXR-JPG was made",
    )
    command_line.add_number(
        parser, "--batch_size", positive, "images that the model gets at once", default=32
    )
    command_line.add_number(
        parser, "--num_workers", positive, "threads that read images (default: one for each core)"
    )
    command_line.add_device_argument(parser)
    args = parser.parse_args(argv)
    if output := args.output:
        if output.suffix not in FORMATS:
            parser.error(f"--output: found {output}, expected a name that ends in {' or '.join(FORMATS)}")
        if output.is_dir():
            parser.error(f"--output {output}: found a folder, expected a file; name another")
        if not output.absolute().parent.is_dir():
            parser.error(f"--output {output}: found no such folder; make it first, or name another")
    if args.heatmap is not None and args.heatmap.exists() and not args.heatmap.is_dir():
        parser.error(f"--heatmap {args.heatmap}: found a file, expected a folder; name another")
    return args


def say(message: str) -> None:
    """Standard output is for the table."""
    tqdm.write(message, file=sys.stderr)


# Predicting -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A classifier, how it is given files, and where the heat maps go."""

    classifier: Classifier
    use_window: bool
    heatmap_dir: Path | None

    def predict_all(self, paths: list[Path], *, batch_size: int, num_workers: int) -> Iterator[Prediction]:
        """A prediction a file, in their order. Threads read: decoding and shrinking free Python's lock."""
        if self.heatmap_dir is not None:
            self.heatmap_dir.mkdir(parents=True, exist_ok=True)
        remaining, waiting = iter(paths), deque()
        with ThreadPoolExecutor(num_workers) as pool:
            count = 2 * batch_size  # that wait for the model at most
            while True:
                waiting.extend((path, pool.submit(self._read, path)) for path in islice(remaining, count))
                if not waiting:
                    return
                count = min(batch_size, len(waiting))
                yield from self._predict_batch([waiting.popleft() for _ in range(count)])

    def _read(self, path: Path) -> tuple[torch.Tensor, str | None]:
        """The model's view of a file (1, S, S), and a warning if its header names another view."""
        classifier = self.classifier
        side, use_window = classifier.shortest_side, self.use_window
        read = radiographs.read_radiograph(path, shortest_side=side, use_window=use_window)
        warning = radiographs.describe_view(read.view_position, trained_view=classifier.trained_view)
        return classifier.prepare(read.pixels), warning

    def _predict_batch(self, batch: list[tuple[Path, Future]]) -> Iterator[Prediction]:
        usable = [future.result()[0] for _, future in batch if future.exception() is None]
        answers = iter(())
        if usable:
            images = torch.stack(usable)
            probabilities = self.classifier.probabilities(images).tolist()
            heats = heatmaps.heat_maps(self.classifier, images) if self.heatmap_dir else [None] * len(usable)
            answers = iter(zip(probabilities, heats))
        for path, future in batch:
            if error := future.exception():
                yield Prediction(path=readable(path), error=reason(error))
                continue
            probability, heat = next(answers)
            prediction = Prediction(
                path=readable(path),
                probability=probability,
                decision=self.classifier.decide(probability),
                warning=future.result()[1],
            )
            yield prediction if heat is None else self._draw(path, heat, prediction)

    def _draw(self, path: Path, heat: np.ndarray, prediction: Prediction) -> Prediction:
        picture = self.heatmap_dir / heat_map_name(path)
        name, label = Path(prediction.path).name[:60], self.classifier.labels[1]
        title = f"{name}\n{label}: {prediction.probability:.3f}, decision {prediction.decision}"
        try:
            shown = radiographs.read_radiograph(
                path, shortest_side=heatmaps.SHOWN_SIDE, use_window=self.use_window
            )
            heatmaps.plot_heat_map(shown.pixels, heat, picture, title=title)
        except Exception as error:  # of any kind: the other files continue
            return replace(prediction, error=f"no heat map: {reason(error)}")
        return replace(prediction, heat_map=readable(picture))


def reason(error: BaseException) -> str:
    """Why a file could not be used. What is not about the file may be a fault of ours: it names its kind."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"


def readable(path: Path) -> str:
    """The path as text that can be written: a name in another encoding is spelled out."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def heat_map_name(path: Path) -> str:
    """The image's own name, and of its path enough of a hash that no two are the same."""
    digest = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:10]
    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in path.name.removesuffix(path.suffix))
    return f"{stem[:80]}-{digest}.png"


# Writing ----------------------------------------------------------------------------------------------------


def write_row(file: TextIO, row: dict[str, object], *, is_json: bool) -> None:
    if is_json:
        file.write(json.dumps(row) + "\n")
    else:
        csv.writer(file, lineterminator="\n").writerow(row.values())
    file.flush()


@contextlib.contextmanager
def open_output(output: Path | None) -> Iterator[TextIO]:
    """The terminal, or `.NAME.partial`, for its owner alone, which is renamed to `output` at the end."""
    if output is None:
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not know a name's letters
        yield sys.stdout
        return
    unfinished = output.with_name(f".{output.name}.partial")
    unfinished.unlink(missing_ok=True)
    unfinished.touch(mode=0o600)
    try:
        with unfinished.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield file
            os.fsync(file.fileno())
        unfinished.replace(output)
    except BaseException:
        say(f"{unfinished} has the rows up to here")
        raise


def summarize(predictions: list[Prediction], classifier: Classifier, output: Path | None) -> None:
    decisions = Counter(one.decision for one in predictions if one.probability is not None)
    counts = ", ".join(f"{decisions[label]:,} {label}" for label in classifier.labels[::-1])
    where = f" in {output}" if output else ""
    say(f"{decisions.total():,} images{where}: {counts} (threshold {classifier.threshold:.4g})")
    warnings = [f"  {one.path}: {one.warning}" for one in predictions if one.warning]
    if warnings:
        say(f"{len(warnings):,} images may not be of a view that the model knows:")
        say("\n".join(warnings))
    errors = [f"  {one.path}: {one.error}" for one in predictions if one.error]
    if errors:
        say(f"{len(errors):,} of {len(predictions):,} files could not be used:")
        say("\n".join(errors))


# The script -------------------------------------------------------------------------------------------------


def find_images(names: list[str]) -> tuple[list[Path], list[Prediction]]:
    """The files, and a row for each name that stands for none. Raises UserError where there is no file."""
    paths, missing = radiographs.find_radiographs(names)
    if not paths:
        raise UserError(
            f"found no image in {', '.join(missing[:3])}; expected JPEG, PNG or DICOM files, folders with "
            "some, or patterns that fit some"
        )
    error = "no such file, or none that fits"
    return paths, [Prediction(path=readable(Path(name)), error=error) for name in missing]


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    paths, missing = find_images(args.images)
    source = {"hub_dir": args.hub_dir, "revision": args.model_revision}
    classifier = load_classifier(args.model, device=args.device, **source)
    if not classifier.has_threshold:
        say(f"{args.model} has no decision_threshold of its own: it decides at {classifier.threshold}")
    use_window, num_workers = args.dicom_window == "header", args.num_workers or num_cores()
    predictor = Predictor(classifier=classifier, use_window=use_window, heatmap_dir=args.heatmap)
    predictions = predictor.predict_all(paths, batch_size=args.batch_size, num_workers=num_workers)
    columns = (*COLUMNS, "heat_map") if args.heatmap else COLUMNS
    is_json = args.output is not None and args.output.suffix == ".jsonl"
    shows_bar = args.output is not None or not sys.stdout.isatty()  # else the rows come there
    done = []
    with open_output(args.output) as file:
        if not is_json:
            write_row(file, dict(zip(columns, columns)), is_json=False)
        bar = tqdm(predictions, total=len(paths), unit="image", disable=None if shows_bar else True)
        for prediction in chain(bar, missing):
            write_row(file, {name: getattr(prediction, name) for name in columns}, is_json=is_json)
            done.append(prediction)
    summarize(done, classifier, args.output)
    if any(prediction.error for prediction in done):
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
