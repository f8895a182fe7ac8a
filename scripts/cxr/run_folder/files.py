"""Writes files and folders atomically: completely or not at all."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cxr.errors import UserError
from cxr.errors import undo_on_user_error
from mimic_cxr_dataset.errors import one_line


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Writes `path` atomically: readers see the old file or the whole new one. `private` means mode 0600."""
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
    """Returns the JSON object in `path`, {} if there is no file. Raises UserError for any other content."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: found damaged JSON ({error}), expected the file that a run wrote; restore it from a "
            "copy, or repeat that run in another folder"
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: found a {type(content).__name__}, expected the JSON object that a run wrote; restore "
            "it from a copy, or repeat that run in another folder"
        )
    return content


def make_output_dir(output_dir: Path) -> None:
    """Makes a script's folder, which a UserError removes again while it is empty. Raises UserError.

    Called before the work: an error at its end would lose what was measured.
    """

    def remove() -> None:
        with contextlib.suppress(OSError):  # it has results
            output_dir.rmdir()

    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output_dir {output_dir}: cannot be created ({one_line(error)}); name another folder"
        ) from error
    undo_on_user_error(remove)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; renames it to `path` if the block ends without an error."""
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(new: Path, path: Path) -> None:
    """Writes `new` to disk and renames it to `path`; an old `path` is replaced, or kept if that fails."""
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
    """Renames `path` and removes it, so that a kill cannot leave half a folder under the original name."""
    aside = path.with_name(f".{path.name}.tmp")
    path.replace(aside)
    shutil.rmtree(aside)


def sync_folder(folder: Path) -> None:
    """Flushes all files of `folder` to disk, because a rename may be written before the content."""
    for path in folder.rglob("*"):
        sync_file(path)
    sync_file(folder)


def sync_file(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder, and orders renames itself
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
