"""A model that is evaluated: the classifier, and what its folder says about its training."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import ModelCard

from cxr.choices import BINARY_TASKS
from cxr.choices import DATASET_DEFAULTS
from cxr.choices import EVALUATION_LEVELS
from cxr.choices import MULTI_LABEL
from cxr.errors import UserError
from cxr.inference.classifier import Classifier
from cxr.inference.classifier import load_classifier
from cxr.models import pretrained
from cxr.run_folder.measured import MeasuredFindings
from cxr.run_folder.model_fields import ModelFields
from cxr.run_folder.model_fields import Stage
from cxr.run_folder.record import Arguments
from cxr.run_folder.record import ClassificationResults
from cxr.run_folder.record import read_results
from cxr.study.predictions import arrays
from cxr.study.predictions import finding_arrays
from cxr.study.predictions import read_predictions
from cxr.training.scores import ID_COLUMNS
from cxr.training.scores import Scores

RULE_FLAGS = ("labeler", "uncertain", "blank")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A classifier and what is known about its training."""

    name: str  # as given by the user
    classifier: Classifier
    task: str
    known: dict[str, str]  # RULE_FLAGS, view and evaluation_level, as far as they are recorded
    history: list[Stage]  # all trainings of its weights, the oldest first
    run: Path | None  # the run folder that the model is in
    measured: dict[str, Scores]  # what it predicted in its own run: test, validation, as far as it is there
    card: dict[tuple[str, str], float]  # (split, metric) -> the value on the card

    @property
    def is_of_manifest(self) -> bool:
        """Returns whether the model is known to have learned the labels of a manifest, without a labeler."""
        return "uncertain" in self.known and "labeler" not in self.known

    def options(self) -> dict[str, str]:
        """Returns the model's own label rule and level; what is not recorded has the default."""
        defaults = {name: DATASET_DEFAULTS[name] for name in (*RULE_FLAGS, "view")}
        return defaults | {"evaluation_level": EVALUATION_LEVELS[0]} | self.known


def load_subject(name: str, *, device: str, hub_dir: Path | None, revision: str) -> Subject:
    """Loads a model by its folder or name. Raises UserError if it is no classifier of a task known here."""
    source = {"hub_dir": hub_dir, "revision": revision}
    classifier = load_classifier(name, device=device, **source)
    source["hub_dir"] = pretrained.download(name, **source)
    fields = ModelFields.of(pretrained.read_config(name, **source), where=f"model {name}: config.json")
    known = fields.trained_labels.model_dump(exclude_none=True) if fields.trained_labels else {}
    run = Path(name).parent if Path(name).is_dir() and (Path(name).parent / "args.json").is_file() else None
    if run is not None:
        args = Arguments.read(run / "args.json")
        known = {flag: getattr(args, flag) for flag in (*RULE_FLAGS, "evaluation_level")}
        if args.origin.labels is not None:  # those of a manifest
            del known["labeler"]
    if fields.trained_view is not None:
        known["view"] = fields.trained_view
    return Subject(
        name=name,
        classifier=classifier,
        task=find_task(classifier),
        known=known,
        history=fields.training_history,
        run=run,
        measured=read_measured(run, classifier.labels),
        card=read_card(pretrained.find_file(name, "README.md", **source)),
    )


def find_task(classifier: Classifier) -> str:
    """Returns the task whose labels a classifier has. Raises UserError if there is none."""
    if classifier.is_multi_label:
        return MULTI_LABEL
    for task, labels in BINARY_TASKS.items():
        if labels == classifier.labels:
            return task
    expected = " or ".join(" and ".join(labels) for labels in BINARY_TASKS.values())
    raise UserError(
        f"model {classifier.name}: found the labels {' and '.join(classifier.labels)[:200]}, expected "
        f"{expected}, or several labels: correct id2label in its config.json if these are its labels"
    )


def read_card(path: Path | None) -> dict[tuple[str, str], float]:
    """Returns the figures, from 0 to 1, in the metadata of a model card; {} if there are none."""
    if path is None:
        return {}
    try:
        results = ModelCard.load(path, ignore_metadata_errors=True).data.eval_results or []
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # not our card
        return {}
    ours = {"roc_auc": "auroc", "average_precision": "average_precision"}
    return {
        (one.dataset_split, ours[one.metric_type]): float(one.metric_value)
        for one in results
        if one.metric_type in ours and one.dataset_split
        if isinstance(one.metric_value, int | float) and 0 <= one.metric_value <= 1  # not in percent
    }


def read_measured(run: Path | None, labels: tuple[str, ...]) -> dict[str, Scores]:
    """Returns what a model with these labels predicted in its own run, by split, the test first.

    A split is left out if it was not measured, or if its table of predictions cannot be read any more.
    """
    results = read_results(run) if run else None
    if not isinstance(results, ClassificationResults):
        return {}
    found = {}
    for split in ("test", "validation"):
        path, measured = run / f"predictions_{split}.csv", getattr(results, split)
        if measured is not None and os.access(path, os.R_OK):  # private: not of another user
            found[split] = as_scores(read_predictions(path, measured), measured, labels, split=split)
    return found


def as_scores(predictions: pd.DataFrame, measured: Any, labels: tuple[str, ...], *, split: str) -> Scores:
    if isinstance(measured, MeasuredFindings):
        names = tuple(measured.findings)
        values, probabilities = finding_arrays(predictions, names)
    else:
        names = labels
        values, probabilities = arrays(predictions)
    rows = predictions[[name for name in ID_COLUMNS if name in predictions]]
    return Scores(split=split, names=names, rows=rows, labels=values, probabilities=probabilities)
