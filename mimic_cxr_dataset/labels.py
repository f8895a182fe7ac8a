"""Labels each image by the label rules, or says why it is left out."""

from pathlib import Path

import numpy as np
import pandas as pd

from .choices import BINARY_TASKS
from .choices import CHOICES
from .choices import DEFAULTS
from .choices import FINDINGS
from .choices import VIEWS
from .errors import DatasetError
from .tables import PATIENT_IDS
from .tables import SPLITS
from .tables import find_csv
from .tables import parse_ids
from .tables import parse_numbers
from .tables import published_paths
from .tables import read_csv
from .tables import read_images
from .tables import reject

# Why an image is left out. If several reasons hold, the image counts under the first one.
TABLE_REASONS = ("view", "no label row", "uncertain", "other labels")
MISSING_FILE, DAMAGED_FILE = "missing file", "damaged file"
REASONS = (*TABLE_REASONS, MISSING_FILE, DAMAGED_FILE)
# A study's outcome is its label (0 or 1) or one of these.
NO_LABEL_ROW, UNCERTAIN, OTHER_LABELS = -1, -2, -3


def read_labels(
    data_dir: str | Path, labeler: str, columns: list[str], *, images: pd.DataFrame
) -> pd.DataFrame:
    """Returns one row per study: subject_id, study_id, and `columns` as 1, 0, -1 or NaN.

    Raises DatasetError for other values, and for a study whose patient is not that of its `images`.
    """
    path = find_csv(data_dir, labeler)
    table = parse_ids(path, read_csv(path, [*PATIENT_IDS, *columns]))
    reject(table["study_id"].duplicated(), path, table["study_id"], "one row per study")
    patient = table["study_id"].map(images.drop_duplicates("study_id").set_index("study_id")["subject_id"])
    is_other = patient.notna() & (patient != table["subject_id"])  # NaN: the study has no images
    reject(is_other, path, table["subject_id"], "the patient of the study's images")
    for column in columns:
        codes, texts = pd.factorize(table[column])  # a few distinct texts: parsing each once saves seconds
        numbers = parse_numbers(pd.Series(texts))
        bad = ~np.isin(numbers, (1, 0, -1)) & (pd.Series(texts).str.strip() != "").to_numpy()
        reject(bad[codes], path, table[column], "1.0, 0.0, -1.0 or blank")
        table[column] = numbers[codes].astype("float32")
    return table


def decide_outcomes(labels: pd.DataFrame, *, task: str, uncertain: str) -> np.ndarray:
    """Returns the outcome of each study: label 0 or 1, UNCERTAIN or OTHER_LABELS."""
    present, unsure = labels == 1, labels == -1
    if uncertain == "positive":
        present |= unsure
    elif uncertain == "negative":
        unsure[:] = False
    if task == "finding":
        return np.select([present.any(axis=1), unsure.any(axis=1)], [1, UNCERTAIN], default=0)
    finding = BINARY_TASKS[task][1]
    rules = [present[finding], unsure[finding], labels["No Finding"] == 1]
    return np.select(rules, [1, UNCERTAIN, 0], default=OTHER_LABELS)


def index_images(
    data_dir: str | Path,
    *,
    task: str = DEFAULTS["task"],
    labeler: str = DEFAULTS["labeler"],
    view: str = DEFAULTS["view"],
    uncertain: str = DEFAULTS["uncertain"],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Labels every image from the tables alone, without looking at image files.

    Returns the kept images in the order of the metadata table (dicom_id, subject_id, study_id, view_position,
    split, label, path), and the exclusion table: one row per split, columns "images", REASONS and "kept".
    """
    options = {"task": task, "labeler": labeler, "view": view, "uncertain": uncertain}
    check_options(**options)
    return label_images(read_images(data_dir), data_dir, **options)


def label_images(
    images: pd.DataFrame, data_dir: str | Path, *, task: str, labeler: str, view: str, uncertain: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Labels the images of `read_images`, as `index_images` does; the options must be valid."""
    columns = list(FINDINGS) if task == "finding" else list(BINARY_TASKS[task])
    labels = read_labels(data_dir, labeler, columns, images=images)
    labels["outcome"] = decide_outcomes(labels[columns], task=task, uncertain=uncertain)
    images = images.merge(labels[[*PATIENT_IDS, "outcome"]], how="left", on=list(PATIENT_IDS))
    outcome = images.pop("outcome").fillna(NO_LABEL_ROW).to_numpy(dtype="int64")
    in_view = np.full(len(images), True)
    if VIEWS[view] is not None:
        in_view = images["view_position"].isin(VIEWS[view]).to_numpy(dtype=bool)

    rules = [~in_view, outcome == NO_LABEL_ROW, outcome == UNCERTAIN, outcome == OTHER_LABELS]
    fate = np.select(rules, TABLE_REASONS, default="kept")
    exclusions = pd.crosstab(images["split"].to_numpy(), fate)
    exclusions = exclusions.reindex(index=list(SPLITS.values()), columns=[*REASONS, "kept"], fill_value=0)
    exclusions.insert(0, "images", exclusions.sum(axis=1))
    exclusions = exclusions.rename_axis(index=None, columns=None)
    kept = images[fate == "kept"].assign(label=outcome[fate == "kept"])
    return kept.assign(path=published_paths(kept, data_dir)), exclusions


def format_exclusions(exclusions: pd.DataFrame) -> str:
    """Returns the exclusion table as aligned text with a line of totals."""
    table = pd.concat([exclusions, exclusions.sum().rename("total").to_frame().T])
    return table.map("{:,}".format).to_string(col_space=8)


def check_options(**options: str) -> None:
    for name, value in options.items():
        if value not in CHOICES[name]:
            expected = " or ".join(map(repr, CHOICES[name]))
            raise DatasetError(f"{name}={value!r} is unknown: expected {expected}.")
