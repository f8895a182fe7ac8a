"""Whether a training went on for long enough, from its epochs; nothing here needs torch."""

import math
from collections.abc import Sequence

MIN_POINTS = 3  # two losses always lie on a line
MIN_T = 2.0  # the slope, in its standard errors: about p < 0.05 for many epochs


def why_undertrained(eval_losses: Sequence[float], *, best_epoch: int) -> str | None:
    """Returns in words why a training has not converged, None where nothing says so.

    `eval_losses` are the validation losses of all epochs, in order; `best_epoch` counts from 1. A loss that
    falls over the last quarter of the epochs, by more than chance, would go on falling; the best epoch as the
    last one may have a better one after it.
    """
    from scipy.stats import linregress  # slow to import

    last_quarter = eval_losses[-math.ceil(len(eval_losses) / 4) :]
    if len(last_quarter) >= MIN_POINTS:
        line = linregress(range(len(last_quarter)), last_quarter)
        if line.slope + MIN_T * line.stderr < 0:  # t < -2, also where all losses lie on the line
            return "the validation loss still falls"
    return "the best epoch is the last" if best_epoch == len(eval_losses) else None
