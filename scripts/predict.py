"""Gives radiographs the probability that a trained classifier sees in them: files, folders, patterns.

    # A model and images of the synthetic sample, on a laptop.
    python scripts/run_classification.py --output_dir runs/first
    python scripts/predict.py runs/first/model sample_data/files/p10

    # DICOM files of a study, a table of them, and pictures of what the model looked at.
    python scripts/predict.py runs/vit-1k/model "/data/study/**/*.dcm" --output study.csv --heatmap study-maps

    # A model by name, pushed with --push_to_hub --hub_dir.
    python scripts/predict.py my-lab/cxr chest.png --hub_dir /data/hub --output chest.json

JPEG, PNG and DICOM files give what `run_classification.py` would have measured on them; cxr/radiographs.py
says how. Columns are path, probability (of the positive label), decision (at the model's threshold) and
error. A file that cannot be used is listed, the rest goes on, and the exit status is 1. Not for clinical use.
"""

import argparse
import csv
import hashlib
import io
import os
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
import transformers
from cxr.cli import command_line
from cxr.data.images import num_cores
from cxr.errors import UserError
from cxr.errors import run_script
from cxr.inference import heatmaps
from cxr.inference import radiographs
from cxr.inference.classifier import Classifier
from cxr.inference.classifier import load_classifier
from cxr.inference.radiographs import Radiograph
from cxr.run_folder.files import write_json
from cxr.run_folder.files import write_text
from tqdm import tqdm

from mimic_cxr_dataset.radiographs import BadRadiographError

COLUMNS = ("path", "probability", "decision", "error")
FORMATS = (".csv", ".json")
WINDOWS = ("header", "none")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    path: str
    probability: float | None = None  # of the positive label; None for a file that cannot be used
    decision: str = ""
    error: str = ""
    heat_map: str | None = None  # the picture's path, where one was asked for


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command_line.ArgumentParser(__doc__, usage="MODEL IMAGE [IMAGE ...] [flags]")
    command_line.add_classifier_arguments(parser)
    parser.add_argument(
        "images", metavar="IMAGE", nargs="+", help="files, folders with all below them, or patterns in quotes"
    )
    parser.add_argument(
        "--output", metavar="FILE", type=Path, help=".csv or .json (default: CSV on the terminal)"
    )
    parser.add_argument(
        "--heatmap", metavar="FOLDER", type=Path, help="write a PNG an image of what the model looked at"
    )
    parser.add_argument(
        "--dicom_window",
        choices=WINDOWS,
        default="header",
        help="the window of a DICOM file: that of its header, or none, as MIMIC-CXR-JPG was made",
    )
    parser.add_argument(
        "--batch_size", metavar="N", type=command_line.positive_int, default=32, help="images at once"
    )
    parser.add_argument(
        "--num_workers",
        metavar="N",
        type=command_line.positive_int,
        help="threads that read images (default: all cores)",
    )
    command_line.add_device_argument(parser)
    args = parser.parse_args(argv)
    if args.output is not None and args.output.suffix not in FORMATS:
        parser.error(f"--output: found {args.output}, expected a name that ends in {' or '.join(FORMATS)}")
    if args.output is not None and not args.output.absolute().parent.is_dir():
        parser.error(f"--output {args.output}: found no such folder; make it first, or name another")
    if args.heatmap is not None and args.heatmap.exists() and not args.heatmap.is_dir():
        parser.error(f"--heatmap {args.heatmap}: found a file, expected a folder; name another")
    return args


def say(message: str) -> None:
    """Standard output is for the table."""
    tqdm.write(message, file=sys.stderr)


def read(path: Path, *, shortest_side: int, use_window: bool) -> Radiograph | BadRadiographError:
    try:
        return radiographs.read_radiograph(path, shortest_side=shortest_side, use_window=use_window)
    except BadRadiographError as error:
        return error


def read_all(
    paths: list[Path], *, shortest_side: int, use_window: bool, num_workers: int, ahead: int
) -> Iterator[Radiograph | BadRadiographError]:
    """Reads files in their order, on threads: decoding and shrinking leave Python's lock to the others.

    No more than `ahead` wait for the model.
    """
    task = partial(read, shortest_side=shortest_side, use_window=use_window)
    remaining, waiting = iter(paths), deque()
    with ThreadPoolExecutor(num_workers) as pool:
        waiting.extend(pool.submit(task, path) for path in islice(remaining, ahead))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(task, path) for path in islice(remaining, 1))


