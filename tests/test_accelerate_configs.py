"""Every configuration file loads with Accelerate's own loader and means what its name says."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

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
    assert {path.name for path in CONFIGS.iterdir()} == set(EXPECTED)


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


@pytest.mark.parametrize("name", EXPECTED)
def test_configuration_says_what_it_is_for(name):
    assert (CONFIGS / name).read_text(encoding="utf-8").startswith("# ")
