"""Starts a training script: processes, seeds, the run folder and logging; has its progress bars and waits."""

import argparse
import contextlib
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list
from accelerate.utils import parse_flag_from_env
from accelerate.utils import set_seed
from pydantic import ValidationError
from torch import distributed
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from cxr.data.sources import REPOSITORY
from cxr.errors import UserError
from cxr.errors import undo_on_user_error
from cxr.run_folder.fields import first_problem
from cxr.run_folder.lock import Lock
from cxr.run_folder.lock import abandon
from cxr.run_folder.lock import claim_output_dir
from cxr.run_folder.privacy import MaskingFormatter
from cxr.run_folder.record import FREE_TO_CHANGE
from cxr.run_folder.record import Arguments
from cxr.run_folder.record import Origin
from cxr.run_folder.record import RunRecord
from cxr.run_folder.record import check_unchanged
from cxr.sharing.card import describe_origin
from cxr.sharing.push import check_push
from cxr.training.progress import has_checkpoint

logger = logging.getLogger("cxr")


COLLECTIVE_TIMEOUT = timedelta(minutes=10)  # then a process gives up waiting for its peers
POLLING_SECONDS = 0.2


def start_run(args: argparse.Namespace, *, default_output_dir: str) -> tuple[Accelerator, RunRecord]:
    """Starts the processes, claims the run folder, writes `args.json` and begins `train.log`.

    Returns the accelerator and the record of the run, whose `output_dir` is the run folder.
    """
    _check_launcher()
    tracker = args.report_to if args.with_tracking else None
    accelerator = Accelerator(
        log_with=tracker,
        project_dir=".",  # trackers require a folder; the real one is set below
        kwargs_handlers=[InitProcessGroupKwargs(timeout=COLLECTIVE_TIMEOUT)],
    )
    _check_machine(args, accelerator)
    output_dir, lock = _agree_on_output_dir(accelerator, args, default_output_dir)
    accelerator.project_configuration.logging_dir = str(output_dir)
    _start_logging(accelerator, output_dir)
    if accelerator.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what mixed precision leaves in float32
    set_seed(args.seed)  # the same initial weights on all processes

    record = RunRecord(output_dir, enabled=accelerator.is_main_process, lock=lock)
    plain_args = json.loads(json.dumps(vars(args), default=str))  # as in the file: paths are strings
    if (output_dir / "args.json").is_file():  # the run is resumed
        before = Arguments.read(output_dir / "args.json").flags
        fixed = {name: value for name, value in plain_args.items() if name not in FREE_TO_CHANGE}
        check_unchanged(before, fixed, where=output_dir)
    record.write("args.json", _as_record(plain_args, describe_origin(args)))
    if args.with_tracking:
        scalars = {k: v for k, v in plain_args.items() if isinstance(v, int | float | str | bool)}
        accelerator.init_trackers("mae-chest-xrays", config=scalars)
    return accelerator, record


def _check_launcher() -> None:
    """Raises UserError for answers to `accelerate config` with which these scripts do not work."""
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise UserError(
            "found DeepSpeed in the configuration of accelerate, which these scripts do not support; use "
            "accelerate_configs/fsdp_bf16.yaml, or answer no to DeepSpeed in accelerate config"
        )
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":  # it would rename the saved weights
        raise UserError(
            "found a torch dynamo backend in the configuration of accelerate; leave it out there (answer no "
            "in accelerate config) and use --torch_compile"
        )


def _as_record(flags: dict[str, Any], origin: Origin) -> Arguments:
    try:
        return Arguments(**flags, origin=origin)
    except ValidationError as error:
        raise UserError(f"flags that cannot be recorded: {first_problem(error)}") from error


def _check_machine(args: argparse.Namespace, accelerator: Accelerator) -> None:
    """Raises UserError for flags that this machine or environment does not support."""
    device = accelerator.device.type
    if args.with_tracking and not accelerator.log_with:
        raise UserError(
            f"--report_to {args.report_to}: its package is not installed; install it, or use tensorboard"
        )
    if accelerator.mixed_precision == "fp16" and device == "cpu":
        raise UserError(
            "mixed precision fp16 needs a GPU, found a CPU; use accelerate launch --config_file "
            "accelerate_configs/cpu.yaml"
        )
    is_resumed = args.resume_from_checkpoint is not None and has_checkpoint(args.output_dir)
    is_known = is_resumed and not args.images_per_step  # else it must be found again
    if args.per_device_train_batch_size == "auto" and not is_known and device != "cuda":
        raise UserError(
            f"--per_device_train_batch_size auto needs an NVIDIA or AMD GPU, found {device}; give a number"
        )
    if getattr(args, "sync_batchnorm", False) and device != "cuda":
        raise UserError(f"--sync_batchnorm needs NVIDIA or AMD GPUs, found {device}; leave it out")


def describe_hardware(accelerator: Accelerator) -> str:
    """Returns the training devices in words, such as "2 x NVIDIA H100 80GB HBM3"."""
    if accelerator.device.type == "cuda":
        name = torch.cuda.get_device_name(accelerator.device)
    elif accelerator.device.type == "cpu":
        name = f"CPU ({platform.machine()}), {torch.get_num_threads()} threads"
    else:
        name = accelerator.device.type
    return f"{accelerator.num_processes} x {name}"


