"""Settings and fixtures of all tests: separate caches, no network, only the CPU, one synthetic sample."""

import logging
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest

# Set before any Hugging Face library is imported, as they read these once. Child processes inherit them.
CACHE_DIR = Path(tempfile.mkdtemp(prefix="mae-cxr-tests-"))
os.environ["HF_HOME"] = str(CACHE_DIR)
os.environ["HF_DATASETS_CACHE"] = str(CACHE_DIR / "datasets")
os.environ["HF_MODULES_CACHE"] = str(CACHE_DIR / "modules")
for cache_variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_EVALUATE_CACHE", "HF_METRICS_CACHE"):
    os.environ.pop(cache_variable, None)  # below HF_HOME
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ACCELERATE_USE_CPU"] = "true"
os.environ["MPLBACKEND"] = "Agg"
os.environ["OMP_NUM_THREADS"] = "1"  # for tiny models, threads only wait for each other

# If a shell starts pytest in the background, SIGINT is ignored, also in the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

SCRIPTS = Path(__file__).parents[1] / "scripts"
LIBRARY_LOGGERS = ("cxr", "datasets", "evaluate", "transformers")


# Files whose tests take minutes, the longest first.
LONG_FILES = ("test_slurm_cluster", "test_exact_resume", "test_processes", "test_kills", "test_full_disk")


def pytest_collection_modifyitems(items):
    """Starts long files first, so that at the end no worker waits for another one."""
    place = {name: number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_unconfigure():
    shutil.rmtree(CACHE_DIR, ignore_errors=True)


@pytest.fixture(scope="session")
def sample_root(tmp_path_factory) -> Path:
    """Returns the folder of a synthetic sample of 96 images with a shortest side of 64 pixels."""
    from make_sample_data import make_sample_data

    folder = tmp_path_factory.mktemp("sample-data") / "cxr"
    return make_sample_data(folder, num_images=96, image_size=64, seed=0, num_proc=1)


@pytest.fixture(autouse=True)
def fresh_process_state():
    """Resets what a script leaves behind in this process: Accelerate's singletons and logging."""
    logging.getLogger("cxr").setLevel(logging.NOTSET)  # a run in a module's fixture has set it
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in LIBRARY_LOGGERS}
    yield
    for handler in root.handlers:
        if handler not in handlers and isinstance(handler, logging.FileHandler):
            handler.close()  # an open train.log cannot be removed on Windows
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, library_level in levels.items():
        logging.getLogger(name).setLevel(library_level)
    logging.captureWarnings(False)
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState
        from accelerate.state import GradientState
        from accelerate.state import PartialState

        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        PartialState._reset_state()
