"""The run folder: what each file is called, and writes that leave a whole file or none."""

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock
from filelock import Timeout

LOCK_FILE = ".lock"
OWNER_FILE = ".owner.json"  # who has the lock, or had it last
LIBRARIES = (
    "torch",
    "torchvision",
    "transformers",
    "accelerate",
    "datasets",
    "evaluate",
    "pillow",
    "scikit-learn",
)
PROGRESS_FILE = "progress.json"  # in a checkpoint that is complete
BAD_STEPS_FILE = "bad_steps.jsonl"
METRICS_FILE = "metrics.jsonl"
# What is written aside: files with the number of their process, folders without.
LEFTOVERS = re.compile(r"\.(?:[\w.-]+\.(?:csv|json|jsonl|md|png)\.\d+\.tmp|(?:model|step_\d+)\.(?:tmp|old))")
ORPHANS_SECONDS = 20  # that the workers of a killed run may take to notice

# Flags that may differ when a run is resumed: how it runs, not what. A batch may be shared out otherwise.
FREE_TO_CHANGE = {
    "resume_from_checkpoint",
    "output_dir",
    "evaluate_test",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "per_device_eval_batch_size",
    "max_bad_steps",
    "torch_compile",
    "dataloader_num_workers",
    "preprocessing_num_workers",
    "cache_dir",
    "data_dir",  # where it is mounted; `samples.json` says what is in it
    "logging_steps",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "with_tracking",
    "report_to",
    "push_to_hub",
    "hub_model_id",
    "hub_dir",
    "hub_revision",
    "hub_strategy",
}


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Writes `path` atomically: others see the old file or the whole new one. `private` is mode 0600."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            if private:
                temporary.chmod(0o600)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any, *, private: bool = False) -> None:
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n", private=private)


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in `path`, an empty one without a file. Raises ValueError for anything else."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: found broken JSON ({error}); expected what a run wrote") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: found {type(content).__name__}, expected what a run wrote")
    return content


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Gives a temporary sibling folder to fill, which becomes `path` when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(new: Path, path: Path) -> None:
    """Renames `new`, once it is on the disk, to `path`; an old `path` is renamed away, back on failure."""
    sync_folder(new)
    old = path.with_name(f".{path.name}.old")
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.replace(old)
    try:
        new.replace(path)
    except BaseException:
        if old.exists():
            old.replace(path)
        raise
    sync_file(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def sha256_of(path: Path) -> str:
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
    return sha256.hexdigest()


def remove_folder(path: Path) -> None:
    """Removes `path`, which loses its name at once: what a kill leaves is not taken for the whole."""
    aside = path.with_name(f".{path.name}.tmp")
    path.replace(aside)
    shutil.rmtree(aside)


def sync_folder(folder: Path) -> None:
    """Waits until all that is in `folder` is on the disk: a rename may get there before the content."""
    for path in folder.rglob("*"):
        sync_file(path)
    sync_file(folder)


def sync_file(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows opens no folder, and orders its own renames
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(output_dir: Path) -> None:
    """Removes what a killed run was writing aside; what it was just replacing comes back.

    Only the holder of the folder's lock may do this.
    """
    for path in [*output_dir.glob(".*"), *(output_dir / "checkpoints").glob(".*")]:
        replaced = path.with_name(path.stem[1:])  # ".model.old" was "model"
        if not LEFTOVERS.fullmatch(path.name):
            continue
        if path.suffix == ".old" and not replaced.exists():
            path.replace(replaced)
        else:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def installed_versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def claim_output_dir(output_dir: Path, *, resume: bool) -> FileLock:
    """Makes `output_dir` and returns the lock that keeps other runs out of it while this process lives.

    Raises ValueError when it holds something and the run does not continue it. What a run wrote that ended
    before its first step, by a wrong flag or a missing file, is in nobody's way and is removed.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"--output_dir {output_dir} is a file; expected a folder: name another")
    found = {path.name for path in output_dir.iterdir()} if output_dir.is_dir() else set()
    found = {name for name in found - {LOCK_FILE, OWNER_FILE} if not LEFTOVERS.fullmatch(name)}
    # A run that was killed at its start may have left its lock only.
    is_run = "args.json" in found or (not found - {"train.log"} and (output_dir / LOCK_FILE).is_file())
    if resume and not is_run:
        raise ValueError(
            f"--resume_from_checkpoint: found no run in {output_dir}; expected the --output_dir of one"
        )
    abandoned = "args.json" in found and found <= {"args.json", "samples.json", "train.log"}
    if found and not resume and not abandoned:
        raise ValueError(
            f"--output_dir {output_dir} is not empty; expected a new or empty folder: name another, "
            "or continue the run in it with --resume_from_checkpoint latest"
        )
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(output_dir)
    except OSError as error:
        raise ValueError(
            f"--output_dir {output_dir}: cannot be written to ({error.strerror}); name another folder"
        ) from error
    remove_leftovers(output_dir)
    if not resume:
        for name in found:
            (output_dir / name).unlink()
    return lock


def lock_folder(output_dir: Path) -> FileLock:
    """Returns the lock that is held as long as the object lives. Raises ValueError when another has it.

    The system frees it when its holder ends, however that happens; with filelock 3, when the workers of the
    holder have ended, too, which is seconds later: for that it waits.
    """
    lock = FileLock(output_dir / LOCK_FILE, blocking=False)
    for _ in range(ORPHANS_SECONDS):
        with contextlib.suppress(Timeout):
            lock.acquire()
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
            write_json(output_dir / OWNER_FILE, owner)
            return lock
        owner = read_json(output_dir / OWNER_FILE)
        here = owner.get("host") == socket.gethostname()
        pid = owner.get("pid")
        if not here or type(pid) is not int or not 0 < pid < 2**31 or psutil.pid_exists(pid):
            break
        time.sleep(1)
    who = "pid {pid} on {host} since {since}".format_map({"pid": "?", "host": "?", "since": "?", **owner})
    raise ValueError(
        f"--output_dir {output_dir}: another run is writing to it ({who}); wait for it or name another "
        f"folder; if that run is gone for certain, remove {output_dir / LOCK_FILE}"
    )


def is_in_use(output_dir: Path) -> bool:
    if not (output_dir / LOCK_FILE).exists():
        return False
    lock = FileLock(output_dir / LOCK_FILE, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    return False


def check_unchanged(before: dict[str, Any], now: dict[str, Any], *, where: Path) -> None:
    """Raises ValueError when the run in `where` began with other flags: half of each is no experiment."""
    for name, value in sorted(now.items()):
        if before.get(name) != value:
            raise ValueError(
                f"--{name}: found {value}, but {where} began with {before.get(name)}; "
                "use the same flags, or start anew in another --output_dir"
            )


class RunRecord:
    """Writes the records of one run; on processes that are not the main one it is not `enabled`."""

    def __init__(self, output_dir: Path, *, enabled: bool, lock: FileLock | None = None):
        self.output_dir = output_dir
        self.enabled = enabled
        self.lock = lock  # held as long as this object lives

    def write(self, name: str, content: Any) -> None:
        """Writes the JSON file `name`. `results.json` is written last of all: its presence means "done"."""
        if self.enabled:
            write_json(self.output_dir / name, content)

    def write_sample(self, sample: dict[str, Any]) -> None:
        """Writes `samples.json`. Raises ValueError when a resumed run began with other images."""
        path = self.output_dir / "samples.json"
        if path.exists() and read_json(path).get("sha256") != sample["sha256"]:
            raise ValueError(
                f"{path}: not the training images that this run began with; expected the same data "
                "and labels; restore them, or start anew in another --output_dir"
            )
        if self.enabled:
            write_json(path, sample, private=True)

    def append_epoch(self, record: dict[str, Any]) -> None:
        """Adds a line to `metrics.jsonl`."""
        if self.enabled:
            self._write_lines(METRICS_FILE, [*self.epochs(), record])

    def epochs(self) -> list[dict[str, Any]]:
        epochs = self._read_lines(METRICS_FILE)
        names = ("epoch", "train_loss", "eval_loss")
        if not all(isinstance(epoch.get(name), int | float) for epoch in epochs for name in names):
            path = self.output_dir / METRICS_FILE
            raise ValueError(f"{path}: found a line without {' or '.join(names)}; expected what a run wrote")
        return epochs

    def append_bad_step(self, step: int, dicom_ids: Sequence[str]) -> None:
        """Adds the images of a step that was left out to `bad_steps.jsonl`, which is private."""
        if self.enabled:
            bad_step = {"step": step, "dicom_ids": list(dicom_ids)}
            self._write_lines(BAD_STEPS_FILE, [*self._read_lines(BAD_STEPS_FILE), bad_step])

    def _read_lines(self, name: str) -> list[dict[str, Any]]:
        path = self.output_dir / name
        if not path.exists():
            return []
        try:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            return [{**line, "step": int(line["step"])} for line in lines]
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path}: found a broken line ({error}); expected what a run wrote") from error

    def _write_lines(self, name: str, lines: list[dict[str, Any]]) -> None:
        """All of them anew: a line that is appended may be cut off by a crash."""
        path = self.output_dir / name
        if lines or path.exists():
            text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
            write_text(path, text, private=name == BAD_STEPS_FILE)

    def write_predictions(
        self,
        name: str,
        images: dict[str, Sequence[str | int]],
        *,
        labels: Sequence[int],
        probabilities: Sequence[float],
    ) -> None:
        """Writes a line an image to `name`, private as the data-use agreement asks.

        `images` names them, by column: dicom_id, subject_id, by which intervals resample, and view_position.
        """
        if self.enabled:
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow([*images, "label", "probability"])
            # All digits: the figures of a report are those of the run.
            writer.writerows(zip(*images.values(), labels, map(repr, probabilities)))
            write_text(self.output_dir / name, text.getvalue(), private=True)
