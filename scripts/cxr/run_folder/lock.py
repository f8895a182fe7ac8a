"""Allows one run at a time in a run folder, by a lock, and removes the leftovers of a killed run.

A lock is two things. The file lock counts on this machine, and the operating system frees it when its holder
ends in any way. On a disk that several machines share, a file lock may not work, or not count for the others:
they see a claim with a heartbeat (`heartbeat.py`).
"""

import errno
import functools
import logging
import os
import re
import shutil
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock
from filelock import Timeout

from cxr.errors import UserError
from cxr.run_folder.heartbeat import Claim
from cxr.run_folder.heartbeat import Claims
from cxr.run_folder.heartbeat import this_machine

logger = logging.getLogger("cxr")

LOCK_FILE = ".lock"
CLAIMS_DIR = ".claims"
THE_FOLDER = "folder"  # the name of the claim on all of a folder
NO_FILE_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}  # as on some NFS
# Names of temporary files (with the process id) and folders (without).
LEFTOVERS = re.compile(r"\.(?:[\w.-]+\.(?:csv|json|jsonl|md|png)\.\d+\.tmp|(?:model|step_\d+)\.(?:tmp|old))")
ORPHANS_SECONDS = 20  # how long the workers of a killed run may take to end


class Lock:
    """A file lock, where the disk has them, and a claim: held until `release`, or while this object lives."""

    def __init__(self, file_lock: FileLock | None, claim: Claim):
        self.claim = claim
        self.release = weakref.finalize(self, _release, file_lock, claim)


def _release(file_lock: FileLock | None, claim: Claim) -> None:
    claim.release()  # first, so that the next holder of the file lock finds it released
    if file_lock:
        file_lock.release()


def hold(
    file: Path, claims: Claims, name: str, *, job: str = "", on_lost: Callable[[], None] | None = None
) -> Lock | None:
    """Returns a lock on `name`, whose file lock is `file`; None while another process holds it.

    An earlier lock of the same `job`, which may have run on another machine, is taken over at once.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        file_lock = _lock_file(file)
    except Timeout:
        return None
    # Who has the file lock knows that the last holder on this machine has ended.
    owners = [owner for owner in (job, this_machine() if file_lock else "") if owner]
    claim = claims.take(name, owners=owners, on_lost=on_lost)
    if claim is None and file_lock:
        file_lock.release()
    return claim and Lock(file_lock, claim)


def _lock_file(file: Path) -> FileLock | None:
    """Returns the file lock, None where the disk has none. Raises Timeout if another process has it."""
    file_lock = FileLock(file, blocking=False, fallback_to_soft=False)
    try:
        file_lock.acquire()
    except OSError as error:
        if isinstance(error, Timeout) or error.errno not in NO_FILE_LOCKS:
            raise
        return None
    return file_lock


@functools.cache
def _claims_in(folder: Path) -> Claims:
    return Claims(folder)


def claims_on(output_dir: Path) -> Claims:
    """Returns the claims on a folder, the same each time: a heartbeat is seen only by looking repeatedly."""
    return _claims_in(output_dir.absolute() / CLAIMS_DIR)


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


def claim_output_dir(output_dir: Path, *, resume: bool) -> Lock:
    """Makes `output_dir` and returns a lock that keeps other runs out of it while this process lives.

    If another machine takes the folder over, because this process was silent for too long, this process ends.

    Raises UserError, and leaves the folder unchanged, if it is not empty and not to be resumed, or has no run
    to resume. The files of a run that ended before its first step do not count and are removed.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"--output_dir {output_dir} is a file, expected a folder; choose another name")
    was_there, was_run = output_dir.is_dir(), (output_dir / LOCK_FILE).is_file()
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        # Before looking inside, so that the content cannot change.
        lock = _acquire(output_dir)
    except OSError as error:
        raise UserError(
            f"--output_dir {output_dir}: cannot write there ({error.strerror}); choose another folder"
        ) from error
    found = {path.name for path in output_dir.iterdir()} - {LOCK_FILE, CLAIMS_DIR}
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


