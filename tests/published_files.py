"""Tiny checkpoints in the form of published ones, and what their own code computes with them.

The functions follow the papers with the fused weights as they are stored, so that the models of transformers
are compared with something else.
"""

import argparse
from pathlib import Path

import torch
from torch.nn import functional as F

WIDTH, DEPTH, HEADS, PATCH, SIDE = 24, 2, 3, 8, 32
DECODER_WIDTH, DECODER_HEADS = 16, 2
HEADS_FLAGS = [f"--num_attention_heads={HEADS}", f"--decoder_num_attention_heads={DECODER_HEADS}"]
NUM_HEADS = {"num_heads": HEADS, "num_decoder_heads": DECODER_HEADS}
Tensors = dict[str, torch.Tensor]


def _block(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    linear |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    linear |= {"norm1": (width,), "norm2": (width,)}
    return {f"{prefix}.{name}.weight": shape for name, shape in linear.items()} | {
        f"{prefix}.{name}.bias": shape[:1] for name, shape in linear.items()
    }


def _drawn(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    drawn = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: values + ("norm" in name and name.endswith("weight")) for name, values in drawn.items()}


def encoder_tensors() -> Tensors:
    """As in mae_pretrain_vit_*.pth."""
    shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 1 + (SIDE // PATCH) ** 2, WIDTH)}
    shapes |= {"patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH), "patch_embed.proj.bias": (WIDTH,)}
    for number in range(DEPTH):
        shapes |= _block(f"blocks.{number}", WIDTH)
    return _drawn(shapes | {"norm.weight": (WIDTH,), "norm.bias": (WIDTH,)})


def decoder_tensors() -> Tensors:
    """What mae_visualize_vit_*.pth has besides."""
    width, pixels = DECODER_WIDTH, 3 * PATCH**2
    shapes = {"mask_token": (1, 1, width), "decoder_pos_embed": (1, 1 + (SIDE // PATCH) ** 2, width)}
    shapes |= {"decoder_embed.weight": (width, WIDTH), "decoder_embed.bias": (width,)}
    shapes |= _block("decoder_blocks.0", width)
    shapes |= {"decoder_norm.weight": (width,), "decoder_norm.bias": (width,)}
    return _drawn(shapes | {"decoder_pred.weight": (pixels, width), "decoder_pred.bias": (pixels,)})


def classifier_tensors(num_labels: int = 2, *, mean_pooling: bool = False) -> Tensors:
    """As in a fine-tuned checkpoint."""
    encoder, norm = encoder_tensors(), {"weight": torch.ones(WIDTH), "bias": torch.zeros(WIDTH)}
    if mean_pooling:
        encoder = {name: values for name, values in encoder.items() if not name.startswith("norm.")}
        encoder |= {f"fc_norm.{kind}": values for kind, values in norm.items()}
    return encoder | _drawn({"head.weight": (num_labels, WIDTH), "head.bias": (num_labels,)})


def save_checkpoint(path: Path, tensors: Tensors, **flags: object) -> Path:
    """Saves `tensors`; with `flags`, a training's checkpoint, as facebookresearch/mae writes it."""
    content: dict[str, object] = {"model": tensors}
    if flags:
        optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
        content |= {"optimizer": optimizer, "epoch": 3, "scaler": {"scale": 1.0}}
        content |= {"args": argparse.Namespace(**flags)}
    torch.save(content, path)
    return path


def images(num: int = 3, side: int = SIDE) -> torch.Tensor:
    return torch.randn(num, 3, side, side, generator=torch.Generator().manual_seed(1))


def _linear(tensors: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def _norm(tensors: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps=1e-6)


def _run_block(tensors: Tensors, prefix: str, x: torch.Tensor, num_heads: int) -> torch.Tensor:
    batch, length, width = x.shape
    qkv = _linear(tensors, f"{prefix}.attn.qkv", _norm(tensors, f"{prefix}.norm1", x))
    query, key, value = qkv.view(batch, length, 3, num_heads, width // num_heads).permute(2, 0, 3, 1, 4)
    weights = (query @ key.transpose(-2, -1) / (width // num_heads) ** 0.5).softmax(-1)
    attended = (weights @ value).transpose(1, 2).reshape(batch, length, width)
    x = x + _linear(tensors, f"{prefix}.attn.proj", attended)
    hidden = F.gelu(_linear(tensors, f"{prefix}.mlp.fc1", _norm(tensors, f"{prefix}.norm2", x)))
    return x + _linear(tensors, f"{prefix}.mlp.fc2", hidden)


def encode(tensors: Tensors, pixels: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
    """Returns the tokens (B, 1 + L, D) before the last norm, of the `kept` patches (B, K) if given."""
    patches = F.conv2d(pixels, *(tensors[f"patch_embed.proj.{kind}"] for kind in ("weight", "bias")), PATCH)
    patches = patches.flatten(2).transpose(1, 2) + tensors["pos_embed"][:, 1:]
    if kept is not None:
        patches = patches.gather(1, kept[:, :, None].expand(-1, -1, WIDTH))
    first = (tensors["cls_token"] + tensors["pos_embed"][:, :1]).expand(len(pixels), -1, -1)
    x = torch.cat([first, patches], dim=1)
    for number in range(DEPTH):
        x = _run_block(tensors, f"blocks.{number}", x, HEADS)
    return x


def logits_of(tensors: Tensors, pixels: torch.Tensor) -> torch.Tensor:
    """Returns the logits (B, K) of a classifier, by class token or, with fc_norm, by mean pooling."""
    x = encode(tensors, pixels)
    if "fc_norm.weight" in tensors:
        return _linear(tensors, "head", _norm(tensors, "fc_norm", x[:, 1:].mean(1)))
    return _linear(tensors, "head", _norm(tensors, "norm", x)[:, 0])


def predict_patches(tensors: Tensors, pixels: torch.Tensor, noise: torch.Tensor, num_kept: int):
    """Returns what a masked autoencoder predicts for all patches (B, L, pixels)."""
    order = noise.argsort(dim=1)
    encoded = _norm(tensors, "norm", encode(tensors, pixels, order[:, :num_kept]))
    x = _linear(tensors, "decoder_embed", encoded)
    full = tensors["mask_token"].repeat(len(pixels), noise.shape[1], 1)
    full.scatter_(1, order[:, :num_kept, None].expand(-1, -1, DECODER_WIDTH), x[:, 1:])
    x = _run_block(
        tensors,
        "decoder_blocks.0",
        torch.cat([x[:, :1], full], dim=1) + tensors["decoder_pos_embed"],
        DECODER_HEADS,
    )
    return _linear(tensors, "decoder_pred", _norm(tensors, "decoder_norm", x))[:, 1:]
