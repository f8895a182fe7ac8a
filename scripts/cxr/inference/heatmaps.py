"""Computes and draws heat maps: which parts of a radiograph raise a classifier's probability.

ResNet: Grad-CAM of the last stage (Selvaraju et al. 2017, arXiv:1610.02391) by captum: the sum of its
channels, each weighted by the mean gradient of the finding's log-odds. Networks of timm whose last features
are a map of channels, such as DenseNet-121: the same, of these features.

ViT: gradient-weighted attention rollout (Chefer et al. 2021, arXiv:2103.15679): how much each patch
contributes to the class token through all layers, along attention that raises the log-odds. Captum lacks
this method, and its Grad-CAM mistakes a ViT's tokens for channels.

A heat map shows what the model used, not where a disease is. Its resolution is that of its grid: a cell is
32 x 32 input pixels in a ResNet, one patch in a ViT.
"""

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from cxr.errors import UserError
from cxr.evaluation.plots import new_figure
from cxr.evaluation.plots import save_figure
from cxr.inference.classifier import Classifier
from cxr.models import heads
from cxr.models import timm_networks
from cxr.models.families import describe_family

SHOWN_SIDE = 768  # pixels: the shortest side of the radiograph as shown; models get it smaller
COLORS = "inferno"
OPACITY = 0.6  # of the colour where the heat is 1
FINE_GRID = 7  # cells per side: a ResNet's at 224 pixels; a coarser grid is drawn as squares, not smoothed
AT_ONCE = 8  # images: the attention of all layers, with its gradient, takes much memory


def heat_maps(classifier: Classifier, images: torch.Tensor, finding: int = 0) -> np.ndarray:
    """Returns the heat maps (B, h, w), float32 in [0, 1], of prepared images (B, 1, S, S) uint8.

    A map is high where the image raises the probability of the classifier's finding of that number, with a
    maximum of 1; it is all 0 if nothing in the image does.
    """
    _, method = _method_of(classifier)
    parts = [method(classifier.model, classifier.normalize(part), finding) for part in images.split(AT_ONCE)]
    heat = torch.cat(parts).cpu()
    highest = heat.amax((1, 2), keepdim=True)
    return (heat / highest.where(highest > 0, torch.ones(()))).numpy()


def grid_of(classifier: Classifier) -> np.ndarray:
    """Returns the heat map (h, w) of a black image, whose shape is the grid of this model's maps."""
    side = classifier.image_size
    return heat_maps(classifier, torch.zeros(1, 1, side, side, dtype=torch.uint8))[0]


def describe(classifier: Classifier, heat: np.ndarray) -> str:
    """Describes in words the method and the grid of a heat map (h, w)."""
    name, _ = _method_of(classifier)
    rows, columns = heat.shape
    grid = f"{name} on a grid of {rows} x {columns} cells"
    return f"{grid}: too coarse to locate anything" if min(rows, columns) < FINE_GRID else grid


def grad_cam(model: PreTrainedModel, pixel_values: torch.Tensor, finding: int = 0) -> torch.Tensor:
    """Returns the heat maps (B, h, w) of a ResNet, at least 0, for its input (B, 3, S, S)."""
    from captum.attr import LayerGradCam  # slow to import, and only for heat maps

    def log_odds(pixel_values: torch.Tensor) -> torch.Tensor:
        return _log_odds(model, model(pixel_values=pixel_values).logits, finding)

    method = LayerGradCam(log_odds, model.resnet.encoder.stages[-1])
    return method.attribute(pixel_values, relu_attributions=True).detach()[:, 0]


def grad_cam_of_timm(model: PreTrainedModel, pixel_values: torch.Tensor, finding: int = 0) -> torch.Tensor:
    """Returns the heat maps (B, h, w) of a network with a last feature map, for its input (B, 3, S, S)."""
    features = model.timm_model.forward_features(pixel_values)  # (B, C, h, w)
    log_odds = _log_odds(model, model.timm_model.forward_head(features), finding)
    (gradients,) = torch.autograd.grad(log_odds.sum(), features)
    weights = gradients.mean((2, 3), keepdim=True)  # of each channel
    return (weights * features).sum(1).relu().detach()


