"""Runs the cells of a study as Slurm jobs: submits those that are missing, and shows and cancels them.

submitit writes the batch files and calls sbatch. Slurm keeps the queue; `plan.json` has the job of each cell.
"""

import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.live import Live

from cxr.data.sources import REPOSITORY
from cxr.errors import UserError
from cxr.run_folder.files import write_json
from cxr.study import grid
from cxr.study import runner
from cxr.study.machine import Launch
from cxr.study.slurm_job import CellJob

SAVING_SECONDS = runner.SAVING_SECONDS + 60  # before the time limit, a job is told to save
MIN_MINUTES = 10  # time limit; with less, a job would save and start again without training
MAX_REQUEUES = 10**6  # submitit's limit of time limits; a pretraining may need many jobs
MAX_ARRAY_SIZE = 1001  # Slurm's default
IDS_PER_CALL = 500  # of scancel, whose command line is limited
# Shell lines of a job, before its cell. From Slurm 22.05 on, a job's srun does not have its cpus-per-task.
SETUP = [
    f"export PYTHONPATH={shlex.quote(f'{REPOSITORY}/scripts:{REPOSITORY}')}${{PYTHONPATH:+:$PYTHONPATH}}",
    'if [ -n "$SLURM_CPUS_PER_TASK" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi',
]
# Of a job on several nodes: when the first node has ended, or one has failed, the others end.
TOGETHER = ["--wait=60", "--kill-on-bad-exit=1"]
FOLLOW_SECONDS = 15.0
NOTE_SECONDS = 5.0  # between two writes of plan.json while jobs are submitted; with 5,000 cells one takes 2


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a cell asks Slurm for, and how many jobs may be in the queue at once."""

    partition: str | None
    account: str | None
    minutes: int
    nodes: int
    gpus: int  # on all nodes
    args: dict[str, str]  # further options of sbatch
    max_jobs: int | None


class SlurmStudy:
    """The cells of a call with their jobs; `study.states` has their states, as in a local run."""

    def __init__(self, study: runner.StudyRunner, options: Options, config_file: Path):
        for program in ("sbatch", "srun", "squeue", "scancel", "scontrol"):
            if not shutil.which(program):
                raise UserError(f"--slurm: found no {program}; use a machine from which jobs are submitted")
        self.study = study
        self.options = options
        self.config_file = config_file
        self.output_dir = study.output_dir
        self.plan = grid.Plan.read(self.output_dir / "plan.json")
        self.queue: dict[str, str] = {}  # state by job id
        self.update()

    def update(self) -> None:
        """Reads the queue, and of the cells only those whose job has left it."""
        self.queue = read_queue()
        for cell in self.study.cells:
            name = cell.run_id
            if self.study.states[name] in ("done", "failed", "impossible"):
                continue
            job, needed = self.plan.jobs.get(name), self.study.states.get(cell.needs)
            if job in self.queue:
                self.study.states[name] = "waiting" if self.queue[job] == "PENDING" else "running"
            elif job and self.study.note_results(cell):
                continue
            elif needed in ("failed", "impossible"):
                self.study.states[name] = "impossible"
            elif job:
                self.study.states[name] = "failed"

    def missing(self) -> list[grid.Cell]:
        """Returns the cells that wait without a job, as many as --max_jobs has room for."""
        queued = sum(job in self.queue for job in self.plan.jobs.values())
        waiting = {
            name for name in self.study.names_in("waiting") if self.plan.jobs.get(name) not in self.queue
        }
        cells = [cell for cell in self.study.cells if cell.run_id in waiting]
        return cells if self.options.max_jobs is None else cells[: max(0, self.options.max_jobs - queued)]

    def retry(self) -> None:
        """Lets failed cells be submitted again."""
        again = self.study.names_in("failed", "impossible")
        self.study.states |= dict.fromkeys(again, "waiting")
        self._note({name: job for name, job in self.plan.jobs.items() if name not in again})

    def _note(self, jobs: dict[str, str]) -> None:
        self.plan = self.plan.model_copy(update={"jobs": jobs})
        write_json(self.output_dir / "plan.json", self.plan.as_json())

    def submit(self) -> int:
        """Submits the missing cells, a pretraining before those that need it; returns their number."""
        arrays: dict[str | None, list[grid.Cell]] = {}
        cells = self.missing()
        pretrainings = [cell for cell in cells if cell.script == grid.PRETRAINING]
        for cell in [cell for cell in cells if cell.script != grid.PRETRAINING]:
            # A pretraining that was finished before has no job to wait for.
            is_done = cell.needs is None or self.study.states.get(cell.needs) == "done"
            arrays.setdefault(None if is_done else cell.needs, []).append(cell)
        size, written = max_array_size(), time.monotonic()
        try:
            for needs, alike in [(None, pretrainings), *arrays.items()]:
                for start in range(0, len(alike), size):
                    self._submit_array(alike[start : start + size], needs)
                    if time.monotonic() - written > NOTE_SECONDS:
                        self._note(self.plan.jobs)
                        written = time.monotonic()
        finally:
            self._note(self.plan.jobs)
        return len(cells)

    def _submit_array(self, cells: list[grid.Cell], needs: str | None) -> None:
        """Submits one array and keeps its jobs in `plan`. Raises UserError if sbatch refuses it.

        The classifiers of each pretraining are an array with afterok. One array for many pretrainings, with
        aftercorr, would need fewer calls of sbatch, but Slurm resolves aftercorr for ten tasks at a time: it
        removes a later task whose pretraining ended more than MinJobAge (five minutes) ago.
        """
        import submitit

        executor = submitit.SlurmExecutor(self.output_dir / "logs" / "slurm", max_num_timeout=MAX_REQUEUES)
        executor.update_parameters(**self._parameters(needs))
        jobs = [CellJob(cell, self.output_dir, self.config_file) for cell in cells]
        try:
            with executor.batch():
                submitted = [executor.submit(job) for job in jobs]
        except submitit.core.utils.FailedJobError as error:
            raise UserError(
                f"--slurm: sbatch refused {len(cells)} cells ({' '.join(str(error).split())[-300:]}); change "
                "the --slurm flags, or submit fewer with --max_jobs"
            ) from error
        ids = {cell.run_id: job.job_id for cell, job in zip(cells, submitted)}
        self.plan = self.plan.model_copy(update={"jobs": self.plan.jobs | ids})
        self.queue |= dict.fromkeys(ids.values(), "PENDING")

    def _parameters(self, needs: str | None) -> dict[str, object]:
        options = self.options
        further: dict[str, object] = {"requeue": True, "kill-on-invalid-dep": "yes", **options.args}
        if needs:
            further["dependency"] = f"afterok:{self.plan.jobs[needs]}"
        named = {"partition": options.partition, "account": options.account}
        return {name: value for name, value in named.items() if value} | {
            "job_name": self.output_dir.name,
            "time": options.minutes,
            "nodes": options.nodes,
            "gpus_per_node": options.gpus // options.nodes or None,
            "srun_args": TOGETHER if options.nodes > 1 else None,
            "signal_delay_s": SAVING_SECONDS,
            "stderr_to_stdout": True,
            "setup": SETUP,
            "additional_parameters": further,
        }

    def cancel(self) -> int:
        """Cancels all jobs of the study; a running cell saves a checkpoint first. Returns their number."""
        ids = [job for job in self.plan.jobs.values() if job in self.queue]
        for start in range(0, len(ids), IDS_PER_CALL):
            run_program("scancel", *ids[start : start + IDS_PER_CALL])
        # A cell whose job was cancelled has not failed.
        self._note({name: job for name, job in self.plan.jobs.items() if job not in self.queue})
        return len(ids)

    def show(self) -> None:
        """Prints the state of the study, and of each failed cell the end of its log."""
        self.study.console.print(self.study.render())
        for name in self.study.names_in("failed"):
            log = self.output_dir / "logs" / f"{name}.log"
            end = runner.tail(log) if log.is_file() else "    found no log: see logs/slurm"
            self.study.say(f"{name} FAILED in job {self.plan.jobs[name]}; last lines of {log}:\n{end}")

    def follow(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Shows the state until no cell is left, and submits cells as the queue gets room for them."""
        console = self.study.console
        with Live(self.study.render(), console=console, auto_refresh=False, transient=True) as live:
            while self.study.names_in("waiting", "running"):
                sleep(FOLLOW_SECONDS)
                try:
                    self.update()
                except UserError as error:  # Slurm is busy or starts again; the jobs go on meanwhile
                    self.study.say(str(error))
                    continue
                self.submit()
                if console.is_terminal:
                    live.update(self.study.render(), refresh=True)


