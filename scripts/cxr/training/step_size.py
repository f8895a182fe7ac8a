"""Divides the images of an optimizer step among processes and passes; without torch."""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StepSize:
    """The images of an optimizer step: a batch per pass and process, and the passes that are accumulated."""

    per_device: int
    num_passes: int
    num_processes: int

    @property
    def images_per_step(self) -> int:
        return self.per_device * self.num_passes * self.num_processes

    def describe(self, asked: int, *, num_images: int) -> str:
        """Returns in words how the images were divided, and why there are fewer than those `asked` for."""
        processes = f" x {self.num_processes} processes" * (self.num_processes > 1)
        passes = f" x {self.num_passes} accumulations" * (self.num_passes > 1)
        said = f"{self.per_device:,} images{processes}{passes} = {self.images_per_step:,} images per step"
        possible, why = min(asked, num_images), []
        if possible < asked:
            why.append(f"the {asked:,} asked for are more than the {num_images:,} training images")
        if self.images_per_step < possible:
            why.append(f"{possible:,} cannot be divided equally")
        return f"{said} ({'; '.join(why)})" if why else said


def divide_step(
    images_per_step: int, *, most_per_device: int, num_processes: int, exactly: bool = False
) -> StepSize:
    """Returns a step of these images in as few passes as divide them and as `most_per_device` images allow.

    Unless `exactly`, a step has a few images less rather than more than twice the passes that it needs.
    """
    most_passes = max(1, images_per_step // num_processes)  # each has an image per process
    fewest = min(math.ceil(images_per_step / (most_per_device * num_processes)), most_passes)
    for num_passes in range(fewest, 1 + (most_passes if exactly else min(2 * fewest, most_passes))):
        per_device, rest = divmod(images_per_step, num_passes * num_processes)
        if rest == 0:
            return StepSize(per_device=per_device, num_passes=num_passes, num_processes=num_processes)
    per_device = max(1, images_per_step // (fewest * num_processes))
    return StepSize(per_device=per_device, num_passes=fewest, num_processes=num_processes)


@dataclass(frozen=True, kw_only=True)
class StepFlags:
    """The flags that decide the images of a step; `images_per_step` is met by accumulation, if given."""

    per_device: int | str  # "auto": as many as fit into memory
    num_passes: int
    images_per_step: int | None

    @classmethod
    def of(cls, args: argparse.Namespace) -> "StepFlags":
        return cls(
            per_device=args.per_device_train_batch_size,
            num_passes=args.gradient_accumulation_steps,
            images_per_step=args.images_per_step,
        )

    def resolve(
        self,
        *,
        num_images: int,
        num_processes: int,
        resumed_images_per_step: int | None = None,
        find_largest: Callable[[int], int] | None = None,
    ) -> StepSize:
        """Returns the step for this many training images: an epoch has at least one step.

        `find_largest`, needed for "auto", returns the largest batch of a process that fits, up to a limit. A
        resumed run keeps the images per step of its checkpoint (`resumed_images_per_step`).
        """
        resumed, per_device = resumed_images_per_step, self.per_device
        if self.images_per_step:
            total = min(self.images_per_step, num_images)
            if per_device == "auto":
                per_device = find_largest(max(1, total // num_processes))
            fitting = {"most_per_device": per_device, "num_processes": num_processes}
            step = divide_step(total, **fitting)
            if resumed in (None, step.images_per_step):
                return step
            # Another number of processes or of images per pass than at the first start.
            return divide_step(resumed, exactly=True, **fitting)
        batches_per_step = self.num_passes * num_processes
        if per_device == "auto" and resumed is not None:
            per_device = max(1, resumed // batches_per_step)
        elif per_device == "auto":
            per_device = find_largest(max(1, num_images // batches_per_step))
        return StepSize(per_device=per_device, num_passes=self.num_passes, num_processes=num_processes)
