"""A model that was sped up computes what the plain one does."""

import copy
from types import SimpleNamespace

import pytest
import torch
from cxr.models import acceleration
from cxr.models import configs
from cxr.models.layers import add_drop_path
from cxr.models.scratch import new_classifier
from cxr.models.scratch import new_mae
from safetensors.torch import load_file

LABELS = ["No Finding", "Finding"]
TINY_VIT = (
    "hidden_size=48,num_attention_heads=4,num_hidden_layers=2,intermediate_size=96,"
    "decoder_hidden_size=32,decoder_num_hidden_layers=1,decoder_num_attention_heads=2"
)


def make_model(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "resnet":
        return new_classifier(configs.make_config("resnet-18", overrides=None, image_size=None), LABELS)
    overrides = TINY_VIT + (",qkv_bias=false" if kind == "vit without bias" else "")
    config = configs.make_config("vit-mae-tiny", overrides=overrides, image_size=64)
    return new_mae(config) if kind == "vit-mae" else new_classifier(config, LABELS)


def outputs_and_gradients(model: torch.nn.Module) -> torch.Tensor:
    """The logits and the gradients of all parameters, one after the other."""
    generator = torch.Generator().manual_seed(1)
    inputs = {"pixel_values": torch.randn(3, 3, 64, 64, generator=generator).to(model.dtype)}
    if model.config.model_type == "vit_mae":
        inputs["noise"] = torch.rand(3, 16, generator=generator)
    outputs = model(**inputs)
    logits = outputs.logits
    if model.config.model_type == "vit_mae":  # the logits of visible patches have no meaning
        logits = logits[outputs.mask.bool()]
    logits.float().square().mean().backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return torch.cat([logits.detach().flatten(), *gradients])


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("kind", ["vit-mae", "vit", "vit without bias", "resnet"])
def test_a_sped_up_model_has_the_outputs_and_gradients_of_the_plain_one(kind):
    plain = make_model(kind).double()
    fast = copy.deepcopy(plain)
    acceleration.speed_up(fast, torch_compile=False)
    assert relative_difference(outputs_and_gradients(fast), outputs_and_gradients(plain)) < 1e-6


def loss_and_gradients(model: torch.nn.Module) -> torch.Tensor:
    """The masked autoencoder's own loss and the gradients of all parameters, one after the other."""
    generator = torch.Generator().manual_seed(1)
    pixel_values = torch.randn(3, 3, 64, 64, generator=generator).to(model.dtype)
    model.zero_grad()
    loss = model(pixel_values=pixel_values, noise=torch.rand(3, 16, generator=generator)).loss
    loss.backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return torch.cat([loss.detach().view(1), *gradients])


@pytest.mark.parametrize("norm_pix_loss", [False, True])
@pytest.mark.parametrize("mask_ratio", [0.25, 0.75, 0.9])
def test_decoding_hidden_patches_only_leaves_the_loss_and_all_gradients_as_they_are(
    mask_ratio, norm_pix_loss
):
    plain = make_model("vit-mae").double()
    plain.config.mask_ratio, plain.config.norm_pix_loss = mask_ratio, norm_pix_loss
    fast = copy.deepcopy(plain)
    acceleration.speed_up(fast, torch_compile=False)
    assert relative_difference(loss_and_gradients(fast), loss_and_gradients(plain)) < 1e-12
    assert all(
        (one.grad is None) == (other.grad is None)
        for one, other in zip(fast.parameters(), plain.parameters(), strict=True)
    )


def test_hidden_patches_have_the_logits_of_the_plain_model_and_in_an_evaluation_all_have():
    plain = make_model("vit-mae").double()
    fast = copy.deepcopy(plain)
    acceleration.speed_up(fast, torch_compile=False)
    inputs = {"pixel_values": torch.randn(3, 3, 64, 64).double(), "noise": torch.rand(3, 16)}
    expected, found = plain(**inputs), fast(**inputs)
    hidden = expected.mask.bool()
    assert torch.allclose(found.logits[hidden], expected.logits[hidden], atol=1e-12)
    assert not found.logits[~hidden].any()
    with torch.no_grad():
        assert torch.allclose(fast(**inputs).logits, expected.logits, atol=1e-12)


@pytest.mark.parametrize("kind", ["vit-mae", "vit"])
def test_in_bf16_it_is_as_close_to_float32_as_the_plain_one(kind):
    exact = outputs_and_gradients(make_model(kind))
    plain, fast = make_model(kind), make_model(kind)
    acceleration.speed_up(fast, torch_compile=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        of_plain, of_fast = outputs_and_gradients(plain), outputs_and_gradients(fast)
    assert relative_difference(of_fast, exact) < 1.5 * relative_difference(of_plain, exact)


@pytest.mark.parametrize("kind", ["vit-mae", "resnet"])
def test_it_is_saved_as_the_plain_one(kind, tmp_path):
    plain = make_model(kind)
    fast = copy.deepcopy(plain)
    acceleration.speed_up(fast, torch_compile=True)
    for name, model in (("plain", plain), ("fast", fast)):
        model.save_pretrained(tmp_path / name)
    assert (tmp_path / "plain/config.json").read_text() == (tmp_path / "fast/config.json").read_text()
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "fast"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_resnet_weights_are_channels_last():
    model = make_model("resnet")
    acceleration.speed_up(model, torch_compile=False)
    kernels = [parameter for parameter in model.parameters() if parameter.ndim == 4]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


@pytest.mark.parametrize("kind", ["vit", pytest.param("resnet", marks=pytest.mark.slow)])
def test_drop_path_is_compiled_in_one_piece_with_the_model(kind):
    model = make_model(kind).train()
    add_drop_path(model, 0.5)
    acceleration.speed_up(model, torch_compile=False)
    explained = torch._dynamo.explain(model)(pixel_values=torch.zeros(2, 3, 64, 64))
    assert explained.graph_count == 1 and not explained.break_reasons


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit-mae", "resnet"])
def test_a_compiled_model_has_the_outputs_and_gradients_of_the_plain_one(kind):
    plain, fast = make_model(kind).double(), make_model(kind).double()
    torch._dynamo.reset()
    acceleration.speed_up(fast, torch_compile=True)
    assert relative_difference(outputs_and_gradients(fast), outputs_and_gradients(plain)) < 1e-6
    assert not torch._dynamo.utils.counters["graph_break"]
    with torch.compiler.set_stance("force_eager"), torch.no_grad():  # as at evaluation
        assert torch.isfinite(fast.eval()(pixel_values=torch.zeros(2, 3, 64, 64).double()).logits).all()


@pytest.mark.parametrize(("capability", "is_first"), [((8, 0), False), ((9, 0), True), ((10, 0), False)])
def test_cudnns_attention_is_preferred_where_it_was_measured_only(capability, is_first, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    query = SimpleNamespace(shape=(1, 1, 197, 64), is_cuda=True, device="cuda")
    kernels = acceleration.preferred_kernels(query)
    assert (kernels[0] == acceleration.SDPBackend.CUDNN_ATTENTION) is is_first
