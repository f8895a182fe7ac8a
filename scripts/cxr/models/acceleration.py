"""Makes models faster: changes how the forward and backward passes run, not what they compute.

Parameters, their names and the saved files stay those of plain transformers; outputs agree up to rounding.
Attention weights are not returned.
"""

from collections.abc import Sequence
from types import MethodType

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend
from torch.nn.attention import sdpa_kernel
from transformers import PreTrainedModel
from transformers.models.vit.modeling_vit import ViTAttention
from transformers.models.vit.modeling_vit import ViTPatchEmbeddings
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEAttention
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEDecoder
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEPatchEmbeddings

from cxr.models.decoding import decode_hidden_patches
from cxr.models.families import has_patches

# On an H100 in bf16, the memory-efficient kernel takes half as long as cuDNN's for the encoder's 50 tokens,
# and twice as long for the decoder's 197. The other kernels are for GPUs and dtypes that lack these.
SHORT_SEQUENCE = 64  # tokens
EFFICIENT, FLASH, MATH = SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH
FOR_SHORT_SEQUENCES = [EFFICIENT, FLASH, MATH]
FOR_LONG_SEQUENCES = [FLASH, EFFICIENT, MATH]
ON_HOPPER = [SDPBackend.CUDNN_ATTENTION, *FOR_LONG_SEQUENCES]  # measured on Hopper only


def speed_up(model: PreTrainedModel, *, torch_compile: bool) -> None:
    """Changes a model in place; `torch_compile` also compiles it, in the first call."""
    if not has_patches(model.config):
        model.to(memory_format=torch.channels_last)  # a step takes half as long on a GPU
    for module in model.modules():
        if isinstance(module, ViTAttention | ViTMAEAttention):
            module.forward = MethodType(attend, module)
        elif isinstance(module, ViTPatchEmbeddings | ViTMAEPatchEmbeddings):
            module.projection.forward = MethodType(project_patches, module.projection)
        elif isinstance(module, ViTMAEDecoder):
            decode_hidden_patches(module)
    if torch_compile:
        model.compile(dynamic=False)


def project_patches(self: nn.Conv2d, pixel_values: torch.Tensor) -> torch.Tensor:
    """Computes the patch convolution (B, C, H, W) -> (B, D, H / P, W / P) as one matrix product."""
    batch_size, channels, height, width = pixel_values.shape
    size, rows, columns = self.kernel_size[0], height // self.kernel_size[0], width // self.kernel_size[0]
    patches = pixel_values.view(batch_size, channels, rows, size, columns, size).permute(0, 2, 4, 1, 3, 5)
    tokens = F.linear(patches.reshape(batch_size, rows * columns, -1), self.weight.flatten(1), self.bias)
    return tokens.transpose(1, 2).unflatten(2, (rows, columns))


def preferred_kernels(query: torch.Tensor) -> list[SDPBackend]:
    """Returns the attention kernels for queries (B, H, L, D / H), the fastest first."""
    if query.shape[2] <= SHORT_SEQUENCE:
        return FOR_SHORT_SEQUENCES
    is_hopper = query.is_cuda and torch.cuda.get_device_capability(query.device)[0] == 9
    return ON_HOPPER if is_hopper else FOR_LONG_SEQUENCES


def project(hidden_states: torch.Tensor, projections: Sequence[nn.Linear], head_dim: int) -> torch.Tensor:
    """Applies N projections (B, L, D) -> (N, B, H, L, D / H) in one matrix product."""
    weight = torch.cat([projection.weight for projection in projections])
    bias = None if projections[0].bias is None else torch.cat([projection.bias for projection in projections])
    projected = F.linear(hidden_states, weight, bias)  # (B, L, N * D)
    return projected.unflatten(2, (len(projections), -1, head_dim)).permute(2, 0, 3, 1, 4)


def attend(
    self: ViTAttention | ViTMAEAttention,
    hidden_states: torch.Tensor,
    attention_mask: None = None,
    *,
    first: int = 0,
    **unused,
) -> tuple[torch.Tensor, None]:
    """Computes self-attention (B, L, D) -> (B, L - first, D), of the tokens from `first` on to all tokens.

    It takes one matrix product for q, k and v, or two if q is of some tokens only, and a fast kernel.
    """
    if first:
        [query] = project(hidden_states[:, first:], [self.q_proj], self.head_dim)
        key, value = project(hidden_states, [self.k_proj, self.v_proj], self.head_dim)
    else:
        query, key, value = project(hidden_states, [self.q_proj, self.k_proj, self.v_proj], self.head_dim)
    dropout = self.attention_dropout if self.training else 0.0
    if (
        query.device.type == "cpu"
        and query.dtype == torch.bfloat16
        and torch.is_grad_enabled()
        and not dropout
    ):
        # The backward pass of the CPU's own kernel takes 1.4 to 4 times as long in bf16 (50 to 577 tokens).
        attended = (query * self.scaling @ key.transpose(2, 3)).softmax(-1) @ value
    else:
        with sdpa_kernel(preferred_kernels(query), set_priority=True):
            attended = F.scaled_dot_product_attention(
                query, key, value, dropout_p=dropout, scale=self.scaling
            )
    return self.o_proj(attended.transpose(1, 2).flatten(2)), None
