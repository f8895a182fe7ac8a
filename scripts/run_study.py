"""Runs a study: plans a grid of cells (runs), trains each cell in its own process, then writes the report.

    # Minutes on a laptop: tiny models on a synthetic sample.
    python scripts/run_study.py --output_dir runs/smoke

    # Is a ViT pretrained on your images better than a ResNet-18? First check and print the plan.
    python scripts/run_study.py --data_dir DATA --output_dir runs/compare --models vit-mae-tiny resnet-18 \\
        --pretrain --set image_size=64 --config_file accelerate_configs/cpu.yaml --dry_run

    # The paper's grid on MIMIC-CXR-JPG: first the plan and its cost, then all cells, on two GPUs.
    python scripts/run_study.py --data_dir /data/mimic-cxr-jpg --output_dir runs/paper --dry_run
    python scripts/run_study.py --data_dir /data/mimic-cxr-jpg --output_dir runs/paper --parallel 2

    # Only the cells of the paper's tables, and the same cells with a ViT first pretrained on these images.
    python scripts/run_study.py --data_dir /data/mimic-cxr-jpg --output_dir runs/paper \\
        --tasks finding --training_modes full --train_sizes 1000 10000 --pretrain

A cell is one run: model x recipe x augmentation x masking x training size x task x training mode x view x
seed. Each cell has a run folder in --output_dir. The same command again, or one with more cells, skips
finished cells, continues stopped cells from their last checkpoint, and tries failed cells again. A finished
cell keeps its model; its checkpoints are removed. At the end, report_study.py makes tables, plots and an HTML
page. Exit status: 0 all done, 1 a cell or the report failed, 2 wrong flags, 130 or 143 stopped by a signal.
"""

import argparse
import functools
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cxr.choices import AUGMENTATIONS
from cxr.choices import MASKINGS
from cxr.choices import PRESETS
from cxr.choices import PRETRAINING_STARTS
from cxr.choices import RECIPES
from cxr.choices import TASKS
from cxr.choices import TRAINING_MODES
from cxr.choices import VIEWS
from cxr.cli.arguments import labels_in
from cxr.cli.command_line import DATA_DIR
from cxr.cli.command_line import ArgumentParser
from cxr.cli.command_line import add_folder
from cxr.cli.command_line import add_number
from cxr.cli.command_line import model_name
from cxr.cli.command_line import non_negative_int
from cxr.cli.command_line import positive_int
from cxr.cli.command_line import seed_number
from cxr.cli.command_line import share_below_one
from cxr.data.images import user_errors
from cxr.data.sources import REPOSITORY
from cxr.data.sources import make_sample_data_once
from cxr.errors import UserError
from cxr.errors import did_you_mean
from cxr.errors import run_script
from cxr.models.architectures import CONFIGS
from cxr.models.architectures import is_untrained
from cxr.run_folder.files import write_json
from cxr.run_folder.lock import Lock
from cxr.run_folder.lock import lock_folder
from cxr.study import checks
from cxr.study import grid
from cxr.study import plan_tables
from cxr.study import presets
from cxr.study import runner
from cxr.study import slurm
from cxr.study.cells import check_cells
from cxr.study.costs import compare
from cxr.study.costs import count_images
from cxr.study.costs import estimate_seconds
from cxr.study.costs import wall_seconds
from cxr.study.machine import A_GPU
from cxr.study.machine import Launch
from cxr.study.machine import measure_device
from cxr.study.machine import plan_launch

PATIENCE_SECONDS = 300  # how long another call may write the plan, or the report


class PrintPresets(argparse.Action):
    """Prints the presets and exits, as --help does."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        plan_tables.print_presets()
        parser.exit()


def study_model(text: str) -> str:
    """Returns a model's name or folder; a name that is trained from scratch is never taken for a folder."""
    return text if is_untrained(text) else model_name(text)


