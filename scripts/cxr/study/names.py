"""Names the tables and the rows of a report, and says numbers in words."""

import dataclasses
import hashlib
import re
from collections.abc import Iterable
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr.choices import BINARY_TASKS
from cxr.choices import CHEXPERT5
from cxr.choices import DATASET_DEFAULTS
from cxr.choices import EVALUATION_LEVELS
from cxr.choices import LABEL_OPTIONS
from cxr.choices import LABELS
from cxr.choices import MULTI_LABEL
from cxr.choices import RECIPES
from mimic_cxr_dataset.label_rule import LabelRule

LONGEST_SLUG = 100  # letters: a slug is a part of a file's name


def labels_in_words(options: Mapping[str, Any], *, has_labeler: bool = True) -> str:
    """Returns the labeler, and how uncertain and blank labels count; `options` are flags or results.

    The labels of a manifest have no labeler.
    """
    words = f"{options['labeler']}, " * has_labeler + f"uncertain {options['uncertain']}"
    blank = options.get("blank", DATASET_DEFAULTS["blank"])
    return words + f", blank {blank}" * (blank != DATASET_DEFAULTS["blank"])


DEFAULT_LABELS = labels_in_words(LABEL_OPTIONS)


@dataclass(frozen=True, order=True)
class TableName:
    """What the rows of a table have in common."""

    task: str
    view: str
    training_mode: str
    labels: str  # the labeler, if there is one, and how uncertain and blank labels count
    split: str
    size: str  # "all" or a number
    findings: tuple[str, ...] = ()  # the labels of a task with several
    evaluation_level: str = EVALUATION_LEVELS[0]

    def order(self) -> tuple:
        """Returns the sort key of tables, small training sizes first."""
        size = float("inf" if self.size == "all" else self.size)
        return self.task, self.findings, self.view, self.training_mode, size

    @property
    def is_multi_label(self) -> bool:
        return self.task == MULTI_LABEL

    @property
    def question(self) -> str:
        """Returns the task in words."""
        return task_in_words(self.task, self.findings)

    @property
    def title(self) -> str:
        sizes = {"": [], "all": ["all training images"]}
        parts = [self.question]
        parts += sizes[self.size] if self.size in sizes else [plural(int(self.size), "training image")]
        return ", ".join([*parts, f"{self.view} views", *self.unusual(), f"{self.split} split"])

    @property
    def of_any_size(self) -> "TableName":
        return dataclasses.replace(self, size="")

    @property
    def slug(self) -> str:
        split = [self.split] * (self.split != "test")
        learned = [self.question] * (self.is_multi_label and self.findings != LABELS)
        parts = [self.task, *learned, *[self.view] * (self.view != "frontal"), *self.unusual(), *split]
        words = "-".join(parts)
        slug = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
        if len(slug) > LONGEST_SLUG or not words.isascii():
            slug = f"{slug[:LONGEST_SLUG]}-{hashlib.sha256(words.encode()).hexdigest()[:8]}"
        return "-".join([slug, *[self.size] * bool(self.size)])

    def unusual(self) -> list[str]:
        mode = ["last layer only"] * (self.training_mode == "last_layer")
        level = [f"by {self.evaluation_level}"] * (self.evaluation_level != EVALUATION_LEVELS[0])
        return mode + [self.labels] * (self.labels != DEFAULT_LABELS) + level


def labels_of(
    task: str, findings: Iterable[str] | None, collection: Iterable[str] | None = None
) -> tuple[str, ...]:
    """Returns the labels that a model with several of them learns, () for other tasks.

    `collection` are the labels of a manifest, None for MIMIC-CXR-JPG.
    """
    if task != MULTI_LABEL:
        return ()
    collection = None if collection is None else tuple(collection)
    return LabelRule(task=task, findings=findings and tuple(findings), collection=collection).label_names


def task_in_words(task: str, findings: tuple[str, ...]) -> str:
    """Returns the question that a classifier answers; `findings` are the labels of a task with several."""
    if task != MULTI_LABEL:
        return " vs ".join(reversed(BINARY_TASKS.get(task, (task,))))
    if findings == LABELS:
        return f"{len(LABELS)} labels at once"
    if findings == CHEXPERT5:
        return f"{len(CHEXPERT5)} labels of CheXpert"
    others = [name for name in LABELS if name not in findings]
    is_most = len(findings) > len(others) and {*findings} <= {*LABELS}
    named = f"all but {', '.join(others)}" if is_most else ", ".join(findings)
    return f"{plural(len(findings), 'label')} ({named})"


@dataclass(frozen=True, order=True)
class RowName:
    """The first three columns of a row, as in the paper."""

    model: str
    augmentation: str
    masking: float
    masking_kind: str
    setup: str = ""  # flags that distinguish it from a row that is otherwise equal
    recipe: str = RECIPES[0]

    @property
    def augmented(self) -> str:
        return "not augmented" if self.augmentation == "none" else f"augmented ({self.augmentation})"

    @property
    def masked(self) -> str:
        erased = " erased" * (self.masking_kind == "erasing")
        return f"{self.masking:.3f}".removesuffix("0") + erased if self.masking else ""

    @property
    def share_masked(self) -> str:
        """Returns the masking as a phrase for a sentence."""
        verb = {"patches": "masked", "erasing": "erased"}[self.masking_kind]
        return f"{100 * self.masking:.3g}% {verb}" if self.masking else "nothing masked"

    @property
    def remark(self) -> str:
        """Returns what is said below the model's name in a table; the paper's recipe goes without saying."""
        named = [f"recipe {self.recipe}"] * (self.recipe != RECIPES[0])
        return ", ".join([*named, *[self.setup] * bool(self.setup)])

    def label(self, others: Iterable["RowName"]) -> str:
        """Returns the name for sentences and legends, without what all `others` share."""
        others = list(others)
        parts = [self.model]
        parts += [f"recipe {self.recipe}"] * any(other.recipe != self.recipe for other in others)
        parts += [self.augmented] * any(other.augmentation != self.augmentation for other in others)
        parts += [self.share_masked] * bool(self.masking)
        return ", ".join([*parts, *[self.setup] * bool(self.setup)])


def names_of_folders(models: Iterable[str]) -> dict[str, str]:
    """Returns names for models given by an absolute path: the folders of their runs, if these differ."""
    folders = {model: Path(model) for model in models if Path(model).is_absolute()}
    folders = {model: path.parent if path.name == "model" else path for model, path in folders.items()}
    if len({path.name for path in folders.values()}) == len(folders):
        return {model: path.name for model, path in folders.items()}
    return {model: path.as_posix() for model, path in folders.items()}


def plural(number: int, noun: str) -> str:
    nouns = f"{noun.removesuffix('y')}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else nouns}"


def format_number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
