"""Tells how many times the labels a pretraining is worth, from the learning curves of a study.

A model that is pretrained reaches an AUROC with n training images. Another one, from scratch, needs m images
for it, read from its learning curve on a logarithmic scale. The pretraining is worth m / n times the labels.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cxr.study.answer import AXES
from cxr.study.answer import OTHERS
from cxr.study.names import TableName
from cxr.study.names import plural
from cxr.study.results import ResultTable
from cxr.study.results import Row

LEVEL = (0.025, 0.975)
FROM_SCRATCH = 2  # of `Row.start`


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The rows that differ only in the training size, in ascending order."""

    rows: list[Row]

    @property
    def row(self) -> Row:
        return self.rows[0]

    @property
    def sizes(self) -> np.ndarray:  # (S,)
        return np.array([row.runs[0].results.num_train_images for row in self.rows])

    @property
    def seeds(self) -> set[int]:
        """Returns the seeds that have finished with every size."""
        return set.intersection(*(set(row.aurocs) for row in self.rows))

    def mean(self, seeds: set[int]) -> np.ndarray:
        """Returns the mean AUROC over some seeds, (S, 1 + R): measured, then resampled."""
        return np.array([np.mean([row.aurocs[seed] for seed in sorted(seeds)], axis=0) for row in self.rows])


@dataclass(frozen=True, kw_only=True)
class Worth:
    """How many times the labels of `pretrained` the model `other` needs for the same AUROC.

    A number of times is 0 or infinite where the learning curve of `other` begins or ends before it.
    """

    table: TableName  # without the training size
    pretrained: str
    other: str
    same_network: bool  # only the start differs
    num_images: int
    auroc: float
    times: float
    low: float
    high: float
    least: float  # times at the ends of the other's curve
    most: float

    def in_words(self, times: float) -> str:
        if times == 0:
            return f"less than {two_digits(self.least)}"
        return f"more than {two_digits(self.most)}" if math.isinf(times) else two_digits(times)

    @property
    def interval(self) -> str:
        return f"[{self.in_words(self.low)}, {self.in_words(self.high)}]"


def worths(tables: list[ResultTable]) -> list[Worth]:
    """Returns the comparisons of pretrained models with ones of the same recipe from scratch, by size."""
    groups: dict[TableName, list[ResultTable]] = defaultdict(list)
    for table in tables:
        groups[table.name.of_any_size].append(table)
    found = []
    for table, of_group in groups.items():
        curves = learning_curves(of_group)
        for pretrained in [curve for curve in curves if curve.row.start != FROM_SCRATCH]:
            for other in [curve for curve in curves if curve.row.start == FROM_SCRATCH]:
                if are_comparable(pretrained, other):
                    found += compare(table, pretrained, other)
    return found


def learning_curves(tables: list[ResultTable]) -> list[Curve]:
    """Returns the learning curve of each row of tables that differ only in the training size."""
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in [row for table in tables for row in table.measured if row.aurocs]:
        rows[row.label].append(row)
    for of_label in rows.values():
        of_label.sort(key=lambda row: row.runs[0].results.num_train_images)
    return [Curve(rows=of_label) for of_label in rows.values()]


def are_comparable(pretrained: Curve, other: Curve) -> bool:
    """Returns whether the rows have the same recipe, augmentation, masking and images."""
    same = all(AXES[axis](pretrained.row) == AXES[axis](other.row) for axis in OTHERS)
    same &= all(row.images == other.row.images for row in (*pretrained.rows, *other.rows))
    return same and len(other.rows) > 1


def compare(table: TableName, pretrained: Curve, other: Curve) -> Iterator[Worth]:
    """Yields the comparison with each size of `pretrained`, over its seeds that all sizes of `other` have."""
    for size, row in zip(pretrained.sizes, pretrained.rows):
        seeds = other.seeds & set(row.aurocs)
        if not seeds:
            continue
        (aurocs,) = Curve(rows=[row]).mean(seeds)
        times = images_needed(other.sizes, other.mean(seeds), aurocs) / size  # (1 + R,)
        resampled = times[1:][~np.isnan(times[1:])]
        yield Worth(
            table=table,
            pretrained=pretrained.row.label,
            other=other.row.label,
            same_network=pretrained.row.architecture == other.row.architecture,
            num_images=int(size),
            auroc=float(aurocs[0]),
            times=float(times[0]),
            # A percentile between a number and infinity has no value: take the next one outwards.
            low=float(np.quantile(resampled, LEVEL[0], method="lower")),
            high=float(np.quantile(resampled, LEVEL[1], method="higher")),
            least=float(other.sizes[0] / size),
            most=float(other.sizes[-1] / size),
        )


def images_needed(sizes: np.ndarray, curve: np.ndarray, aurocs: np.ndarray) -> np.ndarray:
    """Returns the training images, (R,), with which a curve first reaches `aurocs` (R,).

    `sizes` (S,) are ascending, and `curve` (S, R) has the AUROC with each of them.
    0 where its first point is above them already, infinite where no point reaches them, NaN where an AUROC is
    not defined, because the resample has only one class.
    """
    reached = curve >= aurocs  # (S, R)
    first = reached.argmax(axis=0)  # (R,): the first size that reaches it
    column = np.arange(len(aurocs))
    above, below = curve[first, column], curve[first - 1, column]
    logs = np.log(sizes)
    with np.errstate(divide="ignore", invalid="ignore"):  # of columns that are replaced below
        share = (aurocs - below) / (above - below)
        needed = np.exp(logs[first - 1] + share * (logs[first] - logs[first - 1]))
    at_start = np.where(aurocs == curve[0], sizes[0], 0)
    found = np.where(reached.any(axis=0), np.where(first == 0, at_start, needed), np.inf)
    return np.where(np.isnan(aurocs) | np.isnan(curve).any(axis=0), np.nan, found)


def two_digits(number: float) -> str:
    """Returns a number with two significant digits, 240 and not 2.4e+02."""
    return f"{float(f'{number:.2g}'):,.10g}"


def sentence(found: list[Worth]) -> str:
    """Returns what pretraining is worth, for the fewest labels: a sentence per task; "" without a comparison.

    It tells of one comparison, if possible of the same network from scratch, and then how the others differ.
    """
    groups: dict[TableName, list[Worth]] = defaultdict(list)
    for one in found:
        groups[one.table].append(one)
    said = []
    for table, of_table in groups.items():
        fewest = min(one.num_images for one in of_table)
        shown = [one for one in of_table if one.num_images == fewest]
        first, *others = sorted(shown, key=lambda one: not one.same_network)
        said.append(
            f"{table.title}: "
            * (len(groups) > 1)
            + f"With {plural(fewest, 'label')}, pretraining is worth {first.in_words(first.times)} times the "
            f"labels, 95 % interval {first.interval} ({first.pretrained} against {first.other})"
            + f"; {range_of(others)}" * bool(others)
            + "."
        )
    return " ".join(said)


def range_of(others: list[Worth]) -> str:
    """Returns in words the least and the most of these comparisons, "" of none."""
    if not others:
        return ""
    ends = (choose(others, key=lambda one: one.times) for choose in (min, max))
    values = dict.fromkeys(one.in_words(one.times) for one in ends)  # both may be the same
    gives = "gives" if len(others) == 1 else "give"
    return f"{plural(len(others), 'other comparison')} {gives} {' to '.join(values)} times"
