"""Features are those of the model that transformers loads; a cached file is used for the same only."""

import stat
import sys

import numpy as np
import pytest
import torch
from cxr.data.images import images_in_memory
from cxr.data.loading import ChestXrays
from cxr.models import features
from cxr.models.configs import make_config
from cxr.models.pretrained import load_image_processor
from cxr.models.scratch import new_classifier
from cxr.models.scratch import new_mae
from torchvision.io import encode_jpeg
from transformers import ResNetModel
from transformers import ViTMAEModel
from transformers import ViTModel

SMALL = (
    "hidden_size=16,num_hidden_layers=2,num_attention_heads=2,intermediate_size=32,patch_size=8,"
    "decoder_hidden_size=16,decoder_num_hidden_layers=1,decoder_num_attention_heads=2,decoder_intermediate_size=32"
)


def draw_images(*, seed: int, ids: str = "abcdefg"):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (len(ids), 1, 40, 36), generator=generator, dtype=torch.uint8)
    contents = [bytes(encode_jpeg(one).numpy()) for one in pixels]
    return images_in_memory(contents, dicom_id=list(ids), label=[0] * len(ids))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A masked autoencoder, a ViT and a ResNet, saved as a run saves them."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(3)
    vit = make_config("vit-mae-tiny", overrides=SMALL, image_size=32)
    resnet = make_config("resnet-18", overrides="embedding_size=8", image_size=None)
    models = {"vit_mae": new_mae(vit)}
    models |= {"vit": new_classifier(vit, ["no", "yes"]), "resnet": new_classifier(resnet, ["no", "yes"])}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        processor = load_image_processor(None, hub_dir=None, revision="main", image_size=32)
        processor.save_pretrained(folder / name)
    return folder


def load(name, *, pooling=None, image_size=None, overrides=None):
    return features.load_encoder(
        str(name),
        pooling=pooling,
        image_size=image_size,
        overrides=overrides,
        device=torch.device("cpu"),
        hub_dir=None,
        revision="main",
    )


def compute(encoder, images, *, batch_size: int = 3) -> np.ndarray:
    return features.compute_features(encoder, images, batch_size=batch_size, what="images")


def plain_inputs(encoder, images) -> torch.Tensor:
    """What an evaluation gives to the model."""
    dataset = ChestXrays(images, features.evaluation_transform(encoder.image_size), seed=0)
    items = dataset.__getitems__([(0, index) for index in range(len(images))])
    return encoder.normalize(torch.stack([item["image"] for item in items]))


@torch.no_grad()
def of_transformers(folder, kind: str, pooling: str, pixel_values: torch.Tensor) -> np.ndarray:
    if kind == "resnet":
        model = ResNetModel.from_pretrained(folder / kind).eval()
        return model(pixel_values).pooler_output.flatten(1).numpy()
    model = {"vit": ViTModel, "vit_mae": ViTMAEModel}[kind].from_pretrained(folder / kind).eval()
    model.config.mask_ratio = 0.0
    hidden = model(pixel_values).last_hidden_state
    return (hidden[:, 0] if pooling == "class" else hidden[:, 1:].mean(1)).numpy()


@pytest.mark.parametrize(
    ("kind", "pooling", "expected"),
    [
        ("vit_mae", None, "mean"),
        ("vit_mae", "class", "class"),
        ("vit", None, "class"),
        ("vit", "mean", "mean"),
        ("resnet", "class", "mean"),
    ],
)
def test_features_are_those_of_plain_transformers_without_masking(kind, pooling, expected, folders):
    encoder, images = load(folders / kind, pooling=pooling), draw_images(seed=0)
    found = compute(encoder, images)
    assert encoder.pooling == expected and encoder.image_size == 32
    assert found.dtype == np.float32 and len(found) == 7
    wanted = of_transformers(folders, kind, expected, plain_inputs(encoder, images))
    assert found == pytest.approx(wanted, abs=1e-5)
    assert found == pytest.approx(compute(encoder, images, batch_size=7), abs=1e-5)


def test_name_of_a_configuration_gives_the_same_random_weights_and_leaves_the_generator():
    state = torch.random.get_rng_state()
    first, again = (load("vit-mae-tiny", image_size=32, overrides=SMALL) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.digest == again.digest and first.pooling == "mean"
    assert load("resnet-18", image_size=32, overrides=SMALL).image_size == 32


def test_a_pooling_that_a_network_does_not_have_warns(folders, caplog):
    load(folders / "vit", pooling="mean")
    assert not caplog.records
    load(folders / "resnet", pooling="mean")
    load("timm/test_vit", pooling="mean")
    said = [
        f"--pooling mean has no effect: a {kind} has its own pooling"
        for kind in ("ResNet", "test_vit of timm")
    ]
    assert caplog.messages == said


def test_digest_tells_models_poolings_and_sizes_apart(folders):
    digests = [load(folders / kind).digest for kind in ("vit_mae", "vit", "resnet")]
    digests += [load(folders / "vit", pooling="mean").digest]
    digests += [load(folders / "resnet", image_size=48).digest]
    assert len(set(digests)) == 5


def test_features_are_computed_once_and_never_for_other_images(folders, tmp_path, monkeypatch):
    calls = []
    original = features.compute_features

    def counted(*args, **options):
        calls.append(args)
        return original(*args, **options)

    monkeypatch.setattr(features, "compute_features", counted)
    encoder = load(folders / "vit")

    def cached(images) -> np.ndarray:
        return features.cached_features(encoder, images, cache_dir=tmp_path, batch_size=4, what="images")

    images = draw_images(seed=0)
    first = cached(images)
    assert np.array_equal(cached(images), first) and len(calls) == 1
    assert not np.array_equal(cached(draw_images(seed=1)), first) and len(calls) == 2  # the same ids
    assert np.array_equal(cached(images.select([2, 0])), first[[2, 0]]) and len(calls) == 3
    cached(draw_images(seed=0, ids="abcdefh"))
    assert len(calls) == 4 == len(list(tmp_path.iterdir()))
    if sys.platform != "win32":
        assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_failed_computation_leaves_no_file(folders, tmp_path, monkeypatch):
    def full(file, array):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features.np, "save", full)
    with pytest.raises(OSError, match="No space"):
        features.cached_features(
            load(folders / "vit"), draw_images(seed=0), cache_dir=tmp_path, batch_size=4, what="images"
        )
    assert not list(tmp_path.iterdir())