def _give_back(output_dir: Path, lock: Lock, *, was_run: bool, was_there: bool) -> None:
    """Releases the lock and removes what claiming the folder created."""
    lock.release()
    if not was_run:
        (output_dir / LOCK_FILE).unlink(missing_ok=True)
        shutil.rmtree(output_dir / CLAIMS_DIR)
    if not was_there:
        output_dir.rmdir()


def abandon(output_dir: Path, lock: Lock, *, was_there: bool) -> None:
    """Removes the folder of a run that ended before its first step, or empties it if it existed before."""
    for handler in logging.getLogger().handlers:
        handler.close()  # Windows cannot remove an open train.log
    lock.release()
    for path in list(output_dir.iterdir()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not was_there:
        output_dir.rmdir()


def lock_folder(output_dir: Path, *, patience: float = 0) -> Lock:
    """Returns a lock. Raises UserError if another process still holds it after `patience` seconds.

    If another machine takes the folder over, because this process was silent for too long, this process ends.
    """
    until = time.monotonic() + patience
    while True:
        try:
            return _acquire(output_dir)
        except UserError:
            if time.monotonic() >= until:
                raise
        time.sleep(0.2)


def _stop_writing(output_dir: Path) -> None:
    logger.error("%s: another machine took this folder over, because this one was silent; ending", output_dir)
    os._exit(1)  # at once: what this process wrote now would be mixed with the files of the other one


def _acquire(output_dir: Path) -> Lock:
    """Returns the lock, after waiting for the workers of a dead holder, or for a heartbeat elsewhere.

    Worker processes may keep the file lock of their dead parent until they end, seconds later. A claim of
    another machine is free when it has had no heartbeat for a while.
    """
    claims, waited, is_said = claims_on(output_dir), 0, False
    on_lost = functools.partial(_stop_writing, output_dir)
    while (lock := hold(output_dir / LOCK_FILE, claims, THE_FOLDER, on_lost=on_lost)) is None:
        holder = claims.holder(THE_FOLDER)
        if claims.has_beaten(THE_FOLDER):
            break
        if _is_locked_here(output_dir / LOCK_FILE):
            if waited >= ORPHANS_SECONDS or not is_dead_process(holder):
                break
            waited += 1
        elif not is_said:
            is_said = True
            logger.warning(
                "%s is locked by %s; waiting at most %.0f s to see whether that run still lives",
                *(output_dir, describe_holder(holder), claims.stale),
            )
        time.sleep(1)
    if lock:
        return lock
    raise UserError(
        f"--output_dir {output_dir}: another run is writing to it ({describe_holder(holder)}); wait for it, "
        f"or choose another folder; if you are sure that the run has ended, remove {output_dir / LOCK_FILE}"
    )


def is_dead_process(holder: dict[str, Any]) -> bool:
    """Returns whether the holder was a process of this machine that has ended."""
    pid = holder.get("pid")
    here = holder.get("machine") == this_machine()
    return here and type(pid) is int and 0 < pid < 2**31 and not psutil.pid_exists(pid)


def describe_holder(holder: dict[str, Any]) -> str:
    return "pid {pid} on {host} since {since}".format_map({"pid": "?", "host": "?", "since": "?", **holder})


def is_in_use(output_dir: Path) -> bool:
    """Returns whether a run holds the folder; of one on another machine, only its silence shows its end."""
    claims = claims_on(output_dir)
    if not claims.is_taken(THE_FOLDER):  # the file lock is not touched: a run may just be starting
        return False
    if _is_locked_here(output_dir / LOCK_FILE):
        return True
    is_dead = is_dead_process(claims.holder(THE_FOLDER))  # on a disk without file locks
    return not is_dead and claims.is_taken(THE_FOLDER, owners=[this_machine()])


def release_dead(output_dir: Path) -> None:
    """Releases the claim of a dead run, so that the next one need not wait until its silence is seen again.

    Only for who has found the folder not in use, and keeps others from starting a run in it.
    """
    if lock := hold(output_dir / LOCK_FILE, claims_on(output_dir), THE_FOLDER):
        lock.release()


def _is_locked_here(file: Path) -> bool:
    try:
        file_lock = _lock_file(file)
    except Timeout:
        return True
    if file_lock:
        file_lock.release()
    return False
