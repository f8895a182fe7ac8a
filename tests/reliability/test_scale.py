"""What a run over all 377,110 images costs before its first step, and then for each epoch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mimic_tables import write_published_number_of_rows

SCRIPTS = Path(__file__).parents[2] / "scripts"

# In a process of its own, whose memory is measured. The images are a few bytes each: it is their number that
# counts.
PROGRAM = """
import json, re, sys, time
from pathlib import Path
root = Path(sys.argv[1])
sys.path.insert(0, sys.argv[2])
import cxr
from mimic_cxr_dataset.tables import index_images

started = time.perf_counter()
kept, _ = index_images(root, view="all")
seconds = {"index": time.perf_counter() - started}

import torch
from cxr.data.images import draw_training_images, images_in_memory
from cxr.data.loading import ChestXrays, TrainingBatches
from torchvision.transforms import v2
patients = kept["subject_id"].to_numpy()
images = images_in_memory([b"jpeg"] * len(kept), label=kept["label"].to_list(),
    dicom_id=kept["dicom_id"].to_list(), subject_id=patients.tolist())
for name, num_samples in (("draw 10,000", 10_000), ("draw all", None)):
    started = time.perf_counter()
    drawn, _ = draw_training_images(images, num_samples=num_samples, seed=0)
    seconds[name] = time.perf_counter() - started
started = time.perf_counter()
positives = sum(drawn["label"])
dataset = ChestXrays(drawn, v2.Identity(), seed=0)
batches = iter(TrainingBatches(
    len(dataset), images_per_step=64, gradient_accumulation_steps=1, num_processes=1, process_index=0, seed=0,
    steps=range(3 * (len(dataset) // 64))))
keys = next(batches)
rows = dataset.images.read([index for _, index in keys])
seconds["first batch"] = time.perf_counter() - started
for epoch in range(3):
    started = time.perf_counter()
    for _ in range(len(dataset) // 64 - (epoch == 0)):
        next(batches)
    seconds[f"epoch {epoch}"] = time.perf_counter() - started
status = Path("/proc/self/status").read_text()  # getrusage would count the test's own process
memory = int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) / 2**20
print(json.dumps({"seconds": seconds, "memory_gib": memory, "images": len(kept), "rows": len(rows)}))
"""


@pytest.mark.slow
@pytest.mark.timing
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux does")
def test_all_images_cost_seconds_and_little_memory_before_step_1_and_epochs_cost_the_same(tmp_path):
    write_published_number_of_rows(tmp_path)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(SCRIPTS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    print(measured)
    seconds = measured["seconds"]
    assert measured["images"] > 300_000
    assert measured["rows"] == 64
    assert sum(seconds[name] for name in ("index", "draw all", "first batch")) < 15
    assert measured["memory_gib"] < 2
    epochs = [seconds[f"epoch {number}"] for number in range(3)]
    assert max(epochs) < 3 * min(epochs) + 0.05
