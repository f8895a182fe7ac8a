"""Runs the main scripts with models so small that an epoch takes a second."""

import json
from pathlib import Path

from accelerate.state import AcceleratorState
from accelerate.state import GradientState

TINY_VIT = [
    "--config_name=vit-mae-tiny",
    "--config_overrides=hidden_size=32,num_hidden_layers=2,num_attention_heads=2,intermediate_size=64,patch_size=8,"
    "decoder_hidden_size=32,decoder_num_hidden_layers=1,decoder_num_attention_heads=2,decoder_intermediate_size=64",
    "--image_size=32",
]
TINY_RESNET = [
    "--config_name=resnet-18",
    "--config_overrides=embedding_size=8",
    "--image_size=32",
]
QUICK = ["--num_train_epochs=2", "--per_device_train_batch_size=8", "--learning_rate=1e-3"]


def run_main(script, output_dir: Path, *flags: object) -> dict:
    """Calls `script.main` in this process and returns its results.json."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    script.main([*map(str, flags), f"--output_dir={output_dir}"])
    return read_results(output_dir)


def read_results(output_dir: Path) -> dict:
    return json.loads((output_dir / "results.json").read_text(encoding="utf-8"))


def read_epochs(output_dir: Path) -> list[dict]:
    """Returns the lines of metrics.jsonl without the speed, which differs in every run."""
    lines = (output_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    epochs = [json.loads(line) for line in lines]
    assert all(epoch.pop("images_per_second") > 0 for epoch in epochs)
    assert all(0 <= epoch.pop("data_wait") <= 1 for epoch in epochs)
    return epochs
