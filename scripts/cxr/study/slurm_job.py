"""A Slurm job that runs one cell of a study; submitit starts it on a node."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from cxr.run_folder.files import write_json
from cxr.run_folder.heartbeat import Claim
from cxr.run_folder.heartbeat import Claims
from cxr.run_folder.lock import CLAIMS_DIR
from cxr.run_folder.record import read_results
from cxr.study import grid
from cxr.study import runner
from cxr.study.machine import Launch
from cxr.study.machine import plan_launch
from cxr.training.progress import complete_checkpoints

POLL_SECONDS = 0.5
FIRST_PORT, NUM_PORTS = 15_000, 15_000  # below those that the system gives to outgoing connections
SAY_SECONDS = 60
KILL_SECONDS = 600  # at most so long after SIGTERM, Slurm cancels or requeues a job


class CellJob:
    """Runs a cell; before the time limit, it saves a checkpoint, and submitit requeues the job."""

    def __init__(self, cell: grid.Cell, output_dir: Path, config_file: Path):
        self.cell = cell
        self.output_dir = output_dir
        self.config_file = config_file
        self.run = output_dir / cell.run_id
        self.process: subprocess.Popen | None = None
        self.is_terminated = False

    def __call__(self) -> None:
        """Runs the cell, unless it is finished. Raises RuntimeError if it fails.

        On several nodes, each calls this. The first one holds the claim, and what it decides, the others do.
        """
        if rank := int(os.environ.get("SLURM_NODEID", 0)):
            self.join(rank)
            return
        with self.claimed() as claim:
            if read_results(self.run):
                return
            # The flags of a cell may change while its job waits in the queue.
            self.cell = grid.read_plan(self.output_dir).get(self.cell.run_id, self.cell)
            self.steps_before = steps_saved(self.run)
            launch = self.launch()
            self.start(runner.start_cell, self.cell, self.output_dir, launch, gpu=launch.gpus[0])
            if launch.num_machines > 1:
                write_json(self.orders, {"attempt": attempt(), "words": self.process.args})
            self.follow(runner.log_of(self.cell, self.output_dir), claim)

    def join(self, rank: int) -> None:
        """Starts this node's processes with the words of the first node."""
        while not (words := read_orders(self.orders)):
            time.sleep(POLL_SECONDS)  # while the first node waits for a claim; Slurm ends this one with it
        words[3:3] = ["--machine_rank", str(rank)]  # after the launcher's module
        log = self.output_dir / "logs" / f"{self.cell.run_id}.node{rank}.log"
        self.start(runner.start, words, log, self.launch())
        self.follow(log)

    @property
    def orders(self) -> Path:
        """What the first node has started, for the others."""
        return self.output_dir / "logs" / f"{self.cell.run_id}.nodes.json"

    def launch(self) -> Launch:
        """Returns how the cell is started; each job meets at its own port, as a node may run several."""
        launch = plan_launch(self.config_file, parallel=1)
        if launch.num_processes == 1:
            return launch
        meeting = ["--main_process_port", str(FIRST_PORT + int(os.environ["SLURM_JOB_ID"]) % NUM_PORTS)]
        if launch.num_machines > 1:  # the first one runs the batch script
            meeting += ["--main_process_ip", os.environ["SLURM_LAUNCH_NODE_IPADDR"]]
        return replace(launch, meeting=tuple(meeting))

    @contextlib.contextmanager
    def claimed(self) -> Iterator[Claim]:
        """Claims the cell, after waiting until no other process has it.

        What died on another node has it until its heartbeat is missed.
        """
        claims, said = Claims(self.output_dir / CLAIMS_DIR), -SAY_SECONDS
        while (lock := runner.hold_cell(self.output_dir, self.cell.run_id, claims, job=job_id())) is None:
            if time.monotonic() - said >= SAY_SECONDS:
                said = time.monotonic()
                print(f"{self.cell.run_id}: waiting for another process that runs it", flush=True)
            time.sleep(POLL_SECONDS)
        try:
            yield lock.claim
        finally:
            lock.release()

    def start(self, starter: Callable[..., subprocess.Popen], *args: Any, **kwargs: Any) -> None:
        signal.signal(signal.SIGTERM, self._note_end)
        self.process = starter(*args, **kwargs)

    def follow(self, log: Path, claim: Claim | None = None) -> None:
        """Waits for the process and its results. Raises RuntimeError if there are none."""
        while self.process.poll() is None:
            if claim and claim.lost:
                runner.stop_process(self.process, may_save=False)
                raise RuntimeError(f"{self.cell.run_id}: this job was silent, and another one took it over")
            time.sleep(POLL_SECONDS)
        # After SIGTERM, Slurm cancels or requeues the job, and after SIGUSR2, its first node does: it may not
        # end as failed before.
        patience = KILL_SECONDS if self.is_terminated else 0 if claim else runner.SAVING_SECONDS
        until = time.monotonic() + patience
        while not read_results(self.run) and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        if not read_results(self.run):
            raise RuntimeError(f"{self.cell.run_id} failed; last lines of {log}:\n{runner.tail(log)}")

    def _note_end(self, *_: object) -> None:
        self.is_terminated = True
        if self.process is not None:
            ask_to_save(self.process)

    def checkpoint(self) -> Any:
        """Returns what submitit runs when the job starts again, called after SIGUSR2.

        Raises RuntimeError, so that the job fails, if it would begin again where it began this time.
        """
        from submitit.helpers import DelayedSubmission

        if self.process is not None:
            asked = ask_to_save(self.process)
            for one in psutil.wait_procs(asked, timeout=runner.SAVING_SECONDS)[1]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            if steps_saved(self.run) == self.steps_before and not read_results(self.run):
                raise RuntimeError(
                    f"{self.cell.run_id}: saved no checkpoint within the time limit; use a longer "
                    "--slurm_time, or --set checkpointing_steps=N"
                )
        return DelayedSubmission(CellJob(self.cell, self.output_dir, self.config_file))


def steps_saved(run: Path) -> list[str]:
    return [path.name for path in complete_checkpoints(run / "checkpoints")]


def ask_to_save(process: subprocess.Popen) -> list[psutil.Process]:
    """Sends SIGTERM to the training processes, and not to their launcher, which waits for them.

    Returns all processes that end then.
    """
    try:
        launcher = psutil.Process(process.pid)
        children = launcher.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    for one in children or [launcher]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.terminate()
    return [*children, launcher]


def read_orders(file: Path) -> list[str]:
    """Returns the words that the first node has started in this attempt of the job, [] before it has."""
    with contextlib.suppress(OSError, ValueError):
        orders = json.loads(file.read_text(encoding="utf-8"))
        return orders["words"] if orders["attempt"] == attempt() else []
    return []


def attempt() -> str:
    """Returns a name of this start of the job, which may have started before."""
    return f"{job_id()} {os.environ.get('SLURM_RESTART_COUNT', 0)}"


def job_id() -> str:
    """Returns the name of this job in the queue, such as 17_3 in an array, "" outside Slurm."""
    array, index = (os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
    return f"{array}_{index}" if array else os.environ.get("SLURM_JOB_ID", "")
