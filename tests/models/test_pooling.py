"""Mean pooling: what He et al.'s fine-tuning computes, from the weights of any ViT."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cxr.errors import UserError
from cxr.models import configs
from cxr.models.architectures import FIELDS
from cxr.models.architectures import describe_architecture
from cxr.models.converting import convert
from cxr.models.families import num_patches
from cxr.models.layers import layer_ids
from cxr.models.masking import hide_patches
from cxr.models.parameters import count_parameters
from cxr.models.pooling import choose_pooling
from cxr.models.pooling import with_mean_pooling
from cxr.models.published import read_checkpoint
from cxr.models.scratch import new_classifier
from transformers import AutoModelForImageClassification
from transformers import TimmWrapperConfig
from transformers import ViTForImageClassification

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
LABELS = ["No Finding", "Finding"]
SMALL = "hidden_size=32,num_hidden_layers=3,num_attention_heads=4,intermediate_size=70,patch_size=8"


def small_vit(overrides: str = SMALL):
    torch.manual_seed(0)
    config = configs.make_config("vit-mae-tiny", overrides=overrides, image_size=32)
    model = new_classifier(config, LABELS, multi_label=True)
    for one in model.parameters():
        torch.nn.init.normal_(one, std=0.1)
    return model.eval()


def test_the_head_reads_the_normalised_mean_of_the_patches_of_the_same_encoder(tmp_path):
    vit = small_vit()
    pooled = with_mean_pooling(vit).eval()
    pixel_values = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        tokens = vit.vit.embeddings(pixel_values)
        for layer in vit.vit.layers:
            tokens = layer(tokens)
            tokens = tokens[0] if isinstance(tokens, tuple) else tokens
        mean = torch.nn.functional.layer_norm(tokens[:, 1:].mean(1), (32,), eps=1e-6)  # as a new fc_norm does
        expected = pooled.timm_model.head(mean)
        torch.testing.assert_close(pooled(pixel_values).logits, expected, rtol=1e-5, atol=1e-5)
    pooled.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(pixel_values).logits, pooled(pixel_values).logits)
    assert list(loaded.config.id2label.values()) == LABELS
    assert loaded.config.problem_type == "multi_label_classification"


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="needs what facebookresearch/mae computes")
def test_logits_are_those_of_facebookresearch_mae():
    expected = json.loads((REFERENCE / "expected.json").read_text(encoding="utf-8"))
    mae = convert(read_checkpoint(REFERENCE / "mae_encoder_only.pth"), num_heads=3).model
    vit = ViTForImageClassification(configs.classifier_config(mae.config, LABELS))
    vit.vit.load_state_dict(mae.vit.state_dict())
    model = with_mean_pooling(vit).eval()
    network = model.timm_model
    with torch.no_grad():
        network.head.weight.copy_(torch.linspace(-1, 1, 96).view(2, 48))
        network.head.bias.copy_(torch.tensor([0.1, -0.2]))
        network.fc_norm.weight.copy_(torch.linspace(0.5, 1.5, 48))
        network.fc_norm.bias.copy_(torch.linspace(-0.1, 0.1, 48))
        pixel_values = torch.from_numpy(np.load(REFERENCE / "inputs.npz")["pixel_values"])
        found = model(pixel_values=pixel_values).logits
    torch.testing.assert_close(
        found, torch.tensor(expected["classifier_mean_pooling"]["logits"]), rtol=1e-5, atol=1e-5
    )


def test_it_has_the_size_in_words_and_numbers_and_the_layers_of_the_vit():
    vit = small_vit()
    pooled = with_mean_pooling(vit)
    fields = FIELDS["timm_wrapper"].model_validate(pooled.config.to_dict())
    own = FIELDS["vit"].model_validate(vit.config.to_dict())
    assert describe_architecture(fields) == describe_architecture(own) + "; mean pooling"
    assert fields.family == "vit"
    num_parameters = sum(one.numel() for one in pooled.parameters())
    assert count_parameters(fields, num_labels=2) == num_parameters == count_parameters(own, num_labels=2)
    ids = layer_ids(pooled)
    assert ids["timm_model.pos_embed"] == 0 and ids["timm_model.blocks.2.mlp.fc2.bias"] == 3
    assert ids["timm_model.fc_norm.weight"] == ids["timm_model.head.weight"] == 4


def test_its_patches_can_be_hidden():
    pooled = with_mean_pooling(small_vit())
    assert num_patches(pooled.config, 32) == 16
    hook = hide_patches(pooled, 0.75)
    pixel_values = torch.rand(2, 3, 32, 32)
    whole = pooled(pixel_values).logits
    hook.noise = torch.rand(2, 16)
    assert not torch.allclose(pooled(pixel_values).logits, whole)


def test_an_activation_that_timm_lacks_is_refused():
    with pytest.raises(UserError, match="--pooling mean: found hidden_act='relu', expected 'gelu'"):
        with_mean_pooling(small_vit(f"{SMALL},hidden_act=relu"))


def test_the_flag_changes_a_vit_of_timm_and_warns_where_it_has_no_effect(caplog):
    vit = TimmWrapperConfig(architecture="test_vit", model_args={})
    choose_pooling(vit, "mean")
    assert vit.model_args == {"global_pool": "avg"}
    with pytest.raises(UserError, match="--pooling token: found test_vit of timm, whose pooling is 'avg'"):
        choose_pooling(vit, "token")
    assert not caplog.records
    cnn = TimmWrapperConfig(architecture="test_resnet", model_args={})
    choose_pooling(cnn, "mean")
    choose_pooling(configs.make_config("resnet-18", overrides=None, image_size=None), "mean")
    assert cnn.model_args == {}
    assert [one.message.partition(": ")[0] for one in caplog.records] == 2 * ["--pooling mean has no effect"]


def test_a_distilled_deit_keeps_its_two_tokens():
    deit = TimmWrapperConfig(architecture="deit_tiny_distilled_patch16_224", model_args={})
    with pytest.raises(UserError, match=r"--pooling mean: found deit_tiny_distilled.* use --pooling token"):
        choose_pooling(deit, "mean")
    choose_pooling(deit, "token")
    assert deit.model_args == {}
