"""Claims on work in a folder that several machines share, kept alive by a heartbeat instead of a file lock.

A claim on NAME is a file NAME.N that its holder writes again every few seconds. Creating a file that must not
exist is safe on NFS, where a file lock may not be. Who finds that the last claim has not changed for a while,
by a clock of its own, takes over by creating NAME.N+1: only one can. Files of lower numbers count no more.
"""

import contextlib
import glob
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
            self._write(secrets.token_hex(8))
            if self.lost:
                break
        if self.lost and self.on_lost:
            self.on_lost()

    def _write(self, beat: str) -> None:
        """Writes the claim again, unless another process took over."""
        # Such as a server that restarts, or a claim that is just being written; the next beat tries again.
        with contextlib.suppress(OSError, ValueError):
            name, number = split(self.path.name)
            self.lost = highest(self.path.parent, name) > number or not self._is_mine()
            if not self.lost:
                write_json(self.path, self.content | {"beat": beat})

    def _is_mine(self) -> bool:
        """Returns whether the file is still this claim's; numbers begin again when the folder is removed."""
        return json.loads(self.path.read_bytes()).get("token") == self.content["token"]

    def release(self) -> None:
        if self.content["pid"] != os.getpid():  # a copy in a process that was forked
            return
        self._end.set()
        self._thread.join()
        if not self.lost:
            self._write(RELEASED)  # if that fails, others wait until the claim is stale


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
        number = self._last_if_free(name, owners)
        if number is None:
            return None
        path = self.folder / f"{name}.{number + 1}"
        content = {"pid": os.getpid(), "host": socket.gethostname(), "machine": this_machine()}
        content |= {"owners": [*owners]}
        content |= {"since": time.strftime("%Y-%m-%d %H:%M:%S"), "token": secrets.token_hex(8)}
        try:
            with path.open("x", encoding="utf-8") as file:
                json.dump(content, file)
        except FileExistsError:
            return None
        if highest(self.folder, name) > number + 1:  # others went on while this process was slow
            path.unlink()
            return None
        for old in range(max(1, number - 1), number + 1):
            (self.folder / f"{name}.{old}").unlink(missing_ok=True)
        return Claim(path, content, beat=self.beat, on_lost=on_lost)

    def last(self, name: str) -> Path | None:
        """Returns the file of the last claim on `name`, None if there never was one."""
        number = highest(self.folder, name)
        return self.folder / f"{name}.{number}" if number else None

    def is_taken(self, name: str, *, owners: Collection[str] = ()) -> bool:
        """Returns whether `take` would find a holder; creates nothing."""
        return self._last_if_free(name, owners) is None

    def holder(self, name: str) -> dict[str, Any]:
        """Returns the last claim on `name`: pid, host, machine, owners, since; {} if there is none."""
        with contextlib.suppress(OSError, ValueError):
            path = self.last(name)
            content = json.loads(path.read_bytes()) if path else {}
            return content if isinstance(content, dict) else {}
        return {}

    def has_beaten(self, name: str) -> bool:
        """Returns whether the last claim has changed since this process first looked at it."""
        seen = self.seen.get(self.last(name))
        return seen is not None and seen.has_changed

    def _last_if_free(self, name: str, owners: Collection[str]) -> int | None:
        """Returns the number of the last claim, 0 if there is none, and None if a process holds it."""
        try:
            number = highest(self.folder, name)
            is_free = not number or self._is_free(self.folder / f"{name}.{number}", owners)
        except OSError:  # just replaced by one of a higher number, or a network disk does not answer
            return None
        return number if is_free else None

    def _is_free(self, path: Path, owners: Collection[str]) -> bool:
        """Returns whether a claim was released, is an earlier one of `owners`, or has no heartbeat."""
        found = path.read_bytes()
        before = self.seen.get(path)
        if before is None or found != before.content:
            has_changed = before is not None
            self.seen[path] = Seen(content=found, since=time.monotonic(), has_changed=has_changed)
        with contextlib.suppress(ValueError):  # a claim that is just being written
            content = json.loads(found)
            if content.get("beat") == RELEASED or not {*owners}.isdisjoint(content["owners"]):
                return True
        return time.monotonic() - self.seen[path].since > self.stale


def this_machine() -> str:
    """Returns a name of this machine since its start; host names may not be unique, such as localhost."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text().strip() if boot.is_file() else ''}"


def split(file_name: str) -> tuple[str, int]:
    """Returns the name and the number of a claim's file."""
    name, _, number = file_name.rpartition(".")
    return name, int(number)


def highest(folder: Path, name: str) -> int:
    """Returns the number of the last claim on `name`, 0 if there is none or the folder is absent."""
    files = (path.name for path in folder.glob(f"{glob.escape(name)}.*"))
    found = (re.fullmatch(rf"{re.escape(name)}\.(\d+)", file) for file in files)
    return max((int(match[1]) for match in found if match), default=0)