def slurm_minutes(text: str) -> int:
    """Returns a time limit in minutes, rounded up."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?|(\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected minutes, HH:MM:SS or D-HH:MM:SS")
    *parts, alone = (int(part or 0) for part in match.groups())
    days, *clock = parts
    # As in Slurm, 10:30 without days is minutes and seconds.
    hours, minutes, seconds = clock if match[4] or match[1] else (0, *clock[:2])
    total = alone or days * 1440 + hours * 60 + minutes + (seconds > 0)
    if total < slurm.MIN_MINUTES:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, which is {total} minutes, expected at least {slurm.MIN_MINUTES}: a job saves a "
            f"checkpoint {slurm.SAVING_SECONDS // 60} minutes before its limit and starts again"
        )
    return total


def slurm_option(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not re.fullmatch(r"[a-z][a-z_-]*", name) or not separator or not value:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected KEY=VALUE, such as mem=64G")
    name = name.replace("_", "-")
    if name in slurm.OWN_OPTIONS:
        raise argparse.ArgumentTypeError(f"found {text!r}, which this script sets itself; leave it out")
    return name, value


def train_size(text: str) -> int | None:
    return None if text == "all" else positive_int(text)


def setting(text: str) -> tuple[str, dict[str, Any]]:
    match = re.fullmatch(r"(?:(\w+)\.)?([a-z]\w*)=(.+)", text)
    if not match:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected FLAG=VALUE or SCOPE.FLAG=VALUE, such as vit.learning_rate=1e-4"
        )
    scope, flag, value = match.groups()
    if scope and scope not in (*presets.SCOPES, "all") and not scope.isdecimal():
        raise argparse.ArgumentTypeError(
            f"found the scope {scope!r}{did_you_mean(scope, presets.SCOPES)}, expected one of "
            f"{', '.join(presets.SCOPES)}, or a training size"
        )
    return scope or "", {flag: parse_value(flag, value)}


def parse_value(flag: str, text: str) -> Any:
    """Returns the value as args.json has it: a folder, a boolean, names, one or several numbers, or text."""
    if flag.endswith("_dir"):
        return str(Path(text).expanduser().absolute())
    if flag in ("model_revision", "config_overrides"):  # a commit can look like a number
        return text
    if flag == "findings":
        return [name.strip() for name in text.split(",")]
    if text in ("true", "false"):
        return text == "true"
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
        help="start from this grid (default: smoke without --data_dir, compare with --models, else paper); "
        "--presets prints all of them",
    )
    parser.add_argument("--presets", action=PrintPresets, nargs=0, help="print all presets and exit")
    add_folder(parser, "--data_dir", DATA_DIR)
    add_folder(parser, "--output_dir", "the study's folder: a new one, or the one to continue", required=True)
    add_axes(parser.add_argument_group("axes (each flag replaces the preset's values)"))
    add_study_flags(parser.add_argument_group("study"))

    running = parser.add_argument_group("running")
    running.add_argument(
        "--dry_run", action="store_true", help="check and print the plan and its cost, then exit"
    )
    running.add_argument(
        "--config_file",
        type=Path,
        metavar="FILE",
        help="Accelerate configuration for the cells (default: the preset's, in accelerate_configs/)",
    )
    parallel = "run N cells at once, each on its own GPU; on a CPU they share the cores"
    add_number(running, "--parallel", positive_int, parallel, default=1)
    add_slurm_flags(parser.add_argument_group("Slurm"))
    return parser


def add_axes(axes: argparse._ArgumentGroup) -> None:
    add_list = functools.partial(axes.add_argument, nargs="+")
    add_list(
        "--models",
        type=study_model,
        metavar="NAME|FOLDER",
        help="a pretrained model: its folder or its run's, or a name in --set hub_dir=FOLDER or downloaded "
        f"from the Hub; or a model to train from scratch: {', '.join(CONFIGS)}, timm/NAME",
    )
    add_list("--augmentations", choices=AUGMENTATIONS, help="augmentations of the training images")
    add_list(
        "--mask_ratios",
        action="extend",
        type=share_below_one,
        metavar="R",
        help="share of each training image that is masked, for ViTs only; 0: no masking",
    )
    add_list("--train_sizes", type=train_size, metavar="N|all", help="train on N images, or on all")
    add_list("--tasks", choices=TASKS, help="classification tasks")
    add_list("--training_modes", choices=TRAINING_MODES, help="train all layers, or only the last layer")
    add_list("--views", choices=VIEWS, help="views of the images")
    add_list(
        "--recipes",
        choices=RECIPES,
        help="how the classifiers are trained; paper: as the preset says; another one replaces the preset's "
        "augmentation, masking and flags where it has its own",
    )
    add_list("--seeds", type=seed_number, metavar="N", help="seeds of the sample, its order and the weights")


def add_study_flags(study: argparse._ArgumentGroup) -> None:
    study.add_argument(
        "--masking",
        choices=MASKINGS,
        help="what a mask ratio means: the share of patches that the ViT does not see, or the probability of "
        "random erasing (default: patches)",
    )
    study.add_argument(
        "--pretrain",
        nargs="?",
        const="beside",
        choices=[start for start in PRETRAINING_STARTS if start],
        help="pretrain each ViT as a masked autoencoder on all training images, once per seed "
        "and view, and fine-tune the result: in addition to the model that --models names (beside, the "
        "default) or instead of it",
    )
    study.add_argument(
        "--set",
        nargs="+",
        action="extend",
        type=setting,
        metavar="[SCOPE.]FLAG=VALUE",
        help="set a flag of the training scripts in all cells or, with SCOPE, in some of them; SCOPE: "
        f"{', '.join(presets.SCOPES)}, or a training size; scratch and pretrained mean classifiers that "
        "start from random or from pretrained weights, a recipe's name those trained by it. Findings "
        "are separated by commas: classification.findings='Edema,Pleural Effusion'",
    )


def add_slurm_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--slurm",
        action="store_true",
        help="submit each cell as a job, show the state of the study, and return; the same command again "
        "submits what is missing. The other flags of this group need it",
    )
    group.add_argument("--slurm_partition", metavar="NAME", help="partition of the jobs")
    group.add_argument("--slurm_account", metavar="NAME", help="account of the jobs")
    group.add_argument(
        "--slurm_time",
        type=slurm_minutes,
        metavar="TIME",
        help="time limit of a job as Slurm writes it: minutes, HH:MM:SS or D-HH:MM:SS (default: 24:00:00). A "
        "cell that takes longer saves a checkpoint, and its job starts again",
    )
    add_number(
        group, "--gpus_per_cell", non_negative_int, "GPUs of a job (default: the processes of --config_file)"
    )
    group.add_argument(
        "--slurm_args",
        nargs="+",
        action="extend",
        type=slurm_option,
        default=[],
        metavar="KEY=VALUE",
        help="other options of sbatch, such as mem=64G cpus_per_task=8",
    )
    add_number(group, "--max_jobs", positive_int, "keep at most N jobs in the queue")
    either = group.add_mutually_exclusive_group()
    either.add_argument(
        "--wait", action="store_true", help="follow the jobs until all have ended, and report"
    )
    either.add_argument("--cancel", action="store_true", help="cancel all jobs of the study")


def default_preset(args: argparse.Namespace) -> str:
    """Returns `paper` for the paper's models only; others do not converge at its learning rates."""
    if args.data_dir is None:
        return "smoke"
    return "compare" if args.models else "paper"


