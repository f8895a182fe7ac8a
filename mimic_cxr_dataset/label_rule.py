"""The label rule: which images have which label. Its options are checked here, once."""

import difflib
from dataclasses import dataclass

from .choices import BINARY_TASKS
from .choices import CHEXPERT5
from .choices import CHOICES
from .choices import DEFAULTS
from .choices import LABELS
from .choices import MULTI_LABEL
from .choices import UNCERTAIN
from .errors import DatasetError

# The usual choice for CheXpert (Irvin et al. 2019): its other findings are better with negative.
MIX = {"Atelectasis": "positive", "Edema": "positive"}
NO_FINDING = "No Finding"


@dataclass(frozen=True, kw_only=True)
class LabelRule:
    """Which images have which label; README.md explains the options. Raises DatasetError for wrong values.

    `findings` are those of the task "findings": None is all, "chexpert5" stands for five. `collection` has
    the label columns of a manifest, in which the labeler has no meaning; None is MIMIC-CXR-JPG, with LABELS.
    `keeps_unlabelled` keeps the images of a manifest that have no label, for a pretraining.
    """

    task: str = DEFAULTS["task"]
    labeler: str = DEFAULTS["labeler"]
    view: str = DEFAULTS["view"]
    uncertain: str = DEFAULTS["uncertain"]
    blank: str = DEFAULTS["blank"]
    findings: tuple[str, ...] | None = None
    collection: tuple[str, ...] | None = None
    keeps_unlabelled: bool = False

    def __post_init__(self):
        check_options(task=self.task, labeler=self.labeler, view=self.view, blank=self.blank)
        policies, is_binary = self.policies, self.task in BINARY_TASKS
        if is_binary and "smooth" in policies.values():
            raise DatasetError(
                f"uncertain={self.uncertain!r}: found smooth with the task {self.task!r}, expected "
                f"{MULTI_LABEL!r}; choose another policy"
            )
        for name, value in (("findings", self.findings), ("blank", self.blank)):
            if is_binary and value != getattr(type(self), name):
                raise DatasetError(
                    f"{name}={value!r}: found the task {self.task!r}, expected {MULTI_LABEL!r}; leave it out"
                )
        for name in self.findings or ():
            if name not in (*self.labels, "chexpert5"):
                raise DatasetError(
                    f"findings: found {name!r}, expected a finding{closest(name, self.labels)}, or chexpert5"
                )
        self._check_collection()

    def _check_collection(self) -> None:
        """Raises DatasetError if the collection lacks a column that the rule needs."""
        needed = CHEXPERT5 if "chexpert5" in (self.findings or ()) else ()
        if self.task in BINARY_TASKS and self.task != "finding":
            needed = BINARY_TASKS[self.task][1:]
        missing = [name for name in needed if name not in self.labels]
        if missing or (self.task == MULTI_LABEL and not self.labels):
            found = f"no column {missing[0]!r}" if missing else "no column of labels"
            raise DatasetError(
                f"task={self.task!r}: found {found} in manifest.csv, which has "
                f"{', '.join(self.labels) or 'none'}; choose another task or other findings"
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """Returns the label columns of the data."""
        return LABELS if self.collection is None else self.collection

    @property
    def all_findings(self) -> tuple[str, ...]:
        """Returns all label columns but No Finding."""
        return tuple(name for name in self.labels if name != NO_FINDING)

    @property
    def policies(self) -> dict[str, str]:
        """Returns how an uncertain label counts, by finding."""
        return parse_uncertain(self.uncertain, self.labels)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Returns the names of label 0 and label 1 or, with several labels, the findings as in `labels`."""
        if self.task in BINARY_TASKS:
            return BINARY_TASKS[self.task]
        named = set(self.findings or self.labels)
        named |= {*CHEXPERT5} if "chexpert5" in named else set()
        return tuple(name for name in self.labels if name in named)

    @property
    def columns(self) -> list[str]:
        """Returns the columns of the label table that the rule needs."""
        if self.task == "finding":
            return list(self.all_findings if self.collection is None else self.collection)
        return list(BINARY_TASKS.get(self.task, dict.fromkeys((*self.labels, NO_FINDING))))

    def __str__(self) -> str:
        """Returns the rule as the title of a table."""
        source = f"by {self.labeler}" if self.collection is None else "of the manifest"
        parts = [f"{self.task}, labels {source}, view {self.view}, uncertain {self.uncertain}"]
        parts += [f"blank {self.blank}"] * (self.blank != DEFAULTS["blank"])
        parts += [f"findings {', '.join(self.label_names)}"] * (self.findings is not None)
        return ", ".join(parts)


def parse_uncertain(text: str, labels: tuple[str, ...] = LABELS) -> dict[str, str]:
    """Returns the policy of each of `labels`, and of No Finding.

    `text` is a policy, "mix", or FINDING=POLICY,..., where the findings without a policy have "negative", or
    the policy that stands alone, as in "exclude,Edema=positive". Raises DatasetError.
    """
    if text == "mix":
        return dict.fromkeys((*labels, NO_FINDING), "negative") | {
            name: policy for name, policy in MIX.items() if name in labels
        }
    parts = [part.strip() for part in text.split(",")]
    rest, chosen = "negative", {}
    for number, part in enumerate(parts):
        finding, equals, policy = (word.strip() for word in part.rpartition("="))
        if policy not in UNCERTAIN:
            expected = ", ".join(UNCERTAIN)
            raise DatasetError(f"uncertain={text!r}: found {policy!r}, expected one of mix, {expected}")
        if not equals and number == 0:
            rest = policy
        elif finding not in labels:
            raise DatasetError(
                f"uncertain={text!r}: found {part!r}, expected FINDING=POLICY{closest(finding, labels)}"
            )
        elif finding in chosen:
            raise DatasetError(f"uncertain={text!r}: found two policies for {finding}; keep one")
        else:
            chosen[finding] = policy
    return dict.fromkeys((*labels, NO_FINDING), rest) | chosen


def closest(name: str, labels: tuple[str, ...]) -> str:
    """Returns the finding that was probably meant, as the end of a message, or else all of them."""
    names = {label.lower(): label for label in labels}
    found = difflib.get_close_matches(name.lower().replace("_", " "), names, n=1)
    return f" (did you mean {names[found[0]]!r}?)" if found else f" with one of {', '.join(labels)}"


def check_options(**options: str) -> None:
    for name, value in options.items():
        if value not in CHOICES[name]:
            expected = " or ".join(map(repr, CHOICES[name]))
            raise DatasetError(f"{name}={value!r} is unknown: expected {expected}.")
