"""Gives a pretrained ViT another image size: the patch size stays, position embeddings are interpolated."""

import copy
import logging

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from cxr.models.configs import check_memory
from cxr.models.scratch import sin_cos_position_embeddings

logger = logging.getLogger(__name__)


def at_image_size(model: PreTrainedModel, image_size: int) -> PreTrainedModel:
    """Returns the model for images of another size, a multiple of its patch size; shares all other weights.

    The fixed position embeddings of a masked autoencoder's decoder are computed for the new grid. Raises
    UserError for a size whose embeddings do not fit into the memory.
    """
    config = copy.deepcopy(model.config)
    config.image_size = image_size
    check_memory(type(model), config, where=f"--image_size {image_size}")
    before, after = (one.image_size // one.patch_size for one in (model.config, config))
    weights = model.state_dict()
    for name, values in weights.items():
        if name.endswith(".position_embeddings"):
            weights[name] = interpolate_positions(values, after)
        elif name.endswith(".decoder_pos_embed"):
            weights[name] = sin_cos_position_embeddings(after, values.shape[2])
    with torch.device("meta"):  # without weights, which are assigned
        resized = type(model)(config)
    resized.load_state_dict(weights, assign=True)
    logger.info(
        "Position embeddings interpolated from %d x %d to %d x %d patches", before, before, after, after
    )
    return resized.train(model.training)


def interpolate_positions(table: torch.Tensor, grid_size: int) -> torch.Tensor:
    """Returns position embeddings (1, 1 + old_grid_size², D) for another grid: (1, 1 + grid_size², D).

    Bicubic, and the class token's is kept, as facebookresearch/mae does (util/pos_embed.py).
    """
    class_token, patches = table[:, :1], table[:, 1:]
    side = round(patches.shape[1] ** 0.5)
    grid = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, D, old_grid_size, old_grid_size)
    resized = F.interpolate(grid, size=(grid_size, grid_size), mode="bicubic", align_corners=False)
    return torch.cat([class_token, resized.flatten(2).transpose(1, 2)], dim=1)
