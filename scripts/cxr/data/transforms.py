"""Transforms uint8 gray images (1, H, W) in the loader's workers, and normalises them on the device.

All random draws come from torch's global CPU generator, which `cxr.data.loading.ChestXrays` seeds for each
image.
"""

import math
import re

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from cxr.choices import AUGMENTATIONS
from cxr.choices import RANDAUGMENT
from cxr.choices import RANDAUGMENT_NAMES

# The gray of areas that a rotation or a shift uncovers: the mean of MIMIC-CXR-JPG (0.4978 * 255).
FILL = 127
# The statistics of MIMIC-CXR-JPG, for models from scratch. Pretrained models keep those that they were
# trained with.
GRAY_MEAN = 0.4978
GRAY_STD = 0.2449


def evaluation_transform(image_size: int) -> v2.Transform:
    """Returns the transform that resizes the whole image to (1, image_size, image_size).

    Nothing is cropped: the central square of a portrait radiograph would lose the costophrenic angles, where
    effusions are seen. The stored image processor does the same, so plain transformers gets the same pixels.
    """
    return v2.Resize((image_size, image_size), interpolation=v2.InterpolationMode.BILINEAR, antialias=True)


class RandomResizedCrop(v2.Transform):
    """Resizes a crop of random area and shape to `image_size`, bicubic, as He et al. pretrain and fine-tune.

    `crop_scale` bounds the crop's share of the image's area; its aspect ratio is from 3/4 to 4/3. The
    distribution is that of torchvision's transform, whose overhead takes a sixth of the loader's time.
    """

    def __init__(self, image_size: int, crop_scale: tuple[float, float]):
        super().__init__()
        self.image_size = image_size
        self.crop_scale = crop_scale

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        top, left, height, width = self._draw(*image.shape[-2:])
        size, bicubic = [self.image_size, self.image_size], v2.InterpolationMode.BICUBIC
        return F.resized_crop(image, top, left, height, width, size, interpolation=bicubic, antialias=True)

    def _draw(self, height: int, width: int) -> tuple[int, int, int, int]:
        smallest, largest = self.crop_scale
        for _ in range(10):  # a rectangle that does not fit is drawn again
            share, shape, down, across = torch.rand(4).tolist()
            area = height * width * (smallest + share * (largest - smallest))
            aspect = (3 / 4) ** (1 - 2 * shape)  # log-uniform
            h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < h <= height and 0 < w <= width:
                return int(down * (height - h + 1)), int(across * (width - w + 1)), h, w
        h, w = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))  # the largest that fits
        return (height - h) // 2, (width - w) // 2, h, w


class RandomHorizontalFlip(v2.Transform):
    """Mirrors half of the images; torchvision's transform takes four times as long."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.flip(-1) if torch.rand(()) < 0.5 else image


def pretraining_transform(
    image_size: int, *, crop_scale: tuple[float, float], horizontal_flip: bool
) -> v2.Transform:
    """Returns a random resized crop and flip, enough for a masked autoencoder (He et al. 2022, table 1e)."""
    crop = RandomResizedCrop(image_size, crop_scale)
    return v2.Compose([crop, RandomHorizontalFlip()]) if horizontal_flip else crop


class RandAugment(v2.Transform):
    """Applies RandAugment to gray images as timm does, by timm's names: `rand-m9-mstd0.5-inc1` in MAE's code.

    Operations are drawn with replacement, 2 of them or, with n3 in the name, 3. Each is applied with
    probability 0.5 and a magnitude from a normal distribution, with mean 9 (m9) and standard deviation 0.5
    (mstd0.5), clipped to [0, 10]; "inc1" means that a higher magnitude makes every operation stronger.
    torchvision's RandAugment(2, 9) is a different, much weaker transform: its magnitude is 9 out of 30, and
    it always applies both operations.
    """

    PROBABILITY = 0.5

    def __init__(self, name: str = RANDAUGMENT):
        super().__init__()
        magnitude, number, std = re.fullmatch(RANDAUGMENT_NAMES, name).groups()
        self.magnitude, self.magnitude_std = float(magnitude), float(std or 0)
        self.num_operations = int(number or 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        for _ in range(self.num_operations):
            choice, apply = int(torch.randint(len(OPERATIONS), ())), bool(torch.rand(()) < self.PROBABILITY)
            magnitude = float(torch.randn(())) * self.magnitude_std + self.magnitude
            sign = -1 if torch.rand(()) < 0.5 else 1
            if apply:
                strength = min(max(magnitude, 0.0), 10.0) / 10.0
                image = apply_operation(OPERATIONS[choice], image, strength, sign)
        return image


OPERATIONS = (
    "auto_contrast",
    "equalize",
    "invert",
    "rotate",
    "posterize",
    "solarize",
    "solarize_add",
    "color",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)


def apply_operation(operation: str, image: torch.Tensor, strength: float, sign: int) -> torch.Tensor:
    """Applies a RandAugment operation at a strength in [0, 1]; the ranges are timm's "increasing" ones."""
    bilinear = v2.InterpolationMode.BILINEAR
    factor = max(0.1, 1 + sign * strength * 0.9)
    match operation:
        case "auto_contrast":
            return F.autocontrast(image)
        case "equalize":
            return F.equalize(image)
        case "invert":
            return F.invert(image)
        case "rotate":
            return F.rotate(image, sign * strength * 30, interpolation=bilinear, fill=FILL)
        case "posterize":
            return F.posterize(image, bits=max(4 - int(strength * 4), 1))  # 0 bits would make the image black
        case "solarize":
            return F.solarize(image, threshold=min(256 - int(strength * 256), 255))
        case "solarize_add":
            brighter = (image.to(torch.int16) + int(strength * 110)).clamp_(max=255).to(torch.uint8)
            return torch.where(image < 128, brighter, image)
        case "color":  # no effect on gray; kept so that the others are drawn as often as for RGB images
            return image
        case "contrast":
            return F.adjust_contrast(image, factor)
        case "brightness":
            return F.adjust_brightness(image, factor)
        case "sharpness":
            return F.adjust_sharpness(image, factor)
        case "shear_x" | "shear_y":
            angle = math.degrees(math.atan(sign * strength * 0.3))
            shear = [angle, 0.0] if operation == "shear_x" else [0.0, angle]
            return F.affine(image, 0.0, [0, 0], 1.0, shear, interpolation=bilinear, fill=FILL)
        case "translate_x":
            pixels = round(sign * strength * 0.45 * image.shape[-1])
            return F.pad(image, [pixels, 0, -pixels, 0], fill=FILL)  # whole pixels: no resampling
        case "translate_y":
            pixels = round(sign * strength * 0.45 * image.shape[-2])
            return F.pad(image, [0, pixels, 0, -pixels], fill=FILL)


