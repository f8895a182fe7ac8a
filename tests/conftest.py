"""Settings and fixtures of all tests: caches of their own, no network, the CPU, one synthetic sample."""

import logging
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest

# Before anything of Hugging Face is imported: it reads these once. Processes that tests start inherit them.
CACHE_DIR = Path(tempfile.mkdtemp(prefix="mae-cxr-tests-"))
os.environ["HF_HOME"] = str(CACHE_DIR)
os.environ["HF_DATASETS_CACHE"] = str(CACHE_DIR / "datasets")
os.environ["HF_MODULES_CACHE"] = str(CACHE_DIR / "modules")
for cache_variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_EVALUATE_CACHE", "HF_METRICS_CACHE"):
    os.environ.pop(cache_variable, None)  # below HF_HOME
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ACCELERATE_USE_CPU"] = "true"
os.environ["MPLBACKEND"] = "Agg"
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models: threads would only wait for each other

# A shell ignores SIGINT for what it starts in the background, and so would what tests start and signal.
signal.signal(signal.SIGINT, signal.default_int_handler)

SCRIPTS = Path(__file__).parents[1] / "scripts"
LIBRARY_LOGGERS = ("cxr", "datasets", "evaluate", "transformers")


def pytest_unconfigure():
    shutil.rmtree(CACHE_DIR, ignore_errors=True)


@pytest.fixture(scope="session")
def sample_root(tmp_path_factory) -> Path:
    """A synthetic MIMIC-CXR-JPG tree of 96 images with a shortest side of 64 pixels."""
    from make_sample_data import make_sample_data

    folder = tmp_path_factory.mktemp("sample-data") / "cxr"
    return make_sample_data(folder, num_images=96, image_size=64, seed=0, num_proc=1)


@pytest.fixture(autouse=True)
def fresh_process_state():
    """Undoes what a script that ran in this process leaves behind: Accelerate's singletons and logging."""
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
