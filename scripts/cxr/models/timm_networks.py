"""What timm knows of its networks, by name and arguments; nothing is downloaded."""

import functools
import inspect
from typing import Any

import timm
import torch
from timm.models import VisionTransformer
from timm.models import group_parameters
from timm.models.deit import VisionTransformerDistilled
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cxr.errors import UserError
from cxr.errors import did_you_mean
from mimic_cxr_dataset.errors import one_line

Arguments = tuple[tuple[str, Any], ...]  # of a network, by name
VIT_MODULES = ("vision_transformer", "deit")  # timm's files whose networks are all VisionTransformers


def check_name(name: str, *, where: str) -> None:
    """Raises UserError, beginning with `where`, unless timm has a network of this name."""
    if not timm.is_model(name):
        close = did_you_mean(name, timm.list_models())
        raise UserError(
            f"{where}: found no {name[:80]} in timm {timm.__version__}{close}; expected "
            "a name that timm.list_models() has"
        )


def is_vit(name: str) -> bool:
    """Returns whether a network is a ViT with tokens of which some can be hidden: a ViT or a DeiT of timm."""
    return timm.models.is_model_in_modules(name, VIT_MODULES)


def own_size(name: str, arguments: Arguments) -> int | None:
    """Returns the side in pixels of the only input that a network takes, None if it takes any size."""
    if size := dict(arguments).get("img_size"):
        return size
    about = timm.get_pretrained_cfg(name)
    return about.input_size[-1] if about is not None and about.fixed_input_size else None


def make_network(name: str, arguments: Arguments, *, num_labels: int, where: str) -> nn.Module:
    """Returns an untrained network, as timm initialises it. Raises UserError for arguments that do not fit.

    Inside `torch.device("meta")` it takes no memory.
    """
    check_name(name, where=where)
    try:
        return timm.create_model(name, pretrained=False, num_classes=num_labels, **dict(arguments))
    except Exception as error:  # timm's networks raise many types
        given = ", ".join(f"{key}={value}" for key, value in arguments) or "no arguments"
        raise UserError(
            f"{where}: found {given[:200]}, expected arguments that timm's {name} takes "
            f"({one_line(error)[:150]}); change them"
        ) from error


@functools.lru_cache
def count(name: str, arguments: Arguments, num_labels: int, image_size: int) -> tuple[int, float]:
    """Returns the number of parameters, and the FLOPs of a forward pass of one image of this side."""
    where = f"timm/{name}, image_size {image_size}"
    with torch.device("meta"):
        network = make_network(name, arguments, num_labels=num_labels, where=where)
        network.eval().requires_grad_(False)  # the counter fails on a class token that is still to be learned
        num_parameters = sum(one.numel() for one in network.parameters())
        try:
            with FlopCounterMode(display=False) as counter:
                network(torch.empty(1, 3, image_size, image_size))
        except Exception as error:  # too small for its strides, or not the size of its windows
            raise UserError(
                f"{where}: found an input that the network cannot process ({one_line(error)[:150]}); "
                "expected another --image_size"
            ) from error
    return num_parameters, counter.get_total_flops()


def network_of(name: str, arguments: Arguments) -> nn.Module:
    """Returns a network without memory, to look at its modules."""
    with torch.device("meta"):
        return make_network(name, arguments, num_labels=2, where=f"timm/{name}")


def heads_of(network: nn.Module) -> list[nn.Module]:
    """Returns the layers that compute the logits: one, or two in a distilled DeiT."""
    found = network.get_classifier()
    return list(found) if isinstance(found, tuple | list) else [found]


def is_distilled(network: nn.Module) -> bool:
    """Returns whether a network is a DeiT with two heads, which read the class and the distillation token."""
    return isinstance(network, VisionTransformerDistilled)


def tokens_of(network: nn.Module) -> tuple[nn.Module, int]:
    """Returns the module whose output are a ViT's tokens, and how many come before the patches."""
    assert isinstance(network, VisionTransformer)
    return network.patch_drop, network.num_prefix_tokens


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """Returns the blocks of a ViT, which are all alike; none of another network."""
    return list(network.blocks) if isinstance(network, VisionTransformer) else []


def layer_ids(network: nn.Module) -> dict[str, int]:
    """Returns the layer of each parameter, 0 for the first, as timm's own layer decay has them."""
    if not hasattr(network, "group_matcher"):
        raise UserError(
            f"--layer_decay: found {type(network).__name__} of timm, whose layers timm does not order; leave "
            "the flag out"
        )
    return group_parameters(network, network.group_matcher(coarse=False), reverse=True)


def set_input_size(network: nn.Module, image_size: int, *, like: nn.Module) -> bool:
    """Makes a network take images of another size; returns whether it now has the windows of `like`.

    Without windows of attention (most networks), these are equal. timm would scale a Swin's with the image.
    """
    if not hasattr(network, "set_input_size"):
        return False
    takes_windows = "window_size" in inspect.signature(network.set_input_size).parameters
    windows = windows_of(like)
    options = {"window_size": windows[0]} if takes_windows and windows else {}
    network.set_input_size(img_size=(image_size, image_size), **options)
    return windows_of(network) == windows


def windows_of(network: nn.Module) -> list[tuple[int, int]]:
    """Returns the height and width of the windows of attention in order, in tokens."""
    return [module.window_size for module in network.modules() if hasattr(module, "window_size")]


def num_patches(name: str, arguments: Arguments) -> int:
    return network_of(name, arguments).patch_embed.num_patches


def patch_size(name: str, arguments: Arguments) -> int | None:
    """Returns the side of the patches in pixels, None for a network without patches."""
    side = getattr(getattr(network_of(name, arguments), "patch_embed", None), "patch_size", None)
    return side[0] if isinstance(side, tuple | list) else side


def has_feature_map(network: nn.Module, image_size: int) -> bool:
    """Returns whether the last features are a map (B, C, H, W), as Grad-CAM needs; `network` is on "meta"."""
    with torch.no_grad():
        features = network.eval().forward_features(torch.empty(1, 3, image_size, image_size, device="meta"))
    return features.ndim == 4 and features.shape[1] == network.num_features
