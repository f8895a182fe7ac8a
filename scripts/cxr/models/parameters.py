"""Counts the parameters of a model from its architecture alone, without torch."""

from cxr.models.architectures import Dinov2Fields
from cxr.models.architectures import EncoderFields
from cxr.models.architectures import Fields
from cxr.models.architectures import ResnetFields
from cxr.models.architectures import TimmFields
from cxr.models.architectures import VitMaeFields


def count_parameters(architecture: Fields, *, num_labels: int | None) -> int:
    """Returns the number of parameters, with position embeddings.

    The model is a classifier with an output per label or, if `num_labels` is None, the masked autoencoder.
    """
    if isinstance(architecture, TimmFields):
        return architecture.count(num_labels=num_labels)[0]
    if isinstance(architecture, ResnetFields):
        return _resnet(architecture) + num_labels * (architecture.hidden_sizes[-1] + 1)
    if isinstance(architecture, Dinov2Fields):  # whose head reads the class token and the mean of the patches
        return _encoder(architecture) + num_labels * (2 * architecture.hidden_size + 1)
    head = num_labels * (architecture.hidden_size + 1) if num_labels else _decoder(architecture)
    return _encoder(architecture) + head


def _encoder(vit: EncoderFields) -> int:
    width, tokens = vit.hidden_size, 1 + (vit.image_size // vit.patch_size) ** 2
    patches = (vit.num_channels * vit.patch_size**2 + 1) * width
    layer = _layer(width, vit.intermediate_size, has_bias=vit.qkv_bias)
    if isinstance(vit, Dinov2Fields):
        layer += 2 * width  # a scale per channel and branch
        if vit.use_swiglu_ffn:
            inner = (vit.intermediate_size * 2 // 3 + 7) // 8 * 8
            layer += (3 * inner + 1) * width + 2 * inner
            layer -= (2 * vit.intermediate_size + 1) * width + vit.intermediate_size
    return patches + (1 + tokens) * width + vit.num_hidden_layers * layer + 2 * width


def _decoder(mae: VitMaeFields) -> int:
    width, tokens = mae.decoder_hidden_size, 1 + (mae.image_size // mae.patch_size) ** 2
    pixels = mae.num_channels * mae.patch_size**2
    layer = _layer(width, mae.decoder_intermediate_size, has_bias=mae.qkv_bias)
    ends = (mae.hidden_size + 1) * width + (width + 1) * pixels  # from the encoder, to the pixels
    return ends + (1 + tokens) * width + mae.decoder_num_hidden_layers * layer + 2 * width


def _layer(width: int, inner: int, *, has_bias: bool) -> int:
    attention = 4 * width**2 + (4 if has_bias else 1) * width
    return attention + (2 * inner + 1) * width + inner + 4 * width  # two norms


def _resnet(resnet: ResnetFields) -> int:
    """Counts convolutions, which have no biases, and their batch normalisation, two numbers per channel."""
    count = (49 * resnet.num_channels + 2) * resnet.embedding_size
    before = resnet.embedding_size
    for stage, (width, depth) in enumerate(zip(resnet.hidden_sizes, resnet.depths)):
        for block in range(depth):
            is_smaller = block == 0 and (stage > 0 or resnet.downsample_in_first_stage)
            count += (before + 2) * width * (is_smaller or before != width)  # the shortcut
            if resnet.layer_type == "basic":
                count += (9 * before + 2) * width + (9 * width + 2) * width
            else:
                inner = width // 4
                count += (before + 2) * inner + (9 * inner + 2) * inner + (inner + 2) * width
            before = width
    return count
