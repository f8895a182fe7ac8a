"""The learning rate as a function of the step, and which parameters are decayed."""

import math
import random

import pytest
import torch
from cxr.errors import UserError
from cxr.models import configs
from cxr.models.scratch import new_classifier
from cxr.models.scratch import new_mae
from cxr.training.optimization import SCHEDULES
from cxr.training.optimization import Warmup
from cxr.training.optimization import make_adamw
from cxr.training.optimization import make_schedule
from cxr.training.optimization import set_learning_rate
from torch import nn

PEAK = 3e-4
LABELS = ["No Finding", "Finding"]


def schedule(kind: str = "cosine", **changes):
    options = {
        "images_per_step": 10,
        "num_epochs": 10,
        "max_steps": None,
        "warmup": Warmup(ratio=0.2),
        "peak_learning_rate": PEAK,
        "kind": kind,
        **changes,
    }
    return make_schedule(109, **options)


def learning_rates(planned) -> list[float]:
    return [planned.learning_rate(step) for step in range(planned.num_steps)]


def test_what_does_not_fill_a_step_is_left_out_of_the_epoch():
    planned = schedule()
    assert (planned.steps_per_epoch, planned.num_steps, planned.num_warmup_steps) == (10, 100, 20)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_warm_up_rises_by_equal_steps_and_reaches_the_peak_exactly(kind):
    rates = learning_rates(schedule(kind))
    assert rates[:20] == pytest.approx([PEAK * (step + 1) / 20 for step in range(20)])
    assert rates[0] > 0
    assert rates[19] == PEAK and rates[20] == PEAK
    assert max(rates) == PEAK


def test_a_learning_rate_that_would_rise_to_its_minimum_is_refused():
    for kind in ("linear", "cosine"):
        with pytest.raises(UserError, match=r"--min_learning_rate 0.001: found a peak of 0.0003, expected"):
            schedule(kind, min_learning_rate=1e-3)
        assert learning_rates(schedule(kind, min_learning_rate=PEAK))[20:] == pytest.approx([PEAK] * 80)
    assert max(learning_rates(schedule("constant", min_learning_rate=1e-3))) == PEAK


def test_linear_falls_by_equal_steps_to_one_step_above_zero():
    rates = learning_rates(schedule("linear"))
    assert rates[20:] == pytest.approx([PEAK * (80 - step) / 80 for step in range(80)])
    assert rates[-1] == pytest.approx(PEAK / 80)


def test_cosine_is_half_in_the_middle_and_ends_near_zero():
    rates = learning_rates(schedule("cosine"))
    assert rates[60] == pytest.approx(PEAK / 2)
    assert rates[-1] == pytest.approx(PEAK * 0.5 * (1 - math.cos(math.pi / 80)))
    assert rates[20:] == sorted(rates[20:], reverse=True)


def test_constant_stays_at_the_peak():
    assert set(learning_rates(schedule("constant", warmup=Warmup(ratio=0.0)))) == {PEAK}


def test_no_warm_up_starts_at_the_peak():
    assert schedule("cosine", warmup=Warmup(ratio=0.0)).learning_rate(0) == PEAK


def test_learning_rate_depends_on_the_step_and_not_on_earlier_calls():
    planned = schedule()
    expected = learning_rates(planned)
    steps = [*range(planned.num_steps)] * 2
    random.Random(0).shuffle(steps)
    assert [planned.learning_rate(step) for step in steps] == [expected[step] for step in steps]


def test_setting_the_learning_rate_sets_that_of_all_groups():
    model = nn.Linear(2, 2)
    optimizer = make_adamw(model, learning_rate=1.0, weight_decay=0.1, betas=(0.9, 0.95))
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_epochs_with_a_partial_last_one():
    planned = schedule(max_steps=23)
    assert planned.num_steps == 23
    done = (1, 9, 10, 11, 20, 21, 23)
    assert [planned.epoch(step) for step in done] == [1, 1, 1, 2, 2, 3, 3]
    assert [step for step in range(1, 24) if planned.ends_epoch(step)] == [10, 20, 23]


def test_warm_up_is_a_share_of_the_steps_that_are_made():
    assert schedule(max_steps=30).num_warmup_steps == 6


def test_one_step_is_a_run():
    planned = schedule(max_steps=1)
    assert planned.learning_rate(0) == PEAK and planned.ends_epoch(1)


def test_too_few_images_for_one_step_is_an_error_with_what_was_found_and_expected():
    with pytest.raises(
        ValueError, match=r"found 109 training images, expected at least the 128 .*; lower --per_dev"
    ):
        schedule(images_per_step=128)


def vit_mae():
    overrides = "hidden_size=16,num_attention_heads=2,num_hidden_layers=2,intermediate_size=32,patch_size=8,"
    overrides += "decoder_hidden_size=16,decoder_num_attention_heads=2"
    return configs.make_config("vit-mae-tiny", overrides=overrides, image_size=16)


MODELS = {
    "vit-mae": lambda: new_mae(vit_mae()),
    "vit": lambda: new_classifier(vit_mae(), LABELS),
    "resnet-18": lambda: new_classifier(
        configs.make_config("resnet-18", overrides=None, image_size=None), LABELS
    ),
    "resnet-50": lambda: new_classifier(
        configs.make_config("resnet-50", overrides=None, image_size=None), LABELS
    ),
}


NOT_DECAYED = (".bias", "_token", "position_embeddings")


def names_without_decay(model: nn.Module) -> set[str]:
    """By the module's type and the parameter's name, where the optimizer goes by shape."""
    norms = (nn.LayerNorm, nn.BatchNorm2d)
    names = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, norms)
        for name, _ in module.named_parameters(recurse=False)
    }
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return names | {name for name in trainable if name.endswith(NOT_DECAYED)}


@pytest.mark.parametrize("name", MODELS)
def test_biases_norms_tokens_and_positions_are_not_decayed_and_all_others_are(name):
    model = MODELS[name]()
    optimizer = make_adamw(model, learning_rate=1e-3, weight_decay=0.05, betas=(0.9, 0.95))
    decay_of = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert decay_of.keys() == {id(parameter) for parameter in trainable.values()}
    without = {name for name, parameter in trainable.items() if decay_of[id(parameter)] == 0.0}
    assert without == names_without_decay(model)
    assert {decay_of[id(trainable[name])] for name in trainable.keys() - without} == {0.05}
    assert not [name for name, p in trainable.items() if p.ndim == 1 and name not in without]


def test_frozen_parameters_are_not_optimised():
    model = MODELS["vit"]()
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)
    optimizer = make_adamw(model, learning_rate=1e-3, weight_decay=0.05, betas=(0.9, 0.95))
    optimised = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {id(p) for p in optimised} == {id(p) for p in model.classifier.parameters()}


def test_betas_and_learning_rate_reach_the_optimizer():
    optimizer = make_adamw(nn.Linear(2, 2), learning_rate=0.5, weight_decay=0.1, betas=(0.9, 0.95))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {(group["lr"], group["betas"]) for group in optimizer.param_groups} == {(0.5, (0.9, 0.95))}
