"""Decodes the hidden patches of a masked autoencoder only, as the loss is of these alone.

The decoder's last block attends from hidden patches to all, and its MLP, the last norm and the prediction see
hidden patches only. The loss and its gradients are those of plain transformers, up to rounding.
"""

from types import MethodType

import torch
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEDecoder
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEDecoderOutput
from transformers.models.vit_mae.modeling_vit_mae import ViTMAELayer


def decode_hidden_patches(decoder: ViTMAEDecoder) -> None:
    """Changes a decoder in place; its attention must be `acceleration.attend`."""
    decoder.forward = MethodType(decode, decoder)
    last = decoder.decoder_layers[-1]
    last.forward = MethodType(transform, last)


def decode(
    self: ViTMAEDecoder,
    hidden_states: torch.Tensor,
    ids_restore: torch.Tensor,
    interpolate_pos_encoding: bool = False,
) -> ViTMAEDecoderOutput:
    """Predicts patches: tokens (B, 1 + V, D) -> logits (B, L, patch_size² * 3), zero for the V visible ones.

    Without gradients, as in an evaluation, all patches are predicted.
    """
    if interpolate_pos_encoding or not torch.is_grad_enabled():
        return type(self).forward(self, hidden_states, ids_restore, interpolate_pos_encoding)
    num_seen, num_patches = hidden_states.shape[1], ids_restore.shape[1]  # seen: with the class token
    patches = ids_restore.argsort(dim=1)  # as the encoder shuffled them: the visible ones come first
    tokens = self.decoder_embed(hidden_states)
    mask_tokens = self.mask_token.expand(len(tokens), 1 + num_patches - num_seen, -1)
    positions = torch.cat([torch.zeros_like(patches[:, :1]), 1 + patches], dim=1)
    tokens = torch.cat([tokens, mask_tokens], dim=1) + self.decoder_pos_embed[0][positions]
    *layers, last = self.decoder_layers
    for layer in layers:
        tokens = layer(tokens)
    predicted = self.decoder_pred(self.decoder_norm(last(tokens, first=num_seen)))
    hidden = patches[:, num_seen - 1 :, None].expand_as(predicted)
    logits = predicted.new_zeros(len(tokens), num_patches, predicted.shape[2])
    return ViTMAEDecoderOutput(logits=logits.scatter(1, hidden, predicted))


def transform(self: ViTMAELayer, hidden_states: torch.Tensor, *, first: int = 0) -> torch.Tensor:
    """Computes a block (B, L, D) -> (B, L - first, D), for the tokens from `first` on."""
    attended, _ = self.attention(self.layernorm_before(hidden_states), first=first)
    tokens = hidden_states[:, first:] + self.dropout(attended)
    return tokens + self.dropout(self.mlp(self.layernorm_after(tokens)))
