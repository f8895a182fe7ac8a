"""Measures how fast the scripts train, compared with transformers.Trainer."""

import argparse
import itertools
import json
import statistics
from pathlib import Path

import torch
from cxr.models import architectures
from originals import CACHED_SIZE
from originals import FULL_SIZE
from originals import IMAGE_SIZE
from originals import SCRIPTS
from originals import draw_images
from originals import repeat_images
from originals import run
from rich.progress import track

NO_LIMIT = 10**9


def measure_training(args: argparse.Namespace, work_dir: Path) -> dict:
    """Trains both sides in turns, each in its own process, and returns the speed of both."""
    num_images = args.batch_size * args.steps
    source, reads_files = args.data_dir, args.command == "train"
    if source is None:
        image_size = FULL_SIZE if reads_files else CACHED_SIZE
        source = draw_images(work_dir / "drawn", num_images=64, image_size=image_size)
    root = repeat_images(source, work_dir / "images", num_train_images=num_images)
    ours, theirs = [], []
    for turn in track(range(args.rounds), description="Training by turns"):
        ours.append(train_ours(args, root, work_dir, turn))
        theirs.append(train_with_trainer(args, root if reads_files else None, work_dir, turn))
    speeds = {
        side: statistics.median(itertools.chain(*(turn["images_per_second"] for turn in turns)))
        for side, turns in (("ours", ours), ("trainer", theirs))
    }
    return {
        "model": args.config_name,
        "batch_size": args.batch_size,
        "mixed_precision": args.mixed_precision,
        "torch_compile": args.torch_compile,
        "images_per_second": speeds["ours"],
        "trainer_images_per_second": speeds["trainer"],
        "ratio_to_trainer": speeds["ours"] / speeds["trainer"],
        "share_of_peak": ours[-1].get("share_of_peak"),
        "peak_memory_gib": ours[-1].get("peak_memory_gib"),
        "trainer_peak_memory_gib": theirs[-1]["peak_memory_gib"],
    }


def train_ours(args: argparse.Namespace, root: Path, work_dir: Path, turn: int) -> dict:
    """Runs the script as a user does; a window is an epoch, and the first one is a warm-up."""
    is_mae = args.config_name in architectures.VIT_MAE_CONFIGS
    output_dir = work_dir / f"ours-{turn}"
    launch = ["-m", "accelerate.commands.launch", "--num_processes=1", "--num_machines=1"]
    launch += ["--dynamo_backend=no", f"--mixed_precision={args.mixed_precision}"]
    launch += [] if torch.cuda.is_available() else ["--cpu"]
    flags = {
        "data_dir": root,
        "cache_dir": work_dir / "cache",
        "cache_image_size": CACHED_SIZE,
        "config_name": args.config_name,
        "image_size": IMAGE_SIZE,
        "max_train_samples": args.batch_size * args.steps,
        "per_device_train_batch_size": args.batch_size,
        "num_train_epochs": args.windows + 1,
        "learning_rate": 1e-4,
        "logging_steps": NO_LIMIT,
        "checkpointing_steps": NO_LIMIT,
        "output_dir": output_dir,
    }
    script = SCRIPTS / ("run_mae_pretrain.py" if is_mae else "run_classification.py")
    compiled = ["--torch_compile"] if args.torch_compile else []
    run([*launch, str(script), *compiled, *(f"--{name}={value}" for name, value in flags.items())])
    lines = (output_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    windows = [json.loads(line) for line in lines[1:]]
    names = ("share_of_peak", "peak_memory_gib")
    of_gpu = {name: statistics.median(w[name] for w in windows) for name in names if name in windows[0]}
    return {"images_per_second": [window["images_per_second"] for window in windows], **of_gpu}


def train_with_trainer(args: argparse.Namespace, root: Path | None, work_dir: Path, turn: int) -> dict:
    result = work_dir / f"trainer-{turn}.json"
    flags = {"json": result, "image_size": IMAGE_SIZE}
    for name in ("config_name", "batch_size", "steps", "windows", "mixed_precision"):
        flags[name] = getattr(args, name)
    command = [str(Path(__file__).parent / "trainer_baseline.py")]
    command += [f"--{name}={value}" for name, value in flags.items()]
    command += ["--torch_compile"] if args.torch_compile else []
    if root is not None:
        files = sorted((root / "files").glob("p*/p*/s*/*.jpg"))
        listed = work_dir / "images.txt"
        listed.write_text("\n".join(map(str, files)), encoding="utf-8")
        command += [f"--images={listed}"]
    run(command)
    return json.loads(result.read_text(encoding="utf-8"))
