"""Probes the encoder of a masked autoencoder during its pretraining, and warns if it learns nothing.

A probe draws no random numbers and leaves the model as it was, so a run with probes equals one without.
"""

import contextlib
import logging
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import ViTMAEForPreTraining

from cxr.choices import MASKED
from cxr.data import transforms
from cxr.data.images import LabelledImages
from cxr.data.loading import EVALUATION_SEED
from cxr.data.loading import ChestXrays
from cxr.data.loading import gather_in_order
from cxr.data.subsets import draw_sample
from cxr.evaluation import probes
from cxr.models.features import pool
from cxr.training import runtime
from cxr.training.run import Run

MOST_IMAGES = 2000  # of each split
# Measured with a ViT of width 96 on 600 synthetic radiographs: RankMe is 7.2 for random weights, falls to 2.3
# while the model learns, then rises; at a learning rate 100 times too high it is 1.1. So a share of the width
# would warn about healthy runs.
COLLAPSED_RANK = 1.5
# The same runs: of the loss of predicting the same for every pixel, 1.02 times in the first epoch and 0.98
# times after ten epochs; 1.2 times at the learning rate that is too high.
NOTHING_LEARNED = 0.99
logger = logging.getLogger(__name__)


class PretrainingProbe:
    """A linear probe of the mean patch token, on samples of the training and the validation images."""

    def __init__(self, run: Run, train_images: LabelledImages, eval_images: LabelledImages):
        self.run = run
        self.train = self._loader(train_images, seed=run.args.seed)
        self.validation = self._loader(eval_images, seed=EVALUATION_SEED)

    def _loader(self, images: LabelledImages, *, seed: int) -> DataLoader:
        if (labelled := np.flatnonzero(images.rows["label"] != MASKED)).size:
            images = images.select(labelled)  # else the AUROC is null
        num_samples = min(MOST_IMAGES, len(images))
        chosen = draw_sample(images["subject_id"], images["label"], num_samples=num_samples, seed=seed)
        transform = transforms.evaluation_transform(self.run.image_processor.size["height"])
        return self.run.evaluation_loader(ChestXrays(images.select(chosen), transform, seed=EVALUATION_SEED))

    def is_due(self) -> bool:
        """Returns whether --probe_epochs asks for a probe after the epoch that has just ended."""
        run = self.run
        return run.schedule.epoch(run.progress.step) % run.args.probe_epochs == 0

    def measure(self, *, eval_loss: float) -> dict[str, float | None]:
        """Returns the validation AUROC and the RankMe of the current features; warns if there is reason to.

        All processes compute features, and the main one probes them.
        """
        (train, _), (validation, constant_loss) = map(self._features, (self.train, self.validation))

        def fit() -> dict[str, float | None]:
            found = probes.probe(
                "linear", train=train, validation=validation, test_features=validation.features
            )
            names = self.validation.dataset.images.label_names
            auroc = probes.whole_area(validation.labels, found.validation, names)
            return {"probe_auroc": auroc, "rankme": probes.rankme(train.features)}

        measured = runtime.on_main_process(self.run.accelerator, fit)
        with logging_redirect_tqdm():  # prints above the progress bar
            for warning in doubts(measured["rankme"], eval_loss=eval_loss, constant_loss=constant_loss):
                logger.warning("%s", warning)
        return measured

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")  # compiling for these batches would take longer
    def _features(self, loader: DataLoader) -> tuple[probes.Split, float]:
        """Returns the features of whole images with their labels, and the loss of a constant prediction."""
        accelerator, wrapped = self.run.accelerator, self.run.model
        model = accelerator.unwrap_model(wrapped)
        wrapped.eval()
        found, moments = [], []
        with seeing_all_patches(model) as encoded:
            for batch in runtime.evaluation_bar(accelerator, loader, "probe"):
                pixel_values = self.run.normalize(batch["image"])
                target = reconstruction_target(model, pixel_values)
                in_order = torch.arange(target.shape[1], device=accelerator.device)
                wrapped(pixel_values=pixel_values, noise=in_order.expand(len(target), -1))
                found.append(pool(encoded.pop(), "mean").float())
                moments.append(torch.stack([target.mean((1, 2)), target.square().mean((1, 2))], dim=1))
        num_samples = len(loader.dataset)
        found, moments = (
            gather_in_order(accelerator, torch.cat(parts), num_samples=num_samples).numpy()
            for parts in (found, moments)
        )
        mean, square = moments.mean(axis=0, dtype="float64")
        labels = probes.hard_labels(loader.dataset.images.labels)
        return probes.Split(features=found, labels=labels), float(square - mean**2)


@contextlib.contextmanager
def seeing_all_patches(model: ViTMAEForPreTraining) -> Iterator[list[torch.Tensor]]:
    """Hides no patch within the block; yields a list that gets the encoder's tokens of each forward pass."""
    encoded, mask_ratio = [], model.config.mask_ratio
    hook = model.vit.register_forward_hook(lambda module, inputs, outputs: encoded.append(outputs[0]))
    model.config.mask_ratio = 0.0
    try:
        yield encoded
    finally:
        model.config.mask_ratio = mask_ratio
        hook.remove()


def reconstruction_target(model: ViTMAEForPreTraining, pixel_values: torch.Tensor) -> torch.Tensor:
    """Returns what the decoder is to predict, (B, L, patch_size² * 3)."""
    target = model.patchify(pixel_values)
    if model.config.norm_pix_loss:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    return target


def doubts(rankme: float, *, eval_loss: float, constant_loss: float) -> Iterator[str]:
    """Yields a warning for each sign that a pretraining learns nothing.

    `constant_loss` is that of the best prediction that is the same for every pixel: the variance of the
    targets. With normalised patches this is the mean of each patch, and the loss is just below 1; without,
    it is the mean gray of all images.
    """
    if rankme < COLLAPSED_RANK:
        yield (
            f"RankMe {rankme:.2f}: the features of all images are nearly the same (collapsed); expected at "
            f"least {COLLAPSED_RANK:g}: lower the learning rate, or check the images"
        )
    if eval_loss > NOTHING_LEARNED * constant_loss:
        yield (
            f"the validation loss {eval_loss:.4f} is not better, so far, than that of one prediction for "
            f"every pixel ({constant_loss:.4f}): train longer, change the learning rate, or check the images"
        )
