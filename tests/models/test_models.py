"""Models: sizes as published, position embeddings, an encoder carried over bit by bit, refusals."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
import torchvision
from cxr.errors import UserError
from cxr.models import configs
from cxr.models.architectures import CONFIGS
from cxr.models.architectures import describe_architecture
from cxr.models.pretrained import load_config
from cxr.models.pretrained import load_image_processor
from cxr.models.pretrained import load_pretrained
from cxr.models.scratch import new_classifier
from cxr.models.scratch import new_mae
from cxr.models.scratch import sin_cos_position_embeddings
from PIL import Image
from safetensors.torch import load_file
from safetensors.torch import save_file
from transformers import AutoImageProcessor
from transformers import ViTForImageClassification
from transformers import ViTImageProcessor
from transformers import ViTMAEForPreTraining

LABELS = ["No Finding", "Pleural Effusion"]
SMALL = (
    "hidden_size=32,num_attention_heads=2,num_hidden_layers=2,intermediate_size=64,patch_size=8,"
    "decoder_hidden_size=16,decoder_num_attention_heads=2,decoder_num_hidden_layers=1"
)
LOCAL = {"hub_dir": None, "revision": "main"}


def small_config(image_size: int = 32):
    return configs.make_config("vit-mae-tiny", overrides=SMALL, image_size=image_size)


@pytest.fixture(scope="module")
def mae_folder(tmp_path_factory):
    """A saved masked autoencoder, as a pretraining run leaves it but for training."""
    folder = tmp_path_factory.mktemp("mae")
    torch.manual_seed(0)
    new_mae(small_config()).save_pretrained(folder)
    load_image_processor(None, image_size=32, **LOCAL).save_pretrained(folder)
    return folder


def load_classifier(folder):
    config = load_config(str(folder), expected=("vit_mae", "vit"), **LOCAL)
    return load_pretrained(
        ViTForImageClassification,
        str(folder),
        config=configs.classifier_config(config, LABELS),
        new_head=("classifier.",),
        **LOCAL,
    )


# Sizes


@pytest.mark.parametrize(
    ("name", "published"),
    [("vit-mae-base", 85_798_656), ("vit-mae-large", 303_301_632), ("vit-mae-huge", 630_764_800)],
)
def test_encoders_have_the_published_number_of_parameters(name, published):
    with torch.device("meta"):
        model = new_mae(configs.make_config(name, overrides=None, image_size=None))
    assert sum(parameter.numel() for parameter in model.vit.parameters()) == published


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_resnets_have_as_many_parameters_as_torchvisions(depth):
    with torch.device("meta"):
        config = configs.make_config(f"resnet-{depth}", overrides=None, image_size=None)
        ours = new_classifier(config, LABELS).resnet
        known = getattr(torchvision.models, f"resnet{depth}")()
        known.fc = torch.nn.Identity()
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (ours, known)]
    assert counts[0] == counts[1]


# A new masked autoencoder


def test_new_mae_knows_where_every_patch_was_and_has_class_and_mask_tokens():
    model = new_mae(small_config())
    for embeddings in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
        assert len(embeddings[0].unique(dim=0)) == 1 + 16
        assert not embeddings.requires_grad
        assert not embeddings[0, 0].any()  # the class token has no place
    for token in (model.vit.embeddings.cls_token, model.decoder.mask_token):
        assert token.requires_grad and 0.01 < token.std().item() < 0.03


def test_new_mae_starts_with_xavier_weights_and_no_biases():
    config = configs.make_config("vit-mae-tiny", overrides="num_hidden_layers=1", image_size=64)
    modules = dict(new_mae(config).named_modules())
    for name in (name for name, module in modules.items() if isinstance(module, torch.nn.Linear)):
        module, fused = modules[name], 3 if name.endswith(("q_proj", "k_proj", "v_proj")) else 1
        bound = (6 / (module.in_features + fused * module.out_features)) ** 0.5
        assert 0.9 * bound < module.weight.abs().max().item() <= bound
        assert not module.bias.any()


def sin_cos_by_hand(grid_size: int, width: int) -> np.ndarray:
    """One number at a time: the column in the first half of the width, the row in the second."""
    table = np.zeros((1 + grid_size**2, width))
    quarter = width // 4
    for row in range(grid_size):
        for column in range(grid_size):
            for k in range(quarter):
                across, down = column / 10000 ** (k / quarter), row / 10000 ** (k / quarter)
                numbers = [np.sin(across), np.cos(across), np.sin(down), np.cos(down)]
                table[1 + row * grid_size + column, k::quarter] = numbers
    return table


def test_position_embeddings_have_the_published_layout():
    ours = sin_cos_position_embeddings(7, 24)
    assert ours.dtype == torch.float32 and ours.shape == (1, 50, 24)
    np.testing.assert_allclose(ours[0].numpy(), sin_cos_by_hand(7, 24), atol=1e-6)


def test_new_classifier_starts_where_its_masked_autoencoder_would():
    config = small_config()
    torch.manual_seed(5)
    classifier = new_classifier(config, LABELS)
    expected = sin_cos_position_embeddings(4, 32)
    assert torch.equal(classifier.vit.embeddings.position_embeddings, expected)
    assert classifier.vit.embeddings.cls_token.any()
    projection = classifier.vit.embeddings.patch_embeddings.projection
    assert projection.weight.abs().max() <= (6 / (32 + 3 * 8 * 8)) ** 0.5


# A classifier from a saved masked autoencoder


def test_classifier_has_the_saved_encoder_bit_by_bit(mae_folder):
    now = load_classifier(mae_folder).vit.state_dict()
    saved = ViTMAEForPreTraining.from_pretrained(mae_folder).vit.state_dict()
    assert now.keys() == saved.keys() and all(torch.equal(value, saved[key]) for key, value in now.items())
    assert len(now) == len([key for key in load_file(mae_folder / "model.safetensors") if key[:4] == "vit."])


def test_classifier_has_labels_for_plain_transformers_but_no_decoder_and_no_masking(mae_folder, tmp_path):
    classifier = load_classifier(mae_folder)
    assert not [key for key in classifier.state_dict() if "decoder" in key]
    classifier.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "vit"
    assert not [key for key in config if "decoder" in key or key in ("mask_ratio", "norm_pix_loss")]
    model, info = ViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.label2id == {"No Finding": 0, "Pleural Effusion": 1}


def test_features_of_the_classifier_are_those_of_the_unmasked_encoder(mae_folder):
    config = load_config(str(mae_folder), expected=("vit_mae",), **LOCAL)
    config.mask_ratio = 0.0
    autoencoder = ViTMAEForPreTraining.from_pretrained(mae_folder, config=config).eval()
    pixels, noise = torch.rand(2, 3, 32, 32), torch.arange(16.0).repeat(2, 1)  # noise in order: patches too
    with torch.no_grad():
        expected = autoencoder.vit(pixels, noise=noise).last_hidden_state
        features = load_classifier(mae_folder).eval().vit(pixels).last_hidden_state
    torch.testing.assert_close(features, expected, atol=1e-6, rtol=0)


def test_head_with_other_labels_is_made_anew_and_the_body_kept(tmp_path):
    three = new_classifier(small_config(), ["a", "b", "c"])
    three.save_pretrained(tmp_path)
    two = load_classifier(tmp_path)
    assert two.classifier.weight.shape == (2, 32)
    assert torch.equal(two.vit.layernorm.weight, three.vit.layernorm.weight)


# Refusals


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vit.layernorm.weight", None),
        ("vit.embeddings.position_embeddings", None),
        ("vit.layernorm.weight", torch.ones(31)),
    ],
    ids=["no weight", "no positions", "another shape"],
)
def test_checkpoint_whose_body_is_not_whole_is_refused(mae_folder, tmp_path, key, value):
    folder = shutil.copytree(mae_folder, tmp_path / "model")
    weights = {name: one for name, one in load_file(folder / "model.safetensors").items() if name != key}
    weights |= {} if value is None else {key: value}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    said = rf"1 parameters of .* missing or of another shape, first {key}; expected a complete"
    with pytest.raises(UserError, match=said):
        load_classifier(folder)


def test_truncated_weights_are_refused_in_one_line(mae_folder, tmp_path):
    folder = shutil.copytree(mae_folder, tmp_path / "model")
    os.truncate(folder / "model.safetensors", 1000)
    with pytest.raises(UserError, match=f"{folder}.* could not be loaded") as error:
        load_classifier(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["bert", "no-such-model"])
def test_other_kind_of_model_is_refused_with_the_expected_types(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"found model_type {kind}, expected vit_mae or vit or resnet"):
        load_config(str(tmp_path), expected=("vit_mae", "vit", "resnet"), **LOCAL)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"model_type": 5}'])
def test_folder_without_a_whole_config_is_refused_in_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=f"^model {tmp_path}: could not be loaded") as error:
        load_config(str(tmp_path), expected=("vit_mae",), **LOCAL)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["/no/such/folder", "../model", "no such name", "model", "a/b/c"])
def test_what_is_neither_a_folder_nor_a_name_is_not_looked_for_on_the_hub(name):
    with pytest.raises(UserError, match=f"^model {name}: found no such folder; expected one with a model"):
        load_config(name, expected=("vit_mae",), **LOCAL)


def test_name_that_cannot_be_reached_is_one_line_that_says_what_to_do():
    with pytest.raises(UserError, match=r"could not be loaded .*--hub_dir DIR") as error:
        load_config("facebook/vit-mae-base", expected=("vit_mae",), **LOCAL)
    text = str(error.value)
    assert text.startswith("model facebook/vit-mae-base, revision main: ") and "\n" not in text
    assert "--config_name" not in text and "--model_name_or_path" not in text  # of trainings alone


# Image processors


def test_model_from_scratch_gets_the_statistics_of_mimic_cxr():
    processor = load_image_processor(None, image_size=48, **LOCAL)
    assert (list(processor.image_mean), list(processor.image_std)) == ([0.4978] * 3, [0.2449] * 3)
    assert (processor.size["height"], processor.size["width"]) == (48, 48)


def test_pretrained_model_keeps_its_statistics_at_this_runs_size(tmp_path):
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    ViTImageProcessor(image_mean=mean, image_std=std).save_pretrained(tmp_path)
    small_config().save_pretrained(tmp_path)
    processor = load_image_processor(str(tmp_path), image_size=32, **LOCAL)
    assert (list(processor.image_mean), list(processor.image_std)) == (mean, std)
    assert (processor.size["height"], processor.size["width"]) == (32, 32)


def test_pretrained_model_without_a_processor_gets_one_and_a_warning(tmp_path, caplog):
    small_config().save_pretrained(tmp_path)
    processor = load_image_processor(str(tmp_path), image_size=32, **LOCAL)
    assert list(processor.image_mean) == [0.4978] * 3
    assert "has no preprocessor_config.json" in caplog.text


def test_stored_processor_makes_three_channels_of_a_gray_image(mae_folder):
    processor = AutoImageProcessor.from_pretrained(mae_folder)
    pixels = processor(Image.new("L", (40, 60), 127), return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 32, 32)
    torch.testing.assert_close(pixels, torch.full_like(pixels, (127 / 255 - 0.4978) / 0.2449))


def test_architecture_is_named_where_it_is_a_known_one_and_has_its_size():
    described = {name: describe_architecture(fields) for name, fields in CONFIGS.items()}
    assert described["vit-mae-base"].startswith(
        "ViT-Base of depth 12 and width 768, 12 heads, patches of 16 "
    )
    assert described["resnet-18"] == "ResNet-18 of 8 basic blocks, 64 to 512 channels"
    assert described["resnet-152"] == "ResNet-152 of 50 bottleneck blocks, 256 to 2048 channels"
    narrow = CONFIGS["resnet-18"].model_copy(update={"hidden_sizes": [8, 16, 32, 64]})
    assert describe_architecture(narrow) == "ResNet of 8 basic blocks, 8 to 64 channels"
    assert len(set(described.values())) == len(CONFIGS)
