"""What a run over all 377,110 images costs before its first step, and then for each epoch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mimic_tables import write_manifest_of_published_number_of_rows
from mimic_tables import write_published_number_of_rows

SCRIPTS = Path(__file__).parents[2] / "scripts"

# In processes of their own: the first makes the cache of pixels, without originals, from one small JPEG; the
# second is measured, and asks for other labels than the first.
PROGRAM = """
import io, json, re, sys, time
from pathlib import Path
root, cache = Path(sys.argv[1]), Path(sys.argv[2])
sys.path.insert(0, sys.argv[3])
from cxr.data import images
from mimic_cxr_dataset.label_rule import LabelRule
options = {"shortest_side": 64, "cache_dir": cache, "num_proc": 1, "shows_progress": True,
           "on_bad_image": "error"}
if sys.argv[4] == "shrink":
    from PIL import Image
    from mimic_cxr_dataset import builder
    buffer = io.BytesIO()
    Image.new("L", (64, 80), 99).save(buffer, "JPEG")
    builder.find_image = lambda path: path
    def load(self, path, reading):  # no two images are the same
        return {"path": None, "bytes": buffer.getvalue() + path.encode()}, ()
    builder.RadiographBuilder._load_image = load
    images.load_images(root, LabelRule(view="all"), **options)
    sys.exit()

import torch
from cxr.data.images import draw_training_images
from cxr.data.loading import ChestXrays, TrainingBatches
from torchvision.transforms import v2
seconds, started = {}, time.perf_counter()
rule = {"one": LabelRule(view="all", uncertain="positive")}
rule["all"] = LabelRule(view="all", task="findings", uncertain="smooth", blank="exclude")
splits = images.load_images(root, rule[sys.argv[4]], **options)
seconds["load"] = time.perf_counter() - started
for name, num_samples in (("draw 10,000", 10_000), ("draw all", None)):
    started = time.perf_counter()
    drawn, _ = draw_training_images(splits["train"], num_samples=num_samples, seed=0)
    seconds[name] = time.perf_counter() - started
started = time.perf_counter()
positives = sum(drawn["label"])
dataset = ChestXrays(drawn, v2.Identity(), seed=0)
batches = iter(TrainingBatches(
    len(dataset), images_per_step=64, gradient_accumulation_steps=1, num_processes=1, process_index=0, seed=0,
    steps=range(3 * (len(dataset) // 64))))
items = dataset.__getitems__(next(batches))
seconds["first batch"] = time.perf_counter() - started
for epoch in range(3):
    started = time.perf_counter()
    for _ in range(len(dataset) // 64 - (epoch == 0)):
        next(batches)
    seconds[f"epoch {epoch}"] = time.perf_counter() - started
status = Path("/proc/self/status").read_text()  # getrusage would count the test's own process
memory = int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) / 2**20
print(json.dumps({"seconds": seconds, "memory_gib": memory, "images": len(dataset), "items": len(items)}))
"""


@pytest.mark.slow
@pytest.mark.timing
@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux does")
@pytest.mark.parametrize(
    "write",
    [write_published_number_of_rows, write_manifest_of_published_number_of_rows],
    ids=["MIMIC", "manifest"],
)
def test_all_images_cost_seconds_and_little_memory_before_step_1_and_epochs_cost_the_same(write, tmp_path):
    root, cache = tmp_path / "root", tmp_path / "cache"
    root.mkdir()
    write(root)

    def run(what: str) -> str:
        command = [sys.executable, "-c", PROGRAM, str(root), str(cache), str(SCRIPTS), what]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("shrink")
    before = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    for labels in ("one", "all"):  # one label, or all 14
        measured = json.loads(run(labels).splitlines()[-1])
        print(labels, measured)
        seconds = measured["seconds"]
        assert measured["images"] > 300_000 and measured["items"] == 64
        assert sum(seconds[name] for name in ("load", "draw all", "first batch")) < 15
        assert measured["memory_gib"] < 2
        epochs = [seconds[f"epoch {number}"] for number in range(3)]
        assert max(epochs) < 3 * min(epochs) + 0.05
    after = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    assert after <= 1.01 * before
