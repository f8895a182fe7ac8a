"""How a script ends: what the user can mend in one line, anything else with its trace."""

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

# What to do about errors of torch and of the system that come from the machine, by a part of their text; the
# first that fits counts.
MEMORY = r"OutOfMemoryError|allocate memory|MemoryError"
SHARED_MEMORY = r"/torch_\d|/dev/shm|out of shared memory|Bus error"
DISK = r"No space left|Not enough disk space|Disk quota|PytorchStreamWriter|inline_container"
RIGHTS = r"PermissionError|Read-only file system"
PEERS = r"\b[Gg]loo\b|NCCL|Connection (?:closed|reset) by peer|Dist(?:Network|Store)Error"
RESUME = "continue with --resume_from_checkpoint latest"
TRAINING_ADVICE = {
    SHARED_MEMORY: "the loader's workers have no room in /dev/shm: give the container more (docker run "
    "--shm-size=8g, or --ipc=host), or use fewer workers (--dataloader_num_workers 2, or 0)",
    MEMORY: "out of memory: lower --per_device_train_batch_size or --image_size",
    "InductorError": "--torch_compile needs a C++ compiler, on a GPU also Triton: install them, or drop it",
    DISK: f"the disk is full: make room and {RESUME}; the last complete checkpoint is unharmed",
    RIGHTS: "name a folder that you may write to: --output_dir, --cache_dir or --hub_dir",
    "DataLoader worker": "a process that loads images was killed, most often for want of memory: lower "
    f"--dataloader_num_workers and {RESUME}",
    PEERS: f"another process of this run is gone: see its last lines, and {RESUME} on all; if they never "
    "met, set GLOO_SOCKET_IFNAME to the network interface that connects the machines",
}
# The same for scripts that use a model: their flags have other names.
INFERENCE_ADVICE = {
    MEMORY: "out of memory: take fewer images at once, a smaller model or another device",
    DISK: "the disk is full: make room and start again",
    RIGHTS: "name files and folders that you may read and write",
}


class UserError(ValueError):
    """Something that the user can mend; the message says what was found, what was expected, what to do."""


def run_script(main: Callable[[], None], *, advice: dict[str, str] = INFERENCE_ADVICE) -> None:
    """Calls `main`. A UserError ends it with one line and exit status 2; train.log, if any, has the trace.

    Any other exception keeps its trace, on the terminal and in train.log, with exit status 1; where `advice`
    knows what to do about it, that is the last line.
    """
    try:
        main()
    except UserError as error:
        logger.debug("The run failed.", exc_info=True)
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


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Which known name a wrong one is like, to end a clause: " (did you mean resnet-18?)", or ""."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def one_line(error: BaseException) -> str:
    """The message of an error of a library, for a sentence of ours."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:300] or type(error).__name__


def _chain(error: BaseException | None) -> list[str]:
    """An error and those that it came from, as text: the cause may be what tells."""
    found = []
    while error is not None and len(found) < 10:
        found.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return found


def _say(message: str) -> None:
    rank = os.environ.get("RANK", "0")
    who = Path(sys.argv[0]).name + ("" if rank == "0" else f" [process {rank}]")
    print(f"{who}: error: {' '.join(message.split())}", file=sys.stderr)
