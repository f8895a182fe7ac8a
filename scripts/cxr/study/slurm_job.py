"""A Slurm job that runs one cell of a study; submitit starts it on a node."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

from cxr.run_folder.heartbeat import Claim
from cxr.run_folder.heartbeat import Claims
from cxr.run_folder.lock import CLAIMS_DIR
from cxr.run_folder.record import read_results
from cxr.study import grid
from cxr.study import runner
from cxr.study.machine import Node
from cxr.study.machine import plan_launch

POLL_SECONDS = 0.5
FIRST_PORT, NUM_PORTS = 15_000, 15_000  # below those that the system gives to outgoing connections
KILL_SECONDS = 600  # at most so long after SIGTERM, Slurm cancels or requeues a job


class CellJob:
    """Runs a cell; before the time limit, it saves a checkpoint, and submitit requeues the job."""

    def __init__(self, cell: grid.Cell, output_dir: Path, config_file: Path):
        self.cell = cell
        self.output_dir = output_dir
        self.config_file = config_file
        self.process: subprocess.Popen | None = None
        self.is_terminated = False

    def __call__(self) -> None:
        """Runs the cell, unless it is finished or runs elsewhere. Raises RuntimeError if it fails.

        On several nodes, all run this; the first one holds the claim.
        """
        node = this_node()
        if node.rank:
            self.run(node)
            return
        claims = Claims(self.output_dir / CLAIMS_DIR)
        until = time.monotonic() + claims.stale + 4 * claims.beat
        # A process that died on another node holds the cell until its heartbeat is missed.
        while (lock := runner.hold_cell(self.output_dir, self.cell.run_id, claims, job=job_id())) is None:
            if time.monotonic() > until:
                print(f"{self.cell.run_id}: another process runs it; nothing to do", flush=True)
                return
            time.sleep(POLL_SECONDS)
        try:
            self.run(node, lock.claim)
        finally:
            lock.release()

    def run(self, node: Node, claim: Claim | None = None) -> None:
        run = self.output_dir / self.cell.run_id
        if read_results(run):
            return
        # The flags of a cell may change while its job waits in the queue.
        self.cell = grid.read_plan(self.output_dir).get(self.cell.run_id, self.cell)
        signal.signal(signal.SIGTERM, self._note_end)
        self.process = start(self.cell, self.output_dir, self.config_file, node)
        while self.process.poll() is None:
            if claim and claim.lost:
                runner.stop_process(self.process, may_save=False)
                raise RuntimeError(f"{self.cell.run_id}: this job was silent, and another one took it over")
            time.sleep(POLL_SECONDS)
        # After SIGTERM, Slurm cancels or requeues the job, and after SIGUSR2, its first node does: it may not
        # end as failed before.
        patience = KILL_SECONDS if self.is_terminated else runner.SAVING_SECONDS if node.rank else 0
        until = time.monotonic() + patience
        while not read_results(run) and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        if not read_results(run):
            log = runner.log_of(self.cell, self.output_dir, node)
            raise RuntimeError(f"{self.cell.run_id} failed; last lines of {log}:\n{runner.tail(log)}")

    def _note_end(self, *_: object) -> None:
        self.is_terminated = True
        if self.process is not None:
            ask_to_save(self.process)

    def checkpoint(self) -> Any:
        """Returns what submitit runs when the job starts again; called after SIGUSR2."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None:
            asked = ask_to_save(self.process)
            for one in psutil.wait_procs(asked, timeout=runner.SAVING_SECONDS)[1]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
        return DelayedSubmission(CellJob(self.cell, self.output_dir, self.config_file))


def start(cell: grid.Cell, output_dir: Path, config_file: Path, node: Node) -> subprocess.Popen:
    """Starts the cell with SIGUSR2 blocked: Slurm sends it to all, and it would end the launcher."""
    launch = plan_launch(config_file, parallel=1)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})  # the new process inherits this
    try:
        return runner.start_cell(cell, output_dir, launch, gpu=launch.gpus[0], node=node)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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


def this_node() -> Node:
    """Returns which node of the job this is. Each job has a port of its own, as a node may run several."""
    return Node(
        rank=int(os.environ.get("SLURM_NODEID", 0)),
        address=os.environ.get("SLURM_LAUNCH_NODE_IPADDR", ""),  # the batch script runs on the first node
        port=FIRST_PORT + int(os.environ.get("SLURM_JOB_ID", 0)) % NUM_PORTS,
    )


def job_id() -> str:
    """Returns the name of this job in the queue, such as 17_3 in an array, "" outside Slurm."""
    array, index = (os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
    return f"{array}_{index}" if array else os.environ.get("SLURM_JOB_ID", "")
