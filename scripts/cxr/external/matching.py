"""Matches a model and a folder: which labels both have, by which rule, and how images are prepared."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms import v2

from cxr.choices import FINDINGS
from cxr.choices import LABELS
from cxr.choices import MULTI_LABEL
from cxr.data.images import user_errors
from cxr.data.transforms import evaluation_transform
from cxr.errors import UserError
from cxr.external.subject import RULE_FLAGS
from cxr.external.subject import Subject
from mimic_cxr_dataset.errors import DatasetError
from mimic_cxr_dataset.gray_levels import equalize
from mimic_cxr_dataset.label_rule import LabelRule
from mimic_cxr_dataset.labels import labels_of_collection


@dataclass(frozen=True, kw_only=True)
class Match:
    """The label rule by which a model is measured on a folder, and what a reader must know about it."""

    rule: LabelRule
    labeler: str | None  # None: the labels are those of a manifest
    level: str
    notes: list[str]


def match(subject: Subject, data_dir: Path, chosen: dict[str, Any]) -> Match:
    """Returns the model's own rule for the labels that the folder has too.

    `chosen` are the flags that replace parts of it; None keeps the model's own. Raises UserError if the
    folder has none of the model's labels.
    """
    with user_errors():
        of_manifest = labels_of_collection(data_dir)
    columns = LABELS if of_manifest is None else of_manifest
    wanted = subject.classifier.findings if subject.task != "finding" else FINDINGS
    common = tuple(name for name in wanted if name in columns)
    if not common and subject.task == "finding":  # any finding counts, also one that has another name
        common = tuple(name for name in columns if name != "No Finding")
    if not common:
        raise UserError(
            f"model {subject.name} and --data_dir {data_dir}: found no label that both have; the model has "
            f"{', '.join(wanted)[:300]}, the folder {', '.join(columns)[:300] or 'none'}: name others"
        )
    own = subject.options()
    options = own | {name: value for name, value in chosen.items() if value is not None}
    is_multi_label, unused = subject.task == MULTI_LABEL, {}
    if of_manifest is not None:
        unused["labeler"] = "the folder has a manifest, whose labels have no labeler"
    if not is_multi_label:
        unused["blank"] = "the model has one label only"
    options = {name: value for name, value in options.items() if name not in unused}
    notes = _notes_on_rule(subject, own, options)
    notes += [f"--{name} is not used: {why}." for name, why in unused.items() if chosen[name] is not None]
    if of_manifest is not None and "labeler" in subject.known:
        trained = subject.known["labeler"]
        notes.append(
            f"The labels are those of the folder's manifest; the model was trained with those of {trained}."
        )
    if is_multi_label and len(common) < len(wanted):
        missing = ", ".join(name for name in wanted if name not in common)
        notes.append(f"The folder has no labels for {missing}: they are not measured.")
    others = [name for name in columns if name != "No Finding"]
    if subject.task == "finding" and (subject.is_of_manifest or set(others) != set(FINDINGS)):
        notes.append(f"A finding is any of the labels that the folder has: {', '.join(others)}.")
    level = options.pop("evaluation_level")
    if chosen["uncertain"] is None:
        options["uncertain"] = of_columns(options["uncertain"], columns)
    findings = common if is_multi_label else None
    try:
        rule = LabelRule(task=subject.task, findings=findings, collection=of_manifest, **options)
    except DatasetError as error:  # of a flag, or of what the model's config.json says
        where = "--" if chosen["uncertain"] is not None else f"model {subject.name}: its label rule has "
        raise UserError(f"{where}{error}") from error
    return Match(rule=rule, labeler=options.get("labeler"), level=level, notes=notes)


def of_columns(uncertain: str, columns: tuple[str, ...]) -> str:
    """Returns a model's policies without the findings that a folder lacks, which its rule would refuse."""
    parts = [part.strip() for part in uncertain.split(",")]
    kept = [part for part in parts if part.partition("=")[0].strip() in columns or "=" not in part]
    return ",".join(kept) or "negative"


def _notes_on_rule(subject: Subject, own: dict[str, str], options: dict[str, str]) -> list[str]:
    notes = []
    if unknown := [name for name in (*RULE_FLAGS, "view") if name in options and name not in subject.known]:
        used = ", ".join(f"{name} {options[name]}" for name in unknown)
        why = "The model does not say by which label rule it was trained"
        if subject.is_of_manifest:
            why = "The model was trained on labels of a manifest, which has no labeler"
        notes.append(f"{why}: measured with {used}.")
    for name, value in options.items():
        if name in subject.known and value != own[name]:
            notes.append(f"--{name} {value}: the model was trained with {own[name]}.")
    if not subject.classifier.has_threshold:
        notes.append("The model brought no decision threshold along: 0.5 is used.")
    return notes


# Images -----------------------------------------------------------------------------------------------------


class Equalize(v2.Transform):
    """Equalises the histogram of a gray image, a uint8 tensor (1, H, W)."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(equalize(image[0].numpy()))[None]


def choose_equalizing(subject: Subject, flag: str, *, are_equalized: bool) -> tuple[bool, list[str]]:
    """Returns whether shrunk images are equalised for the model, and what a reader must know about it.

    `are_equalized` is whether those of the folder are already.
    """
    trained = subject.classifier.trained_equalized
    found, expected = ("equalised", "not equalised")[:: 1 if are_equalized else -1]
    equalizes = not are_equalized and (flag == "yes" or (flag == "auto" and trained is True))
    if equalizes:
        said = "The images are not equalised; they are equalised for the model, after shrinking"
        return True, [f"{said}, although those of its training were not." if trained is False else f"{said}."]
    if trained is None:
        return False, [
            f"The model does not say whether its training images were equalised; these are {found}."
        ]
    if trained != are_equalized:
        advice = ' (if it was our reading of DICOM files: "equalized": false in collection.json)'
        return False, [
            f"The images are {found}, those of the training were {expected}{advice * are_equalized}."
        ]
    return False, []


def make_transform(image_size: int, *, equalizes: bool) -> v2.Transform:
    """Returns the transform from a shrunk image to the model's input."""
    resize = evaluation_transform(image_size)
    return v2.Compose([Equalize(), resize]) if equalizes else resize
