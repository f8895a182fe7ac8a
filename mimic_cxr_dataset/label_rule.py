"""The label rule: which images have which label. Its options are checked here, once."""

import difflib
from dataclasses import dataclass

from .choices import BINARY_TASKS
from .choices import CHEXPERT5
from .choices import CHOICES
from .choices import DEFAULTS
from .choices import FINDINGS
from .choices import LABELS
from .choices import MULTI_LABEL
from .choices import UNCERTAIN
from .errors import DatasetError

# The usual choice for CheXpert (Irvin et al. 2019): its other findings are better with negative.
MIX = "Atelectasis=positive,Edema=positive"


@dataclass(frozen=True, kw_only=True)
class LabelRule:
    """Which images have which label; README.md explains the options. Raises DatasetError for wrong values.

    `findings` are those of the task "findings": None is all 14, "chexpert5" stands for five.
    """

    task: str = DEFAULTS["task"]
    labeler: str = DEFAULTS["labeler"]
    view: str = DEFAULTS["view"]
    uncertain: str = DEFAULTS["uncertain"]
    blank: str = DEFAULTS["blank"]
    findings: tuple[str, ...] | None = None

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
            if name not in (*LABELS, "chexpert5"):
                raise DatasetError(
                    f"findings: found {name!r}, expected a finding{closest(name)}, or chexpert5"
                )

    @property
    def policies(self) -> dict[str, str]:
        """Returns how an uncertain label counts, by finding."""
        return parse_uncertain(self.uncertain)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Returns the names of label 0 and label 1 or, with several labels, the findings in LABELS' order."""
        if self.task in BINARY_TASKS:
            return BINARY_TASKS[self.task]
        named = set(self.findings or LABELS)
        return tuple(name for name in LABELS if name in named or ("chexpert5" in named and name in CHEXPERT5))

    @property
    def columns(self) -> list[str]:
        """Returns the columns of the label table that the rule needs."""
        if self.task == "finding":
            return list(FINDINGS)
        return list(BINARY_TASKS.get(self.task, LABELS))

    def __str__(self) -> str:
        """Returns the rule as the title of a table."""
        parts = [f"{self.task}, labels by {self.labeler}, view {self.view}, uncertain {self.uncertain}"]
        parts += [f"blank {self.blank}"] * (self.blank != DEFAULTS["blank"])
        parts += [f"findings {', '.join(self.label_names)}"] * (self.findings is not None)
        return ", ".join(parts)


def parse_uncertain(text: str) -> dict[str, str]:
    """Returns the policy of each of LABELS.

    `text` is a policy, "mix", or FINDING=POLICY,..., where the findings without a policy have "negative", or
    the policy that stands alone, as in "exclude,Edema=positive". Raises DatasetError.
    """
    parts = [part.strip() for part in (MIX if text == "mix" else text).split(",")]
    rest, chosen = "negative", {}
    for number, part in enumerate(parts):
        finding, equals, policy = (word.strip() for word in part.rpartition("="))
        if policy not in UNCERTAIN:
            expected = ", ".join(UNCERTAIN)
            raise DatasetError(f"uncertain={text!r}: found {policy!r}, expected one of mix, {expected}")
        if not equals and number == 0:
            rest = policy
        elif finding not in LABELS:
            raise DatasetError(
                f"uncertain={text!r}: found {part!r}, expected FINDING=POLICY{closest(finding)}"
            )
        elif finding in chosen:
            raise DatasetError(f"uncertain={text!r}: found two policies for {finding}; keep one")
        else:
            chosen[finding] = policy
    return dict.fromkeys(LABELS, rest) | chosen


def closest(name: str) -> str:
    """Returns the finding that was probably meant, as the end of a message, or else all of them."""
    names = {label.lower(): label for label in LABELS}
    found = difflib.get_close_matches(name.lower().replace("_", " "), names, n=1)
    return f" (did you mean {names[found[0]]!r}?)" if found else f" with one of {', '.join(LABELS)}"


def check_options(**options: str) -> None:
    for name, value in options.items():
        if value not in CHOICES[name]:
            expected = " or ".join(map(repr, CHOICES[name]))
            raise DatasetError(f"{name}={value!r} is unknown: expected {expected}.")