def gpus_of(launch: Launch, wanted: int | None) -> int:
    """Returns the GPUs of a job, one per process. Raises UserError if `wanted` is another number."""
    processes = 0 if launch.on_cpu else launch.num_processes
    if wanted not in (None, processes):
        raise UserError(
            f"--gpus_per_cell {wanted}: found {processes} GPU processes in {launch.config_file.name}, "
            "expected the same number; change num_processes there, or leave the flag out"
        )
    return processes


def run_program(*words: str) -> str:
    """Returns what a program of Slurm prints. Raises UserError if it fails."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise UserError(f"--slurm: {words[0]} failed ({said}); try again when Slurm answers")
    return done.stdout


def read_queue() -> dict[str, str]:
    """Returns the state of each job of this user in the queue, by job id; a part of an array is a job."""
    lines = run_program("squeue", "--me", "--noheader", "--array", "--format=%i %T").splitlines()
    return dict(line.split(maxsplit=1) for line in lines)


def max_array_size() -> int:
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", run_program("scontrol", "show", "config"), re.MULTILINE)
    return max(1, int(found[1]) if found else MAX_ARRAY_SIZE)


def run_on_slurm(jobs: SlurmStudy, *, cancel: bool, wait: bool) -> bool:
    """Does what the flags say with the jobs of a study; returns whether all of its cells have ended."""
    if cancel:
        print(f"Cancelled {jobs.cancel()} jobs. The same command without --cancel continues the study.")
        sys.exit(0)
    jobs.show()
    jobs.retry()
    print(f"Submitted {jobs.submit()} cells.")
    if wait:
        jobs.follow()
        jobs.show()
    return not jobs.study.names_in("waiting", "running")
