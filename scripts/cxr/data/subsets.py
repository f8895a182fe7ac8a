"""Draws training samples: nested (1k in 10k in all), by patient, stratified by label."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from cxr.data.seeding import derive_seed
from cxr.errors import UserError


def sample_order(subject_ids: Sequence[int | str], labels: Sequence[int], *, seed: int) -> np.ndarray:
    """Returns an order of all images, every prefix of which is a stratified sample by patient.

    `subject_ids`, `labels` and the returned image indices have shape (N,). The images of a patient are
    adjacent, so a prefix splits at most one patient. The patients are shuffled and put into two queues: those
    whose share of positive images is above the overall share, and the others. The next patient comes from the
    queue that moves the share so far back to the overall one.
    """
    subject_ids = np.asarray(subject_ids)
    labels = np.asarray(labels) == 1  # an image without a label counts as not positive
    patients, patient_of_image = np.unique(subject_ids, return_inverse=True)
    num_images = np.bincount(patient_of_image, minlength=len(patients))
    num_positive = np.bincount(patient_of_image, weights=labels, minlength=len(patients))
    excess = num_positive - num_images * labels.mean()  # positive images beyond the overall share
    shuffled = np.argsort(
        [derive_seed(seed, "sample", patient) for patient in patients.tolist()], kind="stable"
    )
    below, above = (iter(shuffled[line].tolist()) for line in (excess[shuffled] <= 0, excess[shuffled] > 0))
    rank = np.empty(len(patients), dtype=np.int64)
    balance = 0.0
    for position in range(len(patients)):
        first, other = (above, below) if balance < 0 else (below, above)
        patient = next(first, None)
        patient = next(other) if patient is None else patient
        rank[patient] = position
        balance += excess[patient]
    return np.argsort(rank[patient_of_image], kind="stable")


def draw_sample(
    subject_ids: Sequence[int | str], labels: Sequence[int], *, num_samples: int | None, seed: int
) -> np.ndarray:
    """Returns the sorted indices of `num_samples` images, of all if it is None.

    With the same seed, a smaller sample is part of every larger one. Raises UserError for too few images.
    """
    if num_samples is None:
        return np.arange(len(labels))
    if num_samples > len(labels):
        raise UserError(
            f"--max_train_samples {num_samples}: found {len(labels)} training images; "
            "ask for at most that many, or leave the flag out to use all"
        )
    return np.sort(sample_order(subject_ids, labels, seed=seed)[:num_samples])


def sample_record(dicom_ids: Sequence[str], *, seed: int) -> dict:
    """Returns the content of `samples.json`: the images trained on, and a hash to compare two runs."""
    dicom_ids = sorted(dicom_ids)
    digest = hashlib.sha256(json.dumps(dicom_ids).encode()).hexdigest()
    return {"num_images": len(dicom_ids), "seed": seed, "sha256": digest, "dicom_ids": dicom_ids}
