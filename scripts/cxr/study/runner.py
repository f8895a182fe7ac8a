"""Runs the cells of a study, each in its own process, and shows their progress.

Several calls, also on several machines, may work on one study: each claims a cell before it starts it.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import psutil
from rich.console import Console
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from cxr.data.sources import REPOSITORY
from cxr.errors import UserError
from cxr.run_folder import record
from cxr.run_folder.heartbeat import Claims
from cxr.run_folder.lock import CLAIMS_DIR
from cxr.run_folder.lock import THE_FOLDER
from cxr.run_folder.lock import Lock
from cxr.run_folder.lock import claims_on
from cxr.run_folder.lock import describe_holder
from cxr.run_folder.lock import hold
from cxr.run_folder.lock import is_in_use
from cxr.run_folder.lock import release_dead
from cxr.run_folder.privacy import mask_ids
from cxr.study import grid
from cxr.study import presets
from cxr.study.costs import duration
from cxr.study.costs import wall_seconds
from cxr.study.machine import Launch
from cxr.study.names import format_number
from cxr.training.progress import has_checkpoint

LOG_TAIL = 12  # lines
SAVING_SECONDS = 120  # how long a cell may take to finish its step and save a checkpoint
OF_A_MACHINE = {"cache_dir", "stage_dir"}  # flags that change no result
LOOK_SECONDS = 2.0  # between two looks for a cell that has become free, while none is
TABLE_SECONDS = 30.0  # between two looks for results of other processes
# Slurm can send them before the time limit; Windows has none of them.
BEFORE_LIMIT = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


def state_on_disk(run: Path) -> str:
    if (run / "results.json").is_file():
        return "finished"
    return "to resume" if has_checkpoint(run) else "to run"


def check_study(output_dir: Path, cells: list[grid.Cell]) -> grid.Plan:
    """Returns the plan of the study in `output_dir`, with `cells` added.

    Raises UserError if the folder has other content than a study, or a cell with other flags. The flags of a
    cell that ended before its first checkpoint may change, because it starts again.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"--output_dir {output_dir} is a file, expected a folder; choose another name")
    found = {path.name for path in output_dir.glob("[!.]*")}
    if found and "plan.json" not in found:
        raise UserError(
            f"--output_dir {output_dir} is not empty and not a study (found no plan.json), expected a new "
            "folder or that of an earlier study; choose another folder"
        )
    path = output_dir / "plan.json"
    plan = grid.Plan.read(path) if path.is_file() else grid.Plan(cells={})
    for cell in cells:
        run = output_dir / cell.run_id
        if (run / "args.json").is_file() and (state_on_disk(run) != "to run" or is_in_use(run)):
            now = {name: cell.flags[name] for name in cell.flags.keys() - OF_A_MACHINE}
            record.check_unchanged(record.Arguments.read(run / "args.json").flags, now, where=run)
            # args.json also has the defaults; only the old plan says which flags were set.
            before = plan.cells.get(cell.run_id, cell).flags
            set_before = before.keys() - OF_A_MACHINE
            record.check_unchanged(before, {name: cell.flags.get(name) for name in set_before}, where=run)
    return plan.model_copy(update={"cells": plan.cells | {cell.run_id: cell for cell in cells}})


def command(cell: grid.Cell, run: Path, launch: Launch, *, gpu: str | None = None) -> list[str]:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launch.config_file)]
    launcher += launch.meeting
    launcher += ["--quiet"]  # the launcher's trace would push the script's error out of the log's last lines
    if gpu is not None:
        launcher += ["--gpu_ids", gpu]
    resume = "latest" if has_checkpoint(run) else None
    flags = {**cell.flags, "output_dir": run, "resume_from_checkpoint": resume}
    return [*launcher, str(REPOSITORY / "scripts" / cell.script), *grid.to_words(flags)]


def start_cell(cell: grid.Cell, output_dir: Path, launch: Launch, *, gpu: str | None) -> subprocess.Popen:
    """Starts a cell's process, which writes its output to `logs/RUN_ID.log`."""
    run = output_dir / cell.run_id
    if not has_checkpoint(run):
        shutil.rmtree(run, ignore_errors=True)  # a run that ended before its first checkpoint starts again
    return start(command(cell, run, launch, gpu=gpu), log_of(cell, output_dir), launch)


