"""Ends a script: with one line if the user can fix the error, else with the trace."""

import difflib
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from collections.abc import Iterable
from pathlib import Path

logger = logging.getLogger("cxr")

# What to do about errors of torch and the system that the machine causes, by a pattern in their text; the
# first match counts.
MEMORY = r"OutOfMemoryError|allocate memory|MemoryError"
SHARED_MEMORY = r"/torch_\d|/dev/shm|out of shared memory|Bus error"
DISK = r"No space left|Not enough disk space|Disk quota|PytorchStreamWriter|inline_container"
RIGHTS = r"PermissionError|Read-only file system"
PEERS = r"\b[Gg]loo\b|NCCL|Connection (?:closed|reset) by peer|Dist(?:Network|Store)Error"
RESUME = "continue with --resume_from_checkpoint latest"
TRAINING_ADVICE = {
    SHARED_MEMORY: "the processes that load images have no room in /dev/shm: give the container more (docker "
    "run --shm-size=8g, or --ipc=host), or use fewer workers (--dataloader_num_workers 2, or 0)",
    MEMORY: "out of memory: lower --per_device_train_batch_size or --image_size",
    "InductorError": "--torch_compile needs a C++ compiler and, on a GPU, Triton: install them, or leave the "
    "flag out",
    DISK: f"the disk is full: make room and {RESUME}; the last complete checkpoint is intact",
    RIGHTS: "name a folder that you may write to with --output_dir, --cache_dir, --stage_dir or --hub_dir",
    "DataLoader worker": "a process that loads images was killed, most likely because memory ran out: lower "
    f"--dataloader_num_workers and {RESUME}",
    PEERS: f"another process of this run has ended: see its last lines, and {RESUME} on all machines; if the "
    "processes never connected, set GLOO_SOCKET_IFNAME to the network interface between the machines",
}
# The same for scripts that use a model, whose flags have other names.
INFERENCE_ADVICE = {
    MEMORY: "out of memory: process fewer images at once, or use a smaller model or another device",
    DISK: "the disk is full: make room and start again",
    RIGHTS: "name files and folders that you may read and write",
}


class UserError(ValueError):
    """An error that the user can fix; the message says what was found, what was expected, what to do."""


_undo: list[Callable[[], None]] = []  # one per active `run_script`


def undo_on_user_error(undo: Callable[[], None]) -> None:
    """Makes `run_script` call `undo` if a UserError ends it; only the last call of this function counts."""
    if _undo:
        _undo[-1] = undo


def run_script(main: Callable[[], None], *, advice: dict[str, str] = INFERENCE_ADVICE) -> None:
    """Calls `main`. A UserError ends it with one line and exit status 2; train.log, if any, has the trace.

    Any other exception ends it with its trace, on the terminal and in train.log, and exit status 1. If a
    pattern of `advice` matches it, the last line says what to do.
    """
    _undo.append(undo_nothing)
    try:
        main()
    except UserError as error:
        logger.debug("The run failed.", exc_info=True)
        _undo[-1]()
        _say(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        logger.debug("The run failed.", exc_info=True)
        traceback.print_exc()
        text = "\n".join(_chain(error))
        what_to_do = next((words for part, words in advice.items() if re.search(part, text)), None)
        if what_to_do is not None:
            _say(what_to_do)
        sys.exit(1)
    finally:
        _undo.pop()


def undo_nothing() -> None:
    """Does nothing; given to `undo_on_user_error` when nothing is to be undone."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns a hint such as " (did you mean vit-mae-tiny?)" if a known name is similar, else ""."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _chain(error: BaseException | None) -> list[str]:
    """Returns the texts of an error and its causes, because the pattern may match only a cause."""
    found = []
    while error is not None and len(found) < 10:
        found.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return found


def _say(message: str) -> None:
    rank = os.environ.get("RANK", "0")
    who = Path(sys.argv[0]).name + ("" if rank == "0" else f" [process {rank}]")
    print(f"{who}: error: {' '.join(message.split())}", file=sys.stderr)
