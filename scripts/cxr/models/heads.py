"""What the logits of a classifier mean: one label that is 0 or 1, or several labels at once."""

from functools import partial

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PretrainedConfig

from cxr.choices import MASKED
from cxr.choices import SMOOTH
from cxr.choices import SMOOTH_TARGETS

MULTI_LABEL_HEAD = "multi_label_classification"  # transformers' name of a problem type


def is_multi_label(config: PretrainedConfig) -> bool:
    """Returns whether each logit is a label of its own; else there are two, for label 0 and label 1."""
    return config.problem_type == MULTI_LABEL_HEAD


def probabilities(logits: torch.Tensor, *, multi_label: bool) -> torch.Tensor:
    """Returns the probability of each label, (B, K) to (B, K), or of label 1, (B, 2) to (B,)."""
    return logits.sigmoid() if multi_label else logits.softmax(dim=1)[:, 1]


def classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None = None,
    *,
    smoothing: float = 0.0,
) -> torch.Tensor:
    """Returns the mean loss of a batch.

    One label: `labels` (B,) 0 or 1, or float from 0 to 1, `logits` (B, 2), cross-entropy. Several: `labels`
    (B, K) from 0 to 1 or MASKED, `logits` (B, K), binary cross-entropy; its mean is over all labels, also
    masked ones, whose loss is 0, so that it does not depend on how a batch is divided. `weights`, (2,) or
    (2, K), are those of label 0 and of label 1. `smoothing` is the share by which targets move towards the
    middle of 0 and 1.
    """
    if labels.ndim == 1:
        loss = partial(F.cross_entropy, logits, label_smoothing=smoothing)
        if labels.is_floating_point():  # mixed labels
            return loss(torch.stack([1 - labels, labels], dim=1), weight=weights)
        if weights is None:
            return loss(labels)
        # As targets, because of labels torch divides by the sum of the weights, and smooths them otherwise.
        return loss(F.one_hot(labels, 2).to(logits.dtype), weight=weights, reduction="none").mean()
    negative, positive = (1.0, 1.0) if weights is None else weights
    targets = labels.clamp(min=0) * (1 - smoothing) + smoothing / 2
    losses = positive * targets * F.softplus(-logits) + negative * (1 - targets) * F.softplus(logits)
    return (losses * (labels != MASKED)).mean()


def balanced_weights(labels: np.ndarray) -> torch.Tensor:
    """Returns weights by which both values of a label count equally: (N,) to (2,), (N, K) to (2, K).

    `labels` are 1, 0, MASKED or SMOOTH. The mean weight of the labels is 1, as in scikit-learn.
    """
    targets = np.where(labels == SMOOTH, np.mean(SMOOTH_TARGETS), labels)
    counts = np.stack([np.where(labels == MASKED, 0, share).sum(axis=0) for share in (1 - targets, targets)])
    # A value that does not occur has no loss, whatever its weight is.
    weights = counts.sum(axis=0) / (2 * np.where(counts > 0, counts, np.inf))
    return torch.from_numpy(weights).float()
