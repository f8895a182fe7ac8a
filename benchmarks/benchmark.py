"""Measures how fast images are read and models are trained, compared with the usual alternatives.

    python benchmarks/benchmark.py data --json data.json       # a few minutes; full-size synthetic images
    python benchmarks/benchmark.py data --data_dir /data/mimic-cxr-jpg --json data.json
    python benchmarks/benchmark.py step --mixed_precision bf16 --json step.json
    python benchmarks/benchmark.py step --config_name resnet-18 --batch_size 512 --json step.json
    python benchmarks/benchmark.py train --data_dir /data/mimic-cxr-jpg --json train.json
    python benchmarks/benchmark.py dicom --json dicom.json

`data` compares the shrinking of images and the loader, on one core, with the transforms of transformers' MAE
example. `step` compares run_mae_pretrain.py or run_classification.py on shrunk images with
transformers.Trainer on a single batch that is already on the device. `train` compares both including the
reading of files: ours after a first run has shrunk them, Trainer with the example's transforms. `dicom`
compares reading DICOM files with one process and with several. The two sides take turns; results are medians.
"""

import argparse
import platform
import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))  # for cxr

import torch
from cxr.cli import command_line
from cxr.data.images import num_cores
from cxr.errors import run_script
from cxr.models import architectures
from cxr.run_folder.files import write_json
from cxr.run_folder.record import installed_versions
from reading import measure_data
from rich.console import Console
from rich.table import Table
from training import measure_training
from workers import measure_workers


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command_line.ArgumentParser(__doc__, usage="{data,step,train,dicom} [flags]")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="{data,step,train,dicom}", prog="benchmark.py"
    )
    positive = command_line.positive_int
    for name in ("data", "step", "train"):
        command = commands.add_parser(name)
        add = command.add_argument
        add("--data_dir", type=Path, metavar="ROOT", help="MIMIC-CXR-JPG folder (default: synthetic images)")
        add("--json", type=Path, required=True, metavar="FILE", help="where to write the results")
        command_line.add_number(command, "--rounds", positive, "turns of each side", default=3)
        if name == "data":
            command_line.add_number(command, "--num_images", positive, "originals to read", default=48)
            continue
        command_line.add_number(command, "--batch_size", positive, "images per step", default=32)
        command_line.add_number(command, "--steps", positive, "steps per timed window", default=8)
        command_line.add_number(
            command, "--windows", positive, "timed windows per turn, after one to warm up", default=3
        )
        names = [*architectures.VIT_MAE_CONFIGS, *architectures.RESNET_CONFIGS]
        add("--config_name", choices=names, default="vit-mae-tiny", help="the model to train")
        add("--mixed_precision", choices=("no", "bf16", "fp16"), default="no", help="for both sides")
        add("--torch_compile", action="store_true", help="compile the models of both sides")
    command = commands.add_parser("dicom")
    command.add_argument(
        "--json", type=Path, required=True, metavar="FILE", help="where to write the results"
    )
    command_line.add_number(command, "--rounds", positive, "turns of each side", default=3)
    command_line.add_number(
        command, "--num_files", positive, "files, each read 20 times per turn", default=50
    )
    command_line.add_number(
        command, "--num_workers", positive, "processes to compare with one", default=max(2, num_cores())
    )
    args = parser.parse_args(argv)
    if args.command != "dicom" and args.data_dir and not (args.data_dir / "files").is_dir():
        parser.error(f"--data_dir {args.data_dir}: found no files/ in it, expected the MIMIC-CXR-JPG folder")
    if not args.json.absolute().parent.is_dir():
        parser.error(f"--json {args.json}: found no folder {args.json.parent}; make it first")
    if getattr(args, "mixed_precision", "no") == "fp16" and not torch.cuda.is_available():
        parser.error("--mixed_precision fp16 needs a GPU, found none; use bf16")
    return args


def describe_machine() -> dict:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    processor = found[1].strip() if found else platform.processor()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"processor": processor, "cores": num_cores(), "gpu": gpu, **installed_versions()}


def print_table(command: str, measured: dict) -> None:
    table = Table("", "images/s", "ours is faster by", title=f"benchmark {command}")
    if command == "data":
        shrink, loader = measured["shrink"], measured["loader"]
        ours, other = shrink["images_per_second"], loader["images_per_second"]
        rows = [
            ("shrink: ours", ours, ours),
            ("shrink: full decode and Lanczos", shrink["full_decode_images_per_second"], ours),
            ("shrink: decoding at 1/8 only", shrink["decoder_floor_images_per_second"], ours),
            ("MAE example's transforms, originals", shrink["example_images_per_second"], ours),
            ("loader: ours", other, other),
            ("loader: ours with RandAugment", loader["rand_augment_images_per_second"], other),
            ("loader: ours with mixup and CutMix", loader["mixing_images_per_second"], other),
            ("loader: decoding only", loader["decoder_floor_images_per_second"], other),
            ("MAE example's transforms, originals", loader["example_originals_images_per_second"], other),
            ("MAE example's transforms, shrunk", loader["example_cached_images_per_second"], other),
        ]
    elif command == "dicom":
        one = measured["one_process_images_per_second"]
        several = measured["images_per_second"]
        rows = [("one process", one, several), (f"{measured['num_workers']} processes", several, several)]
    else:
        ours = measured[command]["images_per_second"]
        rows = [("ours", ours, ours), ("Trainer", measured[command]["trainer_images_per_second"], ours)]
    for name, rate, ours in rows:
        table.add_row(name, f"{rate:,.1f}", f"{ours / rate:.2f}")
    Console().print(table)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as work_dir:
        if args.command == "data":
            measured = measure_data(args, Path(work_dir))
        elif args.command == "dicom":
            measured = measure_workers(args, Path(work_dir))
        else:
            measured = {args.command: measure_training(args, Path(work_dir))}
    write_json(args.json, {"machine": machine, **measured})
    print_table(args.command, measured)


if __name__ == "__main__":
    run_script(main)
