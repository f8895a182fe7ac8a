"""Measures training steps of one configuration, for gpu.py, and writes its figures as JSON.

    python benchmarks/gpu_row.py --config_name vit-mae-base --batch_size 512 --mixed_precision bf16 \\
        --torch_compile --json row.json

It calls the `train_step` of run_mae_pretrain.py or run_classification.py on a few synthetic batches that are
already on the device. First, plain transformers' model takes the same steps, to compare the losses.
"""

import argparse
import contextlib
import gc
import itertools
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))  # for cxr and the scripts

import run_classification
import run_mae_pretrain
import torch
from accelerate import Accelerator
from cxr.cli import command_line
from cxr.data.transforms import GRAY_MEAN
from cxr.data.transforms import GRAY_STD
from cxr.data.transforms import Normalizer
from cxr.errors import run_script
from cxr.models import architectures
from cxr.models import configs
from cxr.models.acceleration import speed_up
from cxr.models.masking import hide_patches
from cxr.models.scratch import new_classifier
from cxr.models.scratch import new_mae
from cxr.run_folder.files import write_json
from cxr.training import optimization
from cxr.training.run import Run
from cxr.training.throughput import Stopwatch
from torch._inductor import config as inductor
from torch.autograd import DeviceType
from torch.nn import functional as F
from torch.profiler import ProfilerActivity
from torch.profiler import profile

LABELS = ["No Finding", "Finding"]
NUM_BATCHES, PROFILED_STEPS = 4, 3
# The first pattern that a kernel's name (on a CPU, an operator's) has says its group.
GROUPS = {
    "attention": r"attention|fmha|flash|softmax",
    "convolutions": r"conv|fprop|dgrad|wgrad",
    "products": r"gemm|cutlass|cublas|nvjet|xmma|triton_tem|addmm|aten::b?mm",
    "optimizer": r"adam|multi_tensor",
    "copies": r"memcpy|memset|copy_|aten::fill_|aten::zero_",
    "norms, activations, sums": "",
}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command_line.ArgumentParser(__doc__)
    names = [*architectures.VIT_MAE_CONFIGS, *architectures.RESNET_CONFIGS]
    add, positive = parser.add_argument, command_line.positive_int
    add("--config_name", choices=names, default="vit-mae-tiny", help="the model to train")
    command_line.add_number(parser, "--image_size", positive, "pixels", default=224)
    command_line.add_number(parser, "--batch_size", positive, "images per step", default=32)
    command_line.add_number(parser, "--loss_steps", positive, "steps before the loss is compared", default=40)
    command_line.add_number(parser, "--steps", positive, "steps per timed window", default=20)
    command_line.add_number(parser, "--windows", positive, "timed windows", default=3)
    add("--mixed_precision", choices=("no", "bf16", "fp16"), default="no", help="as in accelerate")
    add("--torch_compile", action="store_true", help="compile the model")
    add("--max_autotune", action="store_true", help="let the compiler try many kernels")
    add("--contiguous", action="store_true", help="keep convolutions' weights in the usual memory format")
    add("--json", type=Path, required=True, metavar="FILE", help="where to write the figures")
    return parser.parse_args(argv)


def start(args: argparse.Namespace, *, is_plain: bool) -> tuple[Run, Callable]:
    """Returns a run without data and folder, and a function that takes its next step."""
    torch.manual_seed(0)
    is_mae = args.config_name in architectures.VIT_MAE_CONFIGS
    config = configs.make_config(
        args.config_name, overrides=None, image_size=args.image_size if is_mae else None
    )
    model = new_mae(config) if is_mae else new_classifier(config, LABELS)
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    run = Run(
        args=argparse.Namespace(max_grad_norm=None, label_smoothing=0.0), accelerator=accelerator, record=None
    )
    run.average, run.step_size = None, argparse.Namespace(num_passes=1)
    run.normalize = Normalizer([GRAY_MEAN] * 3, [GRAY_STD] * 3, accelerator.device)
    step, loss = run_mae_pretrain.train_step, run_mae_pretrain.synthetic_loss
    if not is_mae:
        step = partial(
            run_classification.train_step, patch_dropout=hide_patches(model, 0.0), class_weights=None
        )
        loss = partial(run_classification.synthetic_loss, image_size=args.image_size)
    run.stopwatch = Stopwatch(accelerator, model, loss, images_per_step=args.batch_size)
    optimizer = optimization.make_adamw(model, learning_rate=1e-4, weight_decay=0.05, betas=(0.9, 0.95))
    if not is_plain:
        speed_up(model, torch_compile=args.torch_compile)
    if args.contiguous:
        model.to(memory_format=torch.contiguous_format)
    run.model, run.optimizer = accelerator.prepare(model, optimizer)
    run.model.train()
    num_patches = (args.image_size // config.patch_size) ** 2 if is_mae else None
    batches = itertools.cycle(make_batches(args, num_patches, accelerator.device))
    return run, lambda: step(run, batches)


def make_batches(args: argparse.Namespace, num_patches: int | None, device: torch.device) -> list[dict]:
    """Returns batches of smooth gray images, always the same."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(NUM_BATCHES):
        coarse = torch.rand(args.batch_size, 1, 14, 14, generator=generator)
        image = (255 * F.interpolate(coarse, size=args.image_size, mode="bilinear")).byte()
        batch = {"image": image, "label": torch.arange(args.batch_size) % len(LABELS)}
        if num_patches is not None:
            batch["noise"] = torch.rand(args.batch_size, num_patches, generator=generator)
        batches.append({name: value.to(device) for name, value in batch.items()})
    return batches


def plain_loss(args: argparse.Namespace) -> float | None:
    """Returns the loss of the plain model after the same steps, None if it needs too much memory."""
    loss = None
    with contextlib.suppress(torch.OutOfMemoryError):
        _, step = start(args, is_plain=True)
        loss = [step() for _ in range(args.loss_steps)][-1].item()
    return loss


def milliseconds_by_group(step: Callable) -> dict[str, float]:
    """Returns the time of each group of kernels per step, or of operators where there is no GPU."""
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiled:
        [step() for _ in range(PROFILED_STEPS)][-1].item()
    spent: dict[str, float] = defaultdict(float)
    for event in profiled.events():
        if (event.device_type == DeviceType.CUDA) == on_gpu and not event.is_user_annotation:
            group = next(
                name for name, pattern in GROUPS.items() if re.search(pattern, event.name, re.IGNORECASE)
            )
            microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            spent[group] += microseconds / 1000 / PROFILED_STEPS
    return dict(spent)


def measure(args: argparse.Namespace) -> dict:
    inductor.max_autotune = args.max_autotune
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # as the scripts do
    of_plain = plain_loss(args)
    gc.collect()  # the plain model's modules are in reference cycles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    run, step = start(args, is_plain=False)
    started = time.perf_counter()
    loss = [step() for _ in range(args.loss_steps)][-1].item()
    warm_up_seconds = time.perf_counter() - started
    readings = []
    for _ in range(args.windows):
        run.stopwatch.start(0)
        [step() for _ in range(args.steps)][-1].item()
        readings.append(run.stopwatch.read(args.steps))
    names = [name for name in readings[0] if name != "data_wait"]  # the batches are on the device
    return {
        **{name: statistics.median(reading[name] for reading in readings) for name in names},
        "milliseconds": milliseconds_by_group(step),
        "warm_up_seconds": warm_up_seconds,
        "loss": loss,
        "plain_loss": of_plain,
    }


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    write_json(args.json, measure(args))


if __name__ == "__main__":
    run_script(main)
