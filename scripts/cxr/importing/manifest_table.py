"""The table of an imported collection: its rows, its splits, and how it becomes a folder with a manifest."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from cxr.choices import VIEWS
from cxr.data.images import user_errors
from cxr.data.seeding import derive_seed
from cxr.errors import UserError
from cxr.run_folder.files import new_folder
from mimic_cxr_dataset.errors import one_line
from mimic_cxr_dataset.labels import read_labels
from mimic_cxr_dataset.manifest import COLUMNS
from mimic_cxr_dataset.manifest import check_rows
from mimic_cxr_dataset.radiographs import SUFFIXES
from mimic_cxr_dataset.tables import read_images

SHARES = ("test_share", "validation_share")  # the options by which splits that are missing are cut


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a collection before it is read."""

    name: str
    license: str
    citation: str
    address: str  # where its publisher offers it
    layout: str  # what SOURCE must hold, in words
    equalized: bool | None = None
    derived_from: str | None = None  # name of the collection whose images these are
    published: dict[str, int] = field(default_factory=dict)  # what is counted -> the published count


@dataclass(frozen=True, kw_only=True)
class Options:
    """The choices of the user."""

    keep_labels: bool = False
    validation_share: float = 0.1
    test_share: float = 0.2
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Imported:
    """An imported collection: `rows` has COLUMNS and a column for each label, 1, 0, -1 or blank.

    `write_images` writes files into the new folder, for collections whose images are in no files; `view_of`
    reads the view of a file, where the tables lack view_position. `notes` are lines for the user about what
    was left out or decided. `of_table` has the counts of the published table, where images are left out on
    purpose. `used` are those of the flags keep_labels and SHARES that had an effect.
    """

    facts: Facts
    rows: pd.DataFrame
    notes: tuple[str, ...] = ()
    of_table: dict[str, int] = field(default_factory=dict)
    used: tuple[str, ...] = ()
    write_images: Callable[[Path, pd.DataFrame], None] | None = None
    view_of: Callable[[str], str] | None = None

    @property
    def labels(self) -> list[str]:
        return [name for name in self.rows if name not in COLUMNS]

    def counts(self) -> dict[str, int]:
        """Returns the images of the collection and of each split, and the patients, by name."""
        splits = self.rows.groupby("split").size()
        counts = {"images": len(self.rows), "patients": self.rows["subject_id"].nunique()}
        counts |= {f"{split} images": int(splits.get(split, 0)) for split in ("train", "validation", "test")}
        return counts | {"train and validation images": counts["images"] - counts["test images"]}

    def differences(self) -> list[str]:
        """Returns a line for each count that is not the published one."""
        found, published = self.counts() | self.of_table, self.facts.published
        return [
            f"{name}: {found[name]:,}, published: {count:,}"
            for name, count in published.items()
            if found[name] != count
        ]

    def balance(self, label: str, *, seed: int) -> "Imported":
        """Returns the images with a label, and in each split as many normal ones of random patients.

        A blank label is not positive. Raises UserError.
        """
        others = [name for name in self.labels if name != "No Finding"]
        if label not in others or len(others) == len(self.labels):
            raise UserError(
                f"--balance {label}: found the labels {', '.join(self.labels)}, expected this one and No "
                "Finding; name another, or leave the flag out"
            )
        rows = self.rows
        is_ill, is_normal = (rows[name].eq(1).fillna(False).astype(bool) for name in (label, "No Finding"))
        if not is_ill.any():
            raise UserError(f"--balance {label}: found no image with this label; name another")
        order = rows["subject_id"].map(patient_order(rows["subject_id"], "balance", seed=seed))
        place = order[is_normal & ~is_ill].groupby(rows["split"]).rank(method="first")
        wanted = rows["split"].map(is_ill.groupby(rows["split"]).sum())
        kept = is_ill | (place.reindex(rows.index) <= wanted)
        return replace(self, rows=rows[kept].reset_index(drop=True))

    def sample(self, num_images: int | None, *, seed: int) -> "Imported":
        """Returns at most `num_images` images, by whole patients in a random order: samples are nested.

        Raises UserError if the first patient has more images.
        """
        if num_images is None or num_images >= len(self.rows):
            return self
        rows = self.rows
        order = rows["subject_id"].map(patient_order(rows["subject_id"], "subset", seed=seed))
        num_up_to = order.map(order.value_counts().sort_index().cumsum())
        if num_up_to.min() > num_images:
            raise UserError(
                f"--max_images {num_images}: found {num_up_to.min()} images of the first patient that is "
                "drawn, and only whole patients are kept; keep at least as many, or choose another --seed"
            )
        return replace(self, rows=rows[num_up_to <= num_images].reset_index(drop=True))


