"""Heat maps: which parts of a radiograph raise a classifier's probability, and pictures of them.

ResNet: Grad-CAM of the last stage (Selvaraju et al. 2017, arXiv:1610.02391), by captum: its channels, each
times the mean gradient of the positive label's log-odds.

ViT: attention rollout weighted by the gradient of the same (Chefer et al. 2021, arXiv:2103.15679): how much
each patch reached the class token through all layers, along attention that raises the log-odds. Captum has
nothing of the kind, and its Grad-CAM takes a ViT's tokens for channels.

A map says what the model used, not where a disease is, and is no finer than its grid: 32 pixels of the input
a cell in a ResNet, a patch in a ViT.
"""

import math
import warnings
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from cxr.evaluation.plots import new_figure
from cxr.evaluation.plots import save_figure
from cxr.inference.classifier import Classifier

SHOWN_SIDE = 768  # pixels of the shortest side of a radiograph to look at; models see it smaller
COLORS = "inferno"
OPACITY = 0.6  # of the heat where it is highest
FINE_GRID = 7  # cells a side: a ResNet's at 224 pixels; a coarser one is drawn as cells, not as a soft cloud
AT_ONCE = 8  # images; the attention of all layers, with its gradient, is large


def heat_maps(classifier: Classifier, images: torch.Tensor) -> np.ndarray:
    """Returns the cells (B, h, w) float32 in [0, 1], each image's with a maximum of 1.

    Of prepared images (B, 1, S, S) uint8. High where the image raises the probability of the positive label;
    all 0 where nothing in it does.
    """
    _, method = METHODS[classifier.model.config.model_type]
    parts = [method(classifier.model, classifier.normalize(part)) for part in images.split(AT_ONCE)]
    heat = torch.cat(parts).cpu()
    highest = heat.amax((1, 2), keepdim=True)
    return (heat / highest.where(highest > 0, torch.ones(()))).numpy()


def grid_of(classifier: Classifier) -> np.ndarray:
    """Returns an empty map (h, w), which tells how many cells the maps of this model have."""
    side = classifier.image_size
    return heat_maps(classifier, torch.zeros(1, 1, side, side, dtype=torch.uint8))[0]


def describe(classifier: Classifier, heat: np.ndarray) -> str:
    """Returns by which method and on which grid (h, w) a map was made, and what that means."""
    name, _ = METHODS[classifier.model.config.model_type]
    rows, columns = heat.shape
    grid = f"{name} on a grid of {rows} x {columns} cells"
    return f"{grid}: too coarse to show where" if min(rows, columns) < FINE_GRID else grid


def grad_cam(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Returns the heat (B, h, w) of a ResNet, from 0, of its input (B, 3, S, S)."""
    from captum.attr import LayerGradCam  # slow to import, and only for heat maps

    def log_odds(pixel_values: torch.Tensor) -> torch.Tensor:
        return _log_odds(model(pixel_values=pixel_values).logits)

    method = LayerGradCam(log_odds, model.resnet.encoder.stages[-1])
    return method.attribute(pixel_values, relu_attributions=True).detach()[:, 0]


def attention_rollout(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Returns the heat (B, h, w) of a ViT, from 0, of its input (B, 3, S, S)."""
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the others do not give the attention away
    try:
        outputs = model(pixel_values=pixel_values, output_attentions=True)
    finally:
        model.set_attn_implementation(implementation)
    attentions = outputs.attentions  # of each layer: (B, heads, 1 + L, 1 + L)
    gradients = torch.autograd.grad(_log_odds(outputs.logits).sum(), attentions)
    num_tokens = attentions[0].shape[-1]
    relevance = torch.eye(num_tokens, device=pixel_values.device).expand(len(pixel_values), -1, -1)
    for attention, gradient in zip(attentions, gradients):
        helpful = (attention.detach() * gradient).clamp(min=0).mean(1)
        relevance = relevance + helpful @ relevance
    side = math.isqrt(num_tokens - 1)
    return relevance[:, 0, 1:].unflatten(1, (side, side))  # of the patches, to the class token


def _log_odds(logits: torch.Tensor) -> torch.Tensor:
    """Of the positive label: (B, 2) to (B,)."""
    return logits[:, 1] - logits[:, 0]


METHODS = {"resnet": ("Grad-CAM", grad_cam), "vit": ("Attention rollout", attention_rollout)}


def stretch(heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns cells (h, w) at `size` (H, W): softly or, where they are few, as the cells that they are."""
    is_fine = min(heat.shape) >= FINE_GRID
    options = {"mode": "bilinear", "align_corners": False} if is_fine else {"mode": "nearest-exact"}
    return F.interpolate(torch.from_numpy(heat)[None, None], size=size, **options)[0, 0].numpy()


def overlay(pixels: torch.Tensor, heat: np.ndarray) -> np.ndarray:
    """Returns a radiograph (1, H, W) uint8 under its heat (h, w), which is stretched to it: (H, W, 3) uint8.

    The heat is the more opaque the higher it is; where it is 0, the radiograph is as it was.
    """
    import matplotlib

    heat = stretch(heat, tuple(pixels.shape[-2:]))
    opacity, colors = OPACITY * heat[..., None], matplotlib.colormaps[COLORS]
    gray = pixels[0].numpy()[..., None]
    return np.rint((1 - opacity) * gray + opacity * 255 * colors(heat)[..., :3]).astype(np.uint8)


def plot_heat_map(pixels: torch.Tensor, heat: np.ndarray, path: Path, *, title: str, label: str) -> None:
    """Writes a PNG, readable by its owner alone: the radiograph under its heat, a colour bar and a title.

    `label` is the positive one.
    """
    from matplotlib.cm import ScalarMappable

    figure = new_figure(8.5, 7.8)
    axes = figure.subplots()
    axes.imshow(overlay(pixels, heat))
    axes.axis("off")
    axes.set_title(title, fontsize="medium", parse_math=False)  # a file's name may have dollars in it
    bar = figure.colorbar(ScalarMappable(cmap=COLORS), ax=axes, fraction=0.046, pad=0.03)
    raised = f"raises the probability of {label} (1 = this image's maximum)"
    meaning = raised if heat.any() else f"no region raises the probability of {label}"
    bar.set_label(meaning, parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of a name in letters that the font does not have
        save_figure(figure, path, private=True)
