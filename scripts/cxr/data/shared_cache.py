"""One image cache for all machines, and a machine's own copy of it: one process works, the others wait.

File locks may not work between machines, so the work is claimed with a heartbeat. Who works writes into a
folder of its own and renames it when it is complete: nobody reads half a cache, whoever is killed and when.
"""

import contextlib
import getpass
import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cxr.errors import UserError
from cxr.run_folder.files import sync_folder
from cxr.run_folder.heartbeat import STALE_SECONDS
from cxr.run_folder.heartbeat import Claims
from cxr.run_folder.lock import describe_holder
from cxr.run_folder.lock import hold
from mimic_cxr_dataset.errors import one_line
from mimic_cxr_dataset.image_lists import BAD_IMAGES
from mimic_cxr_dataset.image_lists import DOUBTFUL_IMAGES
from mimic_cxr_dataset.image_lists import describe_doubtful
from mimic_cxr_dataset.image_lists import listing_of
from mimic_cxr_dataset.image_lists import read_listing
from mimic_cxr_dataset.labels import MISSING_FILE
from mimic_cxr_dataset.radiographs import find_image

if TYPE_CHECKING:
    from mimic_cxr_dataset.pixels import Pixels

logger = logging.getLogger(__name__)
WORK = "work"  # the name of the claim
SIZES_FILE = "file_sizes.json"  # of some of the image files that were shrunk
NUM_COMPARED = 200
NEW = ".new."  # begins the names of unfinished folders
BEATS = 12  # of a claim in the time after which it is stale
HEAD_START_SECONDS = 2
POLLING_SECONDS = 0.5
SAY_SECONDS = 60


def shrink_once(
    builder: "Pixels", *, num_proc: int, shows_progress: bool, stale: float = STALE_SECONDS
) -> Path:
    """Returns the cache folder of a group of images, after one process of all machines has shrunk them.

    Of several processes, usually the one that `shows_progress` does it, as its terminal is the one that the
    user reads. `stale` is how many seconds without a heartbeat mean that another process is dead.
    """
    cache, group, files = Path(builder.cache_dir), builder.config.name, builder.config.files
    if is_complete(cache) and not why_again(cache, group, files):
        warn_of_doubtful(cache, group)
        return cache
    what = f"is shrinking the {group} images into {cache}"
    with working(cache.parent, what, goes_first=shows_progress, stale=stale) as new:
        if is_complete(cache):
            if not (reason := why_again(cache, group, files)):  # by now
                warn_of_doubtful(cache, group)
                return cache
            logger.warning("%s (%s views): shrinking all images of these views again", reason, group)
        sizes = sizes_of(files)
        builder.download_and_prepare(output_dir=str(new), num_proc=num_proc)
        (new / SIZES_FILE).write_text(json.dumps(sizes), encoding="utf-8")
        (new / SIZES_FILE).chmod(0o600)  # as the other files there
        sync_folder(new)
        if cache.exists() and why_again(cache, group, files):
            cache.rename(f"{new}.old")
        if not cache.exists():  # else another process took over, and was quicker
            new.rename(cache)
    return cache


def stage_once(
    caches: list[Path], stage_dir: Path, *, shows_progress: bool, stale: float = STALE_SECONDS
) -> list[Path]:
    """Returns copies of cache folders below `stage_dir`, after one process of the machine has made them.

    Each user has a folder of copies. Raises UserError if the disk has no room for those that are missing, or
    if they cannot be written.
    """
    folder = stage_dir / f"shrunk_images_{name_user()}"
    copies = {cache: folder / name_copy(cache) for cache in caches}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not all(map(is_complete, copies.values())):
            what = f"is copying shrunk images to {folder}"
            with working(folder, what, goes_first=shows_progress, stale=stale) as new:
                missing = {cache: copy for cache, copy in copies.items() if not is_complete(copy)}
                check_room(missing, folder)
                for cache, copy in missing.items():
                    copy_folder(cache, new)
                    new.rename(copy)
    except OSError as error:
        raise UserError(
            f"--stage_dir {stage_dir}: cannot copy the shrunk images there ({one_line(error)}); make room, "
            "name a folder on a disk of this machine that you may write to, or leave the flag out"
        ) from error
    return list(copies.values())


def name_user() -> str:
    """Returns the user's number, which also a container without a list of users knows; or the name."""
    return str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()


def is_complete(cache: Path) -> bool:
    return (cache / "dataset_info.json").is_file()


def warn_of_doubtful(cache: Path, group: str) -> None:
    if len(doubtful := read_listing(cache, DOUBTFUL_IMAGES, group)):
        listing = listing_of(cache, DOUBTFUL_IMAGES, group)
        logger.warning("%s", describe_doubtful(doubtful, listing, group))


