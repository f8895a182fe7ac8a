"""Runs the study: plans its grid of cells, trains each in a process of its own, goes on where it was stopped.

    # Minutes on a laptop: tiny models on a synthetic sample.
    python scripts/run_study.py --output_dir runs/smoke

    # The paper's grid on MIMIC-CXR-JPG: first what it takes, then all of it, on two GPUs.
    python scripts/run_study.py --data_dir /data/mimic-cxr-jpg --output_dir runs/paper --dry_run
    python scripts/run_study.py --data_dir /data/mimic-cxr-jpg --output_dir runs/paper --parallel 2

    # The part of it that is in the paper's tables, and a ViT that was pretrained on these images beside it.
    python scripts/run_study.py --data_dir /data/mimic-cxr-jpg --output_dir runs/paper \\
        --tasks finding --training_modes full --train_sizes 1000 10000 --pretrain

A cell is model x augmentation x masking x training size x task x training mode x view x seed. Each is a run
folder in --output_dir. The same command again, or another with more cells, skips what is finished, goes on
inside a cell that was stopped, and tries failed ones again; of a finished cell the model stays, and its
checkpoints go. Exit status: 0 all done, 1 a cell failed, 2 wrong flags. report_study.py, which runs at the
end, turns the folder into tables, plots and a page.
"""

import argparse
import contextlib
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any
from typing import NoReturn

import psutil
import yaml
from cxr.command_line import ArgumentParser
from cxr.command_line import positive_int
from cxr.command_line import seed_number
from cxr.command_line import share_below_one
from cxr.costs import ImageCounts
from cxr.costs import count_images
from cxr.costs import duration
from cxr.costs import estimate_seconds
from cxr.grid import AUGMENTATIONS
from cxr.grid import CLASSIFICATION
from cxr.grid import CONFIGS
from cxr.grid import MASKINGS
from cxr.grid import PRESETS
from cxr.grid import PRETRAINING
from cxr.grid import SCOPES
from cxr.grid import STARTS
from cxr.grid import TASKS
from cxr.grid import TRAINING_MODES
from cxr.grid import VIEWS
from cxr.grid import Cell
from cxr.grid import Grid
from cxr.grid import arm_name
from cxr.grid import change_grid
from cxr.grid import plan_cells
from cxr.grid import read_plan
from cxr.grid import size_name
from cxr.grid import unique
from cxr.privacy import mask_ids
from cxr.progress import has_checkpoint
from cxr.records import check_unchanged
from cxr.records import is_in_use
from cxr.records import lock_folder
from cxr.records import read_json
from cxr.records import write_json
from cxr.sources import REPOSITORY
from cxr.sources import make_sample_data_once
from rich.console import Console
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

LOG_TAIL = 12  # lines
SAVING_SECONDS = 120  # that a cell may take to end its step and save it


# The command line -------------------------------------------------------------------------------------------


def train_size(text: str) -> int | None:
    return None if text == "all" else positive_int(text)


def setting(text: str) -> tuple[str, dict[str, Any]]:
    match = re.fullmatch(r"(?:(\w+)\.)?([a-z]\w*)=(.+)", text)
    if not match:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected FLAG=VALUE or SCOPE.FLAG=VALUE, such as vit.learning_rate=1e-4"
        )
    scope, flag, value = match.groups()
    if scope and scope not in SCOPES and not re.fullmatch(r"vit|resnet|all|\d+", scope):
        raise argparse.ArgumentTypeError(
            f"found the scope {scope!r}, expected pretraining, classification, vit, resnet or a training size"
        )
    return scope or "", {flag: parse_value(flag, value)}


