"""Finds out where the images and this code come from; makes the synthetic sample on first use."""

import gzip
import logging
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

from cxr.choices import LABELERS
from cxr.errors import UserError
from mimic_cxr_dataset.choices import MANIFEST_FILE
from mimic_cxr_dataset.errors import one_line

REPOSITORY = Path(__file__).resolve().parents[3]
SAMPLE_DIR = REPOSITORY / "sample_data"
# make_sample_data.py writes the version into each sample. Raise it when it writes other files than before.
VERSION_FILE, VERSION = "sample-version.txt", "2\n"

logger = logging.getLogger(__name__)


def is_synthetic(data_dir: Path | None) -> bool:
    """Returns whether the images were drawn by make_sample_data.py, in its own folder or another."""
    return data_dir is None or (data_dir / "sample-findings.json.gz").is_file()


def is_mimic(data_dir: Path) -> bool:
    """Returns whether a folder is MIMIC-CXR-JPG: the two labelers' tables differ; with one, by its path.

    In another collection that was converted to this layout, both tables have the same labels.
    """
    if is_synthetic(data_dir) or (data_dir / MANIFEST_FILE).is_file():
        return False
    paths = [path for name in LABELERS for path in sorted(data_dir.glob(f"mimic-cxr-*-{name}.csv*"))[:1]]
    try:
        tables = [path.read_bytes() for path in paths]
        tables = [gzip.decompress(one) if path.suffix == ".gz" else one for path, one in zip(paths, tables)]
    except (OSError, EOFError, zlib.error):  # reading the labels reports the error
        return True
    if len(tables) < len(LABELERS):
        return "mimic-cxr" in data_dir.absolute().as_posix().lower()
    return tables[0] != tables[1]


def source_revision() -> str:
    """Returns the git commit of this code, marked if files were changed; "unknown" without git."""
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or "unknown"


def source_address() -> str | None:
    """Returns the public address of this code: that of git's `origin`, without user and password."""
    return public_address(_git("remote", "get-url", "origin"))


def public_address(url: str) -> str | None:
    """Returns a git address without user, password, token and query; None if nobody else could use it.

    An SSH address of the user `git` becomes an https address, which all large hosts also offer.
    """
    url = re.sub(r"^git@([^:/]+):(?!/)", r"ssh://git@\1/", url)  # the short form of SSH
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return None
    is_ssh = parts.scheme == "ssh" and parts.username == "git" and not port
    is_public = re.fullmatch(r"([a-z0-9-]+\.)+[a-z][a-z0-9-]+", parts.hostname or "")
    is_plain = re.fullmatch(r"/\w[\w./+-]*", parts.path, flags=re.ASCII)
    if not (is_ssh or parts.scheme in ("http", "https")) or not is_public or not is_plain:
        return None
    return f"{'https' if is_ssh else parts.scheme}://{parts.hostname}{port}{parts.path}"


def _git(*words: str) -> str:
    """Returns git's answer about this repository; "" without git or outside a repository."""
    if not (REPOSITORY / ".git").exists() or shutil.which("git") is None:
        return ""
    command = ["git", "-C", str(REPOSITORY), *words]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def make_sample_data_once() -> Path:
    """Returns the folder of the synthetic sample; it is made on first use, while other processes wait.

    One of another version is made anew. A link, and a folder with other content, stay as they are.
    """
    if not _is_sample_usable():
        with FileLock(SAMPLE_DIR.with_name(".sample_data.lock")):
            if not _is_sample_usable():
                _make_sample()
    return SAMPLE_DIR


def _is_sample_usable() -> bool:
    """Returns whether SAMPLE_DIR is there and not a synthetic sample of another version."""
    try:
        version = (SAMPLE_DIR / VERSION_FILE).read_bytes()
    except OSError:  # older samples have no such file
        version = b""
    is_ours = is_synthetic(SAMPLE_DIR) and not SAMPLE_DIR.is_symlink()
    return SAMPLE_DIR.exists() and (version == VERSION.encode() or not is_ours)


def _make_sample() -> None:
    """Makes the sample beside SAMPLE_DIR, then removes the old one. Raises UserError."""
    if SAMPLE_DIR.exists():
        logger.warning("The synthetic sample in %s is of another version: making it anew", SAMPLE_DIR)
    script, aside = REPOSITORY / "scripts" / "make_sample_data.py", SAMPLE_DIR.with_name(".sample_data.new")
    shutil.rmtree(aside, ignore_errors=True)  # left by a process that was killed
    command = [sys.executable, script, aside / "new"]
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:  # its output names another folder
        raise UserError(f"the synthetic sample could not be made in {SAMPLE_DIR}; name a --data_dir")
    try:
        if SAMPLE_DIR.exists():
            SAMPLE_DIR.rename(aside / "old")
        (aside / "new").rename(SAMPLE_DIR)
    except OSError as error:
        raise UserError(f"{SAMPLE_DIR} cannot be replaced ({one_line(error)}); remove it") from error
    shutil.rmtree(aside, ignore_errors=True)
