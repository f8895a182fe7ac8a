"""On SIGTERM, SIGINT, SIGUSR1 or SIGUSR2, finishes the training step, saves a checkpoint and ends the run."""

import contextlib
import functools
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import Accelerator
from torch import distributed

from cxr.data.loading import SIGNALS
from cxr.training.runtime import COLLECTIVE_TIMEOUT

ECHO_SECONDS = 1.0  # Ctrl-C reaches a process twice: from the terminal and from the launcher
logger = logging.getLogger(__name__)


class Preemption:
    """A context in which signals are only noted; the training loop asks for them after each step.

    A second SIGINT, at least a second after the first signal, stops the run at once.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.number = 0  # of the first signal
        self.noted_at = 0.0
        self.end_at_once: Callable[[], NoReturn] | None = None
        # On the CPU, so that asking does not make the host wait for the GPU.
        self.group = None
        if accelerator.num_processes > 1:
            self.group = distributed.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)

    def __enter__(self) -> "Preemption":
        self.handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if self.end_at_once is not None:
            self.number = number
            self.end_at_once()
        if self.number:
            if number == signal.SIGINT and time.monotonic() - self.noted_at > ECHO_SECONDS:
                raise KeyboardInterrupt
            return
        self.number, self.noted_at = number, time.monotonic()
        if self.accelerator.is_main_process:
            # Not by logging, which the signal may have interrupted.
            name = signal.Signals(number).name
            text = f"\n{name}: saving a checkpoint after this step; Ctrl-C stops at once\n"
            with contextlib.suppress(OSError):  # in `| tee log`, Ctrl-C ends tee, too
                os.write(2, text.encode())

    def requested(self) -> bool:
        """Returns whether any process got a signal; processes wait for each other and agree on the answer."""
        if self.group is not None:
            agreed = torch.tensor(self.number)
            distributed.all_reduce(agreed, distributed.ReduceOp.MAX, group=self.group)
            # A signal that arrived during the reduction counts after the next step.
            self.number = int(agreed) or self.number
            return bool(agreed)
        return self.number != 0

    def nothing_left_to_save(self, output_dir: Path, *, step: int) -> None:
        """Lets a signal end the run at once from now on, as the last step is saved."""
        if self.requested():
            self.end_run(output_dir, step=step)
        self.end_at_once = functools.partial(self.end_run, output_dir, step=step)

    def end_run(self, output_dir: Path, *, step: int) -> NoReturn:
        """Ends the run after its checkpoint was saved, with exit status 130 after SIGINT, else 143."""
        logger.warning(
            "Stopped by %s after step %d. To continue: the same command with --output_dir %s "
            "--resume_from_checkpoint latest",
            signal.Signals(self.number).name,
            step,
            output_dir,
        )
        self.accelerator.end_training()
        sys.exit(130 if self.number == signal.SIGINT else 143)
