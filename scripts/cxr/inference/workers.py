"""Threads or processes that read images. Processes import this file, so it imports only standard modules."""

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

NUM_FOR_PROCESSES = 256  # files; with fewer, starting processes takes longer than reading
MOST_PROCESSES = 61  # the largest pool on Windows


@contextlib.contextmanager
def open_pool(num_files: int, num_workers: int) -> Iterator[Executor]:
    """Opens a pool of `num_workers` that read files: processes if there are many files, otherwise threads.

    Threads share Python's global lock, which pydicom and NumPy hold for a part of each file; processes do
    not, but take a second to start.
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
        for process in multiprocessing.active_children():  # without waiting for those that still start
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_processes(pool: ProcessPoolExecutor, num_workers: int) -> None:
    """Starts all processes at once, without Ctrl-C, which only the script handles, and without the script.

    Otherwise each process would import the script and, with torch, take ten seconds and nearly 1 GiB.
    """
    script = sys.modules["__main__"]
    path = script.__dict__.pop("__file__", None)
    can_block = hasattr(signal, "pthread_sigmask")  # child processes inherit the mask; not on Windows
    if can_block:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    # Other threads, such as torch's, still receive the signal, and Python handles it in this one.
    interrupts = []
    handler = signal.signal(signal.SIGINT, lambda *_: interrupts.append(True))
    try:
        for _ in range(num_workers):
            pool.submit(int)  # each call starts a process, because none is idle yet
    finally:
        if path is not None:
            script.__file__ = path
        signal.signal(signal.SIGINT, handler)
        if can_block:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if interrupts:
        raise KeyboardInterrupt


def _prepare_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the script handles it and ends the pool
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when its parent has ended; otherwise it would wait for work forever."""
    multiprocessing.parent_process().join()
    os._exit(1)
