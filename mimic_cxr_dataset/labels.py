"""Labels each image by a label rule, or says why it is left out."""

from pathlib import Path

import numpy as np
import pandas as pd

from .choices import BINARY_TASKS
from .choices import LABELS
from .choices import MASKED
from .choices import MULTI_LABEL
from .choices import SMOOTH
from .choices import VIEWS
from .csv_files import PATIENT_IDS
from .csv_files import parse_ids
from .csv_files import parse_values
from .csv_files import read_csv
from .csv_files import reject
from .label_rule import NO_FINDING
from .label_rule import LabelRule
from .manifest import has_manifest
from .manifest import read_label_names
from .manifest import read_manifest_labels
from .tables import SPLITS
from .tables import find_csv
from .tables import locate_csv
from .tables import read_images
from .tables import read_study_splits
from .tables import resolve_root

# Why an image is left out. If several reasons hold, the image counts under the first one.
TABLE_REASONS = ("view", "no label row", "uncertain", "other labels")
MISSING_FILE, DAMAGED_FILE = "missing file", "damaged file"
REASONS = (*TABLE_REASONS, MISSING_FILE, DAMAGED_FILE)
# A study's outcome is its label (0 or 1) or one of these.
NO_LABEL_ROW, UNCERTAIN, OTHER_LABELS = MASKED, -2, -3
RADIOLOGIST_TABLE = "test-set-labeled"
RENAMED = {"Airspace Opacity": "Lung Opacity"}  # columns of the radiologist's table


def read_labels(
    data_dir: str | Path, labeler: str, columns: list[str], *, images: pd.DataFrame
) -> pd.DataFrame:
    """Returns one row per study: subject_id, study_id, and `columns` as 1, 0, -1 or NaN (blank).

    Of a manifest, one row per image with a label, also with dicom_id; the labeler is not used. Raises
    DatasetError for other values, and for a study whose patient is not that of its `images`.
    """
    root = resolve_root(data_dir)
    if has_manifest(root):
        return read_manifest_labels(root, columns)
    path = find_csv(data_dir, labeler)
    table = parse_ids(path, read_csv(path, [*PATIENT_IDS, *columns]))
    reject(table["study_id"].duplicated(), path, table["study_id"], "one row per study")
    patient = table["study_id"].map(images.drop_duplicates("study_id").set_index("study_id")["subject_id"])
    is_other = patient.notna() & (patient != table["subject_id"])  # NaN: the study has no images
    reject(is_other, path, table["subject_id"], "the patient of the study's images")
    return parse_values(path, table, columns)


def labels_of_collection(data_dir: str | Path) -> tuple[str, ...] | None:
    """Returns the label columns of a manifest; None for MIMIC-CXR-JPG, which has LABELS."""
    root = resolve_root(data_dir)
    return read_label_names(root) if has_manifest(root) else None


def read_radiologist(data_dir: str | Path, *, images: pd.DataFrame) -> pd.DataFrame | None:
    """Returns the radiologist's labels of test studies (v2.1.0), as `read_labels`; None without the table.

    The table has no patients: they are those of the split table. Raises DatasetError.
    """
    path = locate_csv(data_dir, RADIOLOGIST_TABLE)
    if path is None:
        return None
    theirs = {ours: name for name, ours in RENAMED.items()}
    columns = [theirs.get(name, name) for name in LABELS]
    table = parse_ids(path, read_csv(path, ["study_id", *columns]))
    reject(table["study_id"].duplicated(), path, table["study_id"], "one row per study")
    studies = read_study_splits(data_dir, images=images)
    split = table["study_id"].map(studies["split"])
    reject(split != "test", path, table["study_id"], "a study of the test split of the split table")
    table["subject_id"] = table["study_id"].map(studies["subject_id"])
    return parse_values(path, table, columns).rename(columns=RENAMED)


def decide_outcomes(labels: pd.DataFrame, rule: LabelRule) -> np.ndarray:
    """Returns the outcome of each study for a binary task: label 0 or 1, UNCERTAIN or OTHER_LABELS."""
    present, unsure = labels == 1, labels == -1
    for finding in labels:
        if rule.policies[finding] == "positive":
            present[finding] |= unsure[finding]
        if rule.policies[finding] != "exclude":
            unsure[finding] = False
    if rule.task == "finding":
        findings = list(rule.all_findings)
        # Only a manifest's labels have this column here; a 0 without a finding is one that has no column.
        is_not_normal = labels[NO_FINDING] == 0 if NO_FINDING in labels else False
        rules = [present[findings].any(axis=1), unsure[findings].any(axis=1), is_not_normal]
        return np.select(rules, [1, UNCERTAIN, OTHER_LABELS], default=0)
    finding = BINARY_TASKS[rule.task][1]
    rules = [present[finding], unsure[finding], labels["No Finding"] == 1]
    return np.select(rules, [1, UNCERTAIN, 0], default=OTHER_LABELS)


