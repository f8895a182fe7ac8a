"""Threads or processes that read images. Processes import this file: it needs nothing but Python itself."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Executor
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import ThreadPoolExecutor

NUM_FOR_PROCESSES = 256  # files; with fewer, processes would take longer to start than to read them


@contextlib.contextmanager
def open_pool(num_files: int, num_workers: int) -> Iterator[Executor]:
    """A pool of `num_workers` to read with: processes where there are many files, else threads.

    Threads share Python's lock, which pydicom and NumPy need for a part of each file; processes do not, but
    take a second to start.
    """
    if num_workers == 1 or num_files < NUM_FOR_PROCESSES:
        pool = ThreadPoolExecutor(num_workers)
    else:
        pool = _start_processes(num_workers)
    try:
        yield pool
    except BaseException:
        for process in multiprocessing.active_children():  # they may still import, and need not end that
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_processes(num_workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_prepare_process)
    with _inherited():
        for _ in range(num_workers):
            pool.submit(int)  # each starts one, as none is ready yet
    return pool


@contextlib.contextmanager
def _inherited() -> Iterator[None]:
    """What processes get that start meanwhile: no Ctrl-C, which is the script's, and nothing of the script.

    Else each would import it once more, and with torch take ten seconds and nearly 1 GiB.
    """
    script = sys.modules["__main__"]
    handler, path = signal.signal(signal.SIGINT, signal.SIG_IGN), script.__dict__.pop("__file__", None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if path is not None:
            script.__file__ = path


def _prepare_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it is not inherited
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)
