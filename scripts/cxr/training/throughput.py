"""Measures how fast a run trains: images per second, the share of the GPU's peak FLOP/s, and its memory."""

import copy
import re
import time
from collections.abc import Callable
from collections.abc import Iterator

import psutil
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEDecoder

from cxr.models.acceleration import speed_up

# Peak TFLOP/s of dense 16-bit matrix products with 32-bit accumulation, from the vendor's data sheets. Keys
# are parts of the GPU's name as the driver reports it; the first match counts.
PEAK_TFLOPS = {
    "GB200": 2500,
    "B200": 2250,
    "GH200": 989.4,
    "H200": 989.4,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989.4,
    "A100": 312,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "A40": 149.7,
    "A30": 165,
    "A10": 125,
    "RTX 6000 Ada": 364,
    "RTX A6000": 154.8,
    "RTX A5000": 111.1,
    "RTX A4000": 76.7,
    "RTX 5000 Ada": 261.1,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 4080": 97.5,
    "RTX 3090": 71,
    "V100": 125,
    "T4": 65,
}


def peak_flops(accelerator: Accelerator) -> float | None:
    """Returns the peak FLOP/s of one device in this run's precision, None if unknown."""
    if accelerator.device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(accelerator.device)
    # Whole words: an RTX A4000 is not an A40. A laptop's GPU is slower than the card of its name.
    peaks = (peak for part, peak in PEAK_TFLOPS.items() if re.search(rf"\b{part}\b(?! Laptop)", name))
    tflops = next(peaks, None)
    if tflops is None:
        return None
    if accelerator.mixed_precision in ("bf16", "fp16"):
        return tflops * 1e12
    has_tf32 = torch.cuda.get_device_capability(accelerator.device) >= (8, 0)
    return tflops / 2 * 1e12 if has_tf32 else None


def count_training_flops(model: nn.Module, synthetic_loss: Callable[[nn.Module, int], torch.Tensor]) -> int:
    """Returns the FLOPs of a forward and backward pass of one image, in matrix products and convolutions.

    Counts them on a copy without data (device "meta"), so nothing is computed, and for hidden patches only
    where the step computes no others. `synthetic_loss` takes a model and a number of images.
    """
    shapes_only = copy.deepcopy(model).to("meta").eval()  # in training, batch norm may refuse a single image
    if any(isinstance(module, ViTMAEDecoder) for module in shapes_only.modules()):
        speed_up(shapes_only, torch_compile=False)
    with FlopCounterMode(display=False) as counter:
        synthetic_loss(shapes_only, 1).backward()
    return counter.get_total_flops()


def seconds_of_process() -> float:
    """Returns the time since this process was started or, if it has one, its launcher of Accelerate."""
    process = psutil.Process()
    try:
        launcher = process.parent()
        is_launched = launcher and "accelerate" in " ".join(launcher.cmdline())
    except psutil.Error:  # a parent of another user, such as of root
        is_launched = False
    return time.time() - (launcher if is_launched else process).create_time()


class Stopwatch:
    """Times training between `start` and `read`, so evaluating and saving, done outside, do not count.

    `watch` times how long the device waits for data: on a GPU, which works while the host prepares, the time
    between the end of its work and the next batch; elsewhere, the time that the host takes to get the batch.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        synthetic_loss: Callable[[nn.Module, int], torch.Tensor],
        *,
        images_per_step: int,
    ):
        self.device = accelerator.device
        self.images_per_step = images_per_step
        self.share_per_image = None  # share of the peak at one image per second
        peak = peak_flops(accelerator)
        if peak is not None:
            flops = count_training_flops(model, synthetic_loss)
            self.share_per_image = flops / (peak * accelerator.num_processes)
        self.seconds = 0.0  # between the last `start` and `read`
        self.waits: list[tuple] = []  # since the last `start`: before and after each batch was waited for
        self.total_seconds, self.total_waited = 0.0, 0.0  # of all times between `start` and `read`

    def start(self, step: int) -> None:
        self.waits.clear()
        self.step, self.started = step, time.perf_counter()

    def watch(self, batches: Iterator[dict]) -> Iterator[dict]:
        """Yields the batches, and notes how long each was waited for."""
        while True:
            before = self._mark()
            batch = next(batches, None)
            if batch is None:
                return
            self.waits.append((before, self._mark()))
            yield batch

    def _mark(self) -> float | torch.cuda.Event:
        """Returns the time or, on a GPU, an event that happens when the device has done its work so far."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _waited(self) -> float:
        """Returns the seconds since `start` in which the device waited for data."""
        if self.device.type != "cuda":
            return sum(after - before for before, after in self.waits)
        return sum(before.elapsed_time(after) for before, after in self.waits) / 1000  # from milliseconds

    @property
    def data_wait(self) -> float | None:
        """Returns the share of all time measured so far that the device waited for data, None if no time."""
        return self.total_waited / self.total_seconds if self.total_seconds else None

    def read(self, step: int) -> dict[str, float]:
        """Returns the rates since `start`; call it after reading a loss, when the device has finished."""
        self.seconds = time.perf_counter() - self.started
        waited = min(self._waited(), self.seconds)
        self.total_seconds += self.seconds
        self.total_waited += waited
        images_per_second = (step - self.step) * self.images_per_step / self.seconds
        reading = {"images_per_second": images_per_second, "data_wait": waited / self.seconds}
        if self.share_per_image is not None:
            reading["share_of_peak"] = images_per_second * self.share_per_image
        if self.device.type == "cuda":
            reading["peak_memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        return reading