def chosen_grid(args: argparse.Namespace, preset: presets.Grid) -> presets.Grid:
    names = ("models", "augmentations", "mask_ratios", "train_sizes", "tasks", "training_modes", "views")
    names += ("seeds", "recipes", "masking", "pretrain")
    return presets.change_grid(
        preset, settings=tuple(args.set or ()), **{name: getattr(args, name) for name in names}
    )


def report(output_dir: Path) -> bool:
    """Runs report_study.py, which prints its own errors; returns whether it succeeded."""
    script = REPOSITORY / "scripts" / "report_study.py"
    return subprocess.run([sys.executable, str(script), str(output_dir)], check=False).returncode == 0


def check(
    cells: list[grid.Cell], data_dir: Path, launch: Launch, args: argparse.Namespace
) -> dict[str, float]:
    """Checks the plan before the first cell starts; returns the estimated seconds of each cell.

    A dry run prints the plan before the checks of disk and device, so that it can be read without a GPU.
    """
    output_dir = args.output_dir.expanduser().absolute()
    if args.slurm:
        slurm.check_programs()
        slurm.gpus_of(launch, args.gpus_per_cell)
    elif launch.num_machines > 1:
        raise UserError(
            f"--config_file {launch.config_file}: found num_machines {launch.num_machines}, expected 1 "
            "without --slurm; to share the cells among machines, start the same command on each of them"
        )
    with user_errors():
        labels_in(data_dir)
    images = count_images(cells, data_dir)
    facts = check_cells(cells)
    runner.check_study(output_dir, cells)
    checks.check_batches(facts, images, launch.num_processes)
    device = A_GPU if args.slurm and not launch.on_cpu else measure_device(launch)
    seconds, basis = estimate_seconds(facts, images, output_dir, device, num_processes=launch.num_processes)
    left = {name: facts[name] for name in facts if runner.state_on_disk(output_dir / name) != "finished"}
    at_once = (args.max_jobs or checks.JOBS_AT_ONCE) if args.slurm else len(launch.gpus)
    space = checks.disk_space(left, output_dir, at_once)
    if args.dry_run:
        plan_tables.print_cells(cells, facts, images, seconds, output_dir)
        plan_tables.print_kinds(cells, facts, images, num_processes=launch.num_processes)
        left_to_run = [cell for cell in cells if cell.run_id in left]
        plan_tables.print_cost(left_to_run, seconds, launch, at_once=at_once)
        print(f"{len(cells)} cells, {len(left)} left to run, estimated {basis}.", space, sep="\n")
    checks.check_disk(space, output_dir, num_cells=len(left), at_once=at_once)
    checks.check_device(facts, launch, device)
    return seconds


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser()
    args = parser.parse_args(argv)
    of_slurm = ("slurm_partition", "slurm_account", "slurm_time", "gpus_per_cell", "slurm_args", "max_jobs")
    for name in (*of_slurm, "wait", "cancel"):
        if not args.slurm and getattr(args, name) != parser.get_default(name):
            parser.error(f"--{name} needs --slurm")
    if args.slurm and args.parallel > 1:
        parser.error("--parallel is for this machine; with --slurm, use --max_jobs")
    return args


