"""Training samples of the study: nested (1k in 10k in all), by patient, stratified by label."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from cxr.seeding import derive_seed


def sample_order(subject_ids: Sequence[int], labels: Sequence[int], *, seed: int) -> np.ndarray:
    """Returns an order of all images of which every prefix is a stratified sample by patient.

    `subject_ids` and `labels` have one entry per image, shape (N,); so has the returned array of image
    indices. The images of a patient stand together, so a prefix splits at most one patient. Patients are
    shuffled within three strata (all images negative, some, all positive) and the strata are interleaved in
    proportion to their number of images, so every prefix has nearly the label distribution of the whole.
    """
    subject_ids = np.asarray(subject_ids)
    labels = np.asarray(labels)
    patients, patient_of_image = np.unique(subject_ids, return_inverse=True)
    num_images = np.bincount(patient_of_image, minlength=len(patients))
    num_positive = np.bincount(patient_of_image, weights=labels, minlength=len(patients))
    stratum = np.where(num_positive == 0, 0, np.where(num_positive == num_images, 2, 1))
    shuffled = np.argsort([derive_seed(seed, "sample", int(patient)) for patient in patients], kind="stable")

    position = np.empty(
        len(patients)
    )  # in [0, 1): the share of its stratum's images that stand before the patient
    for value in range(3):
        members = shuffled[stratum[shuffled] == value]
        cumulative = np.cumsum(num_images[members])
        if len(members):
            position[members] = (cumulative - num_images[members] / 2) / cumulative[-1]
    rank = np.empty(len(patients), dtype=np.int64)
    rank[np.lexsort((patients, position))] = np.arange(len(patients))
    return np.argsort(rank[patient_of_image], kind="stable")


def draw_sample(
    subject_ids: Sequence[int], labels: Sequence[int], *, num_samples: int | None, seed: int
) -> np.ndarray:
    """Returns the sorted indices of `num_samples` images; all of them when `num_samples` is None.

    For one seed, a smaller sample is part of every larger one. Raises ValueError when there are fewer images.
    """
    if num_samples is None:
        return np.arange(len(labels))
    if num_samples > len(labels):
        raise ValueError(
            f"--max_train_samples {num_samples}: found {len(labels)} training images; "
            "ask for at most that many, or leave the flag out to use all"
        )
    return np.sort(sample_order(subject_ids, labels, seed=seed)[:num_samples])


def sample_record(dicom_ids: Sequence[str], *, seed: int) -> dict:
    """Returns what `samples.json` holds: the images trained on, and a hash to compare two runs by."""
    dicom_ids = sorted(dicom_ids)
    digest = hashlib.sha256(json.dumps(dicom_ids).encode()).hexdigest()
    return {"num_images": len(dicom_ids), "seed": seed, "sha256": digest, "dicom_ids": dicom_ids}
