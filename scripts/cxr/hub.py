"""Models by name in a local directory, in the documented layout of the Hugging Face Hub's cache.

    DIR/models--org--name/blobs/<sha256>          a file's content, shared by all revisions that have it
    DIR/models--org--name/snapshots/<commit>/...  a revision: links to blobs, or copies where there are none
    DIR/models--org--name/refs/main               the commit that the name means

So `from_pretrained("org/name", cache_dir=DIR, local_files_only=True)` works in plain transformers, offline.
"""

import hashlib
import json
import logging
import re
import shutil
import time
from pathlib import Path

from filelock import FileLock

from cxr.records import new_folder
from cxr.records import sync_file
from cxr.records import write_text

logger = logging.getLogger(__name__)

MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def repository_dir(hub_dir: Path, model_id: str) -> Path:
    return hub_dir / f"models--{model_id.replace('/', '--')}"


def push_model(model_dir: Path, *, hub_dir: Path, model_id: str) -> str:
    """Adds the files of `model_dir` as a new revision of `model_id`, makes it `main`, and returns its commit.

    Order matters: blobs, then the snapshot, then the ref, each appearing whole; an interrupted push leaves
    `main` where it was. The commit is a hash over the parent, the time and every file's name and content.
    """
    repository = repository_dir(hub_dir, model_id)
    repository.mkdir(parents=True, exist_ok=True)
    lock = hub_dir / ".locks" / f"{repository.name}.lock"
    lock.parent.mkdir(exist_ok=True)
    with FileLock(lock):  # another push waits
        _remove_leftovers(repository)
        blobs = {path.name: _store_blob(path, repository / "blobs") for path in sorted(model_dir.iterdir())}
        ref = repository / "refs" / "main"
        parent = ref.read_text(encoding="utf-8") if ref.exists() else None
        if parent and _files_of(repository / "snapshots" / parent) == blobs:
            logger.info("%s is revision %s already.", model_id, parent)  # a push that was repeated
            return parent
        content = json.dumps({"files": blobs, "parent": parent, "time_ns": time.time_ns()}, sort_keys=True)
        commit = hashlib.sha1(content.encode()).hexdigest()
        with new_folder(repository / "snapshots" / commit) as snapshot:
            for name, digest in blobs.items():
                _link_or_copy(repository / "blobs" / digest, snapshot / name)
        ref.parent.mkdir(exist_ok=True)
        write_text(ref, commit)
    load = f"from_pretrained({model_id!r}, cache_dir={str(hub_dir)!r}, local_files_only=True)"
    logger.info("Pushed revision %s: %s", commit, load)
    return commit


def _store_blob(path: Path, blobs_dir: Path) -> str:
    digest = _sha256(path)
    blob = blobs_dir / digest
    if not blob.exists():
        blobs_dir.mkdir(exist_ok=True)
        temporary = blobs_dir / f".{digest}.tmp"
        shutil.copyfile(path, temporary)
        sync_file(temporary)
        temporary.replace(blob)
    return digest


def _sha256(path: Path) -> str:
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
    return sha256.hexdigest()


def _files_of(snapshot: Path) -> dict[str, str]:
    """The hash of every file of a revision."""
    return {path.name: _sha256(path) for path in snapshot.glob("*")}


def _remove_leftovers(repository: Path) -> None:
    """Removes what a killed push was writing."""
    for path in repository.glob("*/.*.tmp"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _link_or_copy(blob: Path, link: Path) -> None:
    try:
        link.symlink_to(Path("..") / ".." / "blobs" / blob.name)
    except OSError:  # Windows without the right to make links
        shutil.copyfile(blob, link)