def parse_value(flag: str, text: str) -> Any:
    """The value as args.json has it: a folder, a number, true or false, several numbers, or text."""
    if flag.endswith("_dir"):
        return str(Path(text).expanduser().absolute())
    if flag in ("model_revision", "config_overrides"):  # a commit may look like a number
        return text
    words = {"true": True, "false": False}
    if text in words:
        return words[text]
    try:
        numbers = [int(part) if re.fullmatch(r"-?\d+", part) else float(part) for part in text.split()]
    except ValueError:
        return text
    if not all(map(math.isfinite, numbers)):
        raise argparse.ArgumentTypeError(f"found {flag}={text}, expected a finite number")
    return numbers[0] if len(numbers) == 1 else numbers


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help="the grid to start from (default: smoke without --data_dir, else paper)",
    )
    parser.add_argument(
        "--data_dir",
        type=Path,
        metavar="FOLDER",
        help="the MIMIC-CXR-JPG folder (default: a synthetic sample, made on first use)",
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="the study's folder, new or to go on with",
    )

    axes = parser.add_argument_group("axes: each replaces the preset's")
    axes.add_argument(
        "--models",
        nargs="+",
        metavar="NAME",
        help="pretrained: a folder, or a name in --set hub_dir=FOLDER or on the Hub; from scratch: "
        + ", ".join(CONFIGS),
    )
    axes.add_argument("--augmentations", nargs="+", choices=AUGMENTATIONS, help="of training images")
    axes.add_argument(
        "--mask_ratios",
        nargs="+",
        action="extend",
        type=share_below_one,
        metavar="R",
        help="share masked, for ViTs; 0: none",
    )
    axes.add_argument("--train_sizes", nargs="+", type=train_size, metavar="N|all", help="training images")
    axes.add_argument("--tasks", nargs="+", choices=TASKS)
    axes.add_argument("--training_modes", nargs="+", choices=TRAINING_MODES)
    axes.add_argument("--views", nargs="+", choices=VIEWS)
    axes.add_argument("--seeds", nargs="+", type=seed_number, metavar="N", help="sample, order and weights")

    study = parser.add_argument_group("study")
    study.add_argument(
        "--masking",
        choices=MASKINGS,
        help="what masking means: patches that the ViT does not see, or the probability of random erasing "
        "(default: patches)",
    )
    study.add_argument(
        "--pretrain",
        nargs="?",
        const="beside",
        choices=[start for start in STARTS if start],
        help="pretrain each ViT as a masked autoencoder on all training images, once a seed and view, and "
        "train from there too (beside) or from there only (instead)",
    )
    study.add_argument(
        "--set",
        nargs="+",
        action="extend",
        type=setting,
        default=[],
        metavar="[SCOPE.]FLAG=VALUE",
        help="flags of the cells' scripts; SCOPE: pretraining, classification, vit, resnet, a training size",
    )

    running = parser.add_argument_group("running")
    running.add_argument(
        "--dry_run", action="store_true", help="print the plan and its cost, and run nothing"
    )
    running.add_argument(
        "--config_file",
        type=Path,
        metavar="FILE",
        help="of accelerate (default: the preset's in accelerate_configs/)",
    )
    running.add_argument(
        "--parallel", type=positive_int, default=1, metavar="N", help="cells at once, one on each of N GPUs"
    )
    return parser


# The plan ---------------------------------------------------------------------------------------------------


def chosen_grid(args: argparse.Namespace, preset: Grid) -> Grid:
    return change_grid(
        preset,
        augmentations=args.augmentations,
        mask_ratios=args.mask_ratios,
        settings=tuple(args.set),
        models=args.models,
        train_sizes=args.train_sizes,
        tasks=args.tasks,
        training_modes=args.training_modes,
        views=args.views,
        seeds=args.seeds,
        masking=args.masking,
        pretrain=args.pretrain,
    )


