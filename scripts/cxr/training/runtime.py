"""Start and end of a script: processes, seeds, the run folder, logging, and errors in one line."""

import argparse
import contextlib
import json
import logging
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from cxr.data.sources import REPOSITORY
from cxr.errors import UserError
from cxr.run_folder.files import read_json
from cxr.run_folder.lock import claim_output_dir
from cxr.run_folder.privacy import MaskingFormatter
from cxr.run_folder.record import FREE_TO_CHANGE
from cxr.run_folder.record import RunRecord
from cxr.run_folder.record import check_unchanged
from cxr.sharing.card import describe_origin
from cxr.sharing.push import check_push
from cxr.training.optimization import Schedule
from cxr.training.progress import has_checkpoint

logger = logging.getLogger("cxr")


def start_run(args: argparse.Namespace, *, default_output_dir: str) -> tuple[Accelerator, RunRecord]:
    """Starts the processes, claims the run folder, writes `args.json` and begins `train.log`.

    Returns the accelerator and the record of the run; `record.output_dir` is where the run writes.
    """
    tracker = args.report_to if args.with_tracking else None
    accelerator = Accelerator(
        log_with=tracker,
        project_dir=".",  # trackers insist on a folder; it is set below
        # The others wait for the process that shrinks the images; by default they give up in ten minutes.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=2))],
    )
    if tracker and not accelerator.log_with:
        raise UserError(
            f"--report_to {tracker}: its package is not installed; pip install it, or use tensorboard"
        )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError(
            "mixed precision fp16 needs a GPU, found a CPU; use accelerate launch --mixed_precision bf16"
        )
    is_resumed = args.resume_from_checkpoint is not None and has_checkpoint(args.output_dir)
    wants_probing = getattr(args, "per_device_train_batch_size", None) == "auto" and not is_resumed
    if wants_probing and accelerator.device.type != "cuda":
        raise UserError(
            "--per_device_train_batch_size auto needs a GPU, whose memory is the limit; found "
            f"{accelerator.device.type}; name a number"
        )
    output_dir, lock = _agree_on_output_dir(accelerator, args, default_output_dir)
    accelerator.project_configuration.logging_dir = str(output_dir)
    _start_logging(accelerator, output_dir)
    if accelerator.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 where mixed precision leaves float32
    set_seed(args.seed)  # the same initial weights on all processes

    record = RunRecord(output_dir, enabled=accelerator.is_main_process, lock=lock)
    plain_args = json.loads(json.dumps(vars(args), default=str))  # as they are read back: paths are text
    before = read_json(output_dir / "args.json")
    if before:  # a resumed run's
        fixed = {name: value for name, value in plain_args.items() if name not in FREE_TO_CHANGE}
        check_unchanged(before, fixed, where=output_dir)
    record.write("args.json", {**plain_args, "origin": describe_origin(args)})
    if args.with_tracking:
        scalars = {k: v for k, v in plain_args.items() if isinstance(v, int | float | str | bool)}
        accelerator.init_trackers("mae-chest-xrays", config=scalars)
    return accelerator, record


def log_plan(accelerator: Accelerator, plan: dict[str, object]) -> None:
    """Logs, before the first step, the numbers that follow from the flags and the data."""
    processes = (
        f"{accelerator.num_processes} on {accelerator.device}, mixed precision {accelerator.mixed_precision}"
    )
    for name, value in {"processes": processes, **plan}.items():
        logger.info("  %-22s %s", name, f"{value:,}" if isinstance(value, int) else value)


def describe_training(model: nn.Module, schedule: Schedule) -> dict[str, object]:
    """The part of the plan that both scripts have."""
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {
        "images per step": schedule.images_per_step,
        "optimizer steps": f"{schedule.num_steps:,}, {schedule.steps_per_epoch:,} an epoch",
        "learning rate": f"{schedule.peak_learning_rate:.3g} at its peak, {schedule.kind}, "
        f"after {schedule.num_warmup_steps:,} steps of warm-up",
        "trainable parameters": f"{trainable:,} of {sum(p.numel() for p in model.parameters()):,}",
    }


