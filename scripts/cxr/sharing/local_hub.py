"""Stores models by name in a local directory, in the documented layout of the Hugging Face Hub's cache.

    DIR/models--org--name/blobs/<sha256>          a file's content, shared by all revisions that have it
    DIR/models--org--name/snapshots/<commit>/...  a revision: links to blobs, or copies if links do not work
    DIR/models--org--name/commits/<commit>.json   its parent, time, message and files; its SHA-1 is the commit
    DIR/models--org--name/refs/<name>             the commit that "main" or a tag refers to

So `from_pretrained("org/name", cache_dir=DIR, local_files_only=True)` works offline with plain transformers.
If "main" refers to a revision without a record, for example after a download of the same name from the Hub,
the model is left unchanged: nothing is pushed and nothing removed.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from datetime import timezone
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from cxr.errors import UserError
from cxr.errors import did_you_mean
from cxr.run_folder.files import new_folder
from cxr.run_folder.files import read_json
from cxr.run_folder.files import remove_folder
from cxr.run_folder.files import sha256_of
from cxr.run_folder.files import sync_file
from cxr.run_folder.files import write_text
from cxr.run_folder.heartbeat import Claims
from cxr.run_folder.lock import hold
from cxr.run_folder.privacy import files_to_share
from cxr.run_folder.privacy import mask_ids

logger = logging.getLogger(__name__)
MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
TAG = re.compile(r"(?!main$|[0-9a-f]{40}$)[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
POLLING_SECONDS = 0.05  # between two looks whether another process has finished
BLOBS = 64 * "[0-9a-f]"  # SHA-256; downloads also use other names


@dataclass(frozen=True, kw_only=True)
class Commit:
    """A revision of a model: its parent, time and message, and the SHA-256 of each file by name."""

    commit: str
    parent: str | None
    time: str  # ISO 8601, UTC
    message: str
    files: dict[str, str]


def parse_model_id(text: str) -> str:
    """Checks the name of a model on a command line. Raises argparse.ArgumentTypeError if it is not valid."""
    with contextlib.suppress(HFValidationError):
        if MODEL_ID.fullmatch(text):
            validate_repo_id(text)
            return without_ids(text)
    raise argparse.ArgumentTypeError(f"found {text!r}, expected ORG/NAME, such as my-lab/mae-cxr")


def without_ids(text: str) -> str:
    """Checks a text that will be shared. Raises argparse.ArgumentTypeError if it contains an id."""
    if mask_ids(text) != text:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, which looks like the id of a patient, a study or an image; expected another"
        )
    return text


def parse_tag(text: str) -> str:
    """Checks a tag on a command line. Raises argparse.ArgumentTypeError if it is not valid."""
    if not TAG.fullmatch(text):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a name such as v1, other than main")
    return without_ids(text)


def repository_dir(hub_dir: Path, model_id: str) -> Path:
    return hub_dir / f"models--{model_id.replace('/', '--')}"


def model_ids(hub_dir: Path) -> list[str]:
    """Returns the names of the models that were pushed to `hub_dir`."""
    found = sorted(path.parent.name for path in hub_dir.glob("models--*--*/commits"))
    return [name.removeprefix("models--").replace("--", "/", 1) for name in found]


def check_is_known(hub_dir: Path, model_id: str) -> None:
    """Raises UserError if the model was not pushed to `hub_dir`."""
    known = model_ids(hub_dir)
    if model_id not in known:
        raise UserError(
            f"--hub_dir {hub_dir}: found no model {model_id}{did_you_mean(model_id, known)}; expected one of "
            f"its models: {', '.join(known) or 'none'}"
        )


def check_push(*, hub_dir: Path, model_id: str, tag: str | None) -> None:
    """Raises UserError, before a training, if the push after it would fail."""
    with _locked(hub_dir, model_id) as (repository, refs):
        _head(repository, refs)
        if tag in refs:
            raise tag_is_taken(tag, refs[tag])


def push(model_dir: Path, *, hub_dir: Path, model_id: str, message: str, tag: str | None = None) -> str:
    """Adds the files of `model_dir` as a new revision of `model_id`; returns the commit.

    If the tag or main already has the same files, that revision is returned, and repaired if damaged. The
    order is blobs, snapshot, record, main, tag, each written atomically: after a killed push, no name refers
    to an incomplete revision, and a repeated push completes it. Raises UserError if the folder holds anything
    but a model or the tag refers to other files, and OSError.
    """
    files = files_to_share(model_dir)
    with _locked(hub_dir, model_id) as (repository, refs):
        blobs = {path.name: _store_blob(path, repository / "blobs") for path in files}
        sync_file(repository / "blobs")  # their names must be on disk before anything refers to them
        head = _head(repository, refs)
        tagged = _read_commit(repository, refs[tag]) if tag in refs else None
        if tagged and tagged.files != blobs:
            raise tag_is_taken(tag, tagged.commit)
        same = next((one for one in (tagged, head) if one and one.files == blobs), None)
        if same:
            commit = same.commit
            snapshot = repository / "snapshots" / commit
            if not all(_has_content(snapshot / name, digest) for name, digest in blobs.items()):
                _write_snapshot(repository, commit, blobs)
        else:
            content = {"parent": head.commit if head else None, "message": message, "files": blobs}
            content["time"] = datetime.now(timezone.utc).isoformat()
            text = json.dumps(content, indent=2, sort_keys=True)
            commit = hashlib.sha1(text.encode()).hexdigest()
            _write_snapshot(repository, commit, blobs)
            _write(repository / "commits" / f"{commit}.json", text)
        if not same or "main" not in refs:
            _write(repository / "refs" / "main", commit)
        if tag and tag not in refs:
            _write(repository / "refs" / tag, commit)
    return commit


def read_log(hub_dir: Path, model_id: str, revision: str = "main") -> list[Commit]:
    """Returns a revision and all its ancestors, newest first. Raises UserError if it is unknown."""
    repository = repository_dir(hub_dir, model_id)
    log = [_read_commit(repository, resolve(hub_dir, model_id, revision))]
    while log[-1].parent is not None:
        log.append(_read_commit(repository, log[-1].parent))
    return log


def read_refs(hub_dir: Path, model_id: str) -> dict[str, str]:
    """Returns the commit of each ref: main and the tags."""
    refs = repository_dir(hub_dir, model_id) / "refs"
    files = [path for path in sorted(refs.glob("[!.]*")) if path.is_file()]  # downloads also make folders
    return {path.name: path.read_text(encoding="utf-8", errors="replace") for path in files}


def resolve(hub_dir: Path, model_id: str, revision: str) -> str:
    """Returns the commit for main, a tag or the first digits of a commit. Raises UserError if unclear."""
    check_is_known(hub_dir, model_id)
    refs = read_refs(hub_dir, model_id)
    if revision in refs:
        return refs[revision]
    commits = sorted(path.stem for path in (repository_dir(hub_dir, model_id) / "commits").glob("[!.]*.json"))
    meant = [commit for commit in commits if len(revision) >= 4 and commit.startswith(revision)]
    if len(meant) != 1:
        raise UserError(
            f"{model_id}: found {len(meant)} revisions {revision!r}; expected "
            f"{' or '.join([*refs, 'the first digits of a commit in its log'])}"
        )
    return meant[0]


def set_tag(hub_dir: Path, model_id: str, tag: str, revision: str) -> str:
    """Tags a revision permanently; returns its commit. Raises UserError if another one has the tag."""
    with _locked(hub_dir, model_id) as (repository, refs):
        commit = resolve(hub_dir, model_id, revision)
        if refs.get(tag, commit) != commit:
            raise tag_is_taken(tag, refs[tag])
        _write(repository / "refs" / tag, commit)
    return commit


def find_problems(hub_dir: Path, model_id: str) -> list[str]:
    """Reads all files of a model; returns everything that differs from what was pushed, one line each.

    It takes no lock, so that a read-only directory can be verified. A push or garbage collection that runs at
    the same time can look like a problem, so only problems that a second look confirms are returned.
    """
    problems = _look_for_problems(hub_dir, model_id)
    again = set(_look_for_problems(hub_dir, model_id)) if problems else ()
    return [problem for problem in problems if problem in again]


def _look_for_problems(hub_dir: Path, model_id: str) -> list[str]:
    repository = repository_dir(hub_dir, model_id)
    problems = []
    refs = read_refs(hub_dir, model_id)  # read first: a push meanwhile only adds commits
    if "main" not in refs:
        problems.append(f"{repository / 'refs' / 'main'}: is missing")
    for blob in sorted((repository / "blobs").glob(BLOBS)):
        if not _has_content(blob, blob.name):
            problems.append(f"{blob}: its content has changed")
    commits = {path.stem for path in (repository / "commits").glob("[!.]*.json")}
    for name, commit in refs.items():
        if commit not in commits:
            problems.append(f"{repository / 'refs' / name}: refers to {commit}, which was not pushed here")
    for commit in sorted(commits):
        try:
            found = _read_commit(repository, commit)
        except UserError as error:
            problems.append(str(error))
            continue
        if found.parent and found.parent not in commits:
            problems.append(f"{repository / 'commits' / commit}.json: its parent {found.parent} is missing")
        snapshot = repository / "snapshots" / commit
        for name, digest in found.files.items():
            path = snapshot / name
            if not path.is_file():
                problems.append(f"{path}: is missing")
            elif not path.is_symlink() and not _has_content(path, digest):
                problems.append(f"{path}: its content has changed")
            elif path.is_symlink() and path.resolve() != (repository / "blobs" / digest).resolve():
                problems.append(f"{path}: links to another file than its content")
        added = sorted(path for path in snapshot.glob("*") if path.name not in found.files)
        problems += [f"{path}: was not pushed" for path in added]
    return problems


def collect_garbage(hub_dir: Path, model_id: str) -> tuple[int, int]:
    """Removes revisions that no ref reaches, and blobs that no revision has; returns both numbers.

    Raises UserError, before anything is removed, if main is missing or a ref reaches an unknown commit.
    """
    with _locked(hub_dir, model_id) as (repository, refs):
        kept: dict[str, Commit] = {}
        if "main" not in refs:
            raise UserError(
                f"{model_id}: found no refs/main in {repository}: the first push was killed, or the file is "
                "lost; push the model again"
            )
        for commit in refs.values():
            while commit is not None and commit not in kept:
                kept[commit] = _read_commit(repository, commit)
                commit = kept[commit].parent
        unreached = [path for path in (repository / "commits").glob("*.json") if path.stem not in kept]
        for path in sorted(unreached, key=lambda path: path.stat().st_mtime, reverse=True):
            path.unlink()  # parents last: an interrupted run leaves no commit without its parent
        used = {digest for commit in kept.values() for digest in commit.files.values()}
        files = [path for path in (repository / "refs").rglob("*") if path.is_file()]
        named = {path.read_text(encoding="utf-8", errors="replace") for path in files}
        for snapshot in (repository / "snapshots").glob("*"):  # after the records: no record lacks its files
            if snapshot.name in named - kept.keys():  # downloaded under a ref such as refs/pr/1
                used |= {path.resolve().name for path in snapshot.rglob("*")}
            elif snapshot.name not in kept:
                remove_folder(snapshot)
        unused = [path for path in (repository / "blobs").glob(BLOBS) if path.name not in used]
        for path in unused:
            path.unlink()
    return len(unreached), len(unused)


@contextlib.contextmanager
def _locked(hub_dir: Path, model_id: str) -> Iterator[tuple[Path, dict[str, str]]]:
    """Locks a model for this process, removes temporary files of killed ones; yields its folder and refs."""
    repository = repository_dir(hub_dir, model_id)
    claims, is_said = Claims(hub_dir / ".locks" / "claims"), False
    try:
        while (lock := hold(hub_dir / ".locks" / f"{repository.name}.lock", claims, repository.name)) is None:
            if not is_said:
                logger.warning("Waiting for another process that is writing to %s.", repository)
            is_said = True
            time.sleep(POLLING_SECONDS)
    except OSError as error:
        raise UserError(
            f"--hub_dir {hub_dir}: cannot be written to ({error.strerror}); expected a writable folder"
        ) from error
    try:
        for path in repository.glob("*/.*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield repository, read_refs(hub_dir, model_id)
    finally:
        lock.release()


def tag_is_taken(tag: str, commit: str) -> UserError:
    return UserError(
        f"found the tag {tag} at revision {commit[:8]}, which cannot be moved; expected a new tag"
    )


def _head(repository: Path, refs: dict[str, str]) -> Commit | None:
    """Returns the commit of main or, if main is lost or was not yet written, the newest commit."""
    if "main" in refs:
        return _read_commit(repository, refs["main"])
    commits = [_read_commit(repository, path.stem) for path in (repository / "commits").glob("[!.]*.json")]
    return max(commits, key=lambda commit: commit.time, default=None)


def _read_commit(repository: Path, commit: str) -> Commit:
    path = repository / "commits" / f"{commit}.json"
    if not path.is_file():
        raise UserError(
            f"{path}: is missing: revision {commit[:8]} was downloaded from the Hub or its record was lost; "
            "name another --hub_dir, or restore the file"
        )
    if hashlib.sha1(path.read_bytes()).hexdigest() != commit:
        raise UserError(f"{path}: its content has changed; restore it from a copy, or name another --hub_dir")
    return Commit(commit=commit, **read_json(path))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    write_text(path, text)
    sync_file(path.parent)


def _store_blob(path: Path, blobs_dir: Path) -> str:
    """Stores a file; returns the SHA-256 of the copy, because a training may replace the file meanwhile."""
    blobs_dir.mkdir(parents=True, exist_ok=True)
    temporary = blobs_dir / f".{path.name}.tmp"
    shutil.copyfile(path, temporary)
    sync_file(temporary)
    digest = sha256_of(temporary)
    blob = blobs_dir / digest
    if blob.exists() and sha256_of(blob) == digest:
        temporary.unlink()
    else:  # new, or damaged
        temporary.replace(blob)
    return digest


def _write_snapshot(repository: Path, commit: str, blobs: dict[str, str]) -> None:
    with new_folder(repository / "snapshots" / commit) as snapshot:
        for name, digest in blobs.items():
            link_or_copy(Path("..") / ".." / "blobs" / digest, snapshot / name)


def _has_content(path: Path, digest: str) -> bool:
    return path.is_file() and sha256_of(path) == digest


def link_or_copy(target: Path, link: Path) -> None:
    """Makes `link` a link to `target`, which may be relative to it, or a copy if links are not allowed."""
    try:
        link.symlink_to(target)
    except OSError:  # Windows
        shutil.copyfile(link.parent / target, link)