class RandomErasing(v2.Transform):
    """Replaces a random rectangle by noise (timm's "pixel" mode; Zhong et al. 2017).

    The noise has the data's mean and standard deviation. The rectangle covers 2 to 33 % of the image, with an
    aspect ratio from 0.3 to 3.3.
    """

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if torch.rand(()) >= self.probability:
            return image
        _, height, width = image.shape
        for _ in range(10):  # a rectangle that does not fit is drawn again
            area = height * width * float(torch.empty(()).uniform_(0.02, 1 / 3))
            aspect = math.exp(float(torch.empty(()).uniform_(math.log(0.3), math.log(1 / 0.3))))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < h < height and 0 < w < width:
                top, left = int(torch.randint(height - h + 1, ())), int(torch.randint(width - w + 1, ()))
                noise = torch.randn(1, h, w).mul_(GRAY_STD).add_(GRAY_MEAN).mul_(255).clamp_(0, 255)
                image = image.clone()
                image[:, top : top + h, left : left + w] = noise.to(torch.uint8)
                return image
        return image


def _none(image_size, crop_scale, randaugment):
    return [evaluation_transform(image_size)]


def _classic(image_size, crop_scale, randaugment):
    bilinear = v2.InterpolationMode.BILINEAR
    return [
        evaluation_transform(image_size),
        RandomHorizontalFlip(),
        v2.RandomRotation(10, interpolation=bilinear, fill=FILL),
        v2.RandomPerspective(distortion_scale=0.2, p=0.5, interpolation=bilinear, fill=FILL),
    ]


def _mae(image_size, crop_scale, randaugment):
    return [RandomResizedCrop(image_size, crop_scale), RandomHorizontalFlip(), RandAugment(randaugment)]


STEPS = {"none": _none, "classic": _classic, "mae": _mae}
assert tuple(STEPS) == AUGMENTATIONS


def training_transform(
    augmentation: str,
    image_size: int,
    *,
    crop_scale: tuple[float, float],
    random_erasing_prob: float,
    randaugment: str = RANDAUGMENT,
) -> v2.Transform:
    """Returns a classifier's training transform; `crop_scale` and `randaugment` are for "mae" only."""
    steps = STEPS[augmentation](image_size, crop_scale, randaugment)
    return v2.Compose([*steps, RandomErasing(random_erasing_prob)] if random_erasing_prob else steps)


class Normalizer:
    """Turns uint8 gray images (B, 1, H, W) into a model's float input (B, 3, H, W), on the device.

    Thus one byte per pixel is copied to the device instead of twelve. The arithmetic is the image
    processor's.
    """

    def __init__(self, mean: list[float], std: list[float], device: torch.device):
        self.mean = torch.tensor(mean, device=device).view(1, -1, 1, 1)  # (1, 3, 1, 1), of pixels in [0, 1]
        self.std = torch.tensor(std, device=device).view(1, -1, 1, 1)
        self.device = device

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        images = images.to(self.device, non_blocking=True).float()
        return (images - 255 * self.mean) / (255 * self.std)

    def invert(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Returns gray images (B, H, W) in [0, 1], for figures."""
        return (pixel_values * self.std + self.mean).mean(1).clamp(0, 1)