def predict_batch(
    classifier: Classifier,
    paths: list[Path],
    contents: list[Radiograph | BadRadiographError],
    *,
    heatmap_dir: Path | None,
    use_window: bool,
) -> list[Prediction]:
    """Returns a prediction a file, in their order, and writes the heat maps of those that can be used."""
    usable = [content for content in contents if isinstance(content, Radiograph)]
    answers = iter(())
    if usable:
        images = torch.stack([classifier.prepare(one.pixels) for one in usable])
        probabilities = classifier.probabilities(images).tolist()
        heats = [None] * len(usable) if heatmap_dir is None else heatmaps.heat_maps(classifier, images)
        answers = iter(zip(probabilities, heats))
    predictions = []
    for path, content in zip(paths, contents):
        name = readable(path)
        if isinstance(content, BadRadiographError):
            predictions.append(Prediction(path=name, error=str(content)))
            continue
        probability, heat = next(answers)
        decision, picture = classifier.decide(probability), None
        if heatmap_dir is not None:
            picture = heatmap_dir / heat_map_name(path)
            title = f"{Path(name).name[:60]}\n{classifier.labels[1]}: {probability:.3f}, decision {decision}"
            shown = radiographs.read_radiograph(
                path, shortest_side=heatmaps.SHOWN_SIDE, use_window=use_window
            )
            heatmaps.plot_heat_map(shown.pixels, heat, picture, title=title)
        predictions.append(
            Prediction(
                path=name,
                probability=probability,
                decision=decision,
                heat_map=picture and readable(picture),
            )
        )
    return predictions


def readable(path: Path) -> str:
    """The path as text that can be written: a name in another encoding is spelled out."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def heat_map_name(path: Path) -> str:
    """The image's own name, and of its path enough of a hash that no two are the same."""
    digest = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:10]
    stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in path.name.removesuffix(path.suffix))
    return f"{stem[:80]}-{digest}.png"


def predict(
    classifier: Classifier, paths: list[Path], args: argparse.Namespace
) -> tuple[list[Prediction], list[str]]:
    """Returns a prediction a file, in their order, and warnings about views."""
    predictions, warnings = [], []
    use_window = args.dicom_window == "header"
    contents = read_all(
        paths,
        shortest_side=classifier.shortest_side,
        use_window=use_window,
        num_workers=args.num_workers or num_cores(),
        ahead=2 * args.batch_size,
    )
    with tqdm(total=len(paths), unit="image", disable=None) as bar:
        for first in range(0, len(paths), args.batch_size):
            batch = paths[first : first + args.batch_size]
            read_now = list(islice(contents, len(batch)))
            predictions += predict_batch(
                classifier, batch, read_now, heatmap_dir=args.heatmap, use_window=use_window
            )
            for path, content in zip(batch, read_now):
                position = content.view_position if isinstance(content, Radiograph) else ""
                warning = radiographs.describe_view(position, trained_view=classifier.trained_view)
                if warning:
                    warnings.append(f"{readable(path)}: {warning}")
            bar.update(len(batch))
    return predictions, warnings


def write(classifier: Classifier, predictions: list[Prediction], args: argparse.Namespace) -> None:
    """Writes the table, readable by its owner alone where it is a file."""
    columns = [*COLUMNS, "heat_map"] if args.heatmap else COLUMNS
    rows = [{name: asdict(prediction)[name] for name in columns} for prediction in predictions]
    if args.output is not None and args.output.suffix == ".json":
        content = {
            "model": classifier.name,
            "labels": classifier.labels,
            "threshold": classifier.threshold,
            "predictions": rows,
        }
        write_json(args.output, content, private=True)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    if args.output is not None:
        write_text(args.output, text.getvalue(), private=True)
    else:
        print(text.getvalue(), end="", flush=True)


def report(
    classifier: Classifier, predictions: list[Prediction], warnings: list[str], output: Path | None
) -> None:
    """Says what was decided, and lists what may be wrong."""
    decisions = [prediction.decision for prediction in predictions if not prediction.error]
    counts = ", ".join(f"{decisions.count(label):,} {label}" for label in classifier.labels[::-1])
    where = f" in {output}" if output else ""
    say(f"{len(decisions):,} images{where}: {counts} (threshold {classifier.threshold:.4g})")
    if warnings:
        say(f"{len(warnings):,} images may not be of a view that the model knows:")
        for warning in warnings:
            say(f"  {warning}")
    bad = [prediction for prediction in predictions if prediction.error]
    if bad:
        say(f"{len(bad):,} of {len(predictions):,} files could not be used:")
        for prediction in bad:
            say(f"  {prediction.path}: {prediction.error}")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()  # of reading weights: it ends within a second
    paths, missing = radiographs.find_radiographs(args.images)
    if not paths:
        raise UserError(
            f"found no image in {', '.join(missing[:3])}; expected JPEG, PNG or DICOM files, folders with "
            "some, or patterns that fit some"
        )
    classifier = load_classifier(
        args.model, hub_dir=args.hub_dir, revision=args.model_revision, device=args.device
    )
    if not classifier.has_threshold:
        say(
            f"{args.model} has no decision_threshold in its config.json: it decides at {classifier.threshold}"
        )
    if args.heatmap is not None:
        args.heatmap.mkdir(parents=True, exist_ok=True)
    predictions, warnings = predict(classifier, paths, args)
    predictions += [Prediction(path=name, error="no such file, or none that fits") for name in missing]
    write(classifier, predictions, args)
    report(classifier, predictions, warnings, args.output)
    if any(prediction.error for prediction in predictions):
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
