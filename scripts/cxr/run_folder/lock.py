"""Allows one run at a time in a run folder, by a lock, and removes the leftovers of a killed run."""

import contextlib
import logging
import os
import re
import shutil
import socket
import time
from pathlib import Path

import psutil
from filelock import FileLock
from filelock import Timeout

from cxr.errors import UserError
from cxr.run_folder.files import read_json
from cxr.run_folder.files import write_json

LOCK_FILE = ".lock"
OWNER_FILE = ".owner.json"  # the process that holds the lock, or held it last
# Names of temporary files (with the process id) and folders (without).
LEFTOVERS = re.compile(r"\.(?:[\w.-]+\.(?:csv|json|jsonl|md|png)\.\d+\.tmp|(?:model|step_\d+)\.(?:tmp|old))")
ORPHANS_SECONDS = 20  # how long the workers of a killed run may take to end


def remove_leftovers(output_dir: Path) -> None:
    """Removes temporary files of a killed run, and restores a folder that it was just replacing.

    Only the holder of the folder's lock may call this.
    """
    for path in [*output_dir.glob(".*"), *(output_dir / "checkpoints").glob(".*")]:
        replaced = path.with_name(path.stem[1:])  # ".model.old" was "model"
        if not LEFTOVERS.fullmatch(path.name):
            continue
        if path.suffix == ".old" and not replaced.exists():
            path.replace(replaced)
        else:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def claim_output_dir(output_dir: Path, *, resume: bool) -> FileLock:
    """Makes `output_dir` and returns a lock that keeps other runs out of it while this process lives.

    Raises UserError, and leaves the folder unchanged, if it is not empty and not to be resumed, or has no run
    to resume. The files of a run that ended before its first step do not count and are removed.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"--output_dir {output_dir} is a file, expected a folder; choose another name")
    was_there, was_run = output_dir.is_dir(), (output_dir / LOCK_FILE).is_file()
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        lock = _acquire(output_dir)  # before looking inside, so that the content cannot change
    except OSError as error:
        raise UserError(
            f"--output_dir {output_dir}: cannot write there ({error.strerror}); choose another folder"
        ) from error
    found = {path.name for path in output_dir.iterdir()} - {LOCK_FILE, OWNER_FILE}
    found = {name for name in found if not LEFTOVERS.fullmatch(name)}
    # A run that was killed at its start may have left only its lock.
    is_run = "args.json" in found or (was_run and not found - {"train.log"})
    abandoned = "args.json" in found and found <= {"args.json", "samples.json", "train.log"}
    refusal = None
    if resume and not is_run:
        refusal = (
            f"--resume_from_checkpoint: found no run in {output_dir}; --output_dir must be the folder of the "
            "run to continue"
        )
    elif found and not resume and not abandoned:
        refusal = f"--output_dir {output_dir} {_describe(found)}"
    if refusal:
        _give_back(output_dir, lock, was_run=was_run, was_there=was_there)
        raise UserError(refusal)
    _note_owner(output_dir)
    remove_leftovers(output_dir)
    if not resume:
        for name in found:
            (output_dir / name).unlink()
    return lock


def _describe(found: set[str]) -> str:
    """Returns in words why a new run cannot use a folder, and what to do."""
    if "results.json" in found:
        return "has a finished run, expected a new or empty folder; choose another folder"
    if "args.json" in found:
        return (
            "has an unfinished run, expected a new or empty folder; continue that run with "
            "--resume_from_checkpoint latest, or choose another folder"
        )
    return "is not empty, expected a new or empty folder; choose another folder"


def _give_back(output_dir: Path, lock: FileLock, *, was_run: bool, was_there: bool) -> None:
    """Releases the lock and removes what claiming the folder created."""
    lock.release()
    if not was_run:
        (output_dir / LOCK_FILE).unlink(missing_ok=True)
    if not was_there:
        output_dir.rmdir()


def abandon(output_dir: Path, lock: FileLock, *, was_there: bool) -> None:
    """Removes the folder of a run that ended before its first step, or empties it if it existed before."""
    for handler in logging.getLogger().handlers:
        handler.close()  # Windows cannot remove an open train.log
    lock.release()
    for path in list(output_dir.iterdir()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not was_there:
        output_dir.rmdir()


def lock_folder(output_dir: Path) -> FileLock:
    """Returns a lock, held as long as the object lives. Raises UserError if another process holds it."""
    lock = _acquire(output_dir)
    _note_owner(output_dir)
    return lock


def _note_owner(output_dir: Path) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
    write_json(output_dir / OWNER_FILE, owner)


def _acquire(output_dir: Path) -> FileLock:
    """Returns the lock, after waiting for the workers of a dead holder.

    The operating system frees a lock when its holder ends in any way. With filelock 3, the holder's worker
    processes keep it until they end, seconds later.
    """
    lock = FileLock(output_dir / LOCK_FILE, blocking=False)
    for _ in range(ORPHANS_SECONDS):
        with contextlib.suppress(Timeout):
            lock.acquire()
            return lock
        owner = read_json(output_dir / OWNER_FILE)
        here = owner.get("host") == socket.gethostname()
        pid = owner.get("pid")
        if not here or type(pid) is not int or not 0 < pid < 2**31 or psutil.pid_exists(pid):
            break
        time.sleep(1)
    who = "pid {pid} on {host} since {since}".format_map({"pid": "?", "host": "?", "since": "?", **owner})
    raise UserError(
        f"--output_dir {output_dir}: another run is writing to it ({who}); wait for it, or choose another "
        f"folder; if you are sure that the run has ended, remove {output_dir / LOCK_FILE}"
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
