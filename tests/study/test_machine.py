"""The machine that cells run on is measured in a subprocess, because the study does not import torch."""

import pytest
from cxr.errors import UserError
from cxr.study import machine
from cxr.study.machine import measure_device
from cxr.study.machine import plan_launch
from cxr.training.device_speed import find_device
from cxr.training.device_speed import sustained_tflops

CPU = machine.REPOSITORY / "accelerate_configs" / "cpu.yaml"


def test_device_of_a_cpu_configuration_is_the_cpu_with_a_speed_for_each_family():
    device = measure_device(plan_launch(CPU, parallel=1))
    assert device.kind == "cpu" and device.tflops.keys() == {"vit", "resnet"}
    assert all(1e-4 < tflops < 100 for tflops in device.tflops.values())


def test_torch_that_fails_is_said_in_one_line_before_a_cell_starts(tmp_path, monkeypatch):
    (tmp_path / "scripts").mkdir()  # no cxr in it
    monkeypatch.setattr(machine, "REPOSITORY", tmp_path)
    launch = plan_launch(CPU, parallel=2)
    with pytest.raises(UserError, match=r"torch failed on this machine: .*No module named 'cxr'.*; expected"):
        measure_device(launch)


def test_processes_that_the_machines_do_not_share_equally_are_refused(tmp_path):
    text = CPU.with_name("multi_node_fp16.yaml").read_text(encoding="utf-8")
    (tmp_path / "odd.yaml").write_text(text.replace("num_processes: 8", "num_processes: 7"), encoding="utf-8")
    with pytest.raises(UserError, match="found num_machines 2 and num_processes 7, expected a multiple"):
        plan_launch(tmp_path / "odd.yaml", parallel=1)


def test_gpu_is_left_out_where_the_configuration_says_so():
    assert find_device(on_cpu=True) == "cpu"


def test_speed_is_measured_in_the_precision_of_the_cells():
    assert min(sustained_tflops("cpu", "bf16").values()) > 0
