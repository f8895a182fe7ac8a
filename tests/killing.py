"""Kills this process just before an operation on a file, so that what lies between two of them is hit."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

OPERATIONS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.chmod"}


def watch_operations(folder: Path, *, kill_at: int | None) -> Callable[[], int]:
    """From now on counts operations below `folder`, and ends the process at its `kill_at`-th by SIGKILL.

    Returns a function that returns the count.
    """
    count = 0

    def operate(event: str, args: tuple) -> None:
        nonlocal count
        if event in OPERATIONS and any(str(arg).startswith(str(folder)) for arg in args[:2]):
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(operate)
    return lambda: count
