"""Two real processes against one: the same images, augmentation, masks, losses and predictions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_runs import TINY_VIT
from tiny_runs import read_epochs
from tiny_runs import read_results

SCRIPTS = Path(__file__).parents[1] / "scripts"
GLOBAL_BATCH = 8


def launch(script: str, output_dir: Path, *flags: object, num_processes: int) -> None:
    """Runs a script as `num_processes` processes that talk over gloo."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(num_processes)]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    command += [str(SCRIPTS / script), f"--per_device_train_batch_size={GLOBAL_BATCH // num_processes}"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*command, *map(str, flags), f"--output_dir={output_dir}"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module", params=["run_mae_pretrain.py", "run_classification.py"])
def two_runs(request, sample_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    flags = [*TINY_VIT, "--num_train_epochs=3", "--learning_rate=1e-3", f"--data_dir={sample_root}"]
    if request.param == "run_classification.py":
        flags += ["--augmentation=mae", "--random_erasing_prob=0.5", "--mask_ratio=0.25", "--evaluate_test"]
    for num_processes in (1, 2):
        launch(request.param, folder / str(num_processes), *flags, num_processes=num_processes)
    return folder


@pytest.mark.slow
def test_two_processes_have_the_losses_and_metrics_of_one(two_runs):
    one, two = (read_epochs(two_runs / name) for name in ("1", "2"))
    assert len(one) == len(two) == 3
    for before, after in zip(one, two):
        for name, value in before.items():
            assert after[name] == pytest.approx(value, abs=1e-4), name


@pytest.mark.slow
def test_two_processes_evaluate_every_image_once(two_runs):
    results = [read_results(two_runs / name) for name in ("1", "2")]
    for split in {"validation", "test"} & set(results[0]):  # pretraining writes no predictions
        lines = [
            (two_runs / name / f"predictions_{split}.csv").read_text(encoding="utf-8").splitlines()
            for name in ("1", "2")
        ]
        ids = [[line.split(",")[0] for line in of_run] for of_run in lines]
        assert ids[0] == ids[1]
        assert len(set(ids[1])) == len(ids[1]) == results[1][split]["n"] + 1


@pytest.mark.slow
def test_two_processes_train_on_the_same_sample_and_write_one_record(two_runs):
    samples = [
        json.loads((two_runs / name / "samples.json").read_text(encoding="utf-8")) for name in ("1", "2")
    ]
    assert samples[0] == samples[1]
    assert {path.name for path in (two_runs / "1").iterdir()} == {
        path.name for path in (two_runs / "2").iterdir()
    }
    weights = [load_file(two_runs / name / "model" / "model.safetensors") for name in ("1", "2")]
    assert weights[0].keys() == weights[1].keys()
