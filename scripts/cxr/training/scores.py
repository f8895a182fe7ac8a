"""Measures a classifier on a split: metrics with intervals, a table of predictions, and figures."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from cxr.choices import MASKED
from cxr.data.images import LabelledImages
from cxr.evaluation import findings
from cxr.evaluation import intervals
from cxr.evaluation import metrics
from cxr.evaluation import plots
from cxr.models import heads
from cxr.run_folder.record import RunRecord

ID_COLUMNS = ("dicom_id", "subject_id", "study_id", "view_position")
SEVERAL_VIEWS = "several"


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
                self.labels, self.probabilities, self.names, thresholds=thresholds, split=self.split
            )
        return metrics.classification_metrics(
            self.labels, self.probabilities, chosen_threshold=thresholds[0], split=self.split
        )

    def table(self) -> pd.DataFrame:
        """Returns the table of predictions; with several labels, a finding's column is its probability."""
        table = self.rows.reset_index(drop=True)
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
    logits, labels, rows = logits.numpy(), labels.numpy().astype("int64"), images.rows[[*ID_COLUMNS]]
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
    of_study = rows.iloc[first].assign(
        dicom_id=grouped["dicom_id"].agg(";".join).to_numpy(),
        view_position=grouped["view_position"].agg(_same_or_several).to_numpy(),
    )
    return sums / np.bincount(study)[:, None], labels[first], of_study


def _same_or_several(views: pd.Series) -> str:
    return views.iloc[0] if views.nunique() == 1 else SEVERAL_VIEWS


def measure_fully(scores: Scores, thresholds: list[float], record: RunRecord, *, name: str) -> dict[str, Any]:
    """Returns the metrics with intervals; writes the predictions and the figures, with `name` in theirs."""
    found = scores.measure(thresholds)
    if scores.is_multi_label:
        findings.add_intervals(found, scores.labels, scores.probabilities, scores.rows["subject_id"])
    else:
        found["intervals"] = intervals.patient_intervals(
            scores.labels, scores.probabilities, scores.rows["subject_id"], threshold=found["threshold"]
        )
    record.write_predictions(f"predictions_{name}.csv", scores.table())
    draw_figures(scores, found, record, name=name)
    return found


def draw_figures(scores: Scores, found: dict[str, Any], record: RunRecord, *, name: str) -> None:
    folder, labels, probabilities = record.output_dir, scores.labels, scores.probabilities
    if scores.is_multi_label:
        title = f"{scores.split}, n = {len(labels):,}"
        plots.plot_finding_rocs(labels, probabilities, scores.names, folder / f"roc_{name}.png", title=title)
        plots.plot_finding_bars(found, folder / f"auroc_{name}.png", title=title)
        return
    title = f"{scores.names[1]} on {scores.split}, n = {len(labels):,}"
    if found["auroc"] is not None:
        path = folder / f"roc_pr_{name}.png"
        plots.plot_roc_and_precision_recall(labels, probabilities, path, title=title)
    thresholds = {"fixed": 0.5, "chosen on validation": found["at_chosen_threshold"]["threshold"]}
    path = folder / f"confusion_matrix_{name}.png"
    plots.plot_confusion_matrix(
        labels, probabilities, path, thresholds=thresholds, names=scores.names, title=title
    )
