"""Runs the cells of a study as Slurm jobs: submits those that are missing, and shows and cancels them.

submitit writes the batch files and calls sbatch. Slurm keeps the queue; `plan.json` has the job of each cell.
"""

import re
import shlex
import shutil
import signal
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
from cxr.run_folder.lock import lock_folder
from cxr.study import grid
from cxr.study import runner
from cxr.study.machine import Launch
from cxr.study.slurm_job import CellJob

SAVING_SECONDS = runner.SAVING_SECONDS + 60  # before the time limit, a job is told to save
MIN_MINUTES = 10  # time limit; with less, a job would save and start again without training
MAX_REQUEUES = 10**6  # submitit's limit of time limits; a pretraining may need many jobs
MAX_ARRAY_SIZE = 1001  # Slurm's default
# Options of sbatch that follow from other flags, or on which the jobs depend.
OWN_OPTIONS = {"array", "output", "error", "open-mode", "chdir", "signal", "time", "dependency"}
OWN_OPTIONS |= {"nodes", "ntasks", "ntasks-per-node", "gpus", "gpus-per-node", "gpus-per-task"}
IDS_PER_CALL = 500  # of scancel, whose command line is limited
# Shell lines of a job, before its cell. From Slurm 22.05 on, a job's srun does not have its cpus-per-task.
SETUP = [
    f"export PYTHONPATH={shlex.quote(f'{REPOSITORY}/scripts:{REPOSITORY}')}${{PYTHONPATH:+:$PYTHONPATH}}",
    'if [ -n "$SLURM_CPUS_PER_TASK" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi',
]
# Of a job on several nodes: when the first node has ended, or one has failed, the others end.
TOGETHER = ["--wait=60", "--kill-on-bad-exit=1"]
FOLLOW_SECONDS = 15.0
LATE_SECONDS = 70.0  # how long a network disk may hide results that a job has just written
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
        self.study = study
        self.options = options
        self.config_file = config_file
        self.output_dir = study.output_dir
        self.plan = grid.Plan.read(self.output_dir / "plan.json")
        self.queue: dict[str, str] = {}  # state by job id
        self.gone: dict[str, float] = {}  # by job id: when one had first left the queue without results
        self.limit = sys.maxsize  # of jobs of this user, when Slurm has refused one more
        self.array_size = max_array_size()
        self.update()

    def update(self, patience: float = 0) -> None:
        """Reads the queue, and of the cells only those whose job has left it.

        Without results, such a cell has failed after `patience` seconds.
        """
        self.queue, now = read_queue(), time.monotonic()
        for cell in self.study.cells:
            name = cell.run_id
            if self.study.states[name] in ("done", "failed", "impossible"):
                continue
            job, needed = self.plan.jobs.get(name), self.study.states.get(cell.needs)
            if job in self.queue:
                self.gone.pop(job, None)
                self.study.states[name] = "waiting" if self.queue[job] == "PENDING" else "running"
            elif job and self.study.note_results(cell):
                continue
            elif needed in ("failed", "impossible"):
                self.study.states[name] = "impossible"
            elif job and self.study.claims.is_taken(name, owners=[job]):  # by a call without --slurm
                self.study.states[name] = "running"
            elif job and now - self.gone.setdefault(job, now) >= patience:
                self.study.states[name] = "failed"

    def missing(self) -> list[grid.Cell]:
        """Returns the cells that wait without a job, as many as --max_jobs has room for.

        None while Slurm has refused further jobs and as many are in the queue.
        """
        if len(self.queue) >= self.limit:
            return []
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
        """Submits missing cells, a pretraining before those that need it; returns how many Slurm took."""
        arrays: dict[str | None, list[grid.Cell]] = {}
        if not (cells := self.missing()):
            return 0
        pretrainings = [cell for cell in cells if cell.script == grid.PRETRAINING]
        with_job = {cell.run_id for cell in pretrainings}
        with_job |= {name for name, job in self.plan.jobs.items() if job in self.queue}
        for cell in [cell for cell in cells if cell.script != grid.PRETRAINING]:
            if cell.needs is None or self.study.states.get(cell.needs) == "done":
                arrays.setdefault(None, []).append(cell)
            elif cell.needs in with_job:  # else a call without --slurm runs the pretraining
                arrays.setdefault(cell.needs, []).append(cell)
        taken, written = 0, time.monotonic()
        if hasattr(signal, "SIGHUP"):  # of a closed terminal: note the jobs before the end
            signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
        try:
            for needs, alike in [(None, pretrainings), *arrays.items()]:
                for start in range(0, len(alike), self.array_size):
                    wanted = alike[start : start + self.array_size]
                    found = self._submit_some(wanted, needs)
                    taken += found
                    if found < len(wanted):
                        return taken
                    if time.monotonic() - written > NOTE_SECONDS:
                        self._note(self.plan.jobs)
                        written = time.monotonic()
        finally:
            self._note(self.plan.jobs)
        return taken

    def _submit_some(self, cells: list[grid.Cell], needs: str | None) -> int:
        """Submits as many of the cells as the user's limit of jobs allows; returns how many."""
        if self._submit_array(cells, needs):
            return len(cells)
        if len(cells) == 1:
            self.limit = len(self.queue)
            return 0
        half = len(cells) // 2
        found = self._submit_some(cells[:half], needs)
        return found if found < half else found + self._submit_some(cells[half:], needs)

    def _submit_array(self, cells: list[grid.Cell], needs: str | None) -> bool:
        """Submits one array and keeps its jobs in `plan`; returns whether the user's limit of jobs allows it.

        Raises UserError if sbatch refuses it for another reason.

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
            if re.search(r"MaxSubmit|submit limit", str(error), re.IGNORECASE):
                return False
            raise UserError(
                f"--slurm: sbatch refused {len(cells)} cells ({' '.join(str(error).split())[-300:]}); change "
                "the --slurm flags, or submit fewer with --max_jobs"
            ) from error
        ids = {cell.run_id: job.job_id for cell, job in zip(cells, submitted)}
        self.plan = self.plan.model_copy(update={"jobs": self.plan.jobs | ids})
        self.queue |= dict.fromkeys(ids.values(), "PENDING")
        return True

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
            "array_parallelism": self.array_size,
            "gpus_per_node": options.gpus // options.nodes or None,
            "srun_args": TOGETHER if options.nodes > 1 else None,
            "signal_delay_s": SAVING_SECONDS,
            "stderr_to_stdout": True,
            "setup": SETUP,
            "additional_parameters": further,
        }

    def show(self) -> None:
        """Prints the state of the study, and of each failed cell the end of its log."""
        self.study.console.print(self.study.render())
        for name in self.study.names_in("failed"):
            job = self.plan.jobs[name]
            log = self.output_dir / "logs" / f"{name}.log"
            if not log.is_file():  # the job ended before its cell began
                log = self.output_dir / "logs" / "slurm" / f"{job}_0_log.out"
            end = runner.tail(log) if log.is_file() else "    found no such file: the job never started"
            self.study.say(f"{name} FAILED in job {job}; last lines of {log}:\n{end}")

    def follow(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Shows the state until no cell is left, and submits cells as the queue gets room for them."""
        console = self.study.console
        with Live(self.study.render(), console=console, auto_refresh=False, transient=True) as live:
            while self.study.names_in("waiting", "running"):
                sleep(FOLLOW_SECONDS)
                try:
                    self.update(patience=LATE_SECONDS)
                    self.submit()
                except UserError as error:  # Slurm is busy or starts again; the jobs go on meanwhile
                    self.study.say(str(error))
                    continue
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


