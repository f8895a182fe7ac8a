"""Makes untrained models, initialised as He et al. do."""

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers import PreTrainedModel
from transformers import ResNetForImageClassification
from transformers import TimmWrapperForImageClassification
from transformers import ViTForImageClassification
from transformers import ViTMAEConfig
from transformers import ViTMAEForPreTraining
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEAttention

from cxr.models import timm_networks
from cxr.models.configs import classifier_config


def sharded_by_layer(model: PreTrainedModel) -> PreTrainedModel:
    """Makes FSDP shard `model` layer by layer.

    Accelerate shards the patch embedding separately, which fails inside another unit that transformers names.
    Of timm, the blocks of a ViT are layers.
    """
    if isinstance(model, TimmWrapperForImageClassification):
        model._no_split_modules = sorted(
            {type(one).__name__ for one in timm_networks.blocks_of(model.timm_model)}
        )
        return model
    model._no_split_modules = [name for name in model._no_split_modules or [] if name.endswith("Layer")]
    return model


def new_mae(config: ViTMAEConfig) -> ViTMAEForPreTraining:
    """Returns an untrained masked autoencoder, initialised as He et al. do.

    transformers 5 sets the position embeddings, class token and mask token of a model made from a
    configuration to zero: such a model cannot know where a patch was. They are initialised here.
    """
    model = sharded_by_layer(ViTMAEForPreTraining(config))
    separate = []  # He et al. initialise query, key and value as one matrix, three times as high
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, ViTMAEAttention):
            separate.extend([module.q_proj, module.k_proj, module.v_proj])
    for projection in separate:
        nn.init.xavier_uniform_(projection.weight, gain=0.5**0.5)
    embeddings, decoder = model.vit.embeddings, model.decoder
    patches = embeddings.patch_embeddings.projection.weight
    nn.init.xavier_uniform_(patches.data.view(len(patches), -1))
    nn.init.normal_(embeddings.cls_token, std=config.initializer_range)
    nn.init.normal_(decoder.mask_token, std=config.initializer_range)
    grid_size = config.image_size // config.patch_size
    embeddings.position_embeddings.data.copy_(sin_cos_position_embeddings(grid_size, config.hidden_size))
    decoder.decoder_pos_embed.data.copy_(sin_cos_position_embeddings(grid_size, config.decoder_hidden_size))
    return model


def sin_cos_position_embeddings(grid_size: int, width: int) -> torch.Tensor:
    """Returns fixed 2-D position embeddings (1, 1 + grid_size², width), zero for the class token.

    The first half of the width encodes the column, the second the row, as in the published MAE checkpoints.
    """
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid_size, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (grid_size, width / 2)
    rows, columns = torch.meshgrid(torch.arange(grid_size), torch.arange(grid_size), indexing="ij")
    patches = torch.cat([axis[columns.flatten()], axis[rows.flatten()]], dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), patches])[None].float()


def new_classifier(
    config: PretrainedConfig, labels: list[str], *, multi_label: bool = False
) -> PreTrainedModel:
    """Returns an untrained classifier; a ViT's encoder is initialised as in its masked autoencoder."""
    of_classifier = classifier_config(config, labels, multi_label=multi_label)
    if config.model_type == "resnet":
        return sharded_by_layer(ResNetForImageClassification(of_classifier))
    if config.model_type == "timm_wrapper":
        model = TimmWrapperForImageClassification(of_classifier)  # which initialises all layers as a ViT's
        arguments = tuple(config.model_args.items())
        network = timm_networks.make_network(
            config.architecture, arguments, num_labels=len(labels), where=f"timm/{config.architecture}"
        )
        model.timm_model.load_state_dict(network.state_dict())
        return sharded_by_layer(model)
    model = sharded_by_layer(ViTForImageClassification(of_classifier))
    model.vit.load_state_dict(new_mae(config).vit.state_dict())
    return model
