"""A full or read-only disk and too little memory: the last line says what to do; what was saved stays."""

import contextlib
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import run_classification
import run_mae_pretrain
import torch
from cxr.errors import TRAINING_ADVICE
from cxr.errors import run_script
from safetensors.torch import load_file
from tiny_runs import QUICK
from tiny_runs import TINY_VIT
from tiny_runs import run_main

SCRIPTS = Path(__file__).parents[2] / "scripts"


def last_line(script, output_dir: Path, capfd, *flags: object) -> str:
    """Calls the script as a command does; returns its last words."""
    with pytest.raises(SystemExit) as ended:
        run_script(lambda: run_main(script, output_dir, *TINY_VIT, *QUICK, *flags), advice=TRAINING_ADVICE)
    code = ended.value.code
    del ended  # it has the frames of the run, and they its lock
    gc.collect()
    said = capfd.readouterr().err
    assert code == (1 if "Traceback" in said else 2)  # a trace, or an error that was foreseen
    return said.splitlines()[-1]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk in memory, with room for one checkpoint of the tiny ViT-MAE (0.5 MiB) and not for two."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(folder)]
    with contextlib.suppress(OSError):
        if subprocess.run(mounting, capture_output=True).returncode == 0:
            yield folder
            subprocess.run(["umount", "-l", str(folder)], check=True)
            return
    pytest.skip("needs the right to mount a disk in memory")


def test_full_disk_is_named_last_and_the_last_checkpoint_is_as_it_was(small_disk, sample_root, capfd):
    flags = ["--checkpointing_steps=4", "--checkpoints_total_limit=2", f"--data_dir={sample_root}"]
    said = last_line(run_mae_pretrain, small_disk / "run", capfd, *flags)
    assert "the disk is full: make room and continue with --resume_from_checkpoint latest" in said
    (checkpoint,) = (small_disk / "run" / "checkpoints").iterdir()  # nothing half-written beside it
    assert checkpoint.name == "step_4"
    assert load_file(checkpoint / "model.safetensors")
    assert torch.load(checkpoint / "optimizer.bin", weights_only=True)
    subprocess.run(["mount", "-o", "remount,size=9m", str(small_disk)], check=True)  # room is made
    run_main(
        run_mae_pretrain, small_disk / "run", *TINY_VIT, *QUICK, *flags, "--resume_from_checkpoint=latest"
    )
    assert "after step 4." in capfd.readouterr().err


@pytest.mark.parametrize("kilobytes", [0, 4, 40, 200, 400, 560])
@pytest.mark.parametrize("script", [run_mae_pretrain, run_classification])
def test_disk_that_fills_up_anywhere_is_named_last(script, kilobytes, small_disk, sample_root, capfd):
    """The rest of the disk is taken: the first write, a record, the model or a figure finds it full."""
    (small_disk / "mine").write_bytes(bytes(1024 * (880 - kilobytes)))
    hub = ["--push_to_hub", "--hub_model_id=my-lab/x", f"--hub_dir={small_disk / 'hub'}"]
    said = last_line(script, small_disk / "run", capfd, f"--data_dir={sample_root}", *hub)
    assert "No space left" in said or "the disk is full" in said


def test_read_only_disk_is_named_last_for_the_run_the_hub_and_the_cache(
    small_disk, sample_root, tmp_path, capfd
):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    data, hub = f"--data_dir={sample_root}", ["--push_to_hub", "--hub_model_id=my-lab/x"]
    for name, folder, flags in (
        ("--output_dir", small_disk / "run", []),
        ("--cache_dir", tmp_path / "run", [f"--cache_dir={small_disk / 'cache'}"]),
        ("--hub_dir", tmp_path / "other", [*hub, f"--hub_dir={small_disk / 'hub'}"]),
    ):
        said = last_line(run_mae_pretrain, folder, capfd, data, *flags)
        assert name in said and "folder" in said
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the limit is of POSIX")
def test_step_that_needs_more_memory_than_there_is_ends_with_what_to_lower(sample_root, tmp_path):
    code = (
        "import resource, sys; import run_mae_pretrain; from cxr import errors;"
        "resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30));"
        "errors.run_script(lambda: run_mae_pretrain.main(sys.argv[1:]), advice=errors.TRAINING_ADVICE)"
    )
    large = ["--config_name=vit-mae-huge", "--image_size=224", f"--data_dir={sample_root}"]
    flags = [*large, *QUICK, f"--output_dir={tmp_path / 'run'}"]
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=SCRIPTS, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr
    assert "lower --per_device_train_batch_size or --image_size" in done.stderr.splitlines()[-1]
