"""Decides from the losses of its epochs whether a training was long enough; does not import torch."""

import math
from collections.abc import Sequence

MIN_POINTS = 3  # two losses always lie on a line
MIN_T = 2.0  # slope in standard errors: about p < 0.05 if there are many epochs


def why_undertrained(eval_losses: Sequence[float], *, best_epoch: int) -> str | None:
    """Returns in words why a training has not converged, None if there is no sign of it.

    `eval_losses` are the validation losses of all epochs, in order; `best_epoch` counts from 1. Signs
    are a loss that falls significantly over the last quarter of the epochs (it would probably fall further),
    and a best epoch that is the last one (a later one might be better).
    """
    from scipy.stats import linregress  # slow to import

    last_quarter = eval_losses[-math.ceil(len(eval_losses) / 4) :]
    if len(last_quarter) >= MIN_POINTS:
        line = linregress(range(len(last_quarter)), last_quarter)
        if line.slope + MIN_T * line.stderr < 0:  # t < -2; no division, as the error of an exact line is 0
            return "the validation loss is still falling"
    return "the best epoch is the last" if best_epoch == len(eval_losses) else None