def progress_bar(accelerator: Accelerator, steps: range) -> tqdm:
    """A bar over the optimizer steps, from where a resumed run starts, on the main process."""
    return tqdm(
        steps,
        total=steps.stop,
        initial=steps.start,
        unit="step",
        file=LastingStderr(),
        disable=not accelerator.is_main_process,
    )


def evaluation_bar(accelerator: Accelerator, loader: DataLoader, split: str) -> tqdm:
    """A bar over the batches of an evaluation, gone when it is done, on the main process."""
    return tqdm(
        loader, desc=split, leave=False, file=LastingStderr(), disable=not accelerator.is_main_process
    )


class LastingStderr:
    """Standard error for bars, which nothing ends: Ctrl-C ends the reader of `| tee log`, too."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


def log_reading(accelerator: Accelerator, bar: tqdm, values: dict[str, float], *, step: int) -> None:
    """Shows a reading of the training on the progress bar and sends it to the log file and the trackers."""
    shown = f"loss {values['train_loss']:.4f}, {values['images_per_second']:.0f} images/s"
    if "share_of_peak" in values:
        shown += f", {values['share_of_peak']:.0%} of the GPU's peak"
    bar.set_postfix_str(shown)
    logger.debug("step %d: %s", step, ", ".join(f"{name} {value:.6g}" for name, value in values.items()))
    accelerator.log(values, step=step)


def log_epoch(accelerator: Accelerator, record: dict[str, float | int | None]) -> None:
    """Prints an epoch's line and sends its numbers to the trackers."""
    values = {name: value for name, value in record.items() if isinstance(value, int | float)}
    numbers = ", ".join(
        f"{name} {value:.4g}" for name, value in values.items() if name not in ("epoch", "step")
    )
    if accelerator.is_main_process:
        with logging_redirect_tqdm():  # above the bar, not through it
            logger.info("epoch %d: %s", record["epoch"], numbers)
    accelerator.log({f"epoch/{name}": value for name, value in values.items()}, step=record["step"])


def _agree_on_output_dir(
    accelerator: Accelerator, args: argparse.Namespace, default_output_dir: str
) -> tuple:
    """Claims the run folder on the main process and tells the others its name, or that there is none.

    Returns the folder and, on the main process, its lock.
    """
    said, lock = [None, None], None
    if accelerator.is_main_process:
        default = REPOSITORY / "runs" / f"{default_output_dir}-{time.strftime('%Y%m%d-%H%M%S')}"
        said[0] = str(args.output_dir or default)
        try:
            if getattr(args, "push_to_hub", False):  # now, not after the training
                tag = None if args.resume_from_checkpoint else args.hub_revision  # it may have it already
                check_push(hub_dir=args.hub_dir, model_id=args.hub_model_id, tag=tag)
            lock = claim_output_dir(Path(said[0]), resume=args.resume_from_checkpoint is not None)
        except (ValueError, OSError) as error:
            said[1] = str(error)
    output_dir, error = broadcast_object_list(said)
    if error and accelerator.is_main_process:
        raise UserError(error)
    if error:
        sys.exit(2)  # the main process has said why
    return Path(output_dir), lock


def _start_logging(accelerator: Accelerator, output_dir: Path) -> None:
    datasets.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()  # of reading weights: it ends within a second
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a full disk is reported once, not for every line
    handlers = []
    if accelerator.is_main_process:
        console = logging.StreamHandler()
        console.setLevel(logging.INFO)
        handlers = [console, logging.FileHandler(output_dir / "train.log", encoding="utf-8")]
        handlers[1].setLevel(logging.DEBUG)
    for handler in handlers:
        handler.setFormatter(MaskingFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    for handler in handlers or [logging.NullHandler()]:
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logger.setLevel(logging.DEBUG)
