"""Measures the speed of the training device and of Python's start, in a few seconds; prints them as JSON.

cd scripts && python -m cxr.training.device_speed no    # or fp16, bf16; --cpu ignores a GPU
"""

import json
import sys
import time

import psutil
import torch
from torch import nn

IMPORT_SECONDS = time.time() - psutil.Process().create_time()  # the start of Python and the imports above

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
MEASURED_SECONDS = 0.3  # without the warm-up steps
MIN_STEPS = 4


def find_device(*, on_cpu: bool) -> str:
    """Returns the type of device that Accelerate would choose."""
    if not on_cpu and torch.cuda.is_available():
        return "cuda"
    return "mps" if not on_cpu and torch.backends.mps.is_available() else "cpu"


def sustained_tflops(device: str, mixed_precision: str) -> dict[str, float]:
    """Returns, for each model family, the TFLOP/s of training steps of a typical layer."""
    batch_size = 4 if device == "cpu" else 64
    width, tokens, side = 384, 197, 28
    vit = nn.TransformerEncoderLayer(width, 6, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
    convolutions = [nn.Conv2d(128, 128, 3, padding=1, bias=False) for _ in range(2)]
    resnet = nn.Sequential(
        *(layer for one in convolutions for layer in (one, nn.BatchNorm2d(128), nn.ReLU()))
    )
    gflop = {  # for the forward pass of one image
        "vit": 2e-9 * tokens * (12 * width**2 + 2 * tokens * width),
        "resnet": 2e-9 * side**2 * 2 * 9 * 128**2,
    }
    shapes = {"vit": (batch_size, tokens, width), "resnet": (batch_size, 128, side, side)}
    layers = {"vit": vit, "resnet": resnet}
    return {
        family: 3e-3
        * gflop[family]
        * batch_size
        / seconds_a_step(layers[family], shape, device, mixed_precision)
        for family, shape in shapes.items()
    }


def seconds_a_step(layer: nn.Module, shape: tuple[int, ...], device: str, mixed_precision: str) -> float:
    """Returns the time of the fastest forward and backward pass; other programs can only slow a pass down."""
    layer, inputs = layer.to(device), torch.randn(shape, device=device, requires_grad=True)
    dtype, times = DTYPES.get(mixed_precision), []
    for _ in range(2):
        one_step(layer, inputs, dtype)
    while sum(times) < MEASURED_SECONDS or len(times) < MIN_STEPS:
        started = time.perf_counter()
        one_step(layer, inputs, dtype)
        times.append(time.perf_counter() - started)
    return min(times)


def one_step(layer: nn.Module, inputs: torch.Tensor, dtype: torch.dtype | None) -> None:
    """Runs a forward and a backward pass; reading the gradient waits until the device has finished."""
    with torch.autocast(inputs.device.type, dtype=dtype, enabled=dtype is not None):
        loss = layer(inputs).float().square().mean()
    loss.backward()
    inputs.grad.sum().item()


if __name__ == "__main__":
    chosen = find_device(on_cpu="--cpu" in sys.argv)
    precision = "no" if chosen == "cpu" and sys.argv[1] == "fp16" else sys.argv[1]  # not on a CPU
    found = {"device": chosen, "tflops": sustained_tflops(chosen, precision)}
    print(json.dumps(found | {"import_seconds": IMPORT_SECONDS}))
