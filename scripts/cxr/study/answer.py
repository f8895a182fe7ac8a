"""Answers the questions of a study: for each comparison, a difference of AUROC and a verdict in words."""

import itertools
from collections import defaultdict
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field

from cxr.evaluation.intervals import Difference
from cxr.evaluation.intervals import holm
from cxr.study.measuring import difference_of_means
from cxr.study.names import format_number
from cxr.study.names import plural
from cxr.study.results import PRETRAINED_HERE
from cxr.study.results import ResultTable
from cxr.study.results import Row

SIGNIFICANT = 0.05
COMPARABLE = "measured on the same images with the same seed, with enough labels of both classes"
MOST_SAID = 3  # differences in the summary sentence; the table has all
Sides = dict[str, list[Row]]  # value of the compared axis -> its rows


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about the rows of a table.

    Compares rows that are equal in all axes of `equal` and, if there are such rows, also in all axes of
    `others`. `choose` picks the pairs of sides to compare.
    """

    name: str
    sides: str  # the axis whose values are compared
    equal: tuple[str, ...]
    others: tuple[str, ...]
    choose: Callable[[Sides], Iterator[tuple[str, str]]]


@dataclass(kw_only=True)
class Answer:
    """A row of the answer: the mean AUROC of `first` minus the mean AUROC of `second`."""

    question: str
    table: ResultTable
    of: str  # what both sides have in common; "" if their names suffice
    first: str
    second: str
    num_seeds: int
    difference: Difference
    differs_too: tuple[str, ...]  # other axes in which the sides differ
    undertrained: bool
    p: float = field(default=1.0)  # corrected for the number of answers

    @property
    def is_clear(self) -> bool:
        return self.p < SIGNIFICANT

    @property
    def better(self) -> str:
        return self.first if self.difference.value > 0 else self.second

    @property
    def compared(self) -> str:
        return f"{self.of}: " * bool(self.of) + f"{self.first} against {self.second}"

    @property
    def verdict(self) -> str:
        if self.is_clear:
            said = f"Better: {self.better} ({equals_p(self.p)} after correction)"
        else:
            said = f"Not distinguishable ({equals_p(self.p)} after correction; p < {SIGNIFICANT} needed)"
        notes = [differ_too(self.differs_too)] * bool(self.differs_too)
        notes += ["a model is undertrained, so more epochs may change this"] * self.undertrained
        return "; ".join([said, *notes])


def start(row: Row) -> str:
    """Returns where a model's weights come from; a published model is named, as there may be several."""
    is_continued = row.start == 0 and not row.runs[0].point.from_scratch
    here = "pretrained here" + f" from {row.name.model.removesuffix(PRETRAINED_HERE)}" * is_continued
    return (here, f"pretrained ({row.name.model})", "from scratch")[row.start]


AXES: dict[str, Callable[[Row], str]] = {
    "model": lambda row: row.name.model,
    "architecture": lambda row: row.architecture,
    "start": start,
    "augmentation": lambda row: row.name.augmented,
    "masking": lambda row: row.name.share_masked,
    "flags": lambda row: row.name.setup,
    "recipe": lambda row: f"recipe {row.name.recipe}",
}


def each_pair(sides: Sides) -> Iterator[tuple[str, str]]:
    """Yields every pair of sides; models pretrained here come first."""
    yield from itertools.combinations(sorted(sides, key=lambda name: sides[name][0].start), 2)


def other_body(sides: Sides) -> Iterator[tuple[str, str]]:
    """Yields every pair of models with different architectures, not one architecture with two starts."""
    for first, second in itertools.combinations(sides, 2):
        if sides[first][0].architecture != sides[second][0].architecture:
            yield first, second


def against_none(sides: Sides) -> Iterator[tuple[str, str]]:
    """Yields each side against the one without augmentation or masking, or else against the least masked."""

    def amount(name: str) -> tuple[bool, float]:
        row = sides[name][0].name
        return row.augmentation != "none", row.masking

    none, *some = sorted(sides, key=amount)
    yield from ((name, none) for name in some)


