"""Kills processes just before a chosen file operation, to reach every state between two of them."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.context import BaseContext
from pathlib import Path

import pytest

OPERATIONS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.chmod"}


def watch_operations(folder: Path, *, kill_at: int | None) -> Callable[[], int]:
    """Counts file operations below `folder` from now on; kills this process (SIGKILL) at number `kill_at`.

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


def start_forkserver(*modules: str) -> BaseContext:
    """Returns a `multiprocessing` context whose processes start with these modules already imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # before 3.12, it does not inherit sys.path
        first = context.Process(target=time.sleep, args=(0,))  # waits for the imports
        first.start()
        first.join()
    return context