def why_again(cache: Path, group: str, files: pd.DataFrame) -> str:
    """Returns why the images of a complete cache must be shrunk again, "" if they need not."""
    if has_new_files(cache, group):
        return "Bad images were replaced"
    known = cache / SIZES_FILE  # caches of older versions have none
    before = json.loads(known.read_text(encoding="utf-8")) if known.is_file() else {}
    has_changed = any(before.get(path, size) != size for path, size in sizes_of(files).items())
    return "Image files were replaced" * has_changed


def sizes_of(files: pd.DataFrame) -> dict[str, int]:
    """Returns the size in bytes of NUM_COMPARED of the files, those that exist, spread over all of them.

    Sizes, because the times of equal files differ between machines, and after a download or a copy.
    """
    chosen = np.linspace(0, len(files) - 1, min(NUM_COMPARED, len(files)), dtype=int)
    found = {path: find_image(path) for path in files["path"].iloc[chosen]}
    return {path: os.path.getsize(there) for path, there in found.items() if there}  # noqa: PTH202


def has_new_files(cache: Path, group: str) -> bool:
    """Returns whether a file in the list of bad images was added or changed after the list was written."""
    bad_images = read_listing(cache, BAD_IMAGES, group)
    if bad_images.empty:
        return False
    written = listing_of(cache, BAD_IMAGES, group).stat().st_mtime
    for bad in bad_images.itertuples():
        path = find_image(bad.path)
        changed = path and max(Path(path).stat().st_mtime, Path(path).stat().st_ctime) > written
        if changed or (path and bad.reason == MISSING_FILE):
            return True
    return False


def name_copy(cache: Path) -> str:
    """Returns a name for a copy of `cache`; it is another one after the cache was made again."""
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(cache.iterdir()):
        digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    return f"{cache.parent.name}-{digest.hexdigest()}"


def check_room(caches: dict[Path, Path], folder: Path) -> None:
    """Raises UserError if the disk of `folder` has no room for copies of the caches."""
    needed, free = sum(map(num_bytes, caches)), shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"--stage_dir {folder.parent}: found {megabytes(free)} free, expected {megabytes(needed)} for "
            f"the shrunk images; make room (copies of ended runs in {folder.name} may go), name another "
            "folder, or leave the flag out"
        )


def copy_folder(cache: Path, new: Path) -> None:
    """Copies the files of `cache` to the new folder `new`, which only its owner may read, as the cache."""
    size, began = num_bytes(cache), time.monotonic()
    logger.info("Copying %s of shrunk images to %s", megabytes(size), new.parent)
    new.mkdir(mode=0o700)
    said = began
    for path in sorted(cache.iterdir()):
        shutil.copyfile(path, new / path.name)
        (new / path.name).chmod(0o600)
        if time.monotonic() - said > SAY_SECONDS:
            said = time.monotonic()
            logger.info("%s of %s, %.0f s", megabytes(num_bytes(new)), megabytes(size), said - began)
    sync_folder(new)
    logger.info("Copied %s in %.1f s", megabytes(size), time.monotonic() - began)


def num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


@contextlib.contextmanager
def working(folder: Path, what: str, *, goes_first: bool, stale: float) -> Iterator[Path]:
    """Waits until no other process works in `folder`, then keeps the others waiting.

    Who waits says `what` the other does. Yields the path of a folder to write into, which must be renamed
    when it is complete. What is not renamed is removed, also that of dead processes. Raises UserError if
    others took this process for dead.
    """
    if not goes_first:
        time.sleep(HEAD_START_SECONDS)
    claims = Claims(folder, beat=stale / BEATS, stale=stale)
    said = -float(SAY_SECONDS)
    while (lock := hold(folder / f".{WORK}.lock", claims, WORK)) is None:
        if time.monotonic() - said >= SAY_SECONDS:
            said = time.monotonic()
            logger.info("Waiting: %s %s", describe_holder(claims.holder(WORK)), what)
        time.sleep(POLLING_SECONDS)
    new = folder / f"{NEW}{secrets.token_hex(4)}"
    try:
        remove(folder, NEW)
        yield new
    except Exception as error:
        if not lock.claim.lost:
            raise
        raise UserError(
            f"{folder}: found that another process took over, because this one gave no sign of life for "
            f"{stale:.0f} s, expected to finish; start again"
        ) from error
    finally:
        remove(folder, new.name)
        lock.release()


def remove(folder: Path, beginning: str) -> None:
    """Removes the files and folders of `folder` whose names begin so."""
    for path in folder.glob(f"{beginning}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)  # NFS keeps files that are open
        else:
            path.unlink(missing_ok=True)