def on_main_process(accelerator: Accelerator, function: Callable[[], Any]) -> Any:
    """Calls `function` on the main process and returns its result on all; a UserError in it ends all."""
    said: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            said[0] = function()
        except UserError as error:
            said[1] = str(error)
    result, error = broadcast_object_list(said)
    if error and accelerator.is_main_process:
        raise UserError(error)
    if error:
        sys.exit(2)  # the main process prints the error
    return result


def wait_for_all(accelerator: Accelerator, what: str) -> None:
    """Waits, without a time limit, until all processes have called this with the same `what`.

    Used for work that one process does for the others, such as shrinking images or a push. Polls the store,
    because a collective operation gives up after COLLECTIVE_TIMEOUT.
    """
    if accelerator.num_processes == 1:
        return
    store = distributed.distributed_c10d._get_default_store()
    store.set(f"{what}/{accelerator.process_index}", "here")
    keys = [f"{what}/{rank}" for rank in range(accelerator.num_processes)]
    while not store.check(keys):
        time.sleep(POLLING_SECONDS)


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Disables TF32 in matrix products and convolutions, so that a GPU gives the metrics of a CPU."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def progress_bar(accelerator: Accelerator, steps: range) -> tqdm:
    """Returns a bar over the optimizer steps, shown on the main process; a resumed run starts at its step."""
    return tqdm(
        steps,
        total=steps.stop,
        initial=steps.start,
        unit="step",
        file=LastingStderr(),
        disable=not accelerator.is_main_process,
    )


def evaluation_bar(accelerator: Accelerator, loader: DataLoader, split: str) -> tqdm:
    """Returns a bar over the batches of an evaluation, shown on the main process and removed at the end."""
    return tqdm(
        loader, desc=split, leave=False, file=LastingStderr(), disable=not accelerator.is_main_process
    )


class LastingStderr:
    """Standard error for progress bars that ignores a closed pipe: in `| tee log`, Ctrl-C ends tee, too."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


def log_reading(accelerator: Accelerator, bar: tqdm, values: dict[str, float], *, step: int) -> None:
    """Shows the current loss and speed on the progress bar; sends all `values` to train.log and trackers."""
    shown = f"loss {values['train_loss']:.4f}, {values['images_per_second']:.0f} images/s"
    shown += f", {values['data_wait']:.0%} of the time waiting for data"
    if "share_of_peak" in values:
        shown += f", {values['share_of_peak']:.0%} of the GPU's peak"
    bar.set_postfix_str(shown)
    logger.debug("step %d: %s", step, ", ".join(f"{name} {value:.6g}" for name, value in values.items()))
    accelerator.log(values, step=step)


def log_epoch(accelerator: Accelerator, record: dict[str, float | int | None]) -> None:
    """Logs an epoch's numbers and sends them to the trackers."""
    values = {name: value for name, value in record.items() if isinstance(value, int | float)}
    numbers = ", ".join(
        f"{name} {value:.4g}" for name, value in values.items() if name not in ("epoch", "step")
    )
    if accelerator.is_main_process:
        with logging_redirect_tqdm():  # prints above the progress bar
            logger.info("epoch %d: %s", record["epoch"], numbers)
    accelerator.log({f"epoch/{name}": value for name, value in values.items()}, step=record["step"])


def _agree_on_output_dir(
    accelerator: Accelerator, args: argparse.Namespace, default_output_dir: str
) -> tuple[Path, Lock | None]:
    """Claims the run folder on the main process; returns the folder and, on the main process, its lock."""
    locks = []

    def claim() -> str:
        default = REPOSITORY / "runs" / f"{default_output_dir}-{time.strftime('%Y%m%d-%H%M%S')}"
        output_dir = Path(args.output_dir or default)
        if args.push_to_hub:  # checked now rather than after the training
            tag = None if args.resume_from_checkpoint else args.hub_revision  # it may exist
            check_push(hub_dir=args.hub_dir, model_id=args.hub_model_id, tag=tag)
        was_there, is_new = output_dir.is_dir(), args.resume_from_checkpoint is None
        locks.append(claim_output_dir(output_dir, resume=not is_new))
        if is_new:
            undo_on_user_error(partial(abandon, output_dir, locks[0], was_there=was_there))
        return str(output_dir)

    output_dir = on_main_process(accelerator, claim)
    return Path(output_dir), next(iter(locks), None)


def _start_logging(accelerator: Accelerator, output_dir: Path) -> None:
    datasets.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()  # loading weights takes only a second
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # otherwise a full disk is reported for every line
    handlers = []
    if accelerator.is_main_process:
        console = logging.StreamHandler()
        console.setLevel(logging.INFO)
        # A name may have characters that UTF-8 cannot encode: without `errors`, their lines would be lost.
        log = logging.FileHandler(output_dir / "train.log", encoding="utf-8", errors="backslashreplace")
        log.setLevel(logging.DEBUG)
        handlers = [console, log]
    for handler in handlers:
        handler.setFormatter(MaskingFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    for handler in handlers or [logging.NullHandler()]:
        root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logger.setLevel(logging.DEBUG)
