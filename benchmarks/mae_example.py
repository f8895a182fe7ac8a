"""The image transforms of transformers' MAE example, for comparison: full decoding, RGB, float32."""

from collections.abc import Callable

import torch
from PIL import Image
from torchvision import transforms


def _to_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def example_transform(image_size: int, *, mean: float, std: float) -> Callable[[Image.Image], torch.Tensor]:
    """Returns the example's transform, from a PIL image to (3, image_size, image_size) float32.

    Source: examples/pytorch/image-pretraining/run_mae.py of transformers.
    """
    bicubic = transforms.InterpolationMode.BICUBIC
    return transforms.Compose(
        [
            transforms.Lambda(_to_rgb),
            transforms.RandomResizedCrop(image_size, scale=(0.2, 1.0), interpolation=bicubic),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([mean] * 3, [std] * 3),
        ]
    )