def start(words: list[str], log: Path, launch: Launch) -> subprocess.Popen:
    """Starts a process that writes its output to `log`."""
    environment = dict(os.environ, TQDM_MININTERVAL="30", PYTHONUNBUFFERED="1")
    if launch.num_threads:
        environment["OMP_NUM_THREADS"] = str(launch.num_threads)
    log.parent.mkdir(exist_ok=True)
    log.touch(mode=0o600)  # private: an error may name the file of a patient
    with log.open("w", encoding="utf-8") as file, blocked_before_limit():
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment
        )


@contextlib.contextmanager
def blocked_before_limit() -> Iterator[None]:
    """Lets processes start that ignore BEFORE_LIMIT: Slurm may send it to all, and a launcher would end."""
    if not BEFORE_LIMIT:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, BEFORE_LIMIT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hold_cell(output_dir: Path, name: str, claims: Claims, *, job: str = "") -> Lock | None:
    """Returns a lock on a cell, None while another process runs it. `claims` are those on `output_dir`.

    A process that died on another machine holds the cell and its run. Both are looked at each time, so that
    their silence is measured from the first look on.
    """
    claims.is_taken(name)
    run = output_dir / name
    if is_in_use(run):  # by a process that a killed study left
        return None
    lock = hold(output_dir / CLAIMS_DIR / f"{name}.lock", claims, name, job=job)
    if lock and run.is_dir():
        release_dead(run)
    return lock


def log_of(cell: grid.Cell, output_dir: Path) -> Path:
    return output_dir / "logs" / f"{cell.run_id}.log"


def tail(log: Path) -> str:
    """Returns the last lines of a log without ids; of a progress bar, only its last state."""
    lines = log.read_bytes().decode("utf-8", errors="replace").split("\n")
    lines = [mask_ids(line.rstrip("\r").rpartition("\r")[2]) for line in lines]
    return "\n".join(f"    {line}" for line in [line for line in lines if line.strip()][-LOG_TAIL:])


def stop_process(process: subprocess.Popen, *, may_save: bool) -> None:
    """Ends the launcher of a cell and all its children; a signal to the launcher alone would leave them.

    `may_save` lets them save a checkpoint; a cell that another machine took over may not.
    """
    try:
        launcher = psutil.Process(process.pid)
        processes = [*launcher.children(recursive=True), launcher]
    except psutil.NoSuchProcess:
        return
    if may_save:
        for one in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.terminate()
        processes = psutil.wait_procs(processes, timeout=SAVING_SECONDS)[1]
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


