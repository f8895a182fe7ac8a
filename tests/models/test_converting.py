"""Published checkpoints compute in transformers what their own code computes with them."""

import json
from pathlib import Path

import numpy as np
import published_files as files
import pytest
import torch
import torchvision
from cxr.errors import UserError
from cxr.models.converting import _encoder_fields
from cxr.models.converting import convert
from cxr.models.published import Checkpoint
from cxr.models.published import find_statistics
from cxr.models.published import read_checkpoint
from cxr.models.tensor_names import vit_names
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import ResNetModel
from transformers import ViTForImageClassification
from transformers import ViTMAEForPreTraining

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason=f"{REFERENCE} with the figures of facebookresearch/mae is not there"
)
REFERENCE_HEADS = {"num_heads": 3, "num_decoder_heads": 4}  # of the model in REFERENCE


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, atol=1e-5, rtol=1e-5)


# What facebookresearch/mae computes -------------------------------------------------------------------------


def reference_model(name: str):
    return convert(read_checkpoint(REFERENCE / f"mae_{name}.pth"), **REFERENCE_HEADS).model


@pytest.fixture(scope="module")
def expected():
    return json.loads((REFERENCE / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def inputs():
    arrays = np.load(REFERENCE / "inputs.npz")
    return {name: torch.from_numpy(arrays[name]).float() for name in ("pixel_values", "noise")}


@needs_reference
@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_loss_and_every_gradient_norm_are_those_of_facebookresearch_mae(norm_pix_loss, expected, inputs):
    model, figures = reference_model("with_decoder"), expected[f"mae_norm_pix_{str(norm_pix_loss).lower()}"]
    model.config.norm_pix_loss, model.config.mask_ratio = norm_pix_loss, 0.75
    outputs = model(**inputs)
    outputs.loss.backward()
    assert outputs.loss.item() == pytest.approx(figures["loss"], abs=1e-5)
    assert outputs.logits.mean().item() == pytest.approx(figures["pred_mean"], abs=1e-5)
    assert outputs.mask.sum() == figures["mask_sum"]
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    names = {source: vit_names(source) for source in figures["grad_norms"]}
    for source, norm in figures["grad_norms"].items():
        found = torch.cat([gradients[name].flatten() for name in names[source]]).norm().item()
        assert found == pytest.approx(norm, abs=1e-5), source
    trained = {name for name, gradient in gradients.items() if gradient is not None}
    assert {name for targets in names.values() for name in targets} == trained


@needs_reference
def test_three_forms_of_a_checkpoint_become_the_same_weights():
    whole, encoder = reference_model("with_decoder").state_dict(), reference_model("encoder_only")
    of_training = reference_model("training_checkpoint")
    assert all(torch.equal(values, whole[name]) for name, values in of_training.state_dict().items())
    assert of_training.config.norm_pix_loss  # as its argparse.Namespace says
    assert all(torch.equal(values, whole[f"vit.{name}"]) for name, values in encoder.vit.state_dict().items())


@needs_reference
@pytest.mark.parametrize("pooling", ["class_token", "mean_pooling"])
def test_logits_of_a_classifier_are_those_of_facebookresearch_mae(pooling, expected, inputs, tmp_path):
    tensors = read_checkpoint(REFERENCE / "mae_encoder_only.pth").tensors
    tensors["head.weight"] = torch.linspace(-1, 1, 96).view(2, 48)
    tensors["head.bias"] = torch.tensor([0.1, -0.2])
    if pooling == "mean_pooling":
        del tensors["norm.weight"], tensors["norm.bias"]
        tensors["fc_norm.weight"] = torch.linspace(0.5, 1.5, 48)
        tensors["fc_norm.bias"] = torch.linspace(-0.1, 0.1, 48)
    checkpoint = read_checkpoint(files.save_checkpoint(tmp_path / "tuned.pth", tensors))
    model = convert(checkpoint, num_heads=3).model.eval()
    with torch.no_grad():
        logits = model(pixel_values=inputs["pixel_values"]).logits
    assert close(logits, torch.tensor(expected[f"classifier_{pooling}"]["logits"]))


# The same for checkpoints that are made here ----------------------------------------------------------------


def converted(tmp_path, tensors, **flags):
    path = files.save_checkpoint(tmp_path / "published.pth", tensors, **flags)
    return convert(read_checkpoint(path), **files.NUM_HEADS)


@torch.no_grad()
def test_masked_autoencoder_predicts_what_its_own_code_predicts(tmp_path):
    tensors = files.encoder_tensors() | files.decoder_tensors()
    conversion = converted(tmp_path, tensors, norm_pix_loss=True, mask_ratio=0.9)
    model, pixels, noise = conversion.model, files.images(), torch.rand(3, 16)
    assert isinstance(model, ViTMAEForPreTraining) and model.config.layer_norm_eps == 1e-6
    assert model.config.norm_pix_loss and model.config.mask_ratio == 0.9
    found = model(pixel_values=pixels, noise=noise).logits
    assert close(found, files.predict_patches(tensors, pixels, noise, num_kept=1))


@torch.no_grad()
@pytest.mark.parametrize("mean_pooling", [False, True])
def test_classifier_has_the_logits_of_its_own_code(mean_pooling, tmp_path):
    tensors = files.classifier_tensors(5, mean_pooling=mean_pooling)
    model = converted(tmp_path, tensors).model.eval()
    found = model(pixel_values=files.images()).logits
    assert found.shape == (3, 5) and close(found, files.logits_of(tensors, files.images()))


@torch.no_grad()
def test_encoder_is_kept_and_gets_a_new_decoder_that_is_the_same_each_time(tmp_path):
    tensors = files.encoder_tensors()
    first, second = (converted(tmp_path, tensors) for _ in range(2))
    assert "new one with random weights" in first.notes[0]
    hidden = first.model.vit(pixel_values=files.images(), noise=torch.arange(16.0).repeat(3, 1))
    kept = torch.arange(4).repeat(3, 1)
    expected = F.layer_norm(
        files.encode(tensors, files.images(), kept),
        (files.WIDTH,),
        tensors["norm.weight"],
        tensors["norm.bias"],
        1e-6,
    )
    assert close(hidden.last_hidden_state, expected)
    others = second.model.state_dict()
    assert all(torch.equal(values, others[name]) for name, values in first.model.state_dict().items())
    assert first.model.decoder.decoder_pred.weight.std() > 0


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("is_old", [False, True])
def test_resnet_has_the_logits_of_torchvision(name, is_old, tmp_path):
    """Files of early torch lack the counters of batch normalisation."""
    torch.manual_seed(0)
    original = torchvision.models.get_model(name, num_classes=7).eval()
    for module in original.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.weight, module.running_var):
                values.uniform_(0.5, 1.5)
            module.running_mean.normal_(std=0.1)
    tensors = original.state_dict()
    if is_old:
        tensors = {key: values for key, values in tensors.items() if "num_batches" not in key}
    save_file(tensors, tmp_path / "model.safetensors")
    model = convert(read_checkpoint(tmp_path / "model.safetensors")).model.eval()
    pixels = files.images(2, side=64)
    assert close(model(pixel_values=pixels).logits, original(pixels))


def test_resnet_without_a_head_keeps_its_body(tmp_path):
    original = torchvision.models.resnet18().state_dict()
    body = {f"module.{name}": values for name, values in original.items() if not name.startswith("fc.")}
    torch.save({"state_dict": body, "epoch": 3}, tmp_path / "body.pth.tar")
    conversion = convert(read_checkpoint(tmp_path / "body.pth.tar"))
    assert isinstance(conversion.model, ResNetModel) and "no classifier" in conversion.notes[0]
    found = conversion.model.state_dict()["encoder.stages.3.layers.1.layer.1.convolution.weight"]
    assert torch.equal(found, original["layer4.1.conv2.weight"])


def test_half_precision_becomes_single(tmp_path):
    tensors = {name: values.half() for name, values in files.classifier_tensors().items()}
    model = converted(tmp_path, tensors).model
    assert isinstance(model, ViTForImageClassification) and model.dtype == torch.float32
    assert torch.equal(model.classifier.weight, tensors["head.weight"].float())


# Sizes, statistics ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "depth", "num_heads", "patch_size"),
    [(192, 12, 3, 16), (384, 12, 6, 16), (768, 12, 12, 16), (1024, 24, 16, 16), (1280, 32, 16, 14)],
)
def test_usual_vits_have_their_usual_heads(width, depth, num_heads, patch_size):
    with torch.device("meta"):
        tensors = {f"blocks.{number}.norm1.weight": torch.ones(width) for number in range(depth)}
        tensors["blocks.0.mlp.fc1.weight"] = torch.ones(4 * width, width)
        tensors["patch_embed.proj.weight"] = torch.ones(width, 3, patch_size, patch_size)
        tensors["pos_embed"] = torch.ones(1, 1 + (224 // patch_size) ** 2, width)
    checkpoint = Checkpoint(path=Path("x.pth"), tensors=tensors, settings={}, of_timm={}, unused={})
    fields, notes = _encoder_fields(checkpoint, None)
    assert fields["num_attention_heads"] == num_heads and fields["image_size"] == 224
    assert notes[0].startswith(f"{num_heads} attention heads: usual")


def test_heads_of_an_unusual_size_are_asked_for(tmp_path):
    path = files.save_checkpoint(tmp_path / "x.pth", files.encoder_tensors() | files.decoder_tensors())
    with pytest.raises(UserError, match=r"width 24 and depth 2, whose .* add --num_attention_heads N"):
        convert(read_checkpoint(path))
    with pytest.raises(UserError, match=r"decoder of width 16, whose .* --decoder_num_attention_heads N"):
        convert(read_checkpoint(path), num_heads=3)


def test_a_published_name_tells_the_heads_of_a_narrow_decoder(tmp_path):
    tensors = files.encoder_tensors() | files.decoder_tensors()
    path = files.save_checkpoint(tmp_path / "x.pth", tensors, model="mae_vit_small_patch16_dec128d2b")
    config = convert(read_checkpoint(path), num_heads=3).model.config
    assert config.decoder_num_attention_heads == 16


def statistics(tmp_path, **flags):
    path = files.save_checkpoint(tmp_path / "x.pth", files.encoder_tensors(), **flags)
    mean, std, source = find_statistics(read_checkpoint(path))
    return mean[0], std[0], source


def test_statistics_are_those_of_the_training(tmp_path):
    assert statistics(tmp_path) == (0.485, 0.229, "ImageNet's, the default")
    assert statistics(tmp_path, norm_pix_loss=True)[:2] == (0.485, 0.229)
    assert statistics(tmp_path, datasets_names=["chexpert"])[:2] == (0.5056, 0.252)
    assert statistics(tmp_path, dataset="chestxray", norm_stats=None)[:2] == (0.5056, 0.252)
    assert statistics(tmp_path, dataset="chestxray", norm_stats="imagenet")[:2] == (0.485, 0.229)
    of_timm = {"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(of_timm), encoding="utf-8")
    assert statistics(tmp_path) == (0.5, 0.25, "those in timm's config.json beside the file")


# What does not fit ------------------------------------------------------------------------------------------


def changed(name: str, values: torch.Tensor | None):
    tensors = files.classifier_tensors() | {name: values}
    return {key: tensor for key, tensor in tensors.items() if tensor is not None}


NAN = torch.full((files.WIDTH,), float("nan"))
REFUSED = {
    "an unknown tensor": (
        changed("blocks.0.ls1.gamma", torch.ones(24)),
        r"blocks\.0\.ls1\.gamma: found a te",
    ),
    "a block too many": (
        changed("blocks.7.norm1.bias", torch.ones(24)),
        r"blocks\.7\.norm1\.bias: found a t",
    ),
    "a missing tensor": (
        changed("blocks.1.attn.qkv.weight", None),
        r"no tensors for 3 of .* first vit\.layers\.1\.att",
    ),
    "a missing last norm": (
        changed("norm.weight", None),
        r"no tensors for 1 of .* first vit\.layernorm\.weig",
    ),
    "a wrong shape": (
        changed("norm.bias", torch.ones(23)),
        r"norm\.bias: found shape \(23,\), expected \(24,",
    ),
    "a short qkv": (
        changed("blocks.0.attn.qkv.bias", torch.ones(71)),
        r"found shape \(71,\), expected \(72,",
    ),
    "NaN": (
        changed("blocks.1.norm2.weight", NAN),
        r"blocks\.1\.norm2\.weight: found NaN or infinite weights",
    ),
    "one gray channel": (
        changed("patch_embed.proj.weight", torch.ones(24, 1, 8, 8)),
        r"found shape \(24, 1,",
    ),
    "a flat patch": (changed("patch_embed.proj.weight", torch.ones(24, 192)), r"found shape .* 4 dimensions"),
    "no class token": (
        changed("pos_embed", torch.ones(1, 16, 24)),
        r"embeddings for 16 tokens, expected a cl",
    ),
    "no positions": (changed("pos_embed", None), r"pos_embed: found no such tensor"),
    "another network": (
        {"features.conv0.weight": torch.ones(3)},
        r"such as features\.conv0\.weight, expected",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case, tmp_path):
    tensors, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        converted(tmp_path, tensors)


def test_pooling_that_only_timms_config_tells_is_refused(tmp_path):
    content = {"global_pool": "avg", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=r"found global_pool 'avg' in timm's config\.json"):
        converted(tmp_path, files.classifier_tensors())


def test_resnets_of_another_kind_are_refused(tmp_path):
    for name, message in (
        ("wide_resnet50_2", r"found shape \(128,"),
        ("resnext50_32x4d", r"found shape \(128"),
    ):
        torch.save(torchvision.models.get_model(name, num_classes=2).state_dict(), tmp_path / "x.pth")
        with pytest.raises(UserError, match=message):
            convert(read_checkpoint(tmp_path / "x.pth"))
