"""Layer-wise learning rates, drop path, schedules and label smoothing, against facebookresearch/mae."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from cxr.models import heads
from cxr.models.configs import make_config
from cxr.models.layers import add_drop_path
from cxr.models.layers import layer_ids
from cxr.models.scratch import new_classifier
from cxr.models.tensor_names import vit_names
from cxr.training import optimization
from cxr.training.optimization import Warmup
from torch import nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "expected.json"
needs_reference = pytest.mark.skipif(
    not REFERENCE.is_file(), reason="no reference values beside the repository"
)
LABELS = ["No Finding", "Finding"]
SMALL = "hidden_size=24,intermediate_size=48,num_attention_heads=2,decoder_hidden_size=24"


def vit(depth=12):
    overrides = f"{SMALL},num_hidden_layers={depth}"
    return new_classifier(make_config("vit-mae-tiny", overrides=overrides, image_size=32), LABELS)


def resnet():
    return new_classifier(make_config("resnet-18", overrides="embedding_size=8", image_size=None), LABELS)


def scales(model, decay):
    """The learning-rate scale and the weight decay of each parameter."""
    optimizer = optimization.make_adamw(
        model, learning_rate=1.0, weight_decay=0.05, betas=(0.9, 0.999), layer_decay=decay
    )
    of = {
        id(parameter): (group["learning_rate_scale"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    return {name: of[id(parameter)] for name, parameter in model.named_parameters()}


@needs_reference
@pytest.mark.parametrize("decay", [0.55, 0.65, 0.75])
def test_each_parameter_has_the_scale_and_weight_decay_of_the_published_code(decay):
    expected = json.loads(REFERENCE.read_text(encoding="utf-8"))[f"layer_decay_{decay}"]
    found = scales(vit(), decay)
    pairs = {theirs: vit_names(theirs.replace("fc_norm", "norm")) for theirs in expected}  # its mean pooling
    assert {ours for names in pairs.values() for ours in names} == found.keys()
    for theirs, names in pairs.items():
        for ours in names:
            assert found[ours] == pytest.approx(expected[theirs], rel=1e-9), ours


def test_a_resnets_residual_blocks_are_its_layers():
    ids = layer_ids(resnet())
    assert {ids[name] for name in ids if ".embedder." in name} == {0}
    assert sorted(set(ids.values())) == list(range(10))  # ResNet-18: stem, 8 blocks, head
    assert {ids[name] for name in ids if "stages.0.layers.1." in name} == {2}
    assert {ids[name] for name in ids if name.startswith("classifier.")} == {9}


def test_without_layer_decay_the_optimizer_has_two_groups_in_the_order_of_older_checkpoints():
    model = vit(depth=2)
    optimizer = optimization.make_adamw(model, learning_rate=1.0, weight_decay=0.05, betas=(0.9, 0.999))
    decayed, exempt = optimizer.param_groups
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    assert {parameter.ndim for parameter in decayed["params"]} == {2, 4}
    assert not {2, 4} & {parameter.ndim for parameter in exempt["params"]}


def test_the_learning_rate_of_a_step_is_scaled_by_layer():
    model = vit(depth=2)
    optimizer = optimization.make_adamw(
        model, learning_rate=1.0, weight_decay=0.05, betas=(0.9, 0.999), layer_decay=0.5
    )
    optimization.set_learning_rate(optimizer, 0.8)
    assert {group["lr"] for group in optimizer.param_groups} == {0.8, 0.4, 0.2, 0.1}


def test_the_schedule_is_that_of_the_published_code():
    of_epoch = {0: 0.0, 0.5: 1e-4, 2.5: 5e-4, 5: 1e-3}  # its util/lr_sched.py
    of_epoch |= {30: 0.0008388021450270579, 52.5: 0.0005005, 99.99: 1.000027312284496e-06}
    schedule = optimization.make_schedule(
        400,
        images_per_step=4,
        num_epochs=100,
        max_steps=None,
        warmup=Warmup(ratio=0.0, epochs=5),
        peak_learning_rate=1e-3,
        min_learning_rate=1e-6,
        kind="cosine",
    )
    for epoch, rate in of_epoch.items():
        assert schedule.learning_rate(round(epoch * 100)) == pytest.approx(rate, rel=1e-9), epoch


def test_drop_path_rates_rise_evenly_from_0_as_those_of_the_published_code():
    model = vit()
    add_drop_path(model, 0.1)
    rates = [module.p for module in model.modules() if isinstance(module, StochasticDepth)]
    assert rates == pytest.approx([0.1 * block / 11 for block in range(12)], abs=1e-7)


@pytest.mark.parametrize("make", [vit, resnet])
def test_drop_path_changes_training_and_neither_evaluation_nor_the_saved_model(make, tmp_path):
    model, pixels = make(), torch.rand(4, 3, 32, 32)
    names = set(model.state_dict())
    model.eval()
    before = model(pixel_values=pixels).logits
    add_drop_path(model, 0.9)
    assert torch.equal(model.eval()(pixel_values=pixels).logits, before)
    assert set(model.state_dict()) == names
    model.train()
    torch.manual_seed(0)
    first, second = (model(pixel_values=pixels).logits for _ in range(2))
    assert not torch.allclose(first, second)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    if make is vit:  # in training, a ResNet's batch normalisation has new statistics
        torch.testing.assert_close(loaded(pixel_values=pixels).logits, before)


def test_smoothing_is_torchs_for_one_label_and_moves_both_targets_for_several():
    logits, labels = torch.randn(5, 2), torch.tensor([0, 1, 1, 0, 1])
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(heads.classification_loss(logits, labels, smoothing=0.1), expected)
    several = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    expected = F.binary_cross_entropy_with_logits(logits[:2], several * 0.9 + 0.05)
    torch.testing.assert_close(heads.classification_loss(logits[:2], several, smoothing=0.1), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_label_has_one_loss_as_a_whole_number_and_as_a_share_also_with_weights(smoothing):
    logits, labels = torch.randn(7, 2), torch.tensor([0, 1, 1, 0, 1, 0, 0])
    for weights in (None, torch.tensor([0.6, 1.9])):
        loss = partial(heads.classification_loss, logits, weights=weights, smoothing=smoothing)
        torch.testing.assert_close(loss(labels), loss(labels.float()))
    by_hand = F.cross_entropy(logits, labels, reduction="none") * weights[labels]
    assert smoothing or torch.equal(loss(labels), by_hand.mean())


def test_a_head_without_blocks_counts_as_one_layer():
    assert layer_ids(nn.Linear(2, 2)) == {"weight": 1, "bias": 1}
