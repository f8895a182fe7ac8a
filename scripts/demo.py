"""Shows in minutes that everything works: trains and compares two small models on synthetic radiographs.

    make demo               # installs what is needed first
    python scripts/demo.py  # the same, if everything is installed

Draws the synthetic sample, once; pretrains a small ViT as a masked autoencoder; fine-tunes it; trains a
ResNet-18; reports both on the test split. Each step is a command that is shown and that works by itself; a
step that fails ends the demo with its exit status. Writes sample_data/ and runs/demo/, which is replaced each
time.
"""

import shlex
import shutil
import subprocess
import sys
import time
import webbrowser
from dataclasses import dataclass

from cxr.cli.command_line import ArgumentParser
from cxr.data.sources import REPOSITORY
from cxr.errors import run_script
from tqdm import tqdm

DEMO = "runs/demo"
LINES_OF_ERROR = 20


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command and what it does; the progress bar of a training counts its `epochs` in its run folder."""

    what: str
    seconds: int  # about, on two idle cores
    command: str  # from the repository's folder
    folder: str = ""
    epochs: int = 0


def training(
    folder: str, script: str, flags: str, *, what: str, seconds: int, epochs: int, batch_size: int = 32
) -> Step:
    command = (
        f"python scripts/{script}.py --data_dir sample_data --output_dir {DEMO}/{folder} {flags} "
        f"--num_train_epochs {epochs} --per_device_train_batch_size {batch_size} --learning_rate 1e-3"
    )
    return Step(what=what, seconds=seconds, command=command, folder=folder, epochs=epochs)


FINE_TUNE = "--lr_scheduler_type cosine --warmup_ratio 0.1 --evaluate_test"
DRAW = Step(
    what="Draw 600 chest radiographs, with their labels. No image is from a patient.",
    seconds=15,
    command="python scripts/make_sample_data.py sample_data",
)
PRETRAIN = training(
    "mae",
    "run_mae_pretrain",
    "--config_name vit-mae-tiny --image_size 64 --config_overrides "
    "hidden_size=96,intermediate_size=384,num_hidden_layers=4,patch_size=8 "
    "--no-norm_pix_loss --no-horizontal_flip --crop_scale 0.8 1",
    what="Pretrain a small ViT without labels: it sees a quarter of each image and predicts the rest.",
    seconds=50,
    epochs=45,
    batch_size=16,
)
VIT = training(
    "mae-vit",
    "run_classification",
    f"--model_name_or_path {DEMO}/mae/model {FINE_TUNE}",
    what="Fine-tune it with labels: a finding, or none?",
    seconds=28,
    epochs=25,
)
RESNET = training(
    "resnet-18",
    "run_classification",
    f"--config_name resnet-18 --image_size 64 {FINE_TUNE}",
    what="Train a ResNet-18 on the same labels, from scratch.",
    seconds=35,
    epochs=10,
)
REPORT = Step(
    what="Compare both on the test split.", seconds=10, command=f"python scripts/report_study.py {DEMO}"
)
NEXT = {
    "Which region of a radiograph made the ViT decide?": f"python scripts/predict.py {DEMO}/mae-vit/model "
    "sample_data/files/p10 --output predictions.csv --heatmap heat",
    "A small study, with its plan: which model needs fewer labels?": "python scripts/run_study.py "
    "--output_dir runs/smoke",
    "Your own images: what is in them?": "python scripts/describe_dataset.py --data_dir /data/mimic-cxr-jpg",
}


def arguments_of(command: str) -> list[str]:
    """The command as a process gets it: with this Python, whatever the shell's is."""
    return [sys.executable, *shlex.split(command)[1:]]


def run(step: Step) -> int:
    """Runs a step and returns its exit status. A training shows a progress bar; its output goes to a file."""
    command = arguments_of(step.command)
    if not step.epochs:
        return subprocess.run(command, cwd=REPOSITORY, check=False).returncode
    folder = REPOSITORY / DEMO / step.folder
    said, metrics = folder.with_suffix(".txt"), folder / "metrics.jsonl"
    said.parent.mkdir(parents=True, exist_ok=True)
    with (
        said.open("wb") as output,
        subprocess.Popen(command, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT) as process,
        tqdm(total=step.epochs, unit="epoch", desc="   ", disable=None) as bar,
    ):
        while process.poll() is None:
            time.sleep(0.2)
            if metrics.is_file():
                bar.update(metrics.read_bytes().count(b"\n") - bar.n)  # one line per epoch
    if process.returncode:
        lines = said.read_text(encoding="utf-8", errors="replace").splitlines()
        print(*lines[-LINES_OF_ERROR:], sep="\n", file=sys.stderr)
    return process.returncode


def main(argv: list[str] | None = None) -> None:
    ArgumentParser(__doc__, usage="").parse_args(argv)
    shutil.rmtree(REPOSITORY / DEMO, ignore_errors=True)
    drawn = (REPOSITORY / "sample_data").is_dir()
    steps = [*([] if drawn else [DRAW]), PRETRAIN, VIT, RESNET, REPORT]
    started = time.monotonic()
    print(f"{len(steps)} steps, about {sum(step.seconds for step in steps) / 60:.0f} minutes on two cores.")
    for number, step in enumerate(steps, 1):
        print(f"\n{number}/{len(steps)} {step.what} About {step.seconds} s.\n    {step.command}", flush=True)
        if status := run(step):
            print(f"demo.py: step {number} failed with exit status {status}", file=sys.stderr)
            sys.exit(status if status > 0 else 1)  # below 0: a signal's number
    page = REPOSITORY / DEMO / "report.html"
    print(f"\nDone in {time.monotonic() - started:.0f} s. Next:")
    for what, command in NEXT.items():
        print(f"\n  {what}\n    {command}")
    print(f"\nWhat the autoencoder predicts: {DEMO}/mae/reconstructions.png")
    print(f"The report: {page}")
    if sys.stdout.isatty():
        webbrowser.open(page.as_uri())


if __name__ == "__main__":
    run_script(main)
