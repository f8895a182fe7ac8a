"""The flags of predict.py, export_onnx.py and serve.py; no torch."""

import argparse
import importlib.util
from pathlib import Path

from cxr.choices import PREDICTION_FORMATS
from cxr.cli import command_line

NUM_COMPARED = 8  # radiographs on which an exported model is compared with torch


def parse_predict_args(argv: list[str] | None, *, description: str | None = None) -> argparse.Namespace:
    parser = command_line.ArgumentParser(description, usage="MODEL IMAGE [IMAGE ...] [flags]")
    command_line.add_classifier_arguments(parser)
    add, positive = parser.add_argument, command_line.positive_int
    add("images", metavar="IMAGE", nargs="+", help="files, folders (with subfolders), or quoted patterns")
    add("--output", metavar="FILE", type=Path, help=".csv or .jsonl (default: CSV on the terminal)")
    command_line.add_folder(parser, "--heatmap", "write a heat map (PNG) of each image to this folder")
    add("--heatmap_finding", metavar="NAME", help="the finding of the heat maps, for a model of several")
    command_line.add_reading_arguments(parser)
    command_line.add_number(
        parser, "--batch_size", positive, "images that the model processes at once", default=32
    )
    command_line.add_number(
        parser, "--num_workers", positive, "files that are read at the same time (default: one per core)"
    )
    command_line.add_device_argument(parser)
    args = parser.parse_args(argv)
    if output := args.output:
        if output.suffix not in PREDICTION_FORMATS:
            parser.error(
                f"--output: found {output}, expected a name that ends in {' or '.join(PREDICTION_FORMATS)}"
            )
        if output.is_dir():
            parser.error(f"--output {output}: found a folder, expected a file; name another")
        if not output.absolute().parent.is_dir():
            parser.error(
                f"--output {output}: found no folder {output.parent}; make it first, or name another"
            )
    if args.heatmap is not None and args.heatmap.exists() and not args.heatmap.is_dir():
        parser.error(f"--heatmap {args.heatmap}: found a file, expected a folder; name another")
    if args.heatmap_finding is not None and args.heatmap is None:
        parser.error("--heatmap_finding: found no --heatmap, expected the folder of the heat maps; add it")
    return args


def parse_export_args(argv: list[str] | None, *, description: str | None = None) -> argparse.Namespace:
    parser = command_line.ArgumentParser(description, usage="MODEL OUT [flags]")
    command_line.add_classifier_arguments(parser)
    parser.add_argument("out", type=Path, metavar="OUT", help="the file to write; must end in .onnx")
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="FILE",
        help=f"radiographs, or folders of them, on which to compare; the first {NUM_COMPARED} are used "
        "(default: the synthetic sample)",
    )
    sizes = {"nargs": "+", "type": command_line.positive_int, "metavar": "N", "default": (1, 8, 32)}
    parser.add_argument("--batch_sizes", **sizes, help="batch sizes at which to measure the speed")
    args = parser.parse_args(argv)
    if args.out.suffix != ".onnx":
        parser.error(f"OUT {args.out}: expected a file that ends in .onnx")
    for path in (args.out, args.out.with_name(f"{args.out.name}.data")):
        if path.exists():
            parser.error(f"OUT {path}: found a file, expected none: remove it, or name another")
    return args


def parse_serve_args(argv: list[str] | None, *, description: str | None = None) -> argparse.Namespace:
    parser = command_line.ArgumentParser(description, usage="MODEL [flags]")
    command_line.add_classifier_arguments(parser)
    command_line.add_reading_arguments(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; any other than 127.0.0.1 lets other computers use the page",
    )
    port = command_line.number(int, "a port from 1 to 65535", lambda value: 1 <= value <= 65535)
    parser.add_argument("--port", type=port, metavar="N", help="(default: the first free one from 7860)")
    parser.add_argument("--open_browser", action="store_true", help="open the page in the browser")
    command_line.add_device_argument(parser)
    args = parser.parse_args(argv)
    if importlib.util.find_spec("gradio") is None:
        parser.error(
            "found no gradio, which serves the page: make the environment .venv-serve as in "
            "docs/using-a-model.md, and start serve.py with it"
        )
    return args
