"""Every configuration file loads with Accelerate's own loader and has the settings that its name promises."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from cxr.models import configs
from cxr.models.scratch import new_classifier
from cxr.models.scratch import new_mae
from cxr.training import optimization
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

CONFIGS = Path(__file__).parents[1] / "accelerate_configs"

# name -> distributed type, mixed precision, processes, machines
EXPECTED = {
    "cpu.yaml": (DistributedType.NO, "no", 1, 1),
    "single_gpu_fp16.yaml": (DistributedType.NO, "fp16", 1, 1),
    "multi_gpu_fp16.yaml": (DistributedType.MULTI_GPU, "fp16", 4, 1),
    "multi_node_fp16.yaml": (DistributedType.MULTI_GPU, "fp16", 8, 2),
    "fsdp_bf16.yaml": (DistributedType.FSDP, "bf16", 4, 1),
}


def test_configurations_are_the_documented_five():
    assert {path.name for path in CONFIGS.glob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_configuration_loads_with_its_type_and_precision(name):
    config = load_config_from_file(str(CONFIGS / name))
    found = (config.distributed_type, config.mixed_precision, config.num_processes, config.num_machines)
    assert found == EXPECTED[name]
    assert config.use_cpu is (name == "cpu.yaml")


def test_fsdp_wraps_transformer_blocks_and_gathers_whole_weights_to_save():
    config = load_config_from_file(str(CONFIGS / "fsdp_bf16.yaml")).fsdp_config
    assert config["fsdp_auto_wrap_policy"] == "TRANSFORMER_BASED_WRAP"
    assert config["fsdp_state_dict_type"] == "FULL_STATE_DICT"


@pytest.mark.parametrize("name", ["vit-mae", "vit", "resnet"])
def test_every_model_can_be_sharded_in_the_units_that_accelerate_makes_and_then_trains(name, tmp_path):
    """Shards on one CPU process, in the order of Accelerate 1.15: layers, input embedding, the rest."""
    config_name = "resnet-18" if name == "resnet" else "vit-mae-tiny"
    overrides = None if name == "resnet" else "num_hidden_layers=2,decoder_num_hidden_layers=1,patch_size=8"
    config = configs.make_config(config_name, overrides=overrides, image_size=32)
    model = new_mae(config) if name == "vit-mae" else new_classifier(config, ["no", "yes"])
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        layers = [module for module in model.modules() if type(module).__name__ in model._no_split_modules]
        assert len(layers) >= 2
        for layer in reversed(layers):
            fully_shard(layer, mesh=mesh)
        if name != "resnet":
            fully_shard(model.get_input_embeddings(), mesh=mesh)
        fully_shard(model, mesh=mesh)
        weight = model.get_parameter("vit.layernorm.weight" if name != "resnet" else "classifier.1.bias")
        assert isinstance(weight, DTensor)
        optimizer = optimization.make_adamw(model, learning_rate=0.1, weight_decay=0.1, betas=(0.9, 0.95))
        prepared = SimpleNamespace(optimizer=optimizer, step=optimizer.step, zero_grad=optimizer.zero_grad)
        accelerator = SimpleNamespace(
            scaler=None, reduce=lambda loss, _: loss, clip_grad_norm_=torch.nn.utils.clip_grad_norm_
        )
        for factor, clip in ((1.0, None), (float("nan"), None), (1.0, 1.0), (float("nan"), 1.0), (1.0, None)):
            changes = factor == 1.0
            before = weight.full_tensor().clone()
            loss = factor * model(pixel_values=torch.randn(2, 3, 32, 32)).logits.square().mean()
            loss.backward()
            loss = optimization.update_weights(
                accelerator, model, prepared, loss.detach(), max_grad_norm=clip
            )
            assert math.isfinite(torch.stack([loss]).tolist()[0]) is changes
            assert torch.equal(weight.full_tensor(), before) is not changes
        assert optimization.total_norm(list(model.parameters())).isfinite()
    finally:
        torch.distributed.destroy_process_group()
