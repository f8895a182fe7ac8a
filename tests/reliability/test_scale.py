"""What a run over all 377,110 images costs before its first step, and then for each epoch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

NUM_IMAGES = 377_110
SCRIPTS = Path(__file__).parents[2] / "scripts"

# In a process of its own, whose memory is measured. The images are a few bytes each: it is their number that
# counts.
PROGRAM = """
import json, re, sys, time
from pathlib import Path
import numpy as np, pandas as pd
root, num_images = Path(sys.argv[1]), int(sys.argv[3])
sys.path.insert(0, sys.argv[2])
from cxr.choices import LABELS
from mimic_cxr_dataset.tables import index_images

rng = np.random.default_rng(0)
studies = np.arange(num_images) * 227_835 // num_images
subjects = 10_000_000 + np.sort(rng.integers(0, 65_379, 227_835))[studies]
studies += 50_000_000
dicoms = [f"{number:08x}-00000000-00000000-00000000-00000000" for number in range(num_images)]
splits = np.where(subjects % 50 == 0, "validate", np.where(subjects % 50 == 1, "test", "train"))
ids = pd.DataFrame({"dicom_id": dicoms, "subject_id": subjects, "study_id": studies})
views = rng.choice(["AP", "PA", "LATERAL", "LL"], num_images, p=[0.39, 0.255, 0.255, 0.1])
ids.assign(ViewPosition=views).to_csv(root / "mimic-cxr-2.0.0-metadata.csv.gz", index=False)
ids.assign(split=splits).to_csv(root / "mimic-cxr-2.0.0-split.csv.gz", index=False)
labels = ids[["subject_id", "study_id"]].drop_duplicates("study_id")
labels = labels.assign(**{name: rng.choice(["1.0", "0.0", ""], len(labels)) for name in LABELS})
labels.to_csv(root / "mimic-cxr-2.0.0-negbio.csv.gz", index=False)

started = time.perf_counter()
kept, _ = index_images(root, view="all")
seconds = {"index": time.perf_counter() - started}

import datasets, torch
from cxr.data.images import draw_training_images
from cxr.data.loading import ChestXrays, TrainingBatches
from torchvision.transforms import v2
patients = kept["subject_id"].to_numpy()
images = datasets.Dataset.from_dict({
    "image": [{"bytes": b"jpeg", "path": None}] * len(kept), "label": kept["label"].to_list(),
    "dicom_id": kept["dicom_id"].to_list(), "subject_id": patients.tolist()})
for name, num_samples in (("draw 10,000", 10_000), ("draw all", None)):
    started = time.perf_counter()
    drawn, _ = draw_training_images(images, num_samples=num_samples, seed=0)
    seconds[name] = time.perf_counter() - started
started = time.perf_counter()
positives = sum(drawn["label"])
dataset = ChestXrays(drawn, v2.Identity(), seed=0)
batches = iter(TrainingBatches(
    len(dataset), batch_size=64, gradient_accumulation_steps=1, num_processes=1, process_index=0, seed=0,
    start_step=0, num_steps=3 * (len(dataset) // 64)))
keys = next(batches)
rows = dataset.rows[[index for _, index in keys]]
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
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(SCRIPTS), str(NUM_IMAGES)]
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