class StudyRunner:
    """Runs the cells of this call and keeps their states: waiting, running, done, failed or impossible."""

    def __init__(self, cells: list[grid.Cell], output_dir: Path, *, seconds: dict[str, float], parallel: int):
        self.cells = cells
        self.output_dir = output_dir
        self.seconds = seconds  # estimates by run_id
        self.parallel = parallel
        self.states = {cell.run_id: "waiting" for cell in cells}
        self.results: dict[str, record.Results] = {}
        self.console = Console(width=None if sys.stdout.isatty() else 120)
        for cell in cells:
            self.note_results(cell)
        self.claims = claims_on(output_dir)
        self.locks: dict[str, Lock] = {}  # of the running cells
        self.elsewhere: set[str] = set()  # waiting cells that another process runs
        self.by_others: set[str] = set()  # cells that another process finished during this call
        # When each running cell began here, and its share_done then.
        self.begun: dict[str, tuple[float, float]] = {}
        self.estimated, self.took = 0.0, 0.0  # seconds of what this call has finished
        self.shares: dict[str, tuple[object, float]] = {}  # by run_id: a version of its metrics, share_done

    def note_results(self, cell: grid.Cell) -> bool:
        """Returns whether a cell is finished; if so, keeps its results and removes its checkpoints."""
        results = record.read_results(self.output_dir / cell.run_id)
        if results:
            self.results[cell.run_id] = results
            self.states[cell.run_id] = "done"
            shutil.rmtree(self.output_dir / cell.run_id / "checkpoints", ignore_errors=True)
        return results is not None

    def next_cell(self) -> grid.Cell | None:
        """Returns the first cell that can start, claimed for this process, None if there is none."""
        for cell in self.cells:
            if self.states[cell.run_id] != "waiting":
                continue
            needed = self.states[cell.needs] if cell.needs else "done"
            if needed in ("failed", "impossible"):
                self.states[cell.run_id] = "impossible"
                self.say(f"{cell.run_id} skipped: it starts from the model of {cell.needs}, which failed")
            elif needed == "done" and self.take(cell):
                # Another call may have changed the flags of a cell that has not begun.
                return grid.read_plan(self.output_dir).get(cell.run_id, cell)
        return None

    def take(self, cell: grid.Cell) -> bool:
        """Claims a cell; returns whether it is this process that has to run it."""
        name = cell.run_id
        if self.note_others_results(cell):
            return False
        lock = hold_cell(self.output_dir, name, self.claims)
        if lock is None:
            self.say_it_runs_elsewhere(name)
            return False
        if self.note_others_results(cell):  # just now
            lock.release()
            return False
        self.elsewhere.discard(name)
        self.locks[name] = lock
        return True

    def note_others_results(self, cell: grid.Cell) -> bool:
        """Returns whether a waiting cell was finished by another process."""
        if not self.note_results(cell):
            return False
        self.elsewhere.discard(cell.run_id)
        self.by_others.add(cell.run_id)
        self.say_end(cell, "in another process")
        return True

    def say_it_runs_elsewhere(self, name: str) -> None:
        """Says once who runs a cell."""
        if name not in self.elsewhere:
            self.elsewhere.add(name)
            of_cell = self.claims.holder(name) if self.claims.is_taken(name) else None
            holder = of_cell or claims_on(self.output_dir / name).holder(THE_FOLDER)
            self.say(f"{name} is running in another process ({describe_holder(holder)})")

    def begin_cell(self, cell: grid.Cell) -> None:
        """Records that a cell's process has started."""
        self.states[cell.run_id] = "running"
        self.begun[cell.run_id] = time.monotonic(), self.share_done(cell.run_id)

    def end_cell(self, cell: grid.Cell) -> None:
        """Records how a cell's process ended, and prints a line about it."""
        began, share = self.begun.pop(cell.run_id)
        took = time.monotonic() - began
        lock = self.locks.pop(cell.run_id)
        lock.release()
        # Another machine took the cell over, or a process that a killed study left has claimed the run.
        if lock.claim.lost or is_in_use(self.output_dir / cell.run_id):
            self.states[cell.run_id] = "waiting"
            self.say_it_runs_elsewhere(cell.run_id)
        elif self.note_results(cell):
            self.estimated += self.seconds[cell.run_id] * (1 - share)
            self.took += took
            self.say_end(cell, f"{took:.0f} s")
        else:
            self.states[cell.run_id] = "failed"
            log = log_of(cell, self.output_dir)
            self.say(f"{cell.run_id} FAILED after {duration(took)}; last lines of {log}:\n{tail(log)}")

    def say_end(self, cell: grid.Cell, how: str) -> None:
        ended = sum(state not in ("waiting", "running") for state in self.states.values())
        left = f"about {duration(self.seconds_left())} left" if ended < len(self.cells) else "the last one"
        if isinstance(cell, grid.ClassificationCell):
            headline = f"test AUROC {format_number(self.test_auroc(cell))}"
        else:
            headline = f"validation loss {self.results[cell.run_id].eval_loss:.3f}"
        self.say(f"[{ended}/{len(self.cells)}] {cell.run_id}: {headline}, {how}; {left}")

    def test_auroc(self, cell: grid.ClassificationCell) -> float | None:
        results = self.results.get(cell.run_id)
        return results.test.auroc if results and results.test else None

    def seconds_left(self) -> float:
        """Returns the estimated seconds until all cells end, corrected by the times of this call so far."""
        left = [cell for cell in self.cells if self.states[cell.run_id] in ("waiting", "running")]
        names = [cell.run_id for cell in left]
        seconds = {name: self.seconds[name] * (1 - self.share_done(name)) for name in names}
        estimated, took = self.estimated, self.took
        for name, (began, share) in list(self.begun.items()):  # a thread shows this while cells begin and end
            if (now := self.share_done(name)) > share:
                estimated += self.seconds[name] * (now - share)
                took += time.monotonic() - began
        running = max(self.parallel, len(self.names_in("running")))  # Slurm runs more
        slots = running + len(self.elsewhere)
        return wall_seconds(left, seconds, slots) * (took / estimated if estimated else 1)

    def print_failures(self) -> bool:
        """Prints which cells failed, if any; returns whether any did."""
        if failed := self.names_in("failed", "impossible"):
            said = f"{len(failed)} of {len(self.cells)} cells failed or were skipped: {', '.join(failed)}."
            print(f"{said} The same command tries them again.")
        return bool(failed)

    def has_classifier(self) -> bool:
        """Returns whether a classifier has finished, so that there is something to report."""
        return any(isinstance(results, record.ClassificationResults) for results in self.results.values())

    def names_in(self, *states: str) -> list[str]:
        return [name for name, state in self.states.items() if state in states]

    def share_done(self, name: str) -> float:
        """Returns the share of its epochs that a running cell has finished, 0 for other cells."""
        run = self.output_dir / name
        metrics = run / record.METRICS_FILE
        if self.states[name] != "running" or not metrics.is_file():
            return 0.0
        found = metrics.stat()
        version = found.st_size, found.st_mtime_ns
        if self.shares.get(name, (None, 0.0))[0] != version:
            num_epochs = record.Arguments.read(run / "args.json").num_train_epochs or 1
            self.shares[name] = version, min(1.0, metrics.read_bytes().count(b"\n") / num_epochs)
        return self.shares[name][1]

    def say(self, text: str) -> None:
        with contextlib.suppress(OSError, SystemExit):  # if the terminal or pipe is closed, continue
            self.console.print(escape(text), highlight=False, soft_wrap=True)

    def render(self) -> Group:
        """Returns the progress table of the study: a row per arm, a column per training size."""
        cells_of: dict[tuple[str, str], list[grid.ClassificationCell]] = defaultdict(list)
        for cell in [cell for cell in self.cells if isinstance(cell, grid.ClassificationCell)]:
            cells_of[grid.arm_name(cell.point), grid.size_name(cell.point.train_size)].append(cell)
        arms, columns = map(presets.unique, zip(*cells_of))
        table = Table(title="test AUROC, mean over the finished seeds")
        for name in ("", *columns):
            table.add_column(name, justify="right" if name else "left")
        for arm in arms:
            table.add_row(arm, *(self.summary(cells_of[arm, size]) for size in columns))
        running = [f"{name} {self.share_done(name):.0%}" for name in self.names_in("running")]
        states = ("done", "running", "waiting", "failed", "impossible")
        shown = ", ".join(f"{len(self.names_in(one))} {one}" for one in states if self.names_in(one))
        shown += f" ({len(self.elsewhere)} of them in other processes)" * bool(self.elsewhere)
        # The states come first, because a table that is longer than the terminal is cut at its end.
        return Group(f"{shown}; about {duration(self.seconds_left())} left", *running, table)

    def summary(self, cells: list[grid.ClassificationCell]) -> str:
        aurocs = [auroc for auroc in map(self.test_auroc, cells) if auroc is not None]
        words = [f"{fmean(aurocs):.3f}"] if aurocs else []
        words += [f"{len(aurocs)}/{len(cells)}"] * (len(aurocs) < len(cells) and len(cells) > 1)
        states = {self.states[cell.run_id] for cell in cells}
        words += [state for state in ("running", "failed", "impossible") if state in states]
        return " ".join(words) or "-"

    def run(self, launch: Launch) -> None:
        """Runs the waiting cells, one in each slot of `launch`, until all have ended or a signal arrives."""
        live = Live(console=self.console, get_renderable=self.render, refresh_per_second=1, transient=True)
        for number in (signal.SIGTERM, *BEFORE_LIMIT):
            signal.signal(number, lambda *_: sys.exit(143))
        slots: dict[int, tuple[grid.Cell, subprocess.Popen]] = {}
        with live if self.console.is_terminal else contextlib.nullcontext():
            try:
                self.run_in_slots(slots, launch)
            except (KeyboardInterrupt, SystemExit):
                print(f"Stopped. The same command continues the study {self.output_dir}.", file=sys.stderr)
                raise
            finally:
                for cell, process in slots.values():
                    lock = self.locks.pop(cell.run_id)
                    stop_process(process, may_save=not lock.claim.lost)
                    lock.release()

    def run_in_slots(self, slots: dict[int, tuple[grid.Cell, subprocess.Popen]], launch: Launch) -> None:
        look, look_at_others = 0.0, time.monotonic() + TABLE_SECONDS
        while slots or self.names_in("waiting"):
            for slot in range(len(launch.gpus)):
                if slot in slots or time.monotonic() < look:
                    continue
                if cell := self.next_cell():
                    process = start_cell(cell, self.output_dir, launch, gpu=launch.gpus[slot])
                    slots[slot] = cell, process
                    self.begin_cell(cell)
                else:
                    look = time.monotonic() + LOOK_SECONDS
            time.sleep(0.2)
            for slot, (cell, process) in list(slots.items()):
                if self.locks[cell.run_id].claim.lost:
                    stop_process(process, may_save=False)
                if process.poll() is not None:
                    del slots[slot]
                    look = 0.0
                    self.end_cell(cell)
            if time.monotonic() >= look_at_others:
                look_at_others = time.monotonic() + TABLE_SECONDS
                for cell in [cell for cell in self.cells if self.states[cell.run_id] == "waiting"]:
                    self.note_others_results(cell)
