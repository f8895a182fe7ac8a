"""Differences between rows of a table: how often chance alone makes one."""

import types

import numpy as np
import pandas as pd
import pytest
from cxr.evaluation.intervals import seed_noise
from cxr.study.measuring import difference_of_means

NUM_SEEDS = 3
PREDICTIONS = pd.DataFrame({"subject_id": np.arange(300)})


def row(aurocs: np.ndarray, of_patients: np.ndarray) -> types.SimpleNamespace:
    """Returns a row with these AUROCs, one per seed; `of_patients` (R,) is added in the resamples."""
    by_seed = {seed: np.append(auroc, auroc + of_patients) for seed, auroc in enumerate(aurocs)}
    run = types.SimpleNamespace(predictions=PREDICTIONS)
    return types.SimpleNamespace(aurocs=by_seed, images="the same", runs=[run])


@pytest.mark.parametrize("num_rows", [1, 4])
def test_rows_that_share_the_chance_of_a_seed_rarely_differ_where_none_does(num_rows):
    """Rows of a model, such as its recipes, start from one sample and one pretraining for each seed."""
    generator = np.random.default_rng(0)
    claims = 0
    for _ in range(400):
        of_seeds = generator.normal(size=(2, 1, NUM_SEEDS))  # of the two models
        aurocs = 0.01 * (of_seeds + generator.normal(size=(2, num_rows, NUM_SEEDS)))
        sides = [[row(one, 1e-5 * generator.normal(size=50)) for one in side] for side in aurocs]
        noise = seed_noise([dict(enumerate(one)) for one in aurocs.reshape(-1, NUM_SEEDS)])
        (difference, num_seeds) = difference_of_means(*sides, noise)
        assert num_seeds == NUM_SEEDS
        claims += difference.p < 0.05
    assert claims / 400 < 0.085