OTHERS = ("recipe", "augmentation", "masking", "flags")
QUESTIONS = (
    Question(
        name="Pretrained or from scratch",
        sides="start",
        equal=("architecture",),
        others=OTHERS,
        choose=each_pair,
    ),
    Question(name="Model against model", sides="model", equal=(), others=OTHERS, choose=other_body),
    Question(
        name="Recipe against recipe",
        sides="recipe",
        equal=("model",),
        others=("augmentation", "masking", "flags"),
        choose=each_pair,
    ),
    Question(
        name="More or less masking",
        sides="masking",
        equal=("model", "recipe", "augmentation", "flags"),
        others=(),
        choose=against_none,
    ),
    Question(
        name="With or without augmentation",
        sides="augmentation",
        equal=("model", "recipe"),
        others=("masking", "flags"),
        choose=against_none,
    ),
    Question(
        name="Other flags",
        sides="flags",
        equal=("model", "recipe", "augmentation", "masking"),
        others=(),
        choose=each_pair,
    ),
)


def answer(tables: list[ResultTable]) -> list[Answer]:
    """Returns the answers, ordered by question, comparison and training size; p is corrected over all."""
    found = []
    for question in QUESTIONS:
        by_pair: dict[tuple, list[Answer]] = defaultdict(list)
        for one in [one for table in tables for one in answers_of(question, table)]:
            by_pair[one.table.name.of_any_size, one.compared].append(one)
        found += itertools.chain(*by_pair.values())
    for one, p in zip(found, holm([one.difference.p for one in found])):
        one.p = p
    return found


def answers_of(question: Question, table: ResultTable) -> Iterator[Answer]:
    groups: dict[tuple, Sides] = defaultdict(lambda: defaultdict(list))
    for row in table.rows:
        if row.aurocs:
            group = tuple(AXES[axis](row) for axis in question.equal)
            groups[group][AXES[question.sides](row)].append(row)
    for group, sides in groups.items():
        for first, second in question.choose(sides):
            rows, differs_too = match(sides[first], sides[second], question.others)
            if measured := difference_of_means(*rows, table.noise):
                yield Answer(
                    question=question.name,
                    table=table,
                    of=in_words(question.equal, group, table),
                    first=first,
                    second=second,
                    num_seeds=measured[1],
                    difference=measured[0],
                    differs_too=differs_too,
                    undertrained=any(row.undertrained for side in rows for row in side),
                )


def in_words(axes: tuple[str, ...], values: tuple[str, ...], table: ResultTable) -> str:
    """Returns what two sides have in common; the recipe is named if the table has several."""
    several = len({row.name.recipe for row in table.rows}) > 1
    named = (value for axis, value in zip(axes, values) if axis != "recipe" or several)
    return ", ".join(filter(None, named))


def match(
    first: list[Row], second: list[Row], axes: tuple[str, ...]
) -> tuple[tuple[list[Row], list[Row]], tuple[str, ...]]:
    """Returns the rows of both sides that are equal in `axes`; if none are, all rows, and what differs."""
    keys = [{tuple(AXES[axis](row) for axis in axes): row for row in side} for side in (first, second)]
    if shared := [key for key in keys[0] if key in keys[1]]:
        return ([keys[0][key] for key in shared], [keys[1][key] for key in shared]), ()
    differs = [
        axis for axis in axes if {AXES[axis](row) for row in first} != {AXES[axis](row) for row in second}
    ]
    return (first, second), tuple(differs)


