"""Models by name: in a local directory in the documented layout of the Hugging Face Hub's cache, or there.

    DIR/models--org--name/blobs/<sha256>          a file's content, shared by all revisions that have it
    DIR/models--org--name/snapshots/<commit>/...  a revision: links to blobs, or copies where there are none
    DIR/models--org--name/commits/<commit>.json   its parent, time, message and files; its SHA-1 is the commit
    DIR/models--org--name/refs/<name>             the commit that "main" or a tag means

So `from_pretrained("org/name", cache_dir=DIR, local_files_only=True)` works in plain transformers, offline.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from datetime import timezone
from pathlib import Path

from filelock import FileLock
from huggingface_hub import HfApi

from cxr.privacy import mask_ids
from cxr.records import new_folder
from cxr.records import read_json
from cxr.records import remove_folder
from cxr.records import sha256_of
from cxr.records import sync_file
from cxr.records import write_text

logger = logging.getLogger(__name__)

MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
TAG = re.compile(r"(?!main$|[0-9a-f]{40}$)[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
# The files of a model; of pictures, those of numbers: others may show a patient.
SHARED_FILES = re.compile(
    r"[\w.-]+\.(?:json|md|onnx|safetensors)|(?:loss|roc_pr_\w+|confusion_matrix_\w+)\.png"
)


@dataclass(frozen=True, kw_only=True)
class Commit:
    """A revision of a model: what it holds, as the SHA-256 of each file, and what it followed."""

    commit: str
    parent: str | None
    time: str  # ISO 8601, UTC
    message: str
    files: dict[str, str]


def parse_model_id(text: str) -> str:
    """Returns the name of a model on a command line. Raises argparse.ArgumentTypeError for what is none."""
    if not MODEL_ID.fullmatch(text) or len(text) > 96:  # the Hub's own limit
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected organisation/name, such as my-lab/mae-cxr"
        )
    return text


def parse_tag(text: str) -> str:
    """Returns the name of a revision on a command line. Raises argparse.ArgumentTypeError for others."""
    if not TAG.fullmatch(text):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a name such as v1, other than main")
    return text


def repository_dir(hub_dir: Path, model_id: str) -> Path:
    return hub_dir / f"models--{model_id.replace('/', '--')}"


def model_ids(hub_dir: Path) -> list[str]:
    """Returns the names of the models that were pushed to `hub_dir`."""
    found = sorted(path.parent.name for path in hub_dir.glob("models--*--*/commits"))
    return [name.removeprefix("models--").replace("--", "/", 1) for name in found]


def prepare_push(*, hub_dir: Path | None, model_id: str, tag: str | None) -> None:
    """Finds out before a training what would stop the push after it. Raises OSError or ValueError."""
    if hub_dir is None:
        with _asking_the_hub():
            HfApi().create_repo(model_id, private=True, exist_ok=True)
        return
    try:
        hub_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--hub_dir {hub_dir}: cannot be made ({error.strerror}); name another folder"
        ) from error
    _check_tag(repository_dir(hub_dir, model_id), tag)


def push(
    model_dir: Path, *, hub_dir: Path | None, model_id: str, message: str, tag: str | None = None
) -> str:
    """Adds the files of `model_dir` as a new revision of `model_id`; returns its commit.

    With `hub_dir` None it goes to the Hugging Face Hub, as a private model. Raises ValueError for a folder
    that holds anything but a model, and OSError.
    """
    files = _files_to_share(model_dir)
    if hub_dir is not None:
        commit = _push_to_folder(files, hub_dir, model_id, message, tag)
        load = f"from_pretrained({model_id!r}, cache_dir={str(hub_dir)!r}, local_files_only=True)"
    else:
        api = HfApi()
        with _asking_the_hub():
            api.create_repo(model_id, private=True, exist_ok=True)
            names = [path.name for path in files]
            commit = api.upload_folder(
                repo_id=model_id, folder_path=model_dir, commit_message=message, allow_patterns=names
            ).oid
            if tag:
                api.create_tag(model_id, tag=tag, revision=commit)
        load = f"from_pretrained({model_id!r})"
    logger.info("Pushed revision %s: %s", commit, load)
    return commit


def read_log(hub_dir: Path, model_id: str, revision: str = "main") -> list[Commit]:
    """Returns a revision and all that it followed, newest first. Raises ValueError for an unknown one."""
    repository = repository_dir(hub_dir, model_id)
    log, commit = [], resolve(hub_dir, model_id, revision)
    while commit is not None:
        log.append(_read_commit(repository, commit))
        commit = log[-1].parent
    return log


def read_refs(hub_dir: Path, model_id: str) -> dict[str, str]:
    """Returns the commit of each name: main and the tags."""
    refs = repository_dir(hub_dir, model_id) / "refs"
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(refs.glob("[!.]*"))}


def resolve(hub_dir: Path, model_id: str, revision: str) -> str:
    """Returns the commit that main, a tag or the first digits of a commit mean. Raises ValueError."""
    if not (repository_dir(hub_dir, model_id) / "commits").is_dir():
        known = ", ".join(model_ids(hub_dir)) or "none"
        raise ValueError(
            f"--hub_dir {hub_dir}: found no model {model_id}; expected one of those in it: {known}"
        )
    refs = read_refs(hub_dir, model_id)
    if revision in refs:
        return refs[revision]
    commits = sorted(path.stem for path in (repository_dir(hub_dir, model_id) / "commits").glob("[!.]*.json"))
    meant = [commit for commit in commits if len(revision) >= 4 and commit.startswith(revision)]
    if len(meant) != 1:
        raise ValueError(
            f"{model_id}: found {len(meant)} revisions {revision!r}; expected {' or '.join(refs)}, or the "
            "first digits of a commit in its log"
        )
    return meant[0]


def set_tag(hub_dir: Path, model_id: str, tag: str, revision: str) -> str:
    """Makes `tag` mean a revision, for good; returns its commit. Raises ValueError for a tag in use."""
    commit = resolve(hub_dir, model_id, revision)
    with _locked(hub_dir, model_id) as repository:
        _check_tag(repository, tag)
        write_text(repository / "refs" / tag, commit)
    return commit


def find_problems(hub_dir: Path, model_id: str) -> list[str]:
    """Reads every byte of a model; returns what is not as it was pushed, a line each."""
    repository = repository_dir(hub_dir, model_id)
    problems = []
    for blob in sorted((repository / "blobs").glob("[!.]*")):
        if sha256_of(blob) != blob.name:
            problems.append(f"{blob}: its content has changed")
    commits = {path.stem for path in (repository / "commits").glob("[!.]*.json")}
    for name, commit in read_refs(hub_dir, model_id).items():
        if commit not in commits:
            problems.append(f"{repository / 'refs' / name}: there is no commit {commit}")
    for commit in sorted(commits):
        try:
            found = _read_commit(repository, commit)
        except ValueError as error:
            problems.append(str(error))
            continue
        if found.parent and found.parent not in commits:
            problems.append(f"{repository / 'commits' / commit}.json: its parent {found.parent} is missing")
        snapshot = repository / "snapshots" / commit
        in_snapshot = {path.name for path in snapshot.glob("*")}
        for name, digest in found.files.items():
            path = snapshot / name
            if not path.is_file():
                problems.append(f"{path}: is missing")
            elif not path.is_symlink() and sha256_of(path) != digest:
                problems.append(f"{path}: its content has changed")
            elif path.is_symlink() and path.resolve() != (repository / "blobs" / digest).resolve():
                problems.append(f"{path}: leads elsewhere than to its content")
        problems += [
            f"{snapshot / name}: was not pushed" for name in sorted(in_snapshot - found.files.keys())
        ]
    return problems


def collect_garbage(hub_dir: Path, model_id: str) -> tuple[int, int]:
    """Removes revisions that no ref leads to, and contents of no revision; returns their numbers."""
    with _locked(hub_dir, model_id) as repository:
        kept: dict[str, Commit] = {}
        for commit in read_refs(hub_dir, model_id).values():
            while commit is not None and commit not in kept:
                kept[commit] = _read_commit(repository, commit)
                commit = kept[commit].parent
        unreached = [path for path in (repository / "commits").glob("*.json") if path.stem not in kept]
        for snapshot in (repository / "snapshots").glob("*"):
            if snapshot.name not in kept:
                remove_folder(snapshot)
        for path in unreached:
            path.unlink()
        used = {digest for commit in kept.values() for digest in commit.files.values()}
        unused = [path for path in (repository / "blobs").glob("*") if path.name not in used]
        for path in unused:
            path.unlink()
    return len(unreached), len(unused)


def _files_to_share(model_dir: Path) -> list[Path]:
    """Returns the files of a model. Raises ValueError where others, or ids of patients, are among them."""
    if not (model_dir / "config.json").is_file():
        raise ValueError(
            f"{model_dir}: found no config.json; expected the folder of a model, such as RUN/model"
        )
    files = sorted(model_dir.iterdir())
    for path in files:
        if not path.is_file() or not SHARED_FILES.fullmatch(path.name):
            expected = "the files of a model: .json, .md, .onnx, .safetensors and figures of a run"
            raise ValueError(f"{path}: found in a folder to share, expected {expected}; move it elsewhere")
        if path.suffix in (".json", ".md"):
            text = path.read_text(encoding="utf-8")
            if mask_ids(text) != text:
                raise ValueError(
                    f"{path}: found what looks like the id of a patient, a study or an image; expected none "
                    "in a folder to share; remove it"
                )
    return files


@contextlib.contextmanager
def _asking_the_hub() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of the network, of the Hub, of the login: each has its own kinds
        reason = " ".join(str(error).split())[:300]
        raise OSError(
            f"--push_to_hub: the Hugging Face Hub could not be asked ({reason}); log in with hf auth login, "
            "or name a --hub_dir to push to a local directory"
        ) from error


def _push_to_folder(files: list[Path], hub_dir: Path, model_id: str, message: str, tag: str | None) -> str:
    """Order matters: blobs, snapshot, record, refs, each of them whole; a killed push moves no ref."""
    with _locked(hub_dir, model_id) as repository:
        blobs = {path.name: _store_blob(path, repository / "blobs") for path in files}
        parent = read_refs(hub_dir, model_id).get("main")
        if parent and _read_commit(repository, parent).files == blobs:
            commit = parent  # a push that was repeated, or mends what was damaged
            if not _is_whole(repository / "snapshots" / commit, blobs):
                _write_snapshot(repository, commit, blobs)
        else:
            _check_tag(repository, tag)
            time = datetime.now(timezone.utc).isoformat()
            content = {"parent": parent, "time": time, "message": message, "files": blobs}
            text = json.dumps(content, indent=2, sort_keys=True)
            commit = hashlib.sha1(text.encode()).hexdigest()
            _write_snapshot(repository, commit, blobs)
            for folder in ("commits", "refs"):
                (repository / folder).mkdir(exist_ok=True)
            write_text(repository / "commits" / f"{commit}.json", text)
        write_text(repository / "refs" / "main", commit)
        if tag and read_refs(hub_dir, model_id).get(tag) != commit:
            _check_tag(repository, tag)
            write_text(repository / "refs" / tag, commit)
    return commit


@contextlib.contextmanager
def _locked(hub_dir: Path, model_id: str) -> Iterator[Path]:
    """Gives the repository to one process at a time, without what a killed one left in it."""
    repository = repository_dir(hub_dir, model_id)
    lock = hub_dir / ".locks" / f"{repository.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        repository.mkdir(exist_ok=True)
        for path in repository.glob("*/.*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield repository


def _check_tag(repository: Path, tag: str | None) -> None:
    if tag is not None and (repository / "refs" / tag).exists():
        raise ValueError(f"found the tag {tag} in {repository}, expected a new one: a tag is never moved")


def _read_commit(repository: Path, commit: str) -> Commit:
    path = repository / "commits" / f"{commit}.json"
    content = read_json(path)
    if not content or hashlib.sha1(path.read_bytes()).hexdigest() != commit:
        raise ValueError(f"{path}: is missing or its content has changed; push the model again")
    return Commit(commit=commit, **content)


def _store_blob(path: Path, blobs_dir: Path) -> str:
    """Returns the SHA-256 of what was stored: of a copy, as a training may replace the file meanwhile."""
    blobs_dir.mkdir(exist_ok=True)
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
            _link_or_copy(repository / "blobs" / digest, snapshot / name)


def _is_whole(snapshot: Path, blobs: dict[str, str]) -> bool:
    return all((snapshot / name).is_file() and sha256_of(snapshot / name) == blobs[name] for name in blobs)


def _link_or_copy(blob: Path, link: Path) -> None:
    try:
        link.symlink_to(Path("..") / ".." / "blobs" / blob.name)
    except OSError:  # Windows without the right to make links
        shutil.copyfile(blob, link)
