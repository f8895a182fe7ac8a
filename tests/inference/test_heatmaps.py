"""Heat maps: what they must be for models made for it, and where they lie for models that were trained."""

import gzip
import json
import os
import stat

import numpy as np
import pytest
import run_classification
import torch
from cxr.inference import heatmaps
from cxr.inference import radiographs
from cxr.inference.classifier import Classifier
from cxr.inference.classifier import load_classifier
from PIL import Image
from scipy.stats import binomtest
from tiny_runs import run_main
from transformers import ResNetConfig
from transformers import ResNetForImageClassification
from transformers import ViTConfig
from transformers import ViTForImageClassification

from mimic_cxr_dataset.labels import index_images

# Every positive is seen by these within seconds; 64 and 96 pixels make grids of 8 x 8 and 3 x 3.
LEARNERS = {
    "vit": [
        "--config_name=vit-mae-tiny",
        "--image_size=64",
        "--config_overrides=hidden_size=96,intermediate_size=192,num_hidden_layers=3,num_attention_heads=3,"
        "patch_size=8",
        "--num_train_epochs=25",
    ],
    "resnet": [
        "--config_name=resnet-18",
        "--image_size=96",
        "--config_overrides=embedding_size=16",
        "--num_train_epochs=4",
    ],
}


def classifier_of(model) -> Classifier:
    return Classifier(
        name="test",
        model=model.eval(),
        device=torch.device("cpu"),
        image_size=32,
        shortest_side=32,
        image_mean=(0.5,) * 3,
        image_std=(0.25,) * 3,
        labels=("No Finding", "Finding"),
        thresholds=(0.5,),
        has_threshold=True,
        threshold_level=None,
        trained_view="frontal",
    )


@pytest.fixture
def tiny_vit():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return classifier_of(ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=8)))


@pytest.fixture
def tiny_resnet():
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    return classifier_of(ResNetForImageClassification(config))


@pytest.fixture(params=["vit", "resnet"])
def tiny(request):
    return request.getfixturevalue(f"tiny_{request.param}")


def noise(num_images: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (num_images, 1, 32, 32), dtype=torch.uint8, generator=generator)


def test_heat_maps_have_the_models_grid_and_a_maximum_of_one_or_none(tiny):
    heat = heatmaps.heat_maps(tiny, noise(11))
    side = {"vit": 4, "resnet": 4}[tiny.model.config.model_type]
    assert heat.shape == (11, side, side) and heat.dtype == np.float32
    assert f"{side} x {side} cells: too coarse to locate anything" in heatmaps.describe(tiny, heat[0])
    assert heat.min() >= 0
    assert set(heat.max((1, 2)).round(6).tolist()) <= {0.0, 1.0}
    assert heat.max() == 1


def test_heat_of_an_image_does_not_depend_on_the_others(tiny):
    images = noise(11)
    together, alone = heatmaps.heat_maps(tiny, images), heatmaps.heat_maps(tiny, images[9:10])
    assert np.abs(together[9] - alone[0]).max() < 1e-4


def test_heat_maps_leave_the_model_and_its_probabilities_as_they_were(tiny):
    images, implementation = noise(3), tiny.model.config._attn_implementation
    before = tiny.probabilities(images)
    heatmaps.heat_maps(tiny, images)
    assert np.array_equal(tiny.probabilities(images), before)
    assert tiny.model.config._attn_implementation == implementation
    assert all(parameter.grad is None for parameter in tiny.model.parameters())


def test_resnet_heat_is_the_weighted_sum_of_the_last_channels(tiny_resnet):
    """After the last stage come a mean and a linear layer: the weights are the head's, over the area."""
    images = noise(4)
    with torch.no_grad():
        features = tiny_resnet.model.resnet(tiny_resnet.normalize(images)).last_hidden_state  # (B, D, h, w)
    head = tiny_resnet.model.classifier[1].weight
    expected = torch.einsum("bdhw,d->bhw", features, head[1] - head[0]).clamp(min=0)
    found = heatmaps.grad_cam(tiny_resnet.model, tiny_resnet.normalize(images))
    area = features.shape[2] * features.shape[3]
    assert torch.allclose(found * area, expected, atol=1e-5)


def test_vit_heat_of_one_layer_is_its_helpful_attention(tiny_vit):
    """What the class token pays to each patch, times what a bit more of it would add to the log-odds."""
    model = tiny_vit.model
    del model.vit.layers[1:]
    model.set_attn_implementation("eager")
    attention, pixel_values = model.vit.layers[0].attention, tiny_vit.normalize(noise(2))
    with torch.no_grad():
        weights = model(pixel_values=pixel_values, output_attentions=True).attentions[0]  # (B, heads, T, T)
        values = attention.v_proj(model.vit.layers[0].layernorm_before(model.vit.embeddings(pixel_values)))
        values = values.unflatten(2, (2, -1)).transpose(1, 2)  # (B, heads, T, D / heads)
    class_token = (weights @ values)[:, :, 0].requires_grad_()  # before the output projection
    replace = attention.o_proj.register_forward_pre_hook(
        lambda module, inputs: torch.cat([class_token.flatten(1)[:, None], inputs[0][:, 1:]], dim=1)
    )
    logits = model(pixel_values=pixel_values).logits
    replace.remove()
    (gradient,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), class_token)
    slope = torch.einsum("bhd,bhtd->bht", gradient, values)[:, :, 1:]
    expected = (weights[:, :, 0, 1:] * slope).clamp(min=0).mean(1).view(2, 4, 4)
    found = heatmaps.attention_rollout(model, pixel_values)
    assert torch.allclose(found, expected, atol=1e-7, rtol=1e-4) and expected.max() > 0


