"""Where the images and this code come from: the synthetic sample, and git."""

import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

from cxr.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[3]
SAMPLE_DIR = REPOSITORY / "sample_data"


def is_synthetic(data_dir: Path | None) -> bool:
    """Whether the images are drawn by make_sample_data.py, in its own folder or another."""
    return data_dir is None or (data_dir / "sample-findings.json.gz").is_file()


def source_revision() -> str:
    """Returns the git commit of this code, marked where it was changed; "unknown" without git."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    if not (REPOSITORY / ".git").exists() or shutil.which("git") is None:
        return "unknown"
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def make_sample_data_once() -> Path:
    """Returns the folder of the synthetic sample; makes it on first use, while other processes wait."""
    if not SAMPLE_DIR.exists():
        script = REPOSITORY / "scripts" / "make_sample_data.py"
        with FileLock(REPOSITORY / ".sample_data.lock"):
            made = SAMPLE_DIR.exists() or not subprocess.run([sys.executable, script, SAMPLE_DIR]).returncode
        if not made:
            raise UserError(f"the synthetic sample could not be made in {SAMPLE_DIR}; name a --data_dir")
    return SAMPLE_DIR
