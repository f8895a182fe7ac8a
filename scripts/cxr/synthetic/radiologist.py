"""Labels the test studies of a synthetic sample once more, as a radiologist who does not always agree."""

import pandas as pd

from cxr.choices import FINDINGS
from cxr.choices import LABELS
from cxr.synthetic.plan import RADIOLOGIST
from cxr.synthetic.plan import Study
from cxr.synthetic.plan import random_generator

PUBLISHED_NAMES = {
    "Lung Opacity": "Airspace Opacity"
}  # the other columns are called as in the labelers' tables
VALUES = ("1.0", "0.0", "-1.0", "")
FAINT = 0.7  # strengths are from 0.6 to 1; below 0.5, the finding is drawn so that nobody can be sure
# How likely each of VALUES is, by what was drawn and what the report says. About a third of the studies get
# an uncertain label, as in the published table: 226 of 687.
CHANCES = {
    "clear": (0.94, 0.0, 0.06, 0.0),
    "faint": (0.78, 0.0, 0.14, 0.08),
    "doubtful": (0.1, 0.0, 0.7, 0.2),
    "negated": (0.01, 0.9, 0.02, 0.07),
    "unmentioned": (0.005, 0.01, 0.015, 0.97),
}


def radiologist_table(studies: list[Study], *, seed: int) -> pd.DataFrame:
    """Returns the table of MIMIC-CXR-JPG v2.1.0: a row per test study, study_id and 14 labels as VALUES."""
    rows = [
        {"study_id": study.study_id, **read_study(study, seed=seed)}
        for study in sorted(studies, key=lambda one: one.study_id)
        if study.split == "test"
    ]
    table = pd.DataFrame(rows).rename(columns=PUBLISHED_NAMES)
    return table[["study_id", *sorted(table.columns.drop("study_id"))]]


def read_study(study: Study, *, seed: int) -> dict[str, str]:
    """Returns the labels of a test study. No Finding means that there is nothing at all, devices aside."""
    rng = random_generator(seed, RADIOLOGIST, study.number)
    labels = dict.fromkeys(LABELS, "")
    for finding in FINDINGS:
        labels[finding] = str(rng.choice(VALUES, p=CHANCES[_evidence(study, finding)]))
    if not any(labels[name] in ("1.0", "-1.0") for name in FINDINGS if name != "Support Devices"):
        labels["No Finding"] = "1.0"
    return labels


def _evidence(study: Study, finding: str) -> str:
    """Returns which of CHANCES holds for a finding."""
    strength = study.drawn.get(finding, 0.0)
    if strength > 0.5:
        return "clear" if strength > FAINT else "faint"
    return {"-1.0": "doubtful", "0.0": "negated", "": "unmentioned"}[study.negbio[finding]]
