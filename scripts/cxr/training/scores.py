"""Measures a classifier on a split: metrics with intervals, a table of predictions, and figures."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from cxr.choices import MASKED
from cxr.data.images import GROUP_COLUMNS
from cxr.data.images import RADIOLOGIST
from cxr.data.images import LabelledImages
from cxr.data.radiologist import Opinions
from cxr.evaluation import findings
from cxr.evaluation import intervals
from cxr.evaluation import metrics
from cxr.evaluation import plots
from cxr.evaluation.agreement import agreement
from cxr.evaluation.group_plots import plot_groups
from cxr.evaluation.subgroups import MACRO
from cxr.evaluation.subgroups import UNKNOWN
from cxr.evaluation.subgroups import measure_groups
from cxr.evaluation.subgroups import measure_groups_of_findings
from cxr.evaluation.subgroups import projection_auroc
from cxr.models import heads
from cxr.run_folder.record import RunRecord

ID_COLUMNS = ("dicom_id", "subject_id", "study_id", "view_position")
ATTRIBUTES = ("scanner", "sex", "age", "race")
SEVERAL = "several"  # of a study whose images differ


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The labels of a split and what a classifier says, one row per image or per study.

    One label: `labels` and `probabilities` (N,); `names` are those of label 0 and label 1. Several labels:
    (N, K), of which some are MASKED, and a name for each. `rows` has ID_COLUMNS.
    """

    split: str
    names: tuple[str, ...]
    rows: pd.DataFrame
    labels: np.ndarray
    probabilities: np.ndarray

    @property
    def is_multi_label(self) -> bool:
        return self.labels.ndim == 2

    def choose_thresholds(self) -> list[float]:
        """Returns the threshold of each label with the highest Youden's J on this split."""
        if self.is_multi_label:
            return findings.choose_thresholds(self.labels, self.probabilities)
        return [metrics.choose_threshold(self.labels, self.probabilities)]

    def measure(self, thresholds: list[float]) -> dict[str, Any]:
        """Returns the metrics of the split, without intervals; `thresholds` were chosen on validation."""
        if self.is_multi_label:
            return findings.finding_metrics(
                self.labels, self.probabilities, self.names, thresholds=thresholds
            )
        return metrics.classification_metrics(
            self.labels, self.probabilities, chosen_threshold=thresholds[0], split=self.split
        )

    @property
    def groups(self) -> dict[str, np.ndarray]:
        """Returns the group of each row by attribute: view and, where known, scanner, sex, age and race."""
        views = self.rows["view_position"].replace("", UNKNOWN).to_numpy()
        known = [name for name in ATTRIBUTES if name in self.rows]
        return {"view": views} | {name: self.rows[name].to_numpy() for name in known}

    @property
    def num_unknown(self) -> int | None:
        """Returns the number of patients without a row in MIMIC-IV; None if it was not read."""
        if "is_known_patient" not in self.rows:
            return None
        return self.rows.loc[~self.rows["is_known_patient"], "subject_id"].nunique()

    def table(self) -> pd.DataFrame:
        """Returns the table of predictions; with several labels, a finding's column is its probability."""
        table = self.rows.drop(columns="is_known_patient", errors="ignore").reset_index(drop=True)
        if not self.is_multi_label:
            return table.assign(label=self.labels, probability=self.probabilities)
        labels = pd.DataFrame(self.labels).astype("Int64").mask(self.labels == MASKED)  # blank in the CSV
        for number, name in enumerate(self.names):
            table[name], table[f"{name} label"] = self.probabilities[:, number], labels[number]
        return table


def make_scores(
    logits: torch.Tensor, labels: torch.Tensor, images: LabelledImages, *, level: str, split: str
) -> Scores:
    """Returns the probabilities of `images`, by image or by study, from their logits (N, C) in order."""
    columns = [*ID_COLUMNS, *(name for name in GROUP_COLUMNS if name in images.rows)]
    logits, labels, rows = logits.numpy(), labels.numpy().astype("int64"), images.rows[columns]
    if level == "study":
        logits, labels, rows = mean_by_study(logits, labels, rows)
    probabilities = heads.probabilities(torch.from_numpy(logits), multi_label=images.is_multi_label)
    return Scores(
        split=split,
        names=images.label_names,
        rows=rows,
        labels=labels,
        probabilities=probabilities.numpy(),
    )


