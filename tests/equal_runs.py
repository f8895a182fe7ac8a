"""Checks that two runs ended with the same weights, moments, losses and metrics."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from tiny_runs import read_epochs


def without_times(results: dict) -> dict:
    times = ("images_per_second", "data_wait", "other_seconds")
    return {name: value for name, value in results.items() if name not in times}


def final_state(output_dir: Path) -> dict[str, torch.Tensor]:
    """Returns the weights of the model and of the last checkpoint, and the moments of the optimizer."""
    checkpoint = output_dir / "checkpoints" / "step_10"
    optimizer = torch.load(checkpoint / "optimizer.bin", weights_only=True)["state"]
    moments = {f"{name} {key}": value for name, of in optimizer.items() for key, value in of.items()}
    model = load_file(output_dir / "model" / "model.safetensors")
    last = {f"last {k}": v for k, v in load_file(checkpoint / "model.safetensors").items()}
    return {**model, **last, **moments}


def assert_equal(resumed: Path, whole: Path) -> None:
    assert read_epochs(resumed) == read_epochs(whole)
    before, after = final_state(whole), final_state(resumed)
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
