"""A training is called undertrained from its validation losses and its best epoch."""

import pytest
from cxr.training.convergence import why_undertrained

FALLS, LAST = "the validation loss is still falling", "the best epoch is the last"
NOISE = [0.01, -0.02, 0.015, -0.01, 0.005]


@pytest.mark.parametrize(
    ("eval_losses", "best_epoch", "expected"),
    [
        ([1 - 0.01 * epoch for epoch in range(20)], 3, FALLS),  # on a line exactly
        ([1 - 0.02 * epoch + NOISE[epoch % 5] for epoch in range(40)], 3, FALLS),
        ([0.7, 0.6, 0.5] * 5 + [0.5 + noise for noise in NOISE], 3, None),  # flat, but for noise
        ([0.5] * 20, 3, None),
        ([0.9 - 0.05 * epoch for epoch in range(12)] + [0.3, 0.31, 0.33, 0.34], 12, None),  # it rises
        ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], 7, None),  # a quarter of 8 has two points only
        ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], 8, LAST),
        ([0.5] * 20, 20, LAST),
        ([0.5], 1, LAST),
    ],
)
def test_training_is_undertrained_where_the_loss_falls_or_the_best_epoch_is_the_last(
    eval_losses, best_epoch, expected
):
    assert why_undertrained(eval_losses, best_epoch=best_epoch) == expected
