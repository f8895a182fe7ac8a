"""Reads the predictions of finished runs: a row per image or study, with one label or with several."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from cxr.choices import MASKED
from cxr.errors import UserError
from cxr.evaluation.subgroups import UNKNOWN
from cxr.run_folder.measured import MeasuredFindings
from cxr.run_folder.measured import MeasuredSplit
from cxr.study.names import plural
from mimic_cxr_dataset.errors import one_line

ID_COLUMNS = ("dicom_id", "subject_id", "view_position")
ATTRIBUTES = {"view": "view_position", "scanner": "scanner", "sex": "sex", "age": "age", "race": "race"}


def read_predictions(path: Path, measured: MeasuredSplit | MeasuredFindings) -> pd.DataFrame:
    """Returns the predictions that a run `measured`. Raises UserError if they are not valid.

    A row is an image or a study, and has the groups that are known. A probability is that of a positive
    label; a label is 1, 0 or, of several labels, MASKED.
    """
    columns = label_columns(measured)
    labels, probabilities = list(columns), list(columns.values())
    try:
        groups = set(ATTRIBUTES.values()) & {*pd.read_csv(path, nrows=0).columns}
        predictions = pd.read_csv(
            path,
            dtype=dict.fromkeys([*labels, *probabilities], float)
            | dict.fromkeys((*ID_COLUMNS, *groups), str),
            usecols=list(dict.fromkeys([*ID_COLUMNS, *groups, *labels, *probabilities])),
            keep_default_na=False,  # "" means an unknown view, not a missing value
            na_values=dict.fromkeys(labels, "") if isinstance(measured, MeasuredFindings) else None,
        )
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable for you") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not what a run writes: {one_line(error)}; run it again") from error
    predictions[labels] = predictions[labels].fillna(MASKED)
    allowed = (0, 1, MASKED) if isinstance(measured, MeasuredFindings) else (0, 1)
    in_range = predictions[labels].isin(allowed).all(axis=None)
    in_range &= ((predictions[probabilities] >= 0) & (predictions[probabilities] <= 1)).all(axis=None)
    if not in_range or len(predictions) != measured.n:
        raise UserError(
            f"{path}: not what a run writes: expected labels 0 or 1 and probabilities from 0 to 1 for the "
            f"{measured.n} images of results.json; run it again"
        )
    return predictions.astype(dict.fromkeys(labels, int))


def label_columns(measured: MeasuredSplit | MeasuredFindings) -> dict[str, str]:
    """Returns the column of a label -> the column of its probability."""
    if isinstance(measured, MeasuredFindings):
        return {f"{name} label": name for name in measured.findings}
    return {"label": "probability"}


def arrays(predictions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Returns the labels and probabilities of one label, (N,) each."""
    return predictions["label"].to_numpy(), predictions["probability"].to_numpy(dtype=float)


def finding_arrays(predictions: pd.DataFrame, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the labels and probabilities of several labels, (N, K) each."""
    labels = predictions[[f"{name} label" for name in names]].to_numpy()
    return labels, predictions[list(names)].to_numpy(dtype=float)


def group_names(predictions: pd.DataFrame) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each attribute that the predictions have, and the group of each row, (N,)."""
    for attribute, column in ATTRIBUTES.items():
        if column in predictions:
            yield attribute, predictions[column].replace("", UNKNOWN).to_numpy()


def count_images(predictions: pd.DataFrame, level: str) -> str:
    """Returns the numbers of images or studies, of patients and, of one label, of positive ones as text."""
    patients = plural(predictions["subject_id"].nunique(), "patient")
    positive = f", {predictions['label'].sum():,} positive" if "label" in predictions else ""
    return f"{plural(len(predictions), level)} of {patients}{positive}"
