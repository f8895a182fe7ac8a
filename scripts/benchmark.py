"""Measures how fast images are read and models trained, beside what a user would otherwise use.

    python scripts/benchmark.py data --json data.json       # a few minutes; synthetic images of full size
    python scripts/benchmark.py data --data_dir /data/mimic-cxr-jpg --json data.json
    python scripts/benchmark.py step --mixed_precision bf16 --json step.json
    python scripts/benchmark.py step --config_name resnet-18 --batch_size 512 --torch_compile --json step.json
    python scripts/benchmark.py train --data_dir /data/mimic-cxr-jpg --json train.json

`data` times the shrinking of an image and the loader, on one core, against the transforms of transformers'
MAE example. `step` times run_mae_pretrain.py or run_classification.py on shrunk images against
transformers.Trainer, whose one batch lies ready on the device. `train` times both from the files on: ours
after its first run has shrunk them, Trainer with the example's transforms. The sides take turns, and medians
count.
"""

import argparse
import contextlib
import functools
import io
import itertools
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from cxr import architectures
from cxr import command_line
from cxr import data
from cxr import optimization
from cxr import records
from cxr import sources
from cxr import transforms
from cxr.mae_example import example_transform
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torchvision.io import ImageReadMode
from torchvision.io import decode_jpeg

SCRIPTS = Path(__file__).resolve().parent
FULL_SIZE = 2544  # pixels of the shortest side of most originals
CACHED_SIZE, IMAGE_SIZE, BATCH_SIZE = 256, 224, 64
NUM_VALIDATION_IMAGES = 8
NUM_CACHED = 16 * BATCH_SIZE  # shrunk images that a turn reads
NO_LIMIT = 10**9


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command_line.ArgumentParser(__doc__, usage="{data,step,train} [flags]")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="{data,step,train}", prog="benchmark.py"
    )
    for name in ("data", "step", "train"):
        command = commands.add_parser(name)
        command.add_argument(
            "--data_dir", type=Path, metavar="ROOT", help="MIMIC-CXR-JPG folder (default: synthetic images)"
        )
        command.add_argument(
            "--json", type=Path, required=True, metavar="FILE", help="where to write the figures"
        )
        counts = {"--rounds": (3, "turns that each side gets")}
        if name == "data":
            counts["--num_images"] = (48, "originals to read")
        else:
            counts["--batch_size"] = (32, "images of a step")
            counts["--steps"] = (8, "steps of a timed window")
            counts["--windows"] = (3, "windows a turn, after one more")
        for flag, (default, meaning) in counts.items():
            command.add_argument(
                flag, type=command_line.positive_int, default=default, metavar="N", help=meaning
            )
        if name == "data":
            continue
        names = [*architectures.VIT_MAE_CONFIGS, *architectures.RESNET_CONFIGS]
        command.add_argument("--config_name", choices=names, default="vit-mae-tiny", help="the model trained")
        command.add_argument(
            "--mixed_precision", choices=("no", "bf16", "fp16"), default="no", help="of both sides"
        )
        command.add_argument("--torch_compile", action="store_true", help="compile the models of both sides")
    args = parser.parse_args(argv)
    if args.data_dir and not (args.data_dir / "files").is_dir():
        parser.error(f"--data_dir {args.data_dir}: found no files/ in it; expected the MIMIC-CXR-JPG folder")
    if not args.json.absolute().parent.is_dir():
        parser.error(f"--json {args.json}: found no folder {args.json.parent}; make it first")
    if getattr(args, "mixed_precision", "no") == "fp16" and not torch.cuda.is_available():
        parser.error("--mixed_precision fp16 needs a GPU, found none; take bf16")
    return args


# Images to measure with -------------------------------------------------------------------------------------


def draw_images(folder: Path, *, num_images: int, image_size: int) -> Path:
    """Draws synthetic radiographs into `folder`, in a process of its own, and returns the folder."""
    flags = ["--num_images", str(num_images), "--image_size", str(image_size)]
    run([str(SCRIPTS / "make_sample_data.py"), str(folder), *flags])
    return folder


