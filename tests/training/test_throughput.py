"""Counted arithmetic and measured speed."""

import time

import psutil
import pytest
import run_classification
import run_mae_pretrain
import torch
from accelerate import Accelerator
from cxr.models import configs
from cxr.models.masking import PatchDropout
from cxr.models.scratch import new_classifier
from cxr.models.scratch import new_mae
from cxr.training import throughput

LABELS = ["No Finding", "Finding"]


@pytest.mark.slow
def test_a_vit_mae_base_takes_57_gflop_an_image_forward_and_backward():
    config = configs.make_config("vit-mae-base", overrides=None, image_size=None)
    assert config.mask_ratio == 0.75
    counted = throughput.count_training_flops(new_mae(config), run_mae_pretrain.synthetic_loss)
    visible, tokens, patch_pixels = 50, 197, 16 * 16 * 3

    def blocks(length: int, width: int, depth: int) -> int:
        return depth * (2 * length * 12 * width**2 + 4 * length**2 * width)

    forward = blocks(visible, 768, 12) + blocks(tokens, 512, 8)
    forward += 2 * (196 * patch_pixels * 768 + visible * 768 * 512 + tokens * 512 * patch_pixels)
    # The last block of the decoder has queries and an MLP, and the head predicts, for hidden tokens only.
    forward -= visible * (20 * 512**2 + 4 * tokens * 512 + 2 * 512 * patch_pixels)
    assert counted == pytest.approx(3 * forward, rel=0.01)  # the pixels themselves need no gradient
    assert counted == pytest.approx(57.5e9, rel=0.01)


def test_a_frozen_body_costs_a_third_and_the_model_itself_is_left_alone():
    config = configs.make_config("vit-mae-tiny", overrides="num_hidden_layers=2", image_size=32)
    model = new_classifier(config, LABELS)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def loss(model, num_images):
        return run_classification.synthetic_loss(model, num_images, image_size=32)

    full = throughput.count_training_flops(model, loss)
    model.vit.requires_grad_(False)
    assert throughput.count_training_flops(model, loss) == pytest.approx(full / 3, rel=0.05)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_arithmetic_of_a_resnet_is_counted_where_its_last_feature_map_is_one_pixel():
    model = new_classifier(configs.make_config("resnet-18", overrides=None, image_size=None), LABELS).train()

    def loss(model, num_images):
        return run_classification.synthetic_loss(model, num_images, image_size=32)

    assert throughput.count_training_flops(model, loss) > 1e8
    assert model.training


def test_hidden_patches_cost_nothing():
    config = configs.make_config("vit-mae-tiny", overrides="num_hidden_layers=4", image_size=64)
    model = new_classifier(config, LABELS)

    def loss(model, num_images):
        return run_classification.synthetic_loss(model, num_images, image_size=64)

    full = throughput.count_training_flops(model, loss)
    dropout = PatchDropout(0.75)
    model.vit.embeddings.register_forward_hook(dropout)
    dropout.noise = torch.zeros(1, 16)
    assert 0.2 < throughput.count_training_flops(model, loss) / full < 0.45


def test_the_peak_is_known_by_the_gpus_name_and_halved_for_tf32(monkeypatch):
    accelerator = Accelerator(cpu=True)
    assert throughput.peak_flops(accelerator) is None
    monkeypatch.setattr(type(accelerator), "device", torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for name, expected in (
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA RTX A5000", 111.1e12),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Some GPU", None),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        monkeypatch.setattr(type(accelerator), "mixed_precision", "bf16")
        assert throughput.peak_flops(accelerator) == expected
        monkeypatch.setattr(type(accelerator), "mixed_precision", "no")
        assert throughput.peak_flops(accelerator) == (expected and expected / 2)


def test_a_parent_process_of_another_user_is_no_launcher(monkeypatch):
    def refuse(self):
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil.Process, "cmdline", refuse)
    assert 0 < throughput.seconds_of_process() <= time.time() - psutil.Process().create_time()


@pytest.mark.parametrize(
    ("peak", "shares"), [(None, [{}, {}]), (1e12, [{"share_of_peak": 0.2}, {"share_of_peak": 0.4}])]
)
def test_the_stopwatch_leaves_out_what_runs_between_read_and_start(peak, shares, monkeypatch):
    clock = iter([100.0, 102.0, 150.0, 150.25])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(throughput, "peak_flops", lambda accelerator: peak)
    monkeypatch.setattr(throughput, "count_training_flops", lambda model, loss: 10**10)
    watch = throughput.Stopwatch(Accelerator(cpu=True), torch.nn.Linear(1, 1), None, images_per_step=10)
    watch.start(0)
    assert (
        watch.read(4) == {"images_per_second": 20.0, "data_wait": 0.0, **shares[0]} and watch.seconds == 2.0
    )
    watch.start(4)
    assert watch.read(5) == {"images_per_second": 40.0, "data_wait": 0.0, **shares[1]}
    assert watch.seconds == 0.25


def test_the_time_to_get_a_batch_is_waiting_and_the_time_to_train_on_it_is_not(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: clock[0])
    watch = throughput.Stopwatch(Accelerator(cpu=True), torch.nn.Linear(1, 1), None, images_per_step=10)

    def load():
        for _ in range(4):
            clock[0] += 1.0
            yield {}

    batches = watch.watch(load())
    shares = []
    for step, training_seconds in ((0, 3.0), (2, 1.0)):
        watch.start(step)
        for _ in range(2):
            next(batches)
            clock[0] += training_seconds
        shares.append(watch.read(step + 2)["data_wait"])
    assert shares == [0.25, 0.5]
    assert watch.data_wait == pytest.approx(4 / 12)
    assert next(batches, None) is None