def mean_by_study(
    logits: np.ndarray, labels: np.ndarray, rows: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Averages the logits (N, C) of a study's images; returns logits, labels and rows per study."""
    _, first, study = np.unique(rows["study_id"], return_index=True, return_inverse=True)
    sums = np.zeros((len(first), logits.shape[1]))
    np.add.at(sums, study, logits)
    grouped = rows.reset_index(drop=True).groupby(study)
    mixed = [name for name in ("view_position", "scanner") if name in rows]
    of_study = rows.iloc[first].assign(
        dicom_id=grouped["dicom_id"].agg(";".join).to_numpy(),
        **{name: grouped[name].agg(_same_or_several).to_numpy() for name in mixed},
    )
    return sums / np.bincount(study)[:, None], labels[first], of_study


def _same_or_several(values: pd.Series) -> str:
    return values.iloc[0] if values.nunique() == 1 else SEVERAL


@dataclass(frozen=True, kw_only=True)
class Measurer:
    """What the measurements of all splits share: thresholds from validation, training images, the run."""

    thresholds: dict[str, list[float]]  # by evaluation level
    train_images: LabelledImages
    record: RunRecord

    def measure(self, scores: Scores, *, level: str, name: str) -> dict[str, Any]:
        """Returns the metrics with intervals; writes predictions and figures whose files end in `name`."""
        found = scores.measure(self.thresholds[level])
        if scores.is_multi_label:
            findings.warn_left_out(found, split=scores.split)
            findings.add_intervals(found, scores.labels, scores.probabilities, scores.rows["subject_id"])
        else:
            found["intervals"] = intervals.patient_intervals(
                scores.labels, scores.probabilities, scores.rows["subject_id"], threshold=found["threshold"]
            )
        self._add_projection(found, scores)
        groups, gaps = self._measure_groups(scores, self.thresholds[level])
        found["subgroups"] = {"groups": groups, "gaps": gaps, "num_patients_unknown": scores.num_unknown}
        self.record.write_predictions(f"predictions_{name}.csv", scores.table())
        draw_figures(scores, found, self.record, name=name)
        return found

    def measure_against_radiologist(
        self, by_level: dict[str, Scores], opinions: Opinions, *, loss: float
    ) -> dict[str, Any]:
        """Returns the fields of `AgainstRadiologist`; `by_level` are the scores by image and by study."""
        agreed = {
            labeler: agreement(opinions.radiologist, labels, opinions.names, opinions.subject_ids)
            for labeler, labels in opinions.labelers.items()
        }
        names = {"image": RADIOLOGIST, "study": f"{RADIOLOGIST}_study"}
        return {
            "num_studies": len(opinions.subject_ids),
            "num_changed_by_devices": opinions.num_changed_by_devices,
            "agreement": agreed,
            **{
                level: {"loss": loss, **self.measure(scores, level=level, name=names[level])}
                for level, scores in by_level.items()
            },
        }

    def _add_projection(self, found: dict[str, Any], scores: Scores) -> None:
        """Adds how well the view alone predicts each label, and the mean over findings."""
        train, views = self.train_images, scores.rows["view_position"].to_numpy()
        train_views = train.rows["view_position"].to_numpy()
        if not scores.is_multi_label:
            found["projection_auroc"] = projection_auroc(
                scores.labels, views, train_labels=train.labels, train_views=train_views
            )
            return
        for number, of_finding in enumerate(found["findings"].values()):
            labels, train_labels = scores.labels[:, number], train.labels[:, number]
            known, is_plain = labels != MASKED, np.isin(train_labels, (0, 1))
            of_finding["projection_auroc"] = projection_auroc(
                labels[known],
                views[known],
                train_labels=train_labels[is_plain],
                train_views=train_views[is_plain],
            )
        counted = found["findings"].keys() - set(found["left_out"])
        aurocs = [found["findings"][name]["projection_auroc"] for name in sorted(counted)]
        found["projection_auroc"] = float(np.mean(aurocs)) if aurocs and None not in aurocs else None

    def _measure_groups(self, scores: Scores, thresholds: list[float]) -> tuple[list[dict], list[dict]]:
        subjects, groups = scores.rows["subject_id"], scores.groups
        if scores.is_multi_label:
            return measure_groups_of_findings(
                scores.labels,
                scores.probabilities,
                subjects,
                groups,
                names=scores.names,
                thresholds=thresholds,
            )
        return measure_groups(
            scores.labels,
            scores.probabilities,
            subjects,
            groups,
            threshold=thresholds[0],
            finding=scores.names[1],
        )


def draw_figures(scores: Scores, found: dict[str, Any], record: RunRecord, *, name: str) -> None:
    folder, labels, probabilities = record.output_dir, scores.labels, scores.probabilities
    of_all = "all findings" if scores.is_multi_label else scores.names[1]
    title = f"{of_all} on {scores.split}, n = {len(labels):,}"
    finding = MACRO if scores.is_multi_label else scores.names[1]
    groups = [group for group in found["subgroups"]["groups"] if group["finding"] == finding]
    plot_groups(groups, folder / f"groups_{name}.png", title=title, overall=found["auroc"])
    if scores.is_multi_label:
        plots.plot_finding_rocs(labels, probabilities, scores.names, folder / f"roc_{name}.png", title=title)
        plots.plot_finding_bars(found, folder / f"auroc_{name}.png", title=title)
        return
    if found["auroc"] is not None:
        path = folder / f"roc_pr_{name}.png"
        plots.plot_roc_and_precision_recall(labels, probabilities, path, title=title)
    thresholds = {"fixed": 0.5, "chosen on validation": found["at_chosen_threshold"]["threshold"]}
    path = folder / f"confusion_matrix_{name}.png"
    plots.plot_confusion_matrix(
        labels, probabilities, path, thresholds=thresholds, names=scores.names, title=title
    )
