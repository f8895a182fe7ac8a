"""Training samples of the study: nested (1k in 10k in all), by patient, stratified by label."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from cxr.data.seeding import derive_seed
from cxr.errors import UserError


def sample_order(subject_ids: Sequence[int], labels: Sequence[int], *, seed: int) -> np.ndarray:
    """Returns an order of all images of which every prefix is a stratified sample by patient.

    `subject_ids` and `labels` have one entry per image, shape (N,); so has the returned array of image
    indices. The images of a patient stand together, so a prefix splits at most one patient. Shuffled patients
    queue in two lines, with shares of positive images above and not above that of the whole; the next one is
    taken from the line that brings the running share back to it.
    """
    subject_ids = np.asarray(subject_ids)
    labels = np.asarray(labels)
    patients, patient_of_image = np.unique(subject_ids, return_inverse=True)
    num_images = np.bincount(patient_of_image, minlength=len(patients))
    num_positive = np.bincount(patient_of_image, weights=labels, minlength=len(patients))
    excess = num_positive - num_images * labels.mean()  # positive images above the share of the whole
    shuffled = np.argsort([derive_seed(seed, "sample", int(patient)) for patient in patients], kind="stable")
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
    subject_ids: Sequence[int], labels: Sequence[int], *, num_samples: int | None, seed: int
) -> np.ndarray:
    """Returns the sorted indices of `num_samples` images; all of them when `num_samples` is None.

    For one seed, a smaller sample is part of every larger one. Raises UserError when there are fewer images.
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
    """Returns what `samples.json` holds: the images trained on, and a hash to compare two runs by."""
    dicom_ids = sorted(dicom_ids)
    digest = hashlib.sha256(json.dumps(dicom_ids).encode()).hexdigest()
    return {"num_images": len(dicom_ids), "seed": seed, "sha256": digest, "dicom_ids": dicom_ids}