def decide_codes(labels: pd.DataFrame, rule: LabelRule) -> pd.DataFrame:
    """Returns the label of each study for each of `rule.label_names`: 1, 0, MASKED or SMOOTH, int8.

    With `blank` "exclude", a blank is MASKED unless the other labels decide it: a finding is 0 where No
    Finding is 1, except Support Devices, which may stand beside it; No Finding is 0 where a finding is 1.
    A No Finding that a manifest lacks decides nothing.
    """
    blank = 0 if rule.blank == "negative" else MASKED
    codes_of = {"negative": 0, "positive": 1, "exclude": MASKED, "smooth": SMOOTH}
    nothing = (labels["No Finding"] == 1) & ("No Finding" in rule.labels)
    something = (labels[list(rule.all_findings)] == 1).any(axis=1)
    codes = {}
    for name in rule.label_names:
        values, uncertain = labels[name], codes_of[rule.policies[name]]
        decided = {"No Finding": something, "Support Devices": False}.get(name, nothing)
        rules = [values == 1, values == 0, values == -1, decided]
        codes[name] = np.select(rules, [1, 0, uncertain, 0], default=blank).astype("int8")
    return pd.DataFrame(codes, index=labels.index)


def label_studies(labels: pd.DataFrame, rule: LabelRule) -> pd.DataFrame:
    """Returns the ids of each row and its `outcome` and, with several labels, a column of codes for each.

    A row is a study or, in a manifest, an image. With several labels, the outcome is 1 if any finding is
    positive; samples are stratified by it.
    """
    ids = labels[ids_of(labels)]
    if rule.task in BINARY_TASKS:
        return ids.assign(outcome=decide_outcomes(labels[rule.columns], rule))
    codes = decide_codes(labels, rule)
    findings = [name for name in codes if name != "No Finding"] or list(codes)
    outcome = codes[findings].isin((1, SMOOTH)).any(axis=1).astype("int64")
    unused = (codes == MASKED).all(axis=1)
    unsure = (labels[list(codes)] == -1).any(axis=1)
    outcome = np.select([unused & unsure, unused], [UNCERTAIN, OTHER_LABELS], default=outcome)
    return ids.assign(outcome=outcome, **codes)


def ids_of(labels: pd.DataFrame) -> list[str]:
    """Returns the columns that say whose labels a row has: a study's or, in a manifest, an image's."""
    return [name for name in ("dicom_id", *PATIENT_IDS) if name in labels]


def index_images(data_dir: str | Path, **options: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Labels every image from the tables alone, without looking at image files.

    `options` are those of LabelRule. Returns the kept images in the order of the metadata table (dicom_id,
    subject_id, study_id, view_position, split, path, label, and the labels of a task with several), and the
    exclusion table: one row per split, columns "images", REASONS and "kept". Images without a label, which
    only a rule with `keeps_unlabelled` keeps, have the label MASKED.
    """
    rule = LabelRule(**{**options, "collection": labels_of_collection(data_dir)})
    images = read_images(data_dir)
    labels = read_labels(data_dir, rule.labeler, rule.columns, images=images)
    return label_images(images, labels, rule)


def label_images(
    images: pd.DataFrame, labels: pd.DataFrame, rule: LabelRule
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Labels the images of `read_images` by the `labels` of `read_labels`, as `index_images` does."""
    images = images.merge(label_studies(labels, rule), how="left", on=ids_of(labels))
    outcome = images.pop("outcome").fillna(NO_LABEL_ROW).to_numpy(dtype="int64")
    in_view = np.full(len(images), True)
    if VIEWS[rule.view] is not None:
        in_view = images["view_position"].isin(VIEWS[rule.view]).to_numpy(dtype=bool)

    keeps_unlabelled = rule.keeps_unlabelled and rule.collection is not None
    no_label_row = (outcome == NO_LABEL_ROW) & (not keeps_unlabelled)
    rules = [~in_view, no_label_row, outcome == UNCERTAIN, outcome == OTHER_LABELS]
    fate = np.select(rules, TABLE_REASONS, default="kept")
    exclusions = pd.crosstab(images["split"].to_numpy(), fate)
    exclusions = exclusions.reindex(index=list(SPLITS.values()), columns=[*REASONS, "kept"], fill_value=0)
    exclusions.insert(0, "images", exclusions.sum(axis=1))
    exclusions = exclusions.rename_axis(index=None, columns=None)
    kept = images[fate == "kept"].assign(label=outcome[fate == "kept"])
    if rule.task == MULTI_LABEL:
        codes = kept[[*rule.label_names]].fillna(MASKED).astype("int8")
        is_soft = (codes == SMOOTH) & (kept[["split"]] != "train").to_numpy()
        kept = kept.assign(**codes.mask(is_soft, 1).astype("int8"))  # an evaluation needs 0 or 1
    return kept, exclusions


def format_exclusions(exclusions: pd.DataFrame) -> str:
    """Returns the exclusion table as aligned text with a line of totals."""
    table = pd.concat([exclusions, exclusions.sum().rename("total").to_frame().T])
    return table.map("{:,}".format).to_string(col_space=8)
