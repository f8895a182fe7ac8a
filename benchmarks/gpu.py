"""Measures the training steps of many configurations on this machine's GPU, each in a process of its own.

    python benchmarks/gpu.py                        # all rows that the results file lacks, for 9 minutes
    python benchmarks/gpu.py --rows 2 --minutes 5   # the next two of them
    python benchmarks/gpu.py --smoke --json smoke.json   # tiny rows, also on a CPU

Call it until no row is missing: each call goes on where the results file ends. It writes
benchmarks/results/CARD-DATE.json and, beside it, the same as a table in Markdown. A row that is not done at
the time limit is left to the next call.
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))  # for cxr

from benchmark import describe_machine
from cxr.cli import command_line
from cxr.errors import UserError
from cxr.errors import run_script
from cxr.run_folder.files import read_json
from cxr.run_folder.files import write_json
from cxr.run_folder.files import write_text
from gpu_table import table

HERE = Path(__file__).resolve().parent
OURS, TRAINER = "gpu_row.py", "trainer_baseline.py"


def rows() -> list[list[str]]:
    """Returns the commands to measure: a script of this folder and its flags."""
    found = []
    for model, sizes in (("vit-mae-base", (256, 512, 1024)), ("resnet-18", (256, 512, 1024))):
        for precision in ("bf16", "fp16"):
            of_model = [f"--config_name={model}", f"--mixed_precision={precision}"]
            one = [*of_model, "--batch_size=512"]
            found += [[TRAINER, *one], [TRAINER, *one, "--torch_compile"], [OURS, *one]]
            found += [[OURS, *of_model, f"--batch_size={size}", "--torch_compile"] for size in sizes]
    for model, size in (("vit-mae-large", 256), ("resnet-50", 512)):
        one = [f"--config_name={model}", "--mixed_precision=bf16", f"--batch_size={size}"]
        found += [[TRAINER, *one], [OURS, *one], [OURS, *one, "--torch_compile"]]
    compiled = ["--mixed_precision=bf16", "--batch_size=512", "--torch_compile"]
    for model in ("vit-mae-base", "resnet-18", "resnet-50"):
        found.append([OURS, f"--config_name={model}", *compiled, "--max_autotune"])
    for model in ("resnet-18", "resnet-50"):
        found.append([OURS, f"--config_name={model}", *compiled, "--contiguous"])
    return found


def smoke_rows() -> list[list[str]]:
    size = ["--image_size=64", "--batch_size=2", "--steps=1", "--windows=1"]
    ours = [OURS, *size, "--loss_steps=2"]
    return [[*ours, "--config_name=vit-mae-tiny"], [*ours, "--config_name=resnet-18"], [TRAINER, *size]]


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command_line.ArgumentParser(__doc__)
    add, positive = parser.add_argument, command_line.positive_int
    add("--json", type=Path, metavar="FILE", help="results file (default: by card and date)")
    add("--rows", type=positive, metavar="N", help="measure at most N rows (default: all that are missing)")
    command_line.add_number(parser, "--minutes", positive, "time limit of this call", default=9)
    add("--smoke", action="store_true", help="tiny rows, to try this script out")
    return parser.parse_args(argv)


def commit() -> str:
    """Returns the commit of this clone, with a plus sign if files were changed since."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def default_path(machine: dict) -> Path:
    card = re.sub(r"\W+", "-", machine["gpu"] or "cpu").strip("-").lower()
    return HERE / "results" / f"{card}-{time.strftime('%Y-%m-%d')}.json"


def read(path: Path, machine: dict) -> dict:
    """Returns the results so far. Raises UserError if they are of another machine, version or commit."""
    new = {"machine": machine, "commit": commit(), "date": time.strftime("%Y-%m-%d"), "rows": []}
    results = read_json(path) or new
    for name in ("machine", "commit"):
        if results[name] != new[name]:
            raise UserError(
                f"{path}: found results of the {name} {results[name]}, expected {new[name]}; "
                "use another --json"
            )
    return results


def measure(command: list[str], *, seconds: float) -> dict:
    """Returns the figures of a row, or its error. Raises subprocess.TimeoutExpired."""
    script, *flags = command
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        path = Path(folder) / "row.json"
        call = [sys.executable, str(HERE / script), *flags, f"--json={path}"]
        done = subprocess.run(call, capture_output=True, encoding="utf-8", errors="replace", timeout=seconds)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            return {"error": f"exit status {done.returncode}: {last[0]}"}
        figures = read_json(path)
    if script == TRAINER:
        figures["images_per_second"] = statistics.median(figures["images_per_second"])
    return figures


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    ends = time.monotonic() + 60 * args.minutes
    machine = describe_machine()
    if machine["gpu"] is None and not args.smoke:
        raise UserError("benchmarks/gpu.py needs a GPU, found none; --smoke tries it out on a CPU")
    path = args.json or default_path(machine)
    results = read(path, machine)
    measured = [row["command"] for row in results["rows"]]
    missing = [row for row in (smoke_rows() if args.smoke else rows()) if row not in measured]
    for index, command in enumerate(missing[: args.rows]):
        print(f"{len(missing) - index} rows are missing; measuring {' '.join(command)}", flush=True)
        try:
            figures = measure(command, seconds=ends - time.monotonic())
        except subprocess.TimeoutExpired:
            if index:
                break
            figures = {"error": f"not done in {args.minutes} minutes"}  # else every call would end here
        results["rows"].append({"command": command, **figures})
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, results)
        write_text(path.with_suffix(".md"), table(results))
    left = len(measured) + len(missing) - len(results["rows"])
    print(f"{path}: {len(results['rows'])} rows, {left} are missing")


if __name__ == "__main__":
    run_script(main)
