"""Pretrained ViTs at another image size: interpolated position embeddings, saved and loaded, refusals."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from cxr.errors import UserError
from cxr.models import configs
from cxr.models.features import load_encoder
from cxr.models.positions import at_image_size
from cxr.models.positions import interpolate_positions
from cxr.models.pretrained import check_image_size
from cxr.models.pretrained import load_config
from cxr.models.pretrained import load_image_processor
from cxr.models.pretrained import load_pretrained
from cxr.models.scratch import new_classifier
from cxr.models.scratch import new_mae
from cxr.models.scratch import sin_cos_position_embeddings
from transformers import Dinov2Config
from transformers import Dinov2ForImageClassification
from transformers import ViTForImageClassification
from transformers import ViTMAEForPreTraining

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "position_embeddings.npz"
LOCAL = {"hub_dir": None, "revision": "main"}
SMALL = (
    "hidden_size=32,num_attention_heads=2,num_hidden_layers=2,intermediate_size=64,patch_size=8,"
    "decoder_hidden_size=16,decoder_num_attention_heads=2,decoder_num_hidden_layers=1"
)


def small_config():
    return configs.make_config("vit-mae-tiny", overrides=SMALL, image_size=32)


@pytest.fixture(scope="module")
def mae_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mae")
    torch.manual_seed(0)
    model = new_mae(small_config())
    model.config.cache_image_size = 40
    model.save_pretrained(folder)
    load_image_processor(None, image_size=32, **LOCAL).save_pretrained(folder)
    return folder


def load(model_class, folder, image_size):
    config = load_config(str(folder), expected=("vit_mae", "vit"), **LOCAL)
    if model_class is ViTForImageClassification:
        config = configs.classifier_config(config, ["No Finding", "Finding"])
    torch.manual_seed(0)  # of the new head
    return load_pretrained(
        model_class, str(folder), config=config, new_head=("classifier.",), image_size=image_size, **LOCAL
    )


def encode(folder, image_size):
    options = {"pooling": None, "overrides": None, "device": torch.device("cpu"), **LOCAL}
    return load_encoder(str(folder), image_size=image_size, **options)


# The numbers


@pytest.mark.skipif(not REFERENCE.is_file(), reason="no reference values beside the repository")
def test_position_embeddings_are_interpolated_as_facebookresearch_mae_does():
    tables = {name: torch.from_numpy(table) for name, table in np.load(REFERENCE).items()}
    found = interpolate_positions(tables["grid4"], 6)
    torch.testing.assert_close(found, tables["grid6"], atol=1e-5, rtol=0)


def bicubic_by_hand(grid: np.ndarray, size: int) -> np.ndarray:
    """Keys' cubic convolution with a = -0.75, whose corners are not aligned, of a square grid."""

    def weight(x, a=-0.75):
        x = abs(x)
        if x < 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    weights = np.zeros((size, len(grid)))
    for row in range(size):
        place = (row + 0.5) * len(grid) / size - 0.5
        for near in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            weights[row, np.clip(near, 0, len(grid) - 1)] += weight(place - near)
    return weights @ grid @ weights.T


@pytest.mark.parametrize("size", [3, 6, 9])
def test_each_channel_is_interpolated_over_rows_and_columns_and_the_class_token_is_kept(size):
    table = torch.randn(1, 1 + 16, 5, generator=torch.Generator().manual_seed(0))
    found = interpolate_positions(table, size)
    assert found.shape == (1, 1 + size**2, 5) and torch.equal(found[:, 0], table[:, 0])
    for channel in range(5):
        expected = bicubic_by_hand(table[0, 1:, channel].view(4, 4).numpy(), size)
        np.testing.assert_allclose(found[0, 1:, channel].view(size, size).numpy(), expected, atol=1e-5)


# Models


def test_classifier_at_a_larger_size_has_all_other_weights_and_plain_transformers_computes_the_same(
    mae_folder, tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    own, larger = (load(ViTForImageClassification, mae_folder, size) for size in (None, 48))
    assert caplog.messages[-1] == "Position embeddings interpolated from 4 x 4 to 6 x 6 patches"
    before, after = own.state_dict(), larger.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"vit.embeddings.position_embeddings"}
    assert all(parameter.requires_grad for parameter in larger.parameters())
    larger.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["image_size"] == 48
    pixels = torch.rand(2, 3, 48, 48)
    plain = ViTForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(plain(pixels).logits, larger.eval()(pixels).logits)


def test_logits_at_another_size_are_those_of_transformers_own_interpolation(mae_folder):
    own, larger = (load(ViTForImageClassification, mae_folder, size).eval() for size in (None, 56))
    pixels = torch.rand(2, 3, 56, 56)
    expected = own(pixels, interpolate_pos_encoding=True).logits
    torch.testing.assert_close(larger(pixels).logits, expected, atol=1e-5, rtol=0)


def test_masked_autoencoder_gets_the_decoders_fixed_embeddings_of_the_new_grid(mae_folder, tmp_path):
    model = load(ViTMAEForPreTraining, mae_folder, 48)
    positions, of_decoder = model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed
    assert torch.equal(positions, interpolate_positions(sin_cos_position_embeddings(4, 32), 6))
    assert torch.equal(of_decoder, sin_cos_position_embeddings(6, 16))
    assert not positions.requires_grad and not of_decoder.requires_grad
    model.save_pretrained(tmp_path)
    plain = ViTMAEForPreTraining.from_pretrained(tmp_path)
    pixels, noise = torch.rand(2, 3, 48, 48), torch.rand(2, 36)
    assert torch.equal(plain(pixels, noise=noise).loss, model.eval()(pixels, noise=noise).loss)


def test_models_of_dinov2_have_the_same_table():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 14}
    own = Dinov2ForImageClassification(Dinov2Config(image_size=56, **sizes)).eval()
    larger = at_image_size(own, 84)
    assert larger.dinov2.embeddings.position_embeddings.shape == (1, 1 + 36, 16)
    pixels = torch.rand(2, 3, 84, 84)
    torch.testing.assert_close(larger(pixels).logits, own(pixels).logits, atol=1e-5, rtol=0)


def test_features_are_those_of_the_size_that_is_asked_for(mae_folder):
    own, larger = encode(mae_folder, None), encode(mae_folder, 48)
    assert (own.image_size, own.shortest_side) == (32, 40)
    assert (larger.image_size, larger.shortest_side) == (48, 55)  # not the cache of the model's own size
    assert own.digest != larger.digest
    assert larger(torch.zeros(2, 1, 48, 48, dtype=torch.uint8)).shape == (2, 32)


# Refusals


@pytest.mark.parametrize(("size", "nearest"), [(50, "48 or 56"), (5, "8")])
def test_a_size_that_is_no_multiple_of_the_patch_size_is_refused_with_the_nearest(size, nearest, mae_folder):
    said = f"image_size={size}, expected a multiple of patch_size=8, such as {nearest}: change it"
    for refuse in (lambda: check_image_size(small_config(), size), lambda: encode(mae_folder, size)):
        with pytest.raises(UserError) as error:
            refuse()
        assert str(error.value) == f"--image_size: found {said}"


def test_a_size_whose_embeddings_do_not_fit_into_the_memory_is_refused():
    model = new_classifier(small_config(), ["a", "b"])
    with pytest.raises(UserError, match=r"--image_size 800000: found a model that takes [\d,]+ GiB"):
        at_image_size(model, 800_000)
