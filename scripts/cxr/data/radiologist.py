"""Compares two readers of the same reports: the labelers, and the radiologist of MIMIC-CXR-JPG 2.1.0."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cxr.choices import FINDINGS
from cxr.choices import LABELERS
from cxr.choices import LABELS
from cxr.choices import MASKED
from cxr.choices import MULTI_LABEL
from cxr.choices import SMOOTH
from cxr.data.images import user_errors
from cxr.data.sources import make_sample_data_once
from mimic_cxr_dataset.label_rule import LabelRule
from mimic_cxr_dataset.labels import label_studies
from mimic_cxr_dataset.labels import read_labels
from mimic_cxr_dataset.labels import read_radiologist
from mimic_cxr_dataset.tables import locate_csv
from mimic_cxr_dataset.tables import read_images


@dataclass(frozen=True, kw_only=True)
class Opinions:
    """The labels of the radiologist's studies: arrays (N, K) of 1, 0 or MASKED, a column per name."""

    names: tuple[str, ...]
    subject_ids: np.ndarray  # (N,)
    radiologist: np.ndarray
    labelers: dict[str, np.ndarray]
    num_changed_by_devices: int  # No Finding to the radiologist, but with a device, which is a finding


def read_opinions(data_dir: Path | None, rule: LabelRule) -> Opinions:
    """Reads what the radiologist and the labelers said, by a label rule. Raises UserError."""
    data_dir = data_dir or make_sample_data_once()
    with user_errors():
        images = read_images(data_dir)
        table = read_radiologist(data_dir, images=images)
        of_labelers = {
            labeler: read_labels(data_dir, labeler, list(LABELS), images=images)
            for labeler in LABELERS
            if locate_csv(data_dir, labeler)
        }
    names = rule.label_names if rule.task == MULTI_LABEL else rule.label_names[1:]
    studies = table["study_id"]
    others = [name for name in FINDINGS if name != "Support Devices"]
    only_devices = (table["Support Devices"] == 1) & ~(table[others] == 1).any(axis=1)
    return Opinions(
        names=names,
        subject_ids=table["subject_id"].to_numpy(),
        radiologist=_codes(table, rule, studies),
        labelers={labeler: _codes(labels, rule, studies) for labeler, labels in of_labelers.items()},
        num_changed_by_devices=int((only_devices & (table["No Finding"] == 1)).sum()),
    )


def _codes(labels: pd.DataFrame, rule: LabelRule, studies: pd.Series) -> np.ndarray:
    """Returns the codes (N, K) of `studies`; a study without a row is MASKED."""
    of_study = label_studies(labels, rule).set_index("study_id")
    columns = list(rule.label_names) if rule.task == MULTI_LABEL else ["outcome"]
    codes = of_study[columns].reindex(studies, fill_value=MASKED).to_numpy().astype("int64")
    return np.where(codes == SMOOTH, 1, np.maximum(codes, MASKED))  # reasons to leave out are below MASKED
