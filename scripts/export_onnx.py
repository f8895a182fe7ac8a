"""Exports a classifier to ONNX, for probabilities without torch, and measures its speed.

    python scripts/export_onnx.py runs/demo/mae-vit/model finding.onnx
    python scripts/export_onnx.py my-lab/vit-cxr finding.onnx --hub_dir /data/hub

The file takes gray images, `images`, uint8 (B, 1, S, S), normalises them itself, and returns `probability`
(B,) of the positive label and `logits` (B, 2); of a model of K findings, both are (B, K). Its metadata has
the findings, their thresholds and all else that is needed to use it. docs/using-a-model.md shows how to use
it with onnxruntime, NumPy and Pillow alone.

The file is written only if onnxruntime agrees with torch to 1e-4 on noise and on radiographs: those of
--images, or synthetic ones. An ONNX file holds less than 2 GiB; a larger model has its weights beside it, in
OUT.data. For research only, not for diagnosis.
"""

from cxr.cli import using_a_model

if __name__ == "__main__":  # --help and a wrong flag are answered before the slow imports
    using_a_model.parse_export_args(None, description=__doc__)

import argparse
import contextlib
import io
import json
import logging
import shutil
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from cxr.data import sources
from cxr.errors import UserError
from cxr.errors import run_script
from cxr.inference import radiographs
from cxr.inference.classifier import Classifier
from cxr.inference.classifier import load_classifier
from cxr.models import heads
from cxr.run_folder.files import sync_folder
from rich.console import Console
from rich.table import Table

from mimic_cxr_dataset.errors import one_line

TOLERANCE = 1e-4  # of a probability and of a logit; relative for logits above 1
NUM_TURNS = 5  # timed runs of each side per batch size, after a warm-up; the median counts
MAX_BYTES = 2**31 - 2**20  # of weights in one file: protobuf's limit, minus room for the graph
OPSET = 20  # of 2024: runtimes in use support it, and GELU is a single operation since then


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    return using_a_model.parse_export_args(argv, description=__doc__)