@pytest.mark.parametrize("side, is_soft", [(2, False), (6, False), (7, True)])
def test_few_cells_are_drawn_as_cells_and_many_softly(side, is_soft):
    heat = np.zeros((side, side), dtype=np.float32)
    heat[0] = 1
    stretched = heatmaps.stretch(heat, (16 * side, 8 * side))
    assert stretched.shape == (16 * side, 8 * side) and stretched.max() == 1
    assert (len(np.unique(stretched)) > 2) == is_soft


def test_overlay_shows_the_radiograph_where_there_is_no_heat():
    pixels = torch.arange(48, dtype=torch.uint8).view(1, 6, 8)
    heat = np.zeros((4, 4), dtype=np.float32)
    assert np.array_equal(heatmaps.overlay(pixels, heat), pixels[0].numpy()[..., None].repeat(3, axis=2))
    heat[:, 3] = 1
    hot = heatmaps.overlay(pixels, heat)
    assert hot.shape == (6, 8, 3)
    assert np.array_equal(hot[:, :4, 0], pixels[0, :, :4].numpy())
    assert (hot[:, -1, 0] > 100).all()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_picture_of_a_heat_map_is_private_and_readable_whatever_its_name(tmp_path, recwarn):
    pixels = torch.zeros(1, 40, 30, dtype=torch.uint8)
    path = tmp_path / "a.png"
    options = {"title": "costs $5 and $6_{ 胸", "label": "$x_{"}
    heatmaps.plot_heat_map(pixels, np.eye(8, dtype=np.float32), path, **options)
    assert min(Image.open(path).size) > 300 and not recwarn.list
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


# --- Trained models


@pytest.fixture(scope="module")
def effusions(tmp_path_factory):
    """A synthetic sample; its frontal images with a drawn effusion, and where that is."""
    from make_sample_data import make_sample_data

    root = make_sample_data(tmp_path_factory.mktemp("effusions") / "cxr", num_images=400, image_size=96)
    with gzip.open(root / "sample-findings.json.gz", "rt", encoding="utf-8") as file:
        findings = json.load(file)
    images, _ = index_images(root, task="pleural_effusion")
    boxes = {
        row.path: [one["box"] for one in findings[row.dicom_id] if one["finding"] == "Pleural Effusion"]
        for row in images[images["label"] == 1].itertuples()
    }
    return root, {path: found for path, found in boxes.items() if found}


def paint(boxes: list[list[float]], size: int) -> np.ndarray:
    """Whether a pixel (size, size) is in one of `boxes`, whose edges are fractions."""
    inside = np.zeros((size, size), dtype=bool)
    for box in boxes:
        left, top, right, bottom = (round(edge * size) for edge in box)
        inside[top : bottom + 1, left : right + 1] = True
    return inside


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_heat_of_a_trained_model_lies_on_the_drawn_effusion_above_chance(name, effusions, tmp_path):
    """Of images that it rightly calls positive, against the boxes' area, and against other images' heat."""
    root, boxes = effusions
    flags = ["--dataset_config_name=pleural_effusion", "--learning_rate=1e-3", "--lr_scheduler_type=cosine"]
    flags += ["--per_device_train_batch_size=16", "--warmup_ratio=0.1", f"--data_dir={root}"]
    run_main(run_classification, tmp_path / "run", *LEARNERS[name], *flags)
    classifier = load_classifier(str(tmp_path / "run" / "model"), device="cpu")
    side = classifier.shortest_side
    read = [radiographs.read_radiograph(path, shortest_side=side).pixels for path in boxes]
    images = torch.stack([classifier.prepare(pixels) for pixels in read])
    positive = classifier.probabilities(images)[:, 0] >= classifier.thresholds[0]
    heat = heatmaps.heat_maps(classifier, images[torch.from_numpy(positive)])
    heat = np.stack([heatmaps.stretch(one, (classifier.image_size, classifier.image_size)) for one in heat])
    inside = np.stack([paint(found, classifier.image_size) for found in boxes.values()])[positive]

    total = heat.sum((1, 2))
    shares = np.divide(heat, total[:, None, None], where=total[:, None, None] > 0, out=np.zeros_like(heat))
    on_boxes = np.einsum("ihw,jhw->ij", shares, inside)  # heat of image i on the boxes of image j
    own, area = np.diag(on_boxes), inside.mean((1, 2))
    num_images = len(own)
    of_others = (on_boxes.sum(0) - own) / (num_images - 1)
    above_area, above_others = int((own > area).sum()), int((own > of_others).sum())
    assert num_images >= 40
    assert own.mean() > 1.1 * area.mean()
    assert binomtest(above_area, num_images, alternative="greater").pvalue < 0.01
    assert binomtest(above_others, num_images, alternative="greater").pvalue < 0.01