def attention_rollout(model: PreTrainedModel, pixel_values: torch.Tensor, finding: int = 0) -> torch.Tensor:
    """Returns the heat maps (B, h, w) of a ViT, at least 0, for its input (B, 3, S, S)."""
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the other implementations do not return the attention
    try:
        outputs = model(pixel_values=pixel_values, output_attentions=True)
    finally:
        model.set_attn_implementation(implementation)
    attentions = outputs.attentions  # one per layer: (B, heads, 1 + L, 1 + L)
    gradients = torch.autograd.grad(_log_odds(model, outputs.logits, finding).sum(), attentions)
    num_tokens = attentions[0].shape[-1]
    relevance = torch.eye(num_tokens, device=pixel_values.device).expand(len(pixel_values), -1, -1)
    for attention, gradient in zip(attentions, gradients):
        helpful = (attention.detach() * gradient).clamp(min=0).mean(1)
        relevance = relevance + helpful @ relevance
    side = math.isqrt(num_tokens - 1)
    return relevance[:, 0, 1:].unflatten(1, (side, side))  # of each patch to the class token


def _log_odds(model: PreTrainedModel, logits: torch.Tensor, finding: int) -> torch.Tensor:
    """Returns the log-odds (B,) of a multi-label model's finding, or of a binary model's positive label."""
    return logits[:, finding] if heads.is_multi_label(model.config) else logits[:, 1] - logits[:, 0]


METHODS = {
    "resnet": ("Grad-CAM", grad_cam),
    "timm_wrapper": ("Grad-CAM", grad_cam_of_timm),
    "vit": ("Attention rollout", attention_rollout),
}


def has_method(classifier: Classifier) -> bool:
    """Returns whether heat maps of this model can be computed; a ViT of timm returns no attention."""
    config = classifier.model.config
    if config.model_type == "timm_wrapper":
        network = timm_networks.network_of(config.architecture, tuple(config.model_args.items()))
        return timm_networks.has_feature_map(network, classifier.image_size)
    return config.model_type in METHODS


def _method_of(classifier: Classifier) -> tuple[str, Callable[..., torch.Tensor]]:
    """Returns the name and the function. Raises UserError for a model without either."""
    if not has_method(classifier):
        found = describe_family(classifier.model.config)
        raise UserError(
            f"model {classifier.name}: found {found}, expected a ResNet, a ViT of transformers, or a "
            "network of timm with a last feature map, such as a DenseNet; leave the heat maps out"
        )
    return METHODS[classifier.model.config.model_type]


def stretch(heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Enlarges a heat map (h, w) to `size` (H, W): a fine one smoothly, a coarse one as squares."""
    is_fine = min(heat.shape) >= FINE_GRID
    options = {"mode": "bilinear", "align_corners": False} if is_fine else {"mode": "nearest-exact"}
    return F.interpolate(torch.from_numpy(heat)[None, None], size=size, **options)[0, 0].numpy()


def overlay(pixels: torch.Tensor, heat: np.ndarray) -> np.ndarray:
    """Draws a heat map (h, w) over its radiograph (1, H, W) uint8; returns (H, W, 3) uint8.

    The opacity grows with the heat; where the heat is 0, the radiograph is unchanged.
    """
    import matplotlib

    heat = stretch(heat, tuple(pixels.shape[-2:]))
    opacity, colors = OPACITY * heat[..., None], matplotlib.colormaps[COLORS]
    gray = pixels[0].numpy()[..., None]
    return np.rint((1 - opacity) * gray + opacity * 255 * colors(heat)[..., :3]).astype(np.uint8)


def plot_heat_map(pixels: torch.Tensor, heat: np.ndarray, path: Path, *, title: str, label: str) -> None:
    """Writes a PNG, readable only by its owner: the radiograph with its heat map, a colour bar and a title.

    `label` is the finding.
    """
    from matplotlib.cm import ScalarMappable

    figure = new_figure(8.5, 7.8)
    axes = figure.subplots()
    axes.imshow(overlay(pixels, heat))
    axes.axis("off")
    axes.set_title(title, fontsize="medium", parse_math=False)  # a file name may contain dollar signs
    bar = figure.colorbar(ScalarMappable(cmap=COLORS), ax=axes, fraction=0.046, pad=0.03)
    raised = f"raises the probability of {label} (1 = this image's maximum)"
    meaning = raised if heat.any() else f"no region raises the probability of {label}"
    bar.set_label(meaning, parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the font may lack letters of a file name
        save_figure(figure, path, private=True)
