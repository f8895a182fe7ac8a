"""DINOv2 encoders, such as RAD-DINO: started from, described and counted as the other ViTs are."""

import pytest
import torch
from cxr.models import configs
from cxr.models import families
from cxr.models.architectures import FIELDS
from cxr.models.architectures import describe_architecture
from cxr.models.architectures import find_architecture
from cxr.models.layers import add_drop_path
from cxr.models.layers import layer_ids
from cxr.models.masking import hide_patches
from cxr.models.parameters import count_parameters
from cxr.models.pretrained import load_config
from cxr.models.pretrained import load_pretrained
from transformers import AutoModelForImageClassification
from transformers import Dinov2Config
from transformers import Dinov2Model

LABELS = ["No Finding", "Finding"]
LOCAL = {"hub_dir": None, "revision": "main"}
SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 28}


@pytest.fixture
def encoder(tmp_path):
    """A folder as facebook/dinov2-* and microsoft/rad-dino are: an encoder with a mask token, no head."""
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**SMALL)).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def load(folder):
    config = load_config(str(folder), expected=tuple(families.FAMILIES), **LOCAL)
    return load_pretrained(
        families.family_of(config).classifier,
        str(folder),
        config=configs.classifier_config(config, LABELS, multi_label=True),
        new_head=families.new_parameters(config),
        **LOCAL,
    )


def test_a_classifier_starts_from_the_encoder_and_plain_transformers_loads_it(encoder, tmp_path):
    model, pixel_values = load(encoder).eval(), torch.rand(2, 3, 28, 28)
    expected = Dinov2Model.from_pretrained(encoder).eval()(pixel_values).last_hidden_state
    torch.testing.assert_close(model.dinov2(pixel_values).last_hidden_state, expected)
    assert model.dinov2.embeddings.mask_token is None  # it would have no gradient
    model.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(loaded(pixel_values).logits, model(pixel_values).logits)
    assert loaded.config.problem_type == "multi_label_classification"


def test_its_config_tells_its_size_in_words_and_numbers(encoder):
    fields = find_architecture(str(encoder))
    assert describe_architecture(fields).startswith(
        "DINOv2 of depth 3 and width 32, 4 heads, patches of 14 by"
    )
    assert fields.family == "vit"
    assert count_parameters(fields, num_labels=2) == sum(one.numel() for one in load(encoder).parameters())


@pytest.mark.parametrize("hidden_size", [32, 40])
def test_parameters_of_the_gated_form_are_counted(hidden_size):
    config = Dinov2Config(**SMALL | {"hidden_size": hidden_size}, use_swiglu_ffn=True)
    config = configs.classifier_config(config, LABELS)
    fields = FIELDS["dinov2"].model_validate(config.to_dict())
    model_class = families.family_of(config).classifier
    assert count_parameters(fields, num_labels=2) == configs.num_parameters(model_class, config)


def test_its_blocks_are_its_layers(encoder):
    ids = layer_ids(load(encoder))
    assert ids["dinov2.embeddings.position_embeddings"] == 0
    assert ids["dinov2.encoder.layer.2.mlp.fc1.weight"] == 3
    assert ids["dinov2.layernorm.weight"] == ids["classifier.weight"] == 4


def test_drop_path_and_hidden_patches_change_training_and_not_evaluation(encoder):
    model, pixel_values = load(encoder).eval(), torch.rand(4, 3, 28, 28)
    whole = model(pixel_values).logits
    add_drop_path(model, 0.9)
    hook = hide_patches(model, 0.5)
    torch.testing.assert_close(model.eval()(pixel_values).logits, whole)
    assert not torch.allclose(model.train()(pixel_values).logits, whole)
    hook.noise = torch.rand(4, families.num_patches(model.config, 28))
    assert not torch.allclose(model.eval()(pixel_values).logits, whole)