class PixelsToProbability(torch.nn.Module):
    """The exported graph: from uint8 gray images (B, 1, S, S) to the probability (B,) and logits (B, 2).

    Of a multi-label model with K findings, both are (B, K).
    """

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.model, self.is_multi_label = classifier.model, classifier.is_multi_label
        # The arithmetic of `Normalizer`, with constants that are stored in the file.
        self.register_buffer("mean", 255 * torch.tensor(classifier.image_mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(classifier.image_std).view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.model(pixel_values=(images.float() - self.mean) / self.std).logits
        return heads.probabilities(logits, multi_label=self.is_multi_label), logits


# The file ---------------------------------------------------------------------------------------------------


def about(classifier: Classifier) -> dict[str, str]:
    """Returns the file's metadata, strings by name: what a user of the file must know."""
    binary = {}
    if not classifier.is_multi_label:
        negative, positive = classifier.labels
        threshold = repr(classifier.thresholds[0])
        binary = {"negative": negative, "positive": positive, "threshold": threshold}
    return binary | {
        "findings": json.dumps(classifier.findings),
        "thresholds": json.dumps(classifier.thresholds),
        "image_size": str(classifier.image_size),
        "shortest_side": str(classifier.shortest_side),
        "threshold_is_chosen": json.dumps(classifier.has_threshold),  # false: it is the default, 0.5
        "threshold_level": classifier.threshold_level or "unknown",  # study: chosen for whole studies
        "trained_view": classifier.trained_view or "unknown",
        "trained_equalized": json.dumps(classifier.trained_equalized),  # null is unknown
        "image_mean": json.dumps(classifier.image_mean),  # the graph applies these two
        "image_std": json.dumps(classifier.image_std),
        "preprocessing": "8-bit gray, upright, air dark; a JPEG larger than shortest_side is decoded at the "
        "smallest of 1/1, 1/2, 1/4 and 1/8 of its size that is at least 1.2 times shortest_side; a larger "
        "image is shrunk to shortest_side (Lanczos) and kept as JPEG of quality 95; the whole image is "
        "resized to image_size x image_size (bilinear, width first)",
        "intended_use": "research only, not for diagnosis",
    }


def convert(classifier: Classifier) -> torch.onnx.ONNXProgram:
    """Returns the model for any batch size, without the source file names that torch stores in every node."""
    side = classifier.image_size
    example = torch.zeros(2, 1, side, side, dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # torch warns about its own exporter, which also prints
        program = torch.onnx.export(
            PixelsToProbability(classifier).eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["probability", "logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
            verbose=False,
        )
    graph = program.model.graph
    nodes = list(graph.all_nodes())
    values = [*graph.inputs, *graph.initializers.values(), *(out for node in nodes for out in node.outputs)]
    for part in (program.model, graph, *nodes, *values, *graph.outputs):
        part.metadata_props.clear()
    program.model.metadata_props.update(about(classifier))
    return program


def open_session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


# Does it agree, and how fast is it? -------------------------------------------------------------------------


def read_images(names: list[str] | None, classifier: Classifier) -> torch.Tensor:
    """Returns the radiographs for the comparison, (B, 1, S, S) uint8, prepared as for evaluation."""
    if names is None:
        names = [str(sources.make_sample_data_once() / "files")]
    found, missing = radiographs.find_radiographs(names)
    if missing or not found:
        said = " ".join(missing or names)
        raise UserError(f"--images {said}: found none; expected JPEG, PNG or DICOM files")
    images, side, reading = [], classifier.shortest_side, classifier.choose_reading()
    for path in found[: using_a_model.NUM_COMPARED]:
        try:
            pixels = radiographs.read_radiograph(path, shortest_side=side, reading=reading).pixels
        except UserError as error:
            raise UserError(f"--images {path}: {error}; name other images") from error
        images.append(classifier.prepare(pixels))
    return torch.stack(images)


def largest_difference(
    classifier: Classifier, session: onnxruntime.InferenceSession, images: torch.Tensor
) -> float:
    """Returns the largest difference between onnxruntime and torch, measured as TOLERANCE says."""
    probability, logits = session.run(["probability", "logits"], {"images": images.numpy()})
    with torch.inference_mode():
        expected = classifier.model(pixel_values=classifier.normalize(images)).logits
    expected_probability = heads.probabilities(expected.double(), multi_label=classifier.is_multi_label)
    of_probability = np.abs(probability - expected_probability.numpy())
    of_logits = np.abs(logits - expected.numpy()) / np.maximum(1, np.abs(expected.numpy()))
    return float(max(of_probability.max(), of_logits.max()))


def check(
    classifier: Classifier, session: onnxruntime.InferenceSession, radiographs: torch.Tensor
) -> dict[str, float]:
    """Returns the largest difference on noise and on radiographs. Raises UserError if one is too large."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, radiographs.shape, dtype=torch.uint8, generator=generator)
    differences = {}
    for name, images in (("noise", noise), ("radiographs", radiographs)):
        batches = (images, images[:1])  # the file takes any batch size
        differences[name] = np.max([largest_difference(classifier, session, batch) for batch in batches])
        if not differences[name] <= TOLERANCE:  # also refuses NaN
            raise UserError(
                f"onnxruntime {onnxruntime.__version__} differs by {differences[name]:.2g} from torch "
                f"{torch.__version__} on {name}, expected at most {TOLERANCE:g}: no file is written; try "
                "another version of onnxruntime or torch"
            )
    return differences


def measure_speed(
    classifier: Classifier, session: onnxruntime.InferenceSession, *, batch_size: int
) -> tuple[float, float]:
    """Returns the images/s of torch and of onnxruntime, measured in turns."""
    images = torch.zeros(batch_size, 1, classifier.image_size, classifier.image_size, dtype=torch.uint8)
    inputs, turns = {"images": images.numpy()}, []
    for _ in range(1 + NUM_TURNS):
        started = time.perf_counter()
        classifier.probabilities(images)
        between = time.perf_counter()
        session.run(["probability"], inputs)
        turns.append((between - started, time.perf_counter() - between))
    of_torch, of_onnxruntime = (statistics.median(side) for side in zip(*turns[1:]))
    return batch_size / of_torch, batch_size / of_onnxruntime


def print_table(speeds: dict[int, tuple[float, float]]) -> None:
    num_threads = torch.get_num_threads()
    threads = "1 thread" if num_threads == 1 else f"{num_threads} threads"
    table = Table(title=f"Images/s on {threads} of this CPU")
    for name in ("batch size", "torch", "onnxruntime", "speedup"):
        table.add_column(name, justify="right")
    for batch_size, (of_torch, of_onnxruntime) in speeds.items():
        faster = f"{of_onnxruntime / of_torch:.2f}"
        table.add_row(str(batch_size), f"{of_torch:,.1f}", f"{of_onnxruntime:,.1f}", faster)
    Console().print(table)


def export(classifier: Classifier, images: torch.Tensor, out: Path) -> tuple[list[Path], str]:
    """Writes the file if it passes the check. Returns the written paths, and the differences in words."""
    aside = out.with_name(f".{out.name}.tmp")  # a folder, because OUT refers to OUT.data by its final name
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        program = convert(classifier)
        num_bytes = sum(value.const_value.nbytes for value in program.model.graph.initializers.values())
        program.save(str(aside / out.name), external_data=num_bytes > MAX_BYTES)
        differences = check(classifier, open_session(aside / out.name), images)
        sync_folder(aside)
        written = [
            path.replace(out.with_name(path.name))
            for path in sorted(aside.iterdir(), reverse=True)  # OUT.data before OUT
        ]
    except OSError as error:
        raise UserError(f"OUT {out}: could not be written ({one_line(error)}); name another") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return written, ", ".join(f"{value:.1g} on {name}" for name, value in differences.items())


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    classifier = load_classifier(args.model, hub_dir=args.hub_dir, revision=args.model_revision, device="cpu")
    written, difference = export(classifier, read_images(args.images, classifier), args.out)
    num_bytes = sum(path.stat().st_size for path in written)
    print(f"{args.out}: {num_bytes / 1e6:,.1f} MB; differs from torch by at most {difference}")
    session = open_session(args.out)
    print_table({size: measure_speed(classifier, session, batch_size=size) for size in args.batch_sizes})


if __name__ == "__main__":
    run_script(main)
