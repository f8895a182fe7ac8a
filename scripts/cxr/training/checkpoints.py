"""Saves checkpoints, `checkpoints/step_N`, atomically, and resumes a run from one."""

import functools
import logging
import re
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator

from cxr.errors import MEMORY
from cxr.errors import PEERS
from cxr.errors import UserError
from cxr.run_folder import files
from cxr.run_folder import record
from cxr.training.optimization import Schedule
from cxr.training.progress import Progress
from cxr.training.progress import complete_checkpoints
from cxr.training.runtime import on_main_process
from mimic_cxr_dataset.errors import one_line

BEST_MODEL = "best_model"  # in a checkpoint
CHECKSUMS_FILE = "sha256.json"
RECORDS = {
    record.METRICS_FILE: False,
    record.BAD_STEPS_FILE: True,
}  # the run's files that a checkpoint contains, and whether each is private
logger = logging.getLogger(__name__)


def is_due(checkpointing_steps: str | int, schedule: Schedule, step: int) -> bool:
    if checkpointing_steps == "epoch":
        return schedule.ends_epoch(step)
    return step % checkpointing_steps == 0 or step == schedule.num_steps


def save_checkpoint(
    accelerator: Accelerator, output_dir: Path, progress: Progress, *, total_limit: int
) -> None:
    """Writes a temporary folder and renames it to `checkpoints/step_N`; keeps the newest `total_limit` only.

    The folder includes the model of the best epoch and the run's records, as they are at this step.
    """
    checkpoints_dir = output_dir / "checkpoints"
    target = checkpoints_dir / f"step_{progress.step}"
    temporary = checkpoints_dir / f".step_{progress.step}.tmp"  # the same name on all ranks, which all write
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(temporary))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            if progress.best:
                shutil.copytree(output_dir / "model", temporary / BEST_MODEL)
            for name in RECORDS:
                if (output_dir / name).is_file():
                    shutil.copy(output_dir / name, temporary / name)  # keeps the file mode
            files.write_json(temporary / CHECKSUMS_FILE, _checksums(temporary))
            files.write_json(temporary / record.PROGRESS_FILE, progress.as_json())
            files.replace_folder(temporary, target)
    finally:
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)  # after a failure, such as a full disk
    if accelerator.is_main_process:
        complete = complete_checkpoints(checkpoints_dir)
        end = complete.index(target) + 1
        # Checkpoints of later steps are from before this run was resumed: they would pass for the latest.
        for path in [*complete[end:], *complete[:end][:-total_limit]]:
            files.remove_folder(path)
    accelerator.wait_for_everyone()


def find_checkpoint(output_dir: Path, resume_from_checkpoint: str | None) -> Path | None:
    """Returns the checkpoint that `latest` or a path means; None without the flag or without a checkpoint.

    A run that was stopped before its first checkpoint starts again at step 0. Raises UserError if the path
    is not a checkpoint of this run.
    """
    if resume_from_checkpoint is None:
        return None
    checkpoints_dir = output_dir / "checkpoints"
    if resume_from_checkpoint != "latest":
        path = Path(resume_from_checkpoint)
        if not (path / record.PROGRESS_FILE).is_file() or path.resolve().parent != checkpoints_dir.resolve():
            raise UserError(
                f"--resume_from_checkpoint {path}: not a complete checkpoint of this run; expected latest or "
                f"a folder such as {checkpoints_dir / 'step_100'}"
            )
        return path
    return next(reversed(complete_checkpoints(checkpoints_dir)), None)


def resumed_images_per_step(output_dir: Path, resume_from_checkpoint: str | None) -> int | None:
    """Returns the images per step of the checkpoint to resume from, None if there is no checkpoint."""
    checkpoint = find_checkpoint(output_dir, resume_from_checkpoint)
    return None if checkpoint is None else Progress.read(checkpoint / record.PROGRESS_FILE).images_per_step


