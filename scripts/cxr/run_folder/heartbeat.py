"""Claims on work in a folder that several machines share, kept alive by a heartbeat instead of a file lock.

A claim on NAME is a file NAME.N that its holder writes again every few seconds. Creating a file that must not
exist is safe on NFS, where a file lock may not be. Who finds that the last claim has not changed for a while,
by a clock of its own, takes over by creating NAME.N+1: only one can. Files of lower numbers count no more.
"""

import contextlib
import json
import os
import re
import secrets
import socket
import threading
import time
from pathlib import Path

from cxr.run_folder.files import write_json

BEAT_SECONDS = 10.0
STALE_SECONDS = 120.0  # longer than NFS may show an old file, which is a minute


class Claim:
    """A claim that this process holds; a thread renews it until it is released or lost."""

    def __init__(self, path: Path, content: dict[str, str], *, beat: float):
        self.path = path
        self.content = content
        self.lost = False  # another process took over, because this one seemed dead
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, args=(beat,), daemon=True)
        self._thread.start()

    def _keep(self, beat: float) -> None:
        while not self._end.wait(beat):
            with contextlib.suppress(OSError):  # such as a server that restarts; the next beat tries again
                name, number = split(self.path.name)
                if highest(self.path.parent).get(name, 0) > number:
                    self.lost = True
                    return
                write_json(self.path, self.content | {"beat": secrets.token_hex(8)})

    def release(self) -> None:
        self._end.set()
        self._thread.join()
        if not self.lost:
            with contextlib.suppress(OSError):  # the work is done; others wait until the claim is stale
                write_json(self.path, self.content | {"beat": "released"})


class Claims:
    """The claims in `folder`, as one process sees them."""

    def __init__(self, folder: Path, *, beat: float = BEAT_SECONDS, stale: float = STALE_SECONDS):
        self.folder = folder
        self.beat = beat
        self.stale = stale
        self.seen: dict[Path, tuple[bytes, float]] = {}  # the content of a claim, and since when it is that
        folder.mkdir(parents=True, exist_ok=True)

    def take(self, name: str, *, owner: str = "") -> Claim | None:
        """Returns a claim on `name`, None while another process holds it.

        `owner` names a holder of which only one lives, such as a job: its old claim is taken over at once.
        """
        number = highest(self.folder).get(name, 0)
        if number and not self._is_free(self.folder / f"{name}.{number}", owner):
            return None
        path = self.folder / f"{name}.{number + 1}"
        where = f"{socket.gethostname()}, pid {os.getpid()}"
        content = {"where": where, "owner": owner, "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        try:
            with path.open("x", encoding="utf-8") as file:
                json.dump(content, file)
        except FileExistsError:
            return None
        if highest(self.folder)[name] > number + 1:  # others went on while this process was slow
            path.unlink()
            return None
        for old in range(max(1, number - 1), number + 1):
            (self.folder / f"{name}.{old}").unlink(missing_ok=True)
        return Claim(path, content, beat=self.beat)

    def holder(self, name: str) -> dict[str, str]:
        """Returns `where` the last claim on `name` is held and `since` when, {} if that cannot be read."""
        with contextlib.suppress(OSError, ValueError):  # a claim that is just being replaced or written
            return json.loads((self.folder / f"{name}.{highest(self.folder).get(name, 0)}").read_bytes())
        return {}

    def _is_free(self, path: Path, owner: str) -> bool:
        """Returns whether a claim was released, is an earlier one of `owner`, or has no heartbeat."""
        try:
            found = path.read_bytes()
        except FileNotFoundError:  # just replaced by one of a higher number
            return False
        if found != self.seen.get(path, (None, 0.0))[0]:
            self.seen[path] = found, time.monotonic()
        with contextlib.suppress(ValueError):  # a claim that is just being written
            content = json.loads(found)
            if content.get("beat") == "released" or (owner and content["owner"] == owner):
                return True
        return time.monotonic() - self.seen[path][1] > self.stale


def split(file_name: str) -> tuple[str, int]:
    """Returns the name and the number of a claim's file."""
    name, _, number = file_name.rpartition(".")
    return name, int(number)


def highest(folder: Path) -> dict[str, int]:
    """Returns the number of the last claim on each name."""
    found: dict[str, int] = {}
    for file_name in (path.name for path in folder.iterdir()):
        if re.fullmatch(r"[^.].*\.\d+", file_name):  # not a temporary file
            name, number = split(file_name)
            found[name] = max(number, found.get(name, 0))
    return found
