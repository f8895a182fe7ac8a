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
from collections.abc import Callable
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr.run_folder.files import write_json

BEAT_SECONDS = 10.0
STALE_SECONDS = 120.0  # longer than NFS may show an old file, which is a minute
RELEASED = "released"  # in place of a heartbeat


class Claim:
    """A claim that this process holds; a thread renews it until it is released or lost."""

    def __init__(
        self, path: Path, content: dict[str, Any], *, beat: float, on_lost: Callable[[], None] | None
    ):
        self.path = path
        self.content = content
        self.lost = False  # another process took over, because this one seemed dead
        self.on_lost = on_lost
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, args=(beat,), daemon=True)
        self._thread.start()

    def _keep(self, beat: float) -> None:
        while not self._end.wait(beat):
            with contextlib.suppress(OSError):  # such as a server that restarts; the next beat tries again
                name, number = split(self.path.name)
                if highest(self.path.parent).get(name, 0) > number:
                    self.lost = True
                    break
                write_json(self.path, self.content | {"beat": secrets.token_hex(8)})
        if self.lost and self.on_lost:
            self.on_lost()

    def release(self) -> None:
        if self.content["pid"] != os.getpid():  # a copy in a process that was forked
            return
        self._end.set()
        self._thread.join()
        if not self.lost:
            with contextlib.suppress(OSError):  # the work is done; others wait until the claim is stale
                write_json(self.path, self.content | {"beat": RELEASED})


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a process has seen of the claim of another one."""

    content: bytes
    since: float  # by time.monotonic()
    has_changed: bool  # since the first look: its holder lives


class Claims:
    """The claims in `folder`, as one process sees them."""

    def __init__(self, folder: Path, *, beat: float = BEAT_SECONDS, stale: float = STALE_SECONDS):
        self.folder = folder
        self.beat = beat
        self.stale = stale
        self.seen: dict[Path, Seen] = {}

    def take(
        self, name: str, *, owners: Collection[str] = (), on_lost: Callable[[], None] | None = None
    ) -> Claim | None:
        """Returns a claim on `name`, None while another process holds it.

        `owners` name holders of which only one lives, such as a job: their old claims are taken over at once.
        `on_lost` is called in a thread if another process takes this claim over.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        number = highest(self.folder).get(name, 0)
        if number and not self._is_free(self.folder / f"{name}.{number}", owners):
            return None
        path = self.folder / f"{name}.{number + 1}"
        content = {"pid": os.getpid(), "host": socket.gethostname(), "owners": [*owners]}
        content["since"] = time.strftime("%Y-%m-%d %H:%M:%S")
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
        return Claim(path, content, beat=self.beat, on_lost=on_lost)

    def last(self, name: str) -> Path | None:
        """Returns the file of the last claim on `name`, None if there never was one."""
        number = highest(self.folder).get(name)
        return number and self.folder / f"{name}.{number}"

    def is_taken(self, name: str, *, owners: Collection[str] = ()) -> bool:
        """Returns whether `take` would find a holder; creates nothing."""
        path = self.last(name)
        return path is not None and not self._is_free(path, owners)

    def holder(self, name: str) -> dict[str, Any]:
        """Returns the last claim on `name`: pid, host, owners and since; {} if there is none."""
        path = self.last(name)
        with contextlib.suppress(OSError, ValueError):
            content = json.loads(path.read_bytes()) if path else {}
            return content if isinstance(content, dict) else {}
        return {}

    def has_beaten(self, name: str) -> bool:
        """Returns whether the last claim has changed since this process first looked at it."""
        seen = self.seen.get(self.last(name))
        return seen is not None and seen.has_changed

    def _is_free(self, path: Path, owners: Collection[str]) -> bool:
        """Returns whether a claim was released, is an earlier one of `owners`, or has no heartbeat."""
        try:
            found = path.read_bytes()
        except FileNotFoundError:  # just replaced by one of a higher number
            return False
        before = self.seen.get(path)
        if before is None or found != before.content:
            has_changed = before is not None
            self.seen[path] = Seen(content=found, since=time.monotonic(), has_changed=has_changed)
        with contextlib.suppress(ValueError):  # a claim that is just being written
            content = json.loads(found)
            if content.get("beat") == RELEASED or not {*owners}.isdisjoint(content["owners"]):
                return True
        return time.monotonic() - self.seen[path].since > self.stale


def split(file_name: str) -> tuple[str, int]:
    """Returns the name and the number of a claim's file."""
    name, _, number = file_name.rpartition(".")
    return name, int(number)


def highest(folder: Path) -> dict[str, int]:
    """Returns the number of the last claim on each name, {} if the folder is absent."""
    found: dict[str, int] = {}
    for file_name in (path.name for path in folder.glob("*")):
        if re.fullmatch(r"[^.].*\.\d+", file_name):  # not a temporary file
            name, number = split(file_name)
            found[name] = max(number, found.get(name, 0))
    return found
