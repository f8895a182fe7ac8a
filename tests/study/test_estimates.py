"""The estimate of a study's remaining cells, after ten have finished, against the time that they take."""

import shutil
import time
from pathlib import Path

import pytest
import run_classification
import run_mae_pretrain
from cxr.study import costs
from cxr.study import grid
from cxr.study import presets
from cxr.study.cells import check_cells
from cxr.study.machine import Device
from cxr.training import run
from tiny_runs import run_main

SCRIPTS = {grid.PRETRAINING: run_mae_pretrain, grid.CLASSIFICATION: run_classification}
NUM_FINISHED = 10
FASTER = (
    ("", {"per_device_train_batch_size": 16}),
    ("classification", {"num_train_epochs": 3}),
    ("vit", {"config_overrides": "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,patch_size=8"}),
    ("resnet", {"config_overrides": "embedding_size=8"}),
)


def run_cells(cells: list[grid.Cell], output_dir: Path, monkeypatch) -> dict[str, float]:
    """Runs cells in this process, which leaves out their imports; returns the seconds that each took."""
    took = {}
    for cell in cells:
        started = time.perf_counter()
        monkeypatch.setattr(run, "seconds_of_process", lambda start=started: time.perf_counter() - start)
        run_main(SCRIPTS[cell.script], output_dir / cell.run_id, *grid.to_words(cell.flags))
        took[cell.run_id] = time.perf_counter() - started
    return took


@pytest.mark.slow
@pytest.mark.timing
def test_after_ten_cells_the_others_take_what_was_estimated(sample_root, tmp_path, monkeypatch):
    chosen = presets.change_grid(
        presets.GRIDS["smoke"], augmentations=None, mask_ratios=None, settings=FASTER, train_sizes=[32, None]
    )
    cells = grid.plan_cells(chosen, data_dir=sample_root, output_dir=tmp_path)
    assert len(cells) > NUM_FINISHED + 2
    run_main(SCRIPTS[cells[0].script], tmp_path / "first", *grid.to_words(cells[0].flags))  # lazy imports
    shutil.rmtree(tmp_path / "first")
    run_cells(cells[:NUM_FINISHED], tmp_path, monkeypatch)
    device = Device(kind="cpu", tflops={"vit": 1e-9, "resnet": 1e-9}, start_seconds=1e9)  # has no effect
    facts, images = check_cells(cells), costs.count_images(cells, sample_root)
    seconds, _ = costs.estimate_seconds(facts, images, tmp_path, device, num_processes=1)
    took = run_cells(cells[NUM_FINISHED:], tmp_path, monkeypatch)
    estimated = sum(seconds[name] for name in took)
    print(costs.compare(estimated, sum(took.values())), {name: (seconds[name], took[name]) for name in took})
    assert estimated == pytest.approx(sum(took.values()), rel=0.3)