def resume(
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    output_dir: Path,
    resume_from_checkpoint: str | None,
    *,
    images_per_step: int,
) -> Progress:
    """Loads the checkpoint that the flag means into the prepared objects; returns the run's progress.

    Raises UserError if the checkpoint is damaged, or has another model or another number of images per step.
    """
    checkpoint = find_checkpoint(output_dir, resume_from_checkpoint)
    if checkpoint is None:
        if (output_dir / "results.json").exists():
            raise UserError(
                f"{output_dir}: found a finished run without a checkpoint, expected a checkpoint to continue "
                "from; use the run's model/, or start again in another --output_dir"
            )
        if resume_from_checkpoint is not None:
            logger.info("Found no complete checkpoint in %s: starting at step 0.", output_dir)
        if accelerator.is_main_process:
            restore_records(output_dir, None)
        return Progress(images_per_step=images_per_step)
    progress = Progress.read(checkpoint / record.PROGRESS_FILE)
    on_main_process(accelerator, functools.partial(_check_content, checkpoint))
    try:
        accelerator.load_state(str(checkpoint))
        _check_moments(optimizer)
        _use_own_adamw(optimizer)
    except Exception as error:  # torch raises many types for a file that does not fit
        if re.search(f"{MEMORY}|{PEERS}", f"{type(error).__name__}: {error}"):
            raise  # the checkpoint is not the cause
        raise UserError(
            f"{checkpoint}: does not fit this run ({one_line(error)}); expected a checkpoint of this model; "
            "resume from an older one, or start again in another --output_dir"
        ) from error
    if progress.images_per_step != images_per_step:
        raise UserError(
            f"{checkpoint}: found {progress.images_per_step} images per step, but this run has "
            f"{images_per_step}; choose batch size, gradient accumulation and number of processes with the "
            "same product, or the --images_per_step of the first start"
        )
    if accelerator.is_main_process:
        restore_records(output_dir, checkpoint)
        if progress.best:
            with files.new_folder(output_dir / "model") as folder:
                shutil.copytree(checkpoint / BEST_MODEL, folder, dirs_exist_ok=True)
    logger.info("Resuming from %s, after step %d.", checkpoint, progress.step)
    return progress


def restore_records(output_dir: Path, checkpoint: Path | None) -> None:
    """Restores the run's records from the checkpoint; without a checkpoint, removes them."""
    (output_dir / "results.json").unlink(missing_ok=True)
    for name, is_private in RECORDS.items():
        if checkpoint is not None and (checkpoint / name).is_file():
            text = (checkpoint / name).read_text(encoding="utf-8")
            files.write_text(output_dir / name, text, private=is_private)
        else:
            (output_dir / name).unlink(missing_ok=True)


def _checksums(checkpoint: Path) -> dict[str, str]:
    found = [path for path in checkpoint.rglob("*") if path.is_file()]
    return {path.relative_to(checkpoint).as_posix(): files.sha256_of(path) for path in found}


def _check_content(checkpoint: Path) -> None:
    """Raises UserError if a file has changed since it was written, which torch rarely detects."""
    expected = files.read_json(checkpoint / CHECKSUMS_FILE)
    found = _checksums(checkpoint)
    changed = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
    changed = sorted(set(changed) - {CHECKSUMS_FILE, record.PROGRESS_FILE})
    if changed:
        raise UserError(
            f"{checkpoint} is damaged: {', '.join(changed)[:200]} changed since it was saved; resume from an "
            "older one, or start again in another --output_dir"
        )


def _check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Raises ValueError if moments and parameters differ in shape; torch would fail only at the next step."""
    for parameter, state in optimizer.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            if state[name].shape != parameter.shape:
                raise ValueError(f"a moment of shape {tuple(state[name].shape)} for {tuple(parameter.shape)}")


def _use_own_adamw(optimizer: torch.optim.Optimizer) -> None:
    """Makes AdamW fused or not as it is here: a checkpoint of a Mac, where it is not, may go on elsewhere."""
    for group in optimizer.param_groups:
        group["fused"] = optimizer.defaults["fused"]
    for parameter, state in optimizer.state.items():
        if optimizer.defaults["fused"]:
            state["step"] = state["step"].to(parameter.device)


def save_model(accelerator: Accelerator, model, image_processor, model_dir: Path) -> None:
    """Writes `model_dir`, which `from_pretrained` can load: safetensors, config, image processor."""
    state_dict = accelerator.get_state_dict(model)  # a collective operation if the weights are sharded
    if accelerator.is_main_process:
        with files.new_folder(model_dir) as folder:
            accelerator.unwrap_model(model).save_pretrained(folder, state_dict=state_dict)
            image_processor.save_pretrained(folder)
    accelerator.wait_for_everyone()