def patient_order(subject_ids: pd.Series, purpose: str, *, seed: int) -> pd.Series:
    """Returns the place of each patient, from 0, in a random order that the ids and the seed decide."""
    patients = sorted(subject_ids.unique(), key=lambda patient: derive_seed(seed, purpose, patient))
    return pd.Series(range(len(patients)), index=patients)


def cut_split(split: pd.Series, subject_ids: pd.Series, to: str, share: float, *, seed: int) -> pd.Series:
    """Returns `split`, where a share of the patients of "train" was moved to `to`, at least one.

    Raises UserError if no patient is left to train on.
    """
    is_train = split == "train"
    order = patient_order(subject_ids[is_train], to, seed=seed)
    num_moved = max(1, round(share * len(order)))
    if is_train.any() and num_moved >= len(order):
        raise UserError(
            f"--{to}_share {share:g}: found {num_moved} of {len(order)} training patients for the {to} "
            "split, expected some that are left; choose a smaller share, or import more patients"
        )
    moved = order.index[order < num_moved]
    return split.mask(is_train & subject_ids.isin(moved), to)


def cut_missing_splits(split: pd.Series, subject_ids: pd.Series, options: Options) -> pd.Series:
    """Returns `split`, with a test and a validation split by patient if it has none."""
    for share in shares_for(split):
        to = share.removesuffix("_share")
        split = cut_split(split, subject_ids, to, getattr(options, share), seed=options.seed)
    return split


def shares_for(split: pd.Series) -> tuple[str, ...]:
    """Returns those of SHARES by which `cut_missing_splits` cuts a split, which is not there."""
    return tuple(share for share in SHARES if not (split == share.removesuffix("_share")).any())


def find_paths(source: Path, facts: Facts) -> tuple[list[str], Counter[str]]:
    """Returns the absolute paths of all image files below `source`, and the number of other files by suffix.

    Hidden files are left out. Raises UserError without an image, for a folder that cannot be read or is there
    twice, because of a link, and for a name that is not UTF-8.
    """
    found, others, places = [], Counter(), {}
    walk = os.walk(source, followlinks=True, onerror=_refuse_folder)
    for folder, folders, names in tqdm(walk, desc="looking for images", unit=" folder"):
        status = os.stat(folder)  # noqa: PTH116 - Path takes seconds
        same = places.setdefault((status.st_dev, status.st_ino), folder)
        if same != folder:
            raise UserError(f"{folder}: found the same folder as {same}, through a link; remove the link")
        folders[:] = [name for name in folders if name != "__MACOSX" and not name.startswith(".")]
        for name in names:
            if name.startswith("."):
                continue
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - Path takes seconds
            if suffix in SUFFIXES:
                found.append(os.path.join(os.path.abspath(folder), name))  # noqa: PTH100, PTH118
            else:
                others[suffix] += 1
    if not found:
        raise lacking(source, "no image", facts)
    for path in found:
        if re.search("[\ud800-\udfff]", path):  # how Python shows bytes that are no UTF-8
            raise UserError(f"{source}: found a file named {path!r:.300}, expected UTF-8; rename it")
    return found, others


def _refuse_folder(error: OSError) -> None:
    raise UserError(
        f"{error.filename}: found a folder that cannot be read ({one_line(error)}); make it readable"
    )