def check_programs() -> None:
    for program in ("sbatch", "srun", "squeue", "scancel", "scontrol"):
        if not shutil.which(program):
            raise UserError(f"--slurm: found no {program}; use a machine from which jobs are submitted")


def run_program(*words: str) -> str:
    """Returns what a program of Slurm prints. Raises UserError if it fails."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise UserError(f"--slurm: {words[0]} failed ({said}); try again when Slurm answers")
    return done.stdout


def read_queue() -> dict[str, str]:
    """Returns the state of each job of this user in the queue, by job id; a part of an array is a job."""
    lines = run_program("squeue", "--me", "--all", "--noheader", "--array", "--format=%i %T").splitlines()
    return dict(line.split(maxsplit=1) for line in lines)


def max_array_size() -> int:
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", run_program("scontrol", "show", "config"), re.MULTILINE)
    return max(1, int(found[1]) if found else MAX_ARRAY_SIZE)


def cancel_study(output_dir: Path, *, patience: float) -> None:
    """Cancels all jobs of a study; a running cell saves a checkpoint first.

    A call that follows them with --wait ends then; `patience` is how many seconds that may take.
    """
    check_programs()
    path = output_dir / "plan.json"
    if not path.is_file():
        raise UserError(f"--cancel: found no study in {output_dir} (no plan.json); check --output_dir")
    queue = read_queue()
    ids = [job for job in grid.Plan.read(path).jobs.values() if job in queue]
    for start in range(0, len(ids), IDS_PER_CALL):
        run_program("scancel", *ids[start : start + IDS_PER_CALL])
    lock = lock_folder(output_dir, patience=patience)
    plan = grid.Plan.read(path)  # a cell whose job was cancelled has not failed
    kept = {name: job for name, job in plan.jobs.items() if job not in ids}
    write_json(path, plan.model_copy(update={"jobs": kept}).as_json())
    lock.release()
    print(f"Cancelled {len(ids)} jobs. The same command without --cancel continues the study.")


def run_on_slurm(jobs: SlurmStudy, *, wait: bool) -> bool:
    """Submits the missing jobs and may wait for them; returns whether all cells have ended."""
    jobs.show()
    jobs.retry()
    print(f"Submitted {jobs.submit()} cells.")
    if jobs.limit < sys.maxsize:
        print("Slurm takes no more jobs of this user now; the same command, or --wait, submits the others.")
    if wait:
        jobs.follow()
        jobs.show()
    return not jobs.study.names_in("waiting", "running")