def print_plan(
    cells: list[Cell],
    images: dict[str, ImageCounts],
    output_dir: Path,
    seconds: dict[str, float],
    basis: str,
    parallel: int,
) -> None:
    table = Table(caption=f"estimates {basis}")
    for name in ("run", "training images", "epochs", "time", "state"):
        table.add_column(name, justify="left" if name in ("run", "state") else "right", no_wrap=name == "run")
    remaining = 0.0
    for cell in cells:
        state = state_on_disk(output_dir / cell.run_id)
        remaining += seconds[cell.run_id] * (state != "finished")
        epochs = cell.flags.get("num_train_epochs", "")
        table.add_row(
            cell.run_id, f"{images[cell.run_id].train:,}", str(epochs), duration(seconds[cell.run_id]), state
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    print(f"{len(cells)} cells; what is left takes about {duration(remaining / parallel)}.")


def state_on_disk(run: Path) -> str:
    if (run / "results.json").is_file():
        return "finished"
    return "to resume" if has_checkpoint(run) else "to run"


# Running ----------------------------------------------------------------------------------------------------


def check_study(output_dir: Path, cells: list[Cell]) -> dict[str, Any]:
    """Returns the plan that `output_dir` has, with `cells` added to it.

    Raises ValueError when the folder is no study, or a cell that was begun in it had other flags. One that
    ended before its first checkpoint starts anew, so its flags may change.
    """
    planned = {name: asdict(cell) for name, cell in read_plan(output_dir).items()}
    is_study = (output_dir / "plan.json").is_file()
    if (
        not is_study
        and output_dir.is_dir()
        and any(not path.name.startswith(".") for path in output_dir.iterdir())
    ):
        raise ValueError(
            f"--output_dir {output_dir} is not empty and no study (no plan.json); expected a new folder or "
            "that of an earlier study: name another"
        )
    for cell in cells:
        run = output_dir / cell.run_id
        begun = read_json(run / "args.json")
        if begun and (state_on_disk(run) != "to run" or is_in_use(run)):
            check_unchanged(begun, cell.flags, where=run)
            # args.json has the defaults too; which flags were named is in the old plan.
            before = planned.get(cell.run_id, asdict(cell))["flags"]
            check_unchanged(before, {name: cell.flags.get(name) for name in before}, where=run)
        planned[cell.run_id] = asdict(cell)
    return {"cells": planned}


def command(cell: Cell, run: Path, config_file: Path, gpu: str | None) -> list[str]:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config_file)]
    launcher += ["--quiet"]  # its own trace would push the script's error out of the log's tail
    if gpu is not None:
        launcher += ["--gpu_ids", gpu]
    script = REPOSITORY / "scripts" / cell.script
    resume = {"resume_from_checkpoint": "latest"} if has_checkpoint(run) else {}
    return [*launcher, str(script), *to_words({**cell.flags, "output_dir": run, **resume})]


def to_words(flags: dict[str, Any]) -> Iterator[str]:
    for name, value in flags.items():
        if value is True:
            yield f"--{name}"
        elif isinstance(value, list):
            yield f"--{name}"
            yield from map(str, value)
        elif value is False and name in ("norm_pix_loss", "horizontal_flip"):  # the only ones on by default
            yield f"--no-{name}"
        elif value is not None and value is not False:
            yield f"--{name}={value}"


def start_cell(
    cell: Cell, output_dir: Path, config_file: Path, *, gpu: str | None, num_threads: int | None
) -> subprocess.Popen:
    """Starts a cell's process, its output in `logs/RUN_ID.log`."""
    run = output_dir / cell.run_id
    if not has_checkpoint(run):
        shutil.rmtree(run, ignore_errors=True)  # what ended before its first checkpoint starts anew
    environment = dict(os.environ, TQDM_MININTERVAL="30", PYTHONUNBUFFERED="1")
    if num_threads:
        environment["OMP_NUM_THREADS"] = str(num_threads)
    log = log_of(cell, output_dir)
    log.parent.mkdir(exist_ok=True)
    log.touch(mode=0o600)  # an error names the file that it found
    with log.open("w", encoding="utf-8") as file:
        words = command(cell, run, config_file, gpu)
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment
        )


def log_of(cell: Cell, output_dir: Path) -> Path:
    return output_dir / "logs" / f"{cell.run_id}.log"


def tail(log: Path) -> str:
    """The last lines, of a progress bar its last state, without the ids that are in the log."""
    lines = log.read_bytes().decode("utf-8", errors="replace").split("\n")
    lines = [mask_ids(line.rstrip("\r").rpartition("\r")[2]) for line in lines]
    return "\n".join(f"    {line}" for line in [line for line in lines if line.strip()][-LOG_TAIL:])