def find_images(
    names: pd.Series, source: Path, facts: Facts, *, name_of: Callable[[str], str | None] = os.path.basename
) -> pd.Series:
    """Returns the path of the image of each name, NaN without a file; `name_of` has the name of a path.

    Raises UserError for two files of one name.
    """
    paths = pd.Series({path: name_of(path) for path in sorted(find_paths(source, facts)[0])})
    paths = pd.Series(paths.index, index=paths)
    paths = paths[paths.index.isin(names)]
    if (again := paths.index.duplicated(keep=False)).any():
        first, second, *_ = paths[paths.index == paths.index[again][0]]
        raise UserError(
            f"{source}: found {first} and {second}, expected one file of each image; move one, or name a "
            "folder that has only one of them"
        )
    return names.map(paths)


def locate_file(source: Path, *names: str) -> Path | None:
    """Returns the first of the files `names`, in `source` or one folder below; None without any."""
    paths = (path for name in names for path in (source / name, *sorted(source.glob(f"*/{name}"))))
    return next((path for path in paths if path.is_file()), None)


def read_words(path: Path) -> list[str]:
    """Returns the words of a text file. Raises UserError if it is none."""
    try:
        return path.read_text(encoding="utf-8-sig").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: found no text ({one_line(error)}); download it again") from error


def find_file(source: Path, facts: Facts, *names: str) -> Path:
    """Returns the file that `locate_file` finds. Raises UserError without any."""
    if path := locate_file(source, *names):
        return path
    raise lacking(source, f"no {names[0]}", facts)


def lacking(source: Path, found: str, facts: Facts) -> UserError:
    hint = f"download {facts.name} from {facts.address}" if facts.address else "name another"
    return UserError(f"{source}: found {found}, expected {facts.layout}; {hint}")


def only_found(rows: pd.DataFrame, folder: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Returns the rows whose path was found, and a note about the others. Raises UserError if none was."""
    if rows.empty:
        raise UserError(f"{folder}: found no image that can be used in the table, expected some with labels")
    is_found = rows["path"].notna()
    if not is_found.any():
        raise UserError(
            f"{folder}: found none of the {len(rows):,} images of the table, expected their files in this "
            "folder; name the folder that has them"
        )
    lost = rows.loc[~is_found, "image_id"]
    if lost.empty:
        return rows, ()
    note = (
        f"{len(lost):,} of {len(rows):,} images have no file and were left out, the first is {lost.iloc[0]}"
    )
    return rows[is_found].reset_index(drop=True), (note,)


def describe_views(rows: pd.DataFrame) -> str | None:
    """Returns a note about images that are neither frontal nor lateral, which few runs use; None without."""
    known = {code for codes in VIEWS.values() for code in codes or ()}
    is_other = ~rows["view_position"].str.strip().str.upper().isin(known)
    if not is_other.any():
        return None
    return (
        f"{is_other.sum():,} of {len(rows):,} images have a view that is neither frontal nor lateral, such "
        f"as {rows.loc[is_other, 'view_position'].iloc[0]!r:.40}: only --view all uses them"
    )


def check_images(source: Path, rows: pd.DataFrame) -> None:
    """Raises UserError for the first image that cannot be in a manifest."""
    with user_errors():
        check_rows(source, rows.set_axis(pd.Index(rows["path"], name="image")))


def write_manifest(imported: Imported, out: Path) -> None:
    """Writes the folder `out`, completely or not at all, and reads it as the other scripts do."""
    facts, labels = imported.facts, imported.labels
    said = {"name": facts.name, "labels": labels, "equalized": facts.equalized}
    said |= {"license": facts.license or None, "citation": facts.citation or None}
    said |= {"derived_from": facts.derived_from}
    with new_folder(out) as folder:
        if imported.write_images:
            imported.write_images(folder, imported.rows)
        rows = imported.rows
        if imported.view_of:
            paths = tqdm(rows["path"], desc="reading views", unit=" image")
            rows = rows.assign(view_position=[imported.view_of(path) for path in paths])
        rows = rows[[*COLUMNS, *labels]]
        rows.to_csv(folder / "manifest.csv", index=False, lineterminator="\n", encoding="utf-8")
        text = json.dumps(said, indent=2, ensure_ascii=False) + "\n"
        (folder / "collection.json").write_text(text, encoding="utf-8")
        read_labels(folder, "", labels, images=read_images(folder))
