"""The search for the largest batch that fits."""

import pytest
import torch
from accelerate import Accelerator
from cxr.training import batch_size


@pytest.mark.parametrize("capacity", [1, 2, 3, 7, 8, 9, 63, 64, 65, 100, 1000, 1023])
def test_the_search_ends_a_sixteenth_below_what_fits_at_most(capacity):
    tried = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= capacity

    found = batch_size.largest_fitting(fits, limit=10**6)
    assert found <= capacity
    assert found >= capacity - max(8, capacity // 16 + 8)
    assert found % 8 == 0 or found < 8
    assert len(tried) < 20
    assert max(tried) <= 2 * capacity  # no trial far beyond what fits


def test_the_search_never_passes_the_limit():
    tried = []
    assert batch_size.largest_fitting(lambda size: tried.append(size) or True, limit=100) == 96
    assert max(tried) <= 100


def test_one_image_alone_is_tried_only_if_two_do_not_fit():
    tried = []
    assert batch_size.largest_fitting(lambda size: tried.append(size) or size <= 4, limit=100) == 4
    assert 1 not in tried
    assert batch_size.largest_fitting(lambda size: size == 1, limit=100) == 1
    assert batch_size.largest_fitting(lambda size: True, limit=1) == 1


def test_nothing_fits():
    assert batch_size.largest_fitting(lambda size: False, limit=100) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_twice_the_batch_that_was_found_does_not_fit(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU")  # which the tests set for all others
    accelerator = Accelerator()
    model = torch.nn.Linear(4, 4)

    def loss(model: torch.nn.Module, num_images: int) -> torch.Tensor:
        gibibyte = torch.ones(num_images, 2**26, 4, device=accelerator.device)
        return model(gibibyte).sum()

    found = batch_size.find_batch_size(accelerator, model, loss, limit=10**6)
    loss(model.to(accelerator.device), found).backward()
    with pytest.raises(torch.OutOfMemoryError):
        loss(model, 2 * found + 1).backward()