def repeat_images(source: Path, target: Path, *, num_train_images: int) -> Path:
    """Writes a tree with so many frontal training images of `source`, copied as new patients if it has fewer.

    A few validation images come with them. Returns `target`.
    """
    tables = {
        name: pd.read_csv(next(source.glob(f"mimic-cxr-2.?.0-{name}.csv*")), dtype=str)
        for name in ("metadata", "split", "negbio")
    }
    metadata = tables["metadata"].merge(tables["split"][["dicom_id", "split"]], on="dicom_id")
    labelled = metadata["study_id"].isin(tables["negbio"]["study_id"])
    usable = metadata[metadata["ViewPosition"].isin(["AP", "PA"]) & labelled]
    validation = usable[usable["split"] == "validate"].head(NUM_VALIDATION_IMAGES)
    training = usable[usable["split"] == "train"].head(num_train_images)
    new_ids = itertools.count()
    parts = {name: [] for name in tables}
    for copy in range(-(-num_train_images // len(training))):
        images = training if copy else pd.concat([training, validation])
        subjects = {old: str(10_000_000 + next(new_ids)) for old in images["subject_id"].unique()}
        studies = {old: str(50_000_000 + next(new_ids)) for old in images["study_id"].unique()}
        for row in images.itertuples():
            folder = f"files/p{row.subject_id[:2]}/p{row.subject_id}/s{row.study_id}"
            subject, study = subjects[row.subject_id], studies[row.study_id]
            new_folder = target / f"files/p{subject[:2]}/p{subject}/s{study}"
            new_folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(
                source / folder / f"{row.dicom_id}.jpg", new_folder / f"{copy:08x}{row.dicom_id[8:]}.jpg"
            )
        for name, table in tables.items():
            key = "study_id" if name == "negbio" else "dicom_id"
            rows = table[table[key].isin(images[key])].copy()
            if "dicom_id" in rows:
                rows["dicom_id"] = f"{copy:08x}" + rows["dicom_id"].str[8:]
            rows["subject_id"] = rows["subject_id"].map(subjects)
            rows["study_id"] = rows["study_id"].map(studies)
            parts[name].append(rows)
    for name, rows in parts.items():
        pd.concat(rows).to_csv(target / f"mimic-cxr-2.0.0-{name}.csv.gz", index=False)
    return target


# data -------------------------------------------------------------------------------------------------------


def measure_data(args: argparse.Namespace, work_dir: Path) -> dict:
    root = args.data_dir or draw_images(work_dir / "full", num_images=args.num_images, image_size=FULL_SIZE)
    paths = list(itertools.islice((root / "files").glob("p*/p*/s*/*.jpg"), args.num_images))
    small = next((path for path in paths if shortest_side(path) <= CACHED_SIZE), None)
    if small is not None or not paths:
        raise ValueError(
            f"--data_dir {root}: found {small or 'no image'}; expected originals of more than {CACHED_SIZE} "
            "pixels, which shrink"
        )
    shrink = sources.dataset_module().shrink_jpeg
    cached = [shrink(path, CACHED_SIZE) for path in paths]
    rates = take_turns(
        {
            "ours: shrink": paths,
            "ours: loader": cached,
            "ours: loader, RandAugment": cached,
            "example: originals": paths,
            "example: cached": cached,
            "decoder: whole, Lanczos": paths,
            "decoder: an eighth": paths,
            "decoder: cached": cached,
        },
        rounds=args.rounds,
    )
    psnr = [compare(shrunk, path) for shrunk, path in zip(cached, paths, strict=True)]
    return {
        "images": {
            "bytes": statistics.mean(path.stat().st_size for path in paths),
            "cached_bytes": statistics.mean(map(len, cached)),
        },
        "shrink": {
            "images_per_second": rates["ours: shrink"],
            "full_decode_images_per_second": rates["decoder: whole, Lanczos"],
            "decoder_floor_images_per_second": rates["decoder: an eighth"],
            "example_images_per_second": rates["example: originals"],
            "ratio_to_example": rates["ours: shrink"] / rates["example: originals"],
            "ratio_to_full_decode": rates["ours: shrink"] / rates["decoder: whole, Lanczos"],
            "psnr_db": statistics.mean(psnr),
            "lowest_psnr_db": min(psnr),
        },
        "loader": {
            "images_per_second": rates["ours: loader"],
            "rand_augment_images_per_second": rates["ours: loader, RandAugment"],
            "decoder_floor_images_per_second": rates["decoder: cached"],
            "example_originals_images_per_second": rates["example: originals"],
            "example_cached_images_per_second": rates["example: cached"],
            "ratio_to_example_originals": rates["ours: loader"] / rates["example: originals"],
            "ratio_to_example_cached": rates["ours: loader"] / rates["example: cached"],
        },
    }


def take_turns(sides: dict[str, list], *, rounds: int) -> dict[str, float]:
    """Returns each side's median of images a second, over `rounds` turns after one for warming up.

    The sides before the colon have a process each, so that no side finds its memory as another left it.
    """
    rates = {name: [] for name in sides}
    context = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        pools = {
            name: stack.enter_context(ProcessPoolExecutor(1, mp_context=context, initializer=use_one_core))
            for name in dict.fromkeys(name.split(":")[0] for name in sides)
        }
        turns = list(itertools.product(range(rounds + 1), sides.items()))
        for turn, (name, images) in track(turns, description="Reading by turns"):
            rate = pools[name.split(":")[0]].submit(measure_side, name, images).result()
            if turn:
                rates[name].append(rate)
    return {name: statistics.median(values) for name, values in rates.items()}


def use_one_core() -> None:
    """The same one for all processes of the benchmark, where the system lets them choose."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)


def measure_side(name: str, images: list) -> float:
    """Returns how many images a second a side reads: paths of originals, or the bytes of shrunk ones."""
    if isinstance(images[0], bytes):
        images = list(itertools.islice(itertools.cycle(images), NUM_CACHED))
    read = SIDES[name](images)
    started = time.perf_counter()
    read()
    return len(images) / (time.perf_counter() - started)


def shrink_all(paths: list[Path]) -> Callable[[], None]:
    return each(functools.partial(sources.dataset_module().shrink_jpeg, image_size=CACHED_SIZE), paths)


def transform_as_example(images: list[Path | bytes]) -> Callable[[], None]:
    example = example_transform(IMAGE_SIZE, mean=transforms.GRAY_MEAN, std=transforms.GRAY_STD)
    return each(
        lambda image: example(Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)), images
    )


def each(function: Callable, images: list) -> Callable[[], None]:
    """Returns a function that calls `function` with each image."""

    def read() -> None:
        for image in images:
            function(image)

    return read


def load_cropped(contents: list[bytes]) -> Callable[[], None]:
    transform = transforms.pretraining_transform(IMAGE_SIZE, crop_scale=(0.2, 1.0), horizontal_flip=True)
    return iterate(contents, transform)


def load_augmented(contents: list[bytes]) -> Callable[[], None]:
    options = {"crop_scale": (0.2, 1.0), "random_erasing_prob": 0.0}
    return iterate(contents, transforms.training_transform("mae", IMAGE_SIZE, **options))


def shrink_fully(path: Path) -> bytes:
    """The original, decoded whole, as a gray JPEG with shortest side CACHED_SIZE."""
    with Image.open(path) as image:
        scale = CACHED_SIZE / min(image.size)
        size = tuple(round(side * scale) for side in image.size)
        resized = image.convert("L").resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    resized.save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


def shortest_side(path: Path) -> int:
    with Image.open(path) as image:
        return min(image.size)


def decode_eighth(path: Path) -> None:
    """The least that reading an original can take: its entropy code, and an eighth of its size."""
    with Image.open(path) as image:
        image.draft("L", tuple(side // 8 for side in image.size))
        image.load()


def decode_gray(content: bytes) -> torch.Tensor:
    return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=ImageReadMode.GRAY)


def compare(shrunk: bytes, path: Path) -> float:
    """Returns the PSNR of a shrunk JPEG against the original decoded whole and resized, in dB."""
    with Image.open(io.BytesIO(shrunk)) as image, Image.open(path) as original:
        reference = original.convert("L").resize(image.size, Image.Resampling.LANCZOS)
        difference = np.asarray(image, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    return float(10 * np.log10(255**2 / np.square(difference).mean()))


def iterate(contents: list[bytes], transform: torch.nn.Module) -> Callable[[], None]:
    """Returns a function that reads an epoch of the scripts' own training loader."""
    features = datasets.Features(
        {
            "image": datasets.Image(decode=False),
            "label": datasets.Value("int64"),
            "dicom_id": datasets.Value("string"),
        }
    )
    rows = {
        "image": [{"bytes": content, "path": None} for content in contents],
        "label": [0] * len(contents),
        "dicom_id": [f"{number:08x}" for number in range(len(contents))],
    }
    images = data.ChestXrays(datasets.Dataset.from_dict(rows, features), transform, seed=0, num_patches=196)
    schedule = optimization.make_schedule(
        len(images),
        images_per_step=BATCH_SIZE,
        num_epochs=1,
        max_steps=None,
        warmup_ratio=0.0,
        peak_learning_rate=1.0,
        kind="constant",
    )

    def epoch() -> None:
        loader, _ = data.make_loaders(
            Accelerator(cpu=True),
            images,
            images,
            schedule=schedule,
            start_step=0,
            eval_batch_size=BATCH_SIZE,
            gradient_accumulation_steps=1,
            seed=0,
            num_workers=0,
        )
        for _ in loader:
            pass

    return epoch


# What each side does with the images: prepared at the call, timed when the result is called.
SIDES = {
    "ours: shrink": shrink_all,
    "ours: loader": load_cropped,
    "ours: loader, RandAugment": load_augmented,
    "example: originals": transform_as_example,
    "example: cached": transform_as_example,
    "decoder: whole, Lanczos": functools.partial(each, shrink_fully),
    "decoder: an eighth": functools.partial(each, decode_eighth),
    "decoder: cached": functools.partial(each, decode_gray),
}


# step and train ---------------------------------------------------------------------------------------------


def measure_training(args: argparse.Namespace, work_dir: Path) -> dict:
    """Trains both sides by turns, each in a process of its own, and returns the speed of both."""
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
    """Runs the script as a user does; an epoch is a window, and the first is for warming up."""
    is_mae = args.config_name in architectures.VIT_MAE_CONFIGS
    output_dir = work_dir / f"ours-{turn}"
    launch = [
        "-m",
        "accelerate.commands.launch",
        "--num_processes=1",
        "--num_machines=1",
        "--dynamo_backend=no",
    ]
    launch += [f"--mixed_precision={args.mixed_precision}"]
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
    flags = ["config_name", "batch_size", "steps", "windows", "mixed_precision"]
    command = [str(SCRIPTS / "trainer_baseline.py"), f"--json={result}", f"--image_size={IMAGE_SIZE}"]
    command += [f"--{flag}={getattr(args, flag)}" for flag in flags]
    command += ["--torch_compile"] if args.torch_compile else []
    if root is not None:
        files = sorted((root / "files").glob("p*/p*/s*/*.jpg"))
        listed = work_dir / "images.txt"
        listed.write_text("\n".join(map(str, files)), encoding="utf-8")
        command += [f"--images={listed}"]
    run(command)
    return json.loads(result.read_text(encoding="utf-8"))


def run(command: list[str]) -> None:
    """Runs a script with this Python; its output is shown only if it fails."""
    one_gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]  # Trainer would take all of them
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": one_gpu}
    command = [sys.executable, *command]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-4000:], sep="\n", file=sys.stderr)
        raise OSError(f"{Path(command[0]).name} ended with status {done.returncode}; its messages are above")


# Results ----------------------------------------------------------------------------------------------------


def describe_machine() -> dict:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": processor_name(),
        "cores": data.num_cores(),
        "gpu": gpu,
        **records.installed_versions(),
    }


def processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    found = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor()


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
            ("loader: decoding only", loader["decoder_floor_images_per_second"], other),
            ("MAE example's transforms, originals", loader["example_originals_images_per_second"], other),
            ("MAE example's transforms, shrunk", loader["example_cached_images_per_second"], other),
        ]
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
        else:
            measured = {args.command: measure_training(args, Path(work_dir))}
    records.write_json(args.json, {"machine": machine, **measured})
    print_table(args.command, measured)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        print(f"benchmark.py: error: {error}", file=sys.stderr)
        sys.exit(2)
