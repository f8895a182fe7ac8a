"""Mixup and CutMix: what is mixed, and that it depends on the seed, the epoch and the image only."""

import io

import numpy as np
import pytest
import torch
from cxr.choices import MASKED
from cxr.data.images import images_in_memory
from cxr.data.loading import ChestXrays
from cxr.data.mixing import Mix
from cxr.data.mixing import Mixing
from cxr.data.mixing import mix_labels
from cxr.data.transforms import evaluation_transform
from cxr.models import heads
from PIL import Image
from torch.nn import functional as F


def gray_images(count=12, side=32):
    """Images of one gray level each, so that a mixed pixel tells the share."""
    contents = []
    for number in range(count):
        file = io.BytesIO()
        Image.new("L", (side, side), 20 * number).save(file, "JPEG", quality=100)
        contents.append(file.getvalue())
    ids = [f"{number:08x}" for number in range(count)]
    labels = [number % 2 for number in range(count)]
    return images_in_memory(contents, dicom_id=ids, subject_id=list(range(count)), label=labels)


def items_of(mixing, keys, seed=0):
    images = gray_images()
    return ChestXrays(images, evaluation_transform(32), seed=seed, mixing=mixing).__getitems__(keys)


def test_mixup_adds_images_and_labels_with_the_same_share():
    mixing = Mixing(mixup=0.8, cutmix=0)
    for (epoch, index), item in zip(keys := [(0, n) for n in range(12)], items_of(mixing, keys)):
        mix = mixing.draw(seed=0, epoch=epoch, dicom_id=f"{index:08x}", num_images=12)
        assert mix.center is None
        gray = mix.share * 20 * index + (1 - mix.share) * 20 * mix.partner
        assert item["image"].float().mean().item() == pytest.approx(gray, abs=1.5)
        label = mix.share * (index % 2) + (1 - mix.share) * (mix.partner % 2)
        assert item["label"].item() == pytest.approx(label, abs=1e-6)


def test_cutmix_pastes_a_rectangle_whose_area_is_the_partners_share_of_the_label():
    mix = Mix(partner=1, share=0.75, center=(0.5, 0.5))
    black, white = (torch.full((1, 32, 32), gray, dtype=torch.uint8) for gray in (0, 255))
    mixed, share = mix.images(black, white)
    assert share == 1 - 16 * 16 / 32**2 and (mixed == 255).sum() == 16 * 16
    assert (mixed[:, 8:24, 8:24] == 255).all()
    corner = Mix(partner=1, share=0.75, center=(0.0, 0.0))  # a rectangle beyond the edge is cut off
    mixed, share = corner.images(black, white)
    assert (mixed == 255).sum() == 8 * 8 and share == 1 - 64 / 32**2


def test_mixing_is_a_function_of_seed_epoch_and_image_and_not_of_the_batch():
    mixing = Mixing(mixup=0.8, cutmix=1.0)
    alone = items_of(mixing, [(3, 5)])[0]
    within = items_of(mixing, [(3, 1), (3, 5), (3, 7)])[1]
    assert torch.equal(alone["image"], within["image"]) and alone["label"] == within["label"]
    others = [items_of(mixing, [(4, 5)])[0], items_of(mixing, [(3, 5)], seed=1)[0]]
    assert all(not torch.equal(alone["image"], other["image"]) for other in others)


def test_with_both_half_of_the_images_are_cut_and_partners_are_drawn_evenly():
    mixing = Mixing(mixup=0.8, cutmix=1.0)
    mixes = [mixing.draw(seed=0, epoch=0, dicom_id=str(n), num_images=10) for n in range(2000)]
    assert np.mean([mix.center is not None for mix in mixes]) == pytest.approx(0.5, abs=0.04)
    assert np.bincount([mix.partner for mix in mixes]) / 2000 == pytest.approx(np.full(10, 0.1), abs=0.03)
    assert Mixing(mixup=0, cutmix=1.0).draw(seed=0, epoch=0, dicom_id="a", num_images=2).center


def test_without_mixing_items_are_as_before():
    item = items_of(None, [(0, 3)])[0]
    assert item["label"] == 1 and isinstance(item["label"], int)


def test_a_masked_label_stays_masked():
    mixed = mix_labels(torch.tensor([1.0, MASKED, 0.0]), torch.tensor([0.0, 1.0, MASKED]), 0.25)
    assert mixed.tolist() == [0.25, MASKED, MASKED]


def test_the_loss_of_a_mixed_label_is_the_mixed_loss():
    logits, first, second = (
        torch.randn(6, 2),
        torch.tensor([0, 1, 1, 0, 1, 0]),
        torch.tensor([1, 1, 0, 0, 0, 1]),
    )
    mixed = mix_labels(first.float(), second.float(), 0.3)
    expected = 0.3 * F.cross_entropy(logits, first) + 0.7 * F.cross_entropy(logits, second)
    torch.testing.assert_close(heads.classification_loss(logits, mixed), expected)
