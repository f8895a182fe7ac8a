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
MOST_PROCESSES = 61  # that Windows lets a pool have


@contextlib.contextmanager
def open_pool(num_files: int, num_workers: int) -> Iterator[Executor]:
    """A pool of `num_workers` to read with: processes where there are many files, else threads.

    Threads share Python's lock, which pydicom and NumPy need for a part of each file; processes do not, but
    take a second to start.
    """
    if num_workers == 1 or num_files < NUM_FOR_PROCESSES:
        pool = ThreadPoolExecutor(num_workers)
    else:
        num_workers = min(num_workers, MOST_PROCESSES)
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_prepare_process)
    try:
        if isinstance(pool, ProcessPoolExecutor):
            _start_processes(pool, num_workers)
        yield pool
    except BaseException:
        for process in multiprocessing.active_children():  # they may still import, and need not end that
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_processes(pool: ProcessPoolExecutor, num_workers: int) -> None:
    """Starts all at once, so that they do without Ctrl-C, which is the script's, and without the script.

    They would import it once more, and with torch take ten seconds and nearly 1 GiB each.
    """
    script = sys.modules["__main__"]
    path = script.__dict__.pop("__file__", None)
    can_block = hasattr(signal, "pthread_sigmask")  # which is inherited; Windows has nothing of the kind
    if can_block:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for _ in range(num_workers):
            pool.submit(int)  # each starts one, as none is ready yet
    finally:
        if path is not None:
            script.__file__ = path
        if can_block:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _prepare_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the script's, which ends the pool
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)