def run_cells(study: runner.StudyRunner, args: argparse.Namespace, launch: Launch, lock: Lock) -> Lock:
    """Runs the cells here, or submits those that have no job yet and exits unless all cells have ended.

    Returns the lock on the study's folder; while cells run here, other machines may work on the study, too.
    """
    if not args.slurm:
        lock.release()
        left = [cell for cell in study.cells if study.states[cell.run_id] != "done"]
        started = time.monotonic()
        study.run(launch)
        if left and not study.by_others and not study.names_in("failed", "impossible"):
            estimated = wall_seconds(left, study.seconds, study.parallel)
            print(compare(estimated, time.monotonic() - started))
        return lock_folder(study.output_dir, patience=PATIENCE_SECONDS)
    options = slurm.Options(
        partition=args.slurm_partition,
        account=args.slurm_account,
        minutes=args.slurm_time or 24 * 60,
        nodes=launch.num_machines,
        gpus=slurm.gpus_of(launch, args.gpus_per_cell),
        args=dict(args.slurm_args),
        max_jobs=args.max_jobs,
    )
    jobs = slurm.SlurmStudy(study, options, launch.config_file)
    if not slurm.run_on_slurm(jobs, wait=args.wait):
        sys.exit(0)
    return lock


def sample_data() -> Path:
    print("No --data_dir given: using the synthetic sample.", file=sys.stderr)
    return make_sample_data_once()


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    output_dir = args.output_dir.expanduser().absolute()
    if args.cancel:
        slurm.cancel_study(output_dir, patience=PATIENCE_SECONDS)
        return
    preset = args.preset or default_preset(args)
    chosen = chosen_grid(args, presets.GRIDS[preset])
    config_file = args.config_file or REPOSITORY / "accelerate_configs" / chosen.config_file
    data_dir = (args.data_dir or sample_data()).expanduser().absolute()
    # Nothing is written before all checks have passed.
    cells = grid.plan_cells(chosen, data_dir=data_dir, output_dir=output_dir)
    launch = plan_launch(config_file, parallel=min(args.parallel, len(cells)))
    if args.dry_run:
        settings = plan_tables.settings_in_words((*chosen.settings, *chosen.given))
        print(f"Preset {preset}; flags of the cells:", *settings)
    seconds = check(cells, data_dir, launch, args)
    if args.dry_run:
        print("Nothing was run. To start this study, use the same command without --dry_run.")
        return
    output_dir.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(output_dir, patience=PATIENCE_SECONDS)
    plan = runner.check_study(output_dir, cells)  # again, now that the lock keeps other writers out
    write_json(output_dir / "plan.json", plan.as_json())
    study = runner.StudyRunner(cells, output_dir, seconds=seconds, parallel=len(launch.gpus))
    lock = run_cells(study, args, launch, lock)
    is_reported = report(output_dir) if study.has_classifier() else True
    lock.release()
    if study.print_failures() or not is_reported:
        sys.exit(1)


if __name__ == "__main__":
    run_script(main)