def discard_checkpoints(run: Path) -> None:
    """Removes them from a finished run: the model is what is needed, a checkpoint is three times its size."""
    shutil.rmtree(run / "checkpoints", ignore_errors=True)


def stop_process(process: subprocess.Popen) -> None:
    """Ends a cell: the launcher and all that it started, which a signal to the launcher alone would leave."""
    try:
        launcher = psutil.Process(process.pid)
        processes = [*launcher.children(recursive=True), launcher]
    except psutil.NoSuchProcess:
        return
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.terminate()
    for one in psutil.wait_procs(processes, timeout=SAVING_SECONDS)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


def devices(config_file: Path, parallel: int) -> tuple[str, list[str | None], int | None]:
    """Returns cpu or gpu, the GPU of each slot (None: as accelerate chooses), and the threads of a cell.

    Raises ValueError for a file that is no accelerate config, or one that does not go with --parallel.
    """
    try:
        config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
        on_cpu, num_processes = bool(config["use_cpu"]), int(config["num_processes"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"--config_file {config_file}: found no accelerate config ({error}); expected one as in "
            "accelerate_configs/"
        ) from error
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if parallel == 1:
        # The config's gpu_ids would count for more than what the user made visible.
        first = visible.split(",")[0] if visible and num_processes == 1 and not on_cpu else None
        return "cpu" if on_cpu else "gpu", [first], None
    if num_processes > 1:
        raise ValueError(
            f"--parallel {parallel} runs cells of one process each, but {config_file} has num_processes "
            f"{num_processes}; use single_gpu_fp16.yaml, or leave out --parallel"
        )
    if on_cpu:
        return "cpu", [None] * parallel, max(1, (os.cpu_count() or 1) // parallel)
    names = visible.split(",") if visible else [str(number) for number in range(count_gpus() or parallel)]
    if len(names) < parallel:
        raise ValueError(f"--parallel {parallel}: found the GPUs {', '.join(names)}; expected one for each")
    return "gpu", names[:parallel], None


def count_gpus() -> int:
    """The GPUs that the driver lists; 0 where it cannot be asked."""
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return len(listed.stdout.splitlines())


class Study:
    """The cells of this call and what becomes of them: waiting, running, done, failed or impossible."""

    def __init__(self, cells: list[Cell], output_dir: Path, *, seconds: dict[str, float], parallel: int):
        self.cells = cells
        self.output_dir = output_dir
        self.seconds = seconds  # estimates by run_id
        self.parallel = parallel
        self.states = {cell.run_id: "waiting" for cell in cells}
        self.results: dict[str, dict] = {}
        self.started = time.monotonic()
        self.console = Console(width=None if sys.stdout.isatty() else 120)
        for cell in cells:
            if self.note_results(cell):
                discard_checkpoints(output_dir / cell.run_id)  # a killed study could not
            elif is_in_use(output_dir / cell.run_id):
                self.say(f"{cell.run_id} still runs, as a killed study left it; waiting for its end")
        self.finished_before = set(self.results)

    def note_results(self, cell: Cell) -> bool:
        """Whether a cell is finished; its results are kept for the table."""
        path = self.output_dir / cell.run_id / "results.json"
        results = read_json(path)
        if results:
            try:
                is_pretraining = cell.script == PRETRAINING
                measured = results["eval_loss"] if is_pretraining else results["test"]["auroc"] or 0.0
                math.isfinite(measured)
            except (KeyError, TypeError, OverflowError) as error:
                raise ValueError(
                    f"{path}: not what a run writes (at {error}); remove its folder to run it again"
                ) from error
            self.results[cell.run_id] = results
            self.states[cell.run_id] = "done"
        return bool(results)

    def next_cell(self) -> Cell | None:
        """The first cell that waits for nothing. One that a killed study left running is waited for."""
        for cell in self.cells:
            if self.states[cell.run_id] != "waiting" or is_in_use(self.output_dir / cell.run_id):
                continue
            needed = self.states[cell.needs] if cell.needs else "done"
            if needed in ("failed", "impossible"):
                self.states[cell.run_id] = "impossible"
                self.say(f"{cell.run_id} left out: it starts from {cell.needs}, which failed")
            elif needed == "done" and not self.note_results(cell):
                return cell
        return None

    def end_cell(self, cell: Cell, *, took: float) -> None:
        """Notes how a cell's process ended, and says so."""
        log = log_of(cell, self.output_dir)
        if is_in_use(self.output_dir / cell.run_id):  # what a killed study left was quicker to claim it
            self.states[cell.run_id] = "waiting"
            self.say(f"{cell.run_id} still runs, as a killed study left it; waiting for its end")
            return
        if not self.note_results(cell):
            self.states[cell.run_id] = "failed"
            self.say(f"{cell.run_id} FAILED after {duration(took)}; the end of {log}:\n{tail(log)}")
            return
        discard_checkpoints(self.output_dir / cell.run_id)
        ended = sum(state not in ("waiting", "running") for state in self.states.values())
        left = f"about {duration(self.seconds_left())} left" if ended < len(self.cells) else "the last one"
        self.say(f"[{ended}/{len(self.cells)}] {cell.run_id}: {self.headline(cell)}, {took:.0f} s; {left}")

    def headline(self, cell: Cell) -> str:
        results = self.results[cell.run_id]
        if cell.script == PRETRAINING:
            return f"validation loss {results['eval_loss']:.3f}"
        auroc = results["test"]["auroc"]
        return "test AUROC undefined" if auroc is None else f"test AUROC {auroc:.3f}"

    def seconds_left(self) -> float:
        """What is left by the estimates, corrected by how they held so far in this call."""
        left = sum(
            self.seconds[name] * (1 - self.share_done(name)) for name in self.names_in("waiting", "running")
        )
        here = sum(self.seconds[name] for name in self.results.keys() - self.finished_before)
        here += sum(self.seconds[name] * self.share_done(name) for name in self.names_in("running"))
        return left * (time.monotonic() - self.started) / here if here else left / self.parallel

    def names_in(self, *states: str) -> list[str]:
        return [name for name, state in self.states.items() if state in states]

    def share_done(self, name: str) -> float:
        """The share of its epochs that a running cell has behind it."""
        if self.states[name] != "running":
            return 0.0
        run = self.output_dir / name
        num_epochs = read_json(run / "args.json").get("num_train_epochs") or 1
        metrics = run / "metrics.jsonl"
        return min(1.0, metrics.read_bytes().count(b"\n") / num_epochs) if metrics.is_file() else 0.0

    def say(self, text: str) -> None:
        with contextlib.suppress(OSError, SystemExit):  # whoever read this is gone; the study goes on
            self.console.print(escape(text), highlight=False, soft_wrap=True)

    def render(self) -> Group:
        """The table that follows the study: a row an arm, a column a training size."""
        columns = unique(
            size_name(cell.point["train_size"]) for cell in self.cells if cell.script == CLASSIFICATION
        )
        rows: dict[str, dict[str, list[Cell]]] = {}
        for cell in self.cells:
            if cell.script == CLASSIFICATION:
                by_size = rows.setdefault(arm_name(cell.point), {})
                by_size.setdefault(size_name(cell.point["train_size"]), []).append(cell)
        table = Table(title="test AUROC, mean over the seeds that are done")
        for name in ("", *columns):
            table.add_column(name, justify="right" if name else "left")
        for arm, by_size in rows.items():
            table.add_row(arm, *(self.summary(by_size.get(size, [])) for size in columns))
        running = [f"{name} {self.share_done(name):.0%}" for name in self.names_in("running")]
        counts = {
            state: len(self.names_in(state))
            for state in ("done", "running", "waiting", "failed", "impossible")
        }
        shown = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        # A table that is longer than the terminal is cut at its end.
        return Group(f"{shown}; about {duration(self.seconds_left())} left", *running, table)

    def summary(self, cells: list[Cell]) -> str:
        aurocs = [self.results[cell.run_id]["test"]["auroc"] for cell in cells if cell.run_id in self.results]
        aurocs = [auroc for auroc in aurocs if auroc is not None]
        words = [f"{fmean(aurocs):.3f}"] if aurocs else []
        words += [f"{len(aurocs)}/{len(cells)}"] * (len(aurocs) < len(cells) and len(cells) > 1)
        states = {self.states[cell.run_id] for cell in cells}
        words += [state for state in ("running", "failed", "impossible") if state in states]
        return " ".join(words) or "-"

    def run(self, config_file: Path, gpus: list[str | None], num_threads: int | None) -> None:
        """Runs what waits, a cell on each of `gpus` at a time, until nothing does."""
        slots: dict[int, tuple[Cell, subprocess.Popen, float]] = {}
        live = Live(console=self.console, get_renderable=self.render, refresh_per_second=1, transient=True)
        with live if self.console.is_terminal else contextlib.nullcontext():
            try:
                while slots or self.names_in("waiting"):
                    for slot in range(len(gpus)):
                        if slot not in slots and (cell := self.next_cell()):
                            process = start_cell(
                                cell, self.output_dir, config_file, gpu=gpus[slot], num_threads=num_threads
                            )
                            slots[slot] = cell, process, time.monotonic()
                            self.states[cell.run_id] = "running"
                    time.sleep(0.2)
                    for slot, (cell, process, started) in list(slots.items()):
                        if process.poll() is not None:
                            del slots[slot]
                            self.end_cell(cell, took=time.monotonic() - started)
            finally:
                for _, process, _ in slots.values():
                    stop_process(process)


def report(output_dir: Path) -> bool:
    """Whether report_study.py could report the study; it says why not."""
    script = REPOSITORY / "scripts" / "report_study.py"
    return subprocess.run([sys.executable, str(script), str(output_dir)], check=False).returncode == 0


def main(argv: list[str] | None = None) -> None:
    parser = make_parser()
    args = parser.parse_args(argv)
    preset = PRESETS[args.preset or ("paper" if args.data_dir else "smoke")]
    config_file = args.config_file or REPOSITORY / "accelerate_configs" / preset.config_file
    output_dir = args.output_dir.expanduser().absolute()
    try:
        if args.data_dir is None:
            print("No --data_dir given: using the synthetic sample.", file=sys.stderr)
        data_dir = (args.data_dir or make_sample_data_once()).expanduser().absolute()
        cells = plan_cells(chosen_grid(args, preset), data_dir=data_dir, output_dir=output_dir)
        parallel = min(args.parallel, len(cells))
        device, gpus, num_threads = devices(config_file, parallel)
        images = count_images(cells, data_dir)
        check_study(output_dir, cells)
        seconds, basis = estimate_seconds(cells, images, output_dir, device)
        if args.dry_run:
            print_plan(cells, images, output_dir, seconds, basis, parallel)
            return
        output_dir.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(output_dir)
        write_json(output_dir / "plan.json", check_study(output_dir, cells))  # now that nobody else writes it
    except (OSError, ValueError) as error:
        parser.error(str(error))

    def stop(*_: object) -> NoReturn:
        print(f"Stopped. The same command goes on with {output_dir}.", file=sys.stderr)
        sys.exit(143)  # through the finally that ends the cells

    for name in ("SIGTERM", "SIGUSR1"):  # the second is SLURM's notice; Windows has none
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop)
    try:
        study = Study(cells, output_dir, seconds=seconds, parallel=parallel)
        study.run(config_file, gpus, num_threads)
    except (OSError, ValueError) as error:
        parser.error(f"{error}; the same command goes on with {output_dir}")
    except KeyboardInterrupt:
        print(f"Stopped. The same command goes on with {output_dir}.", file=sys.stderr)
        sys.exit(130)
    has_results = any(cell.script == CLASSIFICATION and cell.run_id in study.results for cell in cells)
    reported = report(output_dir) if has_results else True
    lock.release()
    failed = study.names_in("failed", "impossible")
    if failed:
        print(
            f"{len(failed)} of {len(cells)} cells failed: {', '.join(failed)}. "
            "The same command tries them again."
        )
    if failed or not reported:
        sys.exit(1)


if __name__ == "__main__":
    main()