def sentence(answers: list[Answer], tables: list[ResultTable]) -> str:
    """Returns the answer in one sentence."""
    if not answers:
        return no_answer(tables)
    clear = [one for one in answers if one.is_clear]
    total, others = len(answers), len(answers) - len(clear)
    smallest, task = equals_p(min(one.p for one in answers)), task_of(answers)
    area = "mean AUROC" if task else "AUROC"
    if clear:
        said = said_of(clear)
        if others:
            said += f"; the other {plural(others, 'difference')} of {area} {'is' if others == 1 else 'are'} "
            said += "not distinguishable from chance"
    elif total == 1:
        said = f"The only difference of {area} is not distinguishable from chance ({smallest}; "
        said += f"p < {SIGNIFICANT} needed)"
    else:
        said = f"None of the {total} differences of {area} is distinguishable from chance "
        said += f"(smallest {smallest} after correction; p < {SIGNIFICANT} needed)"
    if undertrained := sum(one.undertrained for one in answers):
        said += (
            f"; in {undertrained} of {plural(total, 'comparison')} a model is undertrained, so more epochs "
        )
        said += "may change the result"
    return f"{task}{said}."


def task_of(answers: list[Answer]) -> str:
    """Returns the start of a sentence: in words, the task with several labels of all answers, else ""."""
    first, *others = {one.table.name.of_any_size for one in answers}
    return "" if others or not first.is_multi_label else f"{first.question}: "


def said_of(clear: list[Answer]) -> str:
    """Returns the clear differences in words; those that differ only in training size share a phrase."""
    groups: dict[tuple, list[Answer]] = defaultdict(list)
    for one in clear:
        worse = one.second if one.better == one.first else one.first
        groups[one.of, one.better, worse, one.differs_too, one.table.name.of_any_size].append(one)
    several = len({name for *_, name in groups}) > 1
    said = []
    for (of, better, worse, differs_too, name), group in groups.items():
        sizes = [f"{abs(one.difference.value):.3f} with {training_images(one.table)}" for one in group]
        where = f"{name.title}: " * several
        where += f"{of}: " * bool(of)
        too = f" ({differ_too(differs_too)})" * bool(differs_too)
        said.append(f"{where}{better} is better than {worse} by {join(sizes)} training images{too}")
    more = [f"{plural(len(said) - MOST_SAID, 'more pair')} below"] * (len(said) > MOST_SAID)
    return "; ".join([*said[:MOST_SAID], *more])


def no_answer(tables: list[ResultTable]) -> str:
    rows = [row for table in tables for row in table.measured]
    if len(rows) == 1 and rows[0].ensemble:
        return of_one_row(rows[0])
    if max((len(table.measured) for table in tables), default=0) < 2:
        return "There is nothing to compare yet: no table has two rows with finished runs."
    return f"Nothing is compared: no two rows that differ in one thing were {COMPARABLE}."


def of_one_row(row: Row) -> str:
    """Returns what the only row of a report has measured."""
    values, of_ensemble = row.values, row.ensemble.values
    said = [f"AUROC {format_number(values['auroc'])} with one model (mean of {len(row.runs)} seeds)"]
    said.append(f"{format_number(of_ensemble['auroc'])} with the ensemble of the {row.ensemble.num_models}")
    accuracy = f", accuracy {format_number(of_ensemble['accuracy'])}" if "accuracy" in of_ensemble else ""
    return f"{row.label}: {', '.join(said)}{accuracy}."


def training_images(table: ResultTable) -> str:
    """Returns the number of training images of a table as text; "or" joins different numbers."""
    numbers = sorted({run.results.num_train_images for row in table.measured for run in row.runs})
    return " or ".join(f"{number:,}" for number in numbers)


def join(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1])] * (len(parts) > 1) + parts[-1:])


def differ_too(axes: tuple[str, ...]) -> str:
    return f"{join(list(axes))} also differ{'s' * (len(axes) == 1)}"


def equals_p(p: float) -> str:
    shown = format_p(p)
    return f"p {shown}" if shown.startswith("<") else f"p = {shown}"


def format_p(p: float) -> str:
    """Returns a p-value as text, with enough digits to show on which side of SIGNIFICANT it is."""
    if p < 0.001:
        return "< 0.001"
    shown = f"{p:.2g}"
    return f"{p:.4g}" if float(shown) == SIGNIFICANT else shown
