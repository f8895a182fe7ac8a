"""Runs that are killed at random moments, again and again, end where the uninterrupted run does.

    KILLS=200 python -m pytest -m slow -s tests/reliability/test_kills.py

Half of the moments are points in time; the others are just before an operation on a file of the run or of the
hub, so that what lies between two of them is hit too.
"""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest
import run_mae_pretrain
import torch
from cxr.sharing import local_hub
from cxr.training.progress import has_checkpoint
from equal_runs import assert_equal
from equal_runs import without_times
from killing import start_forkserver
from killing import watch_operations
from PIL import Image
from safetensors.torch import load_file
from tiny_runs import TINY_VIT
from tiny_runs import read_results
from tiny_runs import run_main

KILLS = int(os.environ.get("KILLS", "60"))  # of both scripts together
KILLS_PER_RUN = 5  # then it may end
SCRIPTS = ("run_mae_pretrain", "run_classification")

NAME = "my-lab/killed"
RESUME = "--resume_from_checkpoint=latest"
FLAGS = [
    *TINY_VIT,
    "--num_train_epochs=2",
    "--max_train_samples=40",
    "--per_device_train_batch_size=8",
    "--learning_rate=1e-3",
    "--checkpointing_steps=2",
    "--push_to_hub",
    f"--hub_model_id={NAME}",
    "--hub_revision=v1",
]
MASKED = ["--augmentation=mae", "--mask_ratio=0.25"]
OF_SCRIPT = {
    "run_mae_pretrain": ["--hub_strategy=every_save"],
    "run_classification": [*MASKED, "--evaluate_test", "--checkpoints_total_limit=2"],
}


def run(script: str, folder: Path, flags: list[str], kill_at: int | None) -> None:
    """In a process of its own: calls the script's `main`, and kills itself at its `kill_at`-th operation.

    Without `kill_at` the operations are counted into a file.
    """
    with (folder.parent / "said.txt").open("a", encoding="utf-8") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    module = __import__(script)
    count = watch_operations(folder, kill_at=kill_at)
    module.main([*flags, f"--output_dir={folder / 'run'}", f"--hub_dir={folder / 'hub'}"])
    if kill_at is None:
        (folder.parent / "operations").write_text(str(count()), encoding="utf-8")


@pytest.fixture(scope="module")
def processes():
    """Processes that start with everything imported."""
    return start_forkserver(*SCRIPTS)


def check_files(folder: Path) -> None:
    """Reads every file that has its final name: whole, or not there."""
    for path in folder.rglob("*"):
        is_aside = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if is_aside or not path.is_file() or path.name == "train.log":
            continue
        if path.parent.name == "blobs":
            assert sha256(path.read_bytes()).hexdigest() == path.name
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".jsonl":
            assert all(json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines())
        elif path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                header, *rows = csv.reader(file)
            assert header[-2:] == ["label", "probability"]
            assert {len(row) for row in rows} == {len(header)}
        elif path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".md":
            assert path.read_text(encoding="utf-8").splitlines()[-1].startswith("Versions: torch ")
        elif path.suffix == ".safetensors":
            assert load_file(path)
        elif path.suffix in (".bin", ".pkl"):
            assert path.stat().st_size > 0  # read below
        else:
            assert path.parent.name == "refs", path
            assert (path.parents[1] / "snapshots" / path.read_text(encoding="utf-8")).is_dir()
    for checkpoint in (folder / "run" / "checkpoints").glob("step_*"):
        names = {path.name for path in checkpoint.iterdir()}
        assert names >= {"model.safetensors", "optimizer.bin", "random_states_0.pkl", "progress.json"}
        assert torch.load(checkpoint / "optimizer.bin", weights_only=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("script", SCRIPTS)
def test_killed_run_resumes_and_ends_where_the_uninterrupted_one_does(
    script, processes, sample_root, tmp_path
):
    flags = [*FLAGS, f"--data_dir={sample_root}", *OF_SCRIPT[script]]
    whole = tmp_path / "whole" / "folder"
    whole.mkdir(parents=True)
    process = processes.Process(target=run, args=(script, whole, flags, None))
    began = time.monotonic()
    process.start()
    process.join()
    seconds = time.monotonic() - began
    num_operations = int((whole.parent / "operations").read_text(encoding="utf-8"))

    moments = random.Random(script)
    num_kills = num_ended = 0
    while num_kills < KILLS // len(SCRIPTS):
        folder = tmp_path / str(num_ended) / "folder"
        folder.mkdir(parents=True)
        said = folder.parent / "said.txt"
        said.touch()
        for attempt in range(KILLS_PER_RUN + 1):
            resume = [RESUME] if (folder / "run" / ".lock").exists() else []
            last = attempt == KILLS_PER_RUN
            by_time = moments.random() < 0.5
            kill_at = None if last or by_time else moments.randrange(1, num_operations)
            process = processes.Process(target=run, args=(script, folder, [*flags, *resume], kill_at))
            process.start()
            if by_time and not last:
                process.join(moments.uniform(0.1, 1.0) * seconds)
                if process.is_alive():
                    os.kill(process.pid, signal.SIGKILL)
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL), said.read_text(encoding="utf-8")[-2000:]
            check_files(folder)
            if process.exitcode == 0:
                break
            num_kills += 1
        num_ended += 1
        assert without_hub(read_results(folder / "run")) == without_hub(read_results(whole / "run"))
        assert_equal(folder / "run", whole / "run")
        log, refs = local_hub.read_log(folder / "hub", NAME), local_hub.read_refs(folder / "hub", NAME)
        assert log[0].files == local_hub.read_log(whole / "hub", NAME)[0].files
        assert refs == {"main": log[0].commit, "v1": log[0].commit}
        local_hub.collect_garbage(folder / "hub", NAME)  # what a killed push left unnamed
        assert local_hub.find_problems(folder / "hub", NAME) == []
        assert len(list((folder / "hub").glob("models--*/snapshots/*"))) == len(log)
        assert len(log) == 1 or "every_save" in str(OF_SCRIPT[script])
        assert not [path for path in folder.rglob(".*") if path.suffix in (".tmp", ".old")]
    print(f"{script}: {num_kills} kills, {num_ended} runs, all equal to the uninterrupted one")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_second_run_is_refused_and_one_right_after_a_kill_waits_for_the_workers(sample_root, tmp_path):
    """With filelock 3 they hold its lock until they notice, within seconds."""
    run_dir = tmp_path / "run"
    flags = [*FLAGS, "--num_train_epochs=120", f"--data_dir={sample_root}", "--dataloader_num_workers=2"]
    flags += [f"--hub_dir={tmp_path / 'hub'}"]
    script = Path(run_mae_pretrain.__file__)
    with subprocess.Popen(
        [sys.executable, str(script), *flags, f"--output_dir={run_dir}"], stderr=subprocess.DEVNULL
    ) as process:
        while not has_checkpoint(run_dir):
            assert process.poll() is None
            time.sleep(0.05)
        with pytest.raises(ValueError, match=rf"another run is writing to it \(pid {process.pid} on "):
            run_main(run_mae_pretrain, run_dir, *flags, RESUME)
        process.kill()
    run_main(run_mae_pretrain, run_dir, *flags, RESUME)
    assert "Resuming from" in (run_dir / "train.log").read_text(encoding="utf-8")


def without_hub(results: dict) -> dict:
    """What must be equal: a commit's hash depends on its time."""
    return {name: value for name, value in without_times(results).items() if name != "hub_commit"}
