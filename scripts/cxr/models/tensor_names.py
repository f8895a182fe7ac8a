"""The names of tensors in published checkpoints, and those of the same tensors in transformers."""

import re

ENCODER = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    "norm": "vit.layernorm",
    "head": "classifier",
}
DECODER = {
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.decoder_pos_embed",
    "decoder_embed": "decoder.decoder_embed",
    "decoder_norm": "decoder.decoder_norm",
    "decoder_pred": "decoder.decoder_pred",
}
BLOCK = {
    "norm1": ("layernorm_before",),
    "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),  # in this order, one matrix
    "attn.proj": ("attention.o_proj",),
    "norm2": ("layernorm_after",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
}
BLOCK_NAME = re.compile(r"(decoder_)?blocks\.(\d+)\.(.+)")
RESNET = {
    "conv1": "resnet.embedder.embedder.convolution",
    "bn1": "resnet.embedder.embedder.normalization",
    "fc": "classifier.1",
}
RESNET_BLOCK = re.compile(r"layer([1-9])\.(\d+)\.(?:(conv|bn)([1-9])|downsample\.([01]))")


def vit_names(source: str) -> tuple[str, ...]:
    """Returns the names in transformers of a tensor of timm's ViT or facebookresearch/mae; () if unknown.

    Fused query, key and value have three names; the tensor is divided along its first dimension.
    """
    names = ENCODER | DECODER
    if source in names:
        return (names[source],)
    module, _, kind = source.rpartition(".")
    if module in names:
        return (f"{names[module]}.{kind}",)
    if block := BLOCK_NAME.fullmatch(module):
        layers = "decoder.decoder_layers" if block[1] else "vit.layers"
        return tuple(f"{layers}.{block[2]}.{part}.{kind}" for part in BLOCK.get(block[3], ()))
    return ()


def resnet_names(source: str) -> tuple[str, ...]:
    """Returns the name in transformers of a tensor of timm's or torchvision's ResNet; () if unknown."""
    module, _, kind = source.rpartition(".")
    if module in RESNET:
        return (f"{RESNET[module]}.{kind}",)
    if block := RESNET_BLOCK.fullmatch(module):
        stage, layer, part, number, shortcut = block.groups()
        inner = f"layer.{int(number) - 1}" if number else "shortcut"
        is_convolution = part == "conv" or shortcut == "0"
        outer = f"resnet.encoder.stages.{int(stage) - 1}.layers.{layer}.{inner}"
        return (f"{outer}.{'convolution' if is_convolution else 'normalization'}.{kind}",)
    return ()


def timm_names(source: str) -> tuple[str, ...]:
    """Returns the name of a tensor of a timm model in transformers' wrapper of timm."""
    return (f"timm_model.{source}",)
