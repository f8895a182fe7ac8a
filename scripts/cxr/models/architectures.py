"""The models by name or folder: what defines them, and what an image costs them; nothing here needs torch."""

from pathlib import Path
from typing import Annotated
from typing import Any
from typing import ClassVar
from typing import Literal

from huggingface_hub import try_to_load_from_cache
from pydantic import Field

from cxr.choices import DEFAULT_IMAGE_SIZE as DEFAULT_IMAGE_SIZE
from cxr.errors import UserError
from cxr.run_folder.record import Record
from cxr.sharing.local_hub import MODEL_ID


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
_CONFIGS = {name: {"model_type": "vit_mae", **fields} for name, fields in VIT_MAE_CONFIGS.items()}
_CONFIGS |= {name: {"model_type": "resnet", **fields} for name, fields in RESNET_CONFIGS.items()}
# Models on the Hub whose configurations are those above: a plan with them needs no network.
_PUBLISHED = {
    f"facebook/{name}": _CONFIGS[name] for name in ("vit-mae-base", "vit-mae-large", "vit-mae-huge")
}
_PUBLISHED |= {f"microsoft/{name}": _CONFIGS[name] for name in RESNET_CONFIGS}

_Width = Annotated[int, Field(gt=0, le=10**6)]
_Depth = Annotated[int, Field(gt=0, le=1000)]


class Architecture(Record):
    """What a config.json says of the family and the size of a model, with the defaults of transformers."""

    writer: ClassVar[str] = "transformers"
    advice: ClassVar[str] = "restore the file, or name another model"

    model_type: Literal["vit", "vit_mae", "resnet"]
    hidden_size: _Width = 768
    num_hidden_layers: _Depth = 12
    intermediate_size: _Width = 3072
    patch_size: _Width = 16
    embedding_size: _Width = 64
    hidden_sizes: list[_Width] = Field(default=[256, 512, 1024, 2048], max_length=16)
    depths: list[_Depth] = [3, 4, 6, 3]
    layer_type: Literal["basic", "bottleneck"] = "bottleneck"

    @property
    def family(self) -> str:
        return "resnet" if self.model_type == "resnet" else "vit"


def find_architecture(model: str, *, hub_dir: Path | None = None, revision: str = "main") -> Architecture:
    """Returns what is known of a model: a configuration's name, a folder, or a name that is here already.

    Names are looked up in `hub_dir` and the Hugging Face cache, never on a network. Raises UserError for one
    that is in neither.
    """
    if model in _CONFIGS:
        return Architecture(**_CONFIGS[model])
    if Path(model).is_dir():
        return Architecture.read(Path(model) / "config.json")
    if MODEL_ID.fullmatch(model):
        for cache_dir in (hub_dir, None) if hub_dir else (None,):
            found = try_to_load_from_cache(model, "config.json", cache_dir=cache_dir, revision=revision)
            if isinstance(found, str):
                return Architecture.read(Path(found))
    if model in _PUBLISHED:
        return Architecture(**_PUBLISHED[model])
    raise UserError(
        f"model {model}: found no folder and no downloaded model of this name, expected one that tells its "
        f"family and size; name a folder, or download it first: hf download {model} --revision {revision}"
    )


def family(model: str, *, hub_dir: Path | None = None, revision: str = "main") -> str:
    """Returns "vit" or "resnet". Raises as `find_architecture` does."""
    return find_architecture(model, hub_dir=hub_dir, revision=revision).family


def estimate_gflop(
    architecture: Architecture, *, image_size: int, overrides: str | None, share_seen: float
) -> float:
    """Returns roughly what a forward pass of one image takes, in GFLOP.

    It is for saying beforehand whether a study takes hours or weeks. `share_seen` is the share of the patches
    that a ViT works on. Raises UserError for a size that no image has.
    """
    if not 0 < image_size <= 10**6:  # a larger one overflows
        raise UserError(f"image_size: found {str(image_size)[:50]}, expected a number from 1 to 1,000,000")
    pairs = [pair.partition("=") for pair in (overrides or "").split(",")]
    # Of the values that the script will refuse, none is taken: no model has more than seven digits.
    sizes = {key: int(value) for key, _, value in pairs if value.isdecimal() and len(value) < 8}
    sizes = {key: size for key, size in sizes.items() if size and type(getattr(architecture, key, 0)) is int}
    model = architecture.model_copy(update=sizes)
    if model.family == "resnet":
        return 2e-9 * _resnet_macs(model, image_size)
    width, tokens = model.hidden_size, 1 + share_seen * (image_size // model.patch_size) ** 2
    per_token = 4 * width**2 + 2 * width * model.intermediate_size + 2 * tokens * width
    return 2e-9 * model.num_hidden_layers * tokens * per_token


def _resnet_macs(model: Architecture, image_size: int) -> float:
    """Multiply-adds of the convolutions (He et al. 2015, table 1): their weights times the pixels."""
    before, macs = model.embedding_size, 7**2 * 3 * model.embedding_size * (image_size / 2) ** 2
    for stage, (width, depth) in enumerate(zip(model.hidden_sizes, model.depths)):
        outer = before + (2 * depth - 1) * width  # channels into the first and out of the last of each block
        is_basic, inner = model.layer_type == "basic", width // 4
        weights = 9 * width * outer if is_basic else inner * outer + depth * 9 * inner**2
        weights += before * width if before != width else 0  # the shortcut's
        macs += weights * (image_size / 4 / 2**stage) ** 2
        before = width
    return macs
