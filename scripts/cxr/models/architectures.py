"""The models by name: what defines them, and what an image costs them."""

from pathlib import Path
from typing import Any

from cxr.errors import UserError
from cxr.run_folder.files import read_json


def _vit_mae(
    width: int, depth: int, heads: int, decoder: tuple[int, int, int], **more: Any
) -> dict[str, Any]:
    decoder_width, decoder_depth, decoder_heads = decoder
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "decoder_hidden_size": decoder_width,
        "decoder_num_hidden_layers": decoder_depth,
        "decoder_num_attention_heads": decoder_heads,
        "decoder_intermediate_size": 4 * decoder_width,
        **more,
    }


# Base, Large and Huge are those of He et al. 2021 with their 512-wide, 8-deep decoder; the smaller ones are
# the customary ViT-Ti and ViT-S with decoders in proportion.
VIT_MAE_CONFIGS = {
    "vit-mae-tiny": _vit_mae(192, 12, 3, decoder=(128, 2, 4)),
    "vit-mae-small": _vit_mae(384, 12, 6, decoder=(256, 4, 8)),
    "vit-mae-base": _vit_mae(768, 12, 12, decoder=(512, 8, 16)),
    "vit-mae-large": _vit_mae(1024, 24, 16, decoder=(512, 8, 16)),
    "vit-mae-huge": _vit_mae(1280, 32, 16, decoder=(512, 8, 16), patch_size=14),
}
_BASIC = {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]}
_BOTTLENECK = {"layer_type": "bottleneck", "hidden_sizes": [256, 512, 1024, 2048]}
# He et al. 2015, table 1.
RESNET_CONFIGS = {
    "resnet-18": {**_BASIC, "depths": [2, 2, 2, 2]},
    "resnet-34": {**_BASIC, "depths": [3, 4, 6, 3]},
    "resnet-50": {**_BOTTLENECK, "depths": [3, 4, 6, 3]},
    "resnet-101": {**_BOTTLENECK, "depths": [3, 4, 23, 3]},
    "resnet-152": {**_BOTTLENECK, "depths": [3, 8, 36, 3]},
}
DEFAULT_IMAGE_SIZE = 224
# Multiply-adds of one forward pass at 224 pixels, in billions, for the ResNets (He et al. 2015, table 1).
_RESNET_GMACS = {"resnet-18": 1.8, "resnet-34": 3.6, "resnet-50": 3.8, "resnet-101": 7.6, "resnet-152": 11.3}


def family(model: str) -> str:
    """Returns "vit" or "resnet": by the model_type of a folder, else by the name."""
    config = Path(model) / "config.json"
    name = read_json(config).get("model_type") if config.is_file() else model
    if not isinstance(name, str):
        raise UserError(
            f"{config}: found no model_type; expected the config.json of a ViT-MAE, ViT or ResNet"
        )
    return "resnet" if "resnet" in name.lower() else "vit"


def estimate_gflop(model: str, *, image_size: int, overrides: str | None, share_seen: float) -> float:
    """Returns roughly what a forward pass of one image takes, in GFLOP, from the model's name alone.

    It is for saying beforehand whether a study takes hours or weeks. `share_seen` is the share of the patches
    that a ViT works on. A name that says nothing counts as a ViT of Base size. Raises UserError for a size
    that no image has.
    """
    if not 0 < image_size <= 10**6:  # a larger one overflows
        raise UserError(f"image_size: found {str(image_size)[:50]}, expected a number from 1 to 1,000,000")
    name = model.lower()
    if family(model) == "resnet":
        known = next((gmacs for key, gmacs in _RESNET_GMACS.items() if key in name), 3.8)
        return 2 * known * (image_size / DEFAULT_IMAGE_SIZE) ** 2
    size = next((key for key in VIT_MAE_CONFIGS if key.removeprefix("vit-mae-") in name), "vit-mae-base")
    fields = {"patch_size": 16, **VIT_MAE_CONFIGS[size]}
    given = {key: value for key, _, value in _pairs(overrides) if key in fields and value.isdecimal()}
    given = {key: value for key, value in given.items() if len(value) < 8}  # no model has more
    fields |= {key: int(value) for key, value in given.items() if int(value)}
    width, depth = fields["hidden_size"], fields["num_hidden_layers"]
    tokens = 1 + share_seen * (image_size // fields["patch_size"]) ** 2
    macs = depth * tokens * (4 * width**2 + 2 * width * fields["intermediate_size"] + 2 * tokens * width)
    return 2 * macs / 1e9


def _pairs(overrides: str | None) -> list[tuple[str, str, str]]:
    return [pair.partition("=") for pair in (overrides or "").split(",")]
