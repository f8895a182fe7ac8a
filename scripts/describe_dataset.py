"""Counts the images and labels of a data folder; compares those of MIMIC-CXR-JPG with the published counts.

    python scripts/describe_dataset.py                                # a synthetic sample, made on first use
    python scripts/describe_dataset.py --data_dir /data/mimic-cxr-jpg
    python scripts/describe_dataset.py --data_dir /data/mimic-cxr-jpg --view lateral --output_dir runs/lateral

Prints tables and writes them to OUTPUT_DIR/dataset.md. In the same folder, dicoms_with_labels_and_splits.csv
has one line per labelled image, and examples.png shows a few images of each label; only the owner can read
these two files. The CSV tables of the data folder are enough: without images, there is no examples.png. This
script does not need torch.
"""

import argparse
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from cxr.choices import BINARY_TASKS
from cxr.choices import LABEL_OPTIONS
from cxr.choices import LABELERS
from cxr.choices import LABELS
from cxr.choices import MASKED
from cxr.choices import MULTI_LABEL
from cxr.choices import SMOOTH
from cxr.cli import command_line
from cxr.cli.arguments import add_label_arguments
from cxr.cli.arguments import check_label_arguments
from cxr.cli.arguments import label_rule
from cxr.data.images import user_errors
from cxr.data.seeding import derive_seed
from cxr.data.sources import make_sample_data_once
from cxr.data.subsets import draw_sample
from cxr.errors import run_script
from cxr.evaluation.plots import plot_examples
from cxr.run_folder.files import make_output_dir
from cxr.run_folder.files import write_text
from cxr.study import paper
from PIL import Image
from rich.console import Console
from rich.table import Table

from mimic_cxr_dataset.collection import read_collection
from mimic_cxr_dataset.errors import DatasetError
from mimic_cxr_dataset.labels import TABLE_REASONS
from mimic_cxr_dataset.labels import ids_of
from mimic_cxr_dataset.labels import index_images
from mimic_cxr_dataset.labels import read_labels
from mimic_cxr_dataset.manifest import has_manifest
from mimic_cxr_dataset.radiographs import Reading
from mimic_cxr_dataset.radiographs import find_image
from mimic_cxr_dataset.radiographs import shrink_radiograph
from mimic_cxr_dataset.tables import SPLITS
from mimic_cxr_dataset.tables import locate_csv
from mimic_cxr_dataset.tables import read_images
from mimic_cxr_dataset.tables import resolve_root

STUDY = ["subject_id", "study_id"]
WITHOUT_AND_WITH = ("no finding", "any finding")  # label 0 and label 1 of an image with several labels
EXAMPLE_SIZE = 320  # shortest side in pixels
Counts = dict[str, dict[str, int]]  # what was counted -> name -> number


@dataclass(frozen=True, kw_only=True)
class CountTable:
    """A table of text. The first `num_names` columns hold names, the others numbers."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    num_names: int = 1
    note: str = ""


# Counting ---------------------------------------------------------------------------------------------------


def count_images(images: pd.DataFrame) -> Counts:
    """Counts images, studies and patients of each split, and of all splits together."""
    splits = [(name, images[images["split"] == name]) for name in SPLITS.values()]
    return {
        name: {
            "images": len(rows),
            "studies": rows["study_id"].nunique(),
            "patients": rows["subject_id"].nunique(),
        }
        for name, rows in (*splits, ("all", images))
    }


def count_labels(rows: pd.DataFrame, task: str) -> Counts:
    """Counts images by split and label name; with several labels, those without and with a finding."""
    counts = pd.crosstab(rows["label"], rows["split"])
    counts = counts.reindex(index=range(2), columns=list(SPLITS.values()), fill_value=0).astype("int64")
    return counts.set_axis(BINARY_TASKS.get(task, WITHOUT_AND_WITH)).to_dict()


def count_views(images: pd.DataFrame, values: pd.DataFrame, kept: pd.DataFrame) -> pd.DataFrame:
    """Counts per ViewPosition, most frequent first: "images", "images with a label row", "kept"."""
    ids = ids_of(values)
    columns = {
        "images": images["view_position"].value_counts(),
        "images with a label row": images.merge(values[ids], on=ids)["view_position"].value_counts(),
        "kept": kept["view_position"].value_counts(),
    }
    views = pd.DataFrame(columns).fillna(0).astype("int64")
    return views.sort_values("images", ascending=False, kind="stable")


def count_values(values: pd.DataFrame) -> Counts:
    """Counts studies, or images of a manifest, by label and value: "1.0", "0.0", "-1.0" or "blank"."""
    labels = values.drop(columns=ids_of(values))
    by_value = {f"{value:.1f}": (labels == value).sum() for value in (1, 0, -1)}
    return pd.DataFrame({**by_value, "blank": labels.isna().sum()}).to_dict("index")


def count_agreement(values: dict[str, pd.DataFrame], images: pd.DataFrame) -> Counts:
    """Counts studies of `images` by label, like `paper.AGREEMENT_COUNTS`; {} if there is one labeler only."""
    if len(values) < 2:
        return {}
    negbio = values["negbio"].merge(images[STUDY].drop_duplicates(), on=STUDY)
    chexpert = negbio[STUDY].merge(values["chexpert"], how="left", on=STUDY)
    first, second = negbio[list(LABELS)], chexpert[list(LABELS)]
    agreed = [((first == value) & (second == value)).sum() for value in (1, 0, -1)]
    mentioned = (first.notna() | second.notna()).sum()
    columns = zip(paper.AGREEMENT_COLUMNS, (*agreed, mentioned - sum(agreed)))
    return pd.DataFrame(dict(columns)).to_dict("index")


def draw_sub_sample(kept: pd.DataFrame, *, num_samples: int, seed: int) -> pd.DataFrame:
    """Returns `kept` with a sample of at most `num_samples` of its training images."""
    train, others = kept[kept["split"] == "train"], kept[kept["split"] != "train"]
    drawn = num_samples if num_samples < len(train) else None
    chosen = draw_sample(train["subject_id"], train["label"], num_samples=drawn, seed=seed)
    return pd.concat([train.iloc[chosen], others])


# Comparing --------------------------------------------------------------------------------------------------


def compare_all(root: Path, options: dict[str, str], found: dict[str, Counts]) -> list[tuple[str, list]]:
    """Compares each kind of counts with the published ones, if those were counted with the same options."""
    of_study = ", ".join(LABEL_OPTIONS.values())
    other_options = f"published only for {of_study}" if options != LABEL_OPTIONS else ""
    other_labeler = "published only for labels by negbio" if options["labeler"] != "negbio" else ""
    no_table = "" if found["agreement"] else f"{root} has the table of only one labeler"
    return [
        compare("Images, studies, patients", found["images"], paper.IMAGE_COUNTS),
        compare("Finding and No Finding", found["labels"], paper.STUDY_COUNTS, other_options),
        compare("Frontal images", found["views"], paper.VIEW_COUNTS, other_labeler),
        compare("Agreement of the labelers", found["agreement"], paper.AGREEMENT_COUNTS, no_table),
    ]


def compare(title: str, found: Counts, published: Counts, not_compared: str = "") -> tuple[str, list]:
    """Returns a verdict in one line, and a row for each count that differs: name, found, published."""
    if not_compared:
        return f"{title}: not compared, {not_compared}.", []
    rows = []
    for counted, expected in published.items():
        counts = {name: found.get(counted, {}).get(name, 0) for name in expected}
        differing = [name for name in expected if counts[name] != expected[name]]
        if differing:
            texts = [", ".join(f"{name} {of[name]:,}" for name in differing) for of in (counts, expected)]
            rows.append((title, counted, *texts))
    if rows:
        return f"{title}: differs from the published counts, see the table of differences.", rows
    return f"{title}: equals the published counts, all {sum(map(len, published.values()))} of them.", rows


# Tables -----------------------------------------------------------------------------------------------------


def counts_table(counts: Counts, *, title: str, of: str) -> CountTable:
    rows = [(name, *(f"{count:,}" for count in by_name.values())) for name, by_name in counts.items()]
    return CountTable(title=title, columns=(of, *next(iter(counts.values()))), rows=rows)


def share(counts: dict[str, int], name: str) -> str:
    total = sum(counts.values())
    return f"{counts[name] / total:.2%}" if total else "-"


def published_cell(counts: Counts, split: str, name: str) -> str:
    return f"{counts[split][name]:,} ({share(counts[split], name)})" if split in counts else ""


def label_table(
    full: Counts, kept: pd.DataFrame, args: argparse.Namespace, *, with_published: bool
) -> CountTable:
    """Makes the table of the study's section 3 and adds the test split and, if comparable, its counts."""
    sub_sample = draw_sub_sample(kept, num_samples=args.num_samples, seed=args.seed)
    ours = (full, count_labels(sub_sample, args.dataset_config_name))
    theirs = (paper.STUDY_COUNTS, paper.STUDY_SUB_SAMPLE_COUNTS) if with_published else ()
    columns = ("split", "label", "full data", "fraction", "sub-sample", "fraction")
    if with_published:
        columns += ("published full data", "published sub-sample")
    rows = []
    for split in full:
        for label, name in enumerate(full[split]):
            cells = [text for of in ours for text in (f"{of[split][name]:,}", share(of[split], name))]
            published = [published_cell(of, split, name) for of in theirs]
            rows.append((split, f"{label} {name}", *cells, *published))
    both = [sum(sum(of[split].values()) for split in ("train", "validation")) for of in (*ours, *theirs)]
    full_count, sub_sample_count, *published = [f"{count:,}" for count in both]
    rows.append(("train + validation", "", full_count, "", sub_sample_count, "", *published))

    num_train = sum(full["train"].values())
    note = f"Sub-sample: all {num_train:,} training images, because --num_samples is {args.num_samples}."
    if num_train > args.num_samples:
        note = (
            f"Sub-sample: {args.num_samples:,} of {num_train:,} training images, by patient, stratified by "
            f"label, as --max_train_samples {args.num_samples} --seed {args.seed} draws them."
        )
    note += " It has the whole validation and test splits."
    if with_published:
        note += " The study drew a different sub-sample, so the two are not compared."
    title = "Data labels size and distribution"
    return CountTable(title=title, columns=columns, rows=rows, num_names=2, note=note)


def finding_table(kept: pd.DataFrame, findings: tuple[str, ...]) -> CountTable:
    """Makes a table of the labels of a task with several: the images of each split by finding and label."""
    names = {1: "positive", 0: "negative", SMOOTH: "smooth", MASKED: "not used"}
    codes = {split: kept.loc[kept["split"] == split, [*findings]] for split in SPLITS.values()}
    used = [code for code in names if any((of_split == code).any(axis=None) for of_split in codes.values())]
    rows = [
        (name, *(f"{(of_split[name] == code).sum():,}" for of_split in codes.values() for code in used))
        for name in findings
    ]
    columns = ("label", *(f"{split}, {names[code]}" for split in codes for code in used))
    return CountTable(title="Images by label", columns=columns, rows=rows)


def view_table(views: pd.DataFrame) -> CountTable:
    rows = [
        (view or "(none)", *(f"{count:,}" for count in counts), f"{counts[0] / views['images'].sum():.2%}")
        for view, *counts in views.itertuples()
    ]
    return CountTable(title="Views", columns=("ViewPosition", *views.columns, "share of images"), rows=rows)


def exclusion_table(exclusions: pd.DataFrame) -> CountTable:
    """Makes the table of reasons that follow from the tables; image files were not checked."""
    names = ["images", *TABLE_REASONS, "kept"]
    exclusions = pd.concat([exclusions[names], exclusions[names].sum().rename("all").to_frame().T])
    rows = [(split, *(f"{count:,}" for count in counts)) for split, *counts in exclusions.itertuples()]
    return CountTable(title="Images left out, by reason", columns=("split", *names), rows=rows)


# Writing ----------------------------------------------------------------------------------------------------


def print_table(content: CountTable) -> None:
    table = Table(title=content.title, title_justify="left", caption=content.note, caption_justify="left")
    for number, column in enumerate(content.columns):
        table.add_column(column, justify="left" if number < content.num_names else "right", overflow="fold")
    for row in content.rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 140, markup=False, highlight=False).print(table)


def to_markdown(title: str, tables: list[CountTable], verdicts: list[str]) -> str:
    parts = [f"# {title}\n", "".join(f"- {line}\n" for line in verdicts)]
    for table in tables:
        ruler = ["---"] * table.num_names + ["---:"] * (len(table.columns) - table.num_names)
        lines = "".join(f"| {' | '.join(cells)} |\n" for cells in (table.columns, ruler, *table.rows))
        parts += [f"## {table.title}\n", lines, *([f"{table.note}\n"] if table.note else [])]
    return "\n".join(parts)


def index_csv(kept: pd.DataFrame, root: Path) -> str:
    """Returns the labelled images as CSV text, with paths relative to `root`."""
    index = kept.assign(path=kept["path"].str.removeprefix(f"{root}/"))
    index = index.rename(columns={"view_position": "view"})
    columns = ["dicom_id", *STUDY, "view", "split", "label", "path"]
    return index[columns].to_csv(index=False, lineterminator="\n")


def find_examples(
    rows: pd.DataFrame, reading: Reading, *, num_examples: int, seed: int
) -> list[tuple[str, np.ndarray]]:
    """Returns pairs of view and gray image, uint8 (H, W), of different patients; skips bad files."""
    order = np.random.default_rng(derive_seed(seed, "examples")).permutation(len(rows))
    examples = []
    for row in rows.iloc[order].drop_duplicates("subject_id").itertuples():
        if len(examples) == num_examples:
            break
        try:
            content = shrink_radiograph(find_image(row.path) or row.path, EXAMPLE_SIZE, reading).content
        except DatasetError:
            continue
        with Image.open(io.BytesIO(content)) as image:
            examples.append((row.view_position, np.asarray(image)))
    return examples


def draw_examples(root: Path, kept: pd.DataFrame, path: Path, args: argparse.Namespace) -> str:
    """Draws training images of both labels to `path`; returns the reason if it cannot, else ""."""
    path.unlink(missing_ok=True)  # an old figure may show other data
    if not has_manifest(root) and not (root / "files").is_dir():
        return f"{root} has no folder files/ with images"
    train, reading = kept[kept["split"] == "train"], read_collection(root).reading
    options = {"num_examples": args.num_examples, "seed": args.seed}
    examples = {
        name: find_examples(train[train["label"] == label], reading, **options)
        for label, name in enumerate(BINARY_TASKS.get(args.dataset_config_name, WITHOUT_AND_WITH))
    }
    absent = [name for name, images in examples.items() if not images]
    if absent:
        return f"found no readable training image of {' or '.join(map(repr, absent))} in {root}"
    plot_examples(examples, path, title="Examples of the training split")
    return ""


# The script -------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command_line.ArgumentParser(__doc__)
    add_number, positive = command_line.add_number, command_line.positive_int
    command_line.add_folder(parser, "--data_dir", command_line.DATA_DIR)
    command_line.add_folder(parser, "--output_dir", "where to write", default=Path("runs/dataset"))
    add_label_arguments(parser)
    add_number(
        parser, "--num_samples", positive, "number of training images to draw as the sample", default=10_000
    )
    add_number(parser, "--num_examples", positive, "images per label in the figure", default=4)
    add_number(parser, "--seed", command_line.seed_number, "of the sub-sample and the examples", default=0)
    args = parser.parse_args(argv)
    check_label_arguments(parser, args)
    return args


def count_and_compare(
    root: Path, kept: pd.DataFrame, exclusions: pd.DataFrame, args: argparse.Namespace
) -> tuple[list[CountTable], list[str]]:
    """Returns the tables and the verdicts; if counts differ, the last table lists the differences."""
    images, rule, is_mimic = read_images(root), label_rule(args), not has_manifest(root)
    labelers = [one for one in LABELERS if locate_csv(root, one)] if is_mimic else [args.labeler]
    values = {one: read_labels(root, one, list(rule.labels), images=images) for one in labelers}
    views = count_views(images, values[args.labeler], kept)
    found = {
        "images": count_images(images),
        "labels": count_labels(kept, args.dataset_config_name),
        "views": views[["images with a label row"]].to_dict(),
        "agreement": count_agreement(values, images[images["split"] == "train"]),
    }
    options = {name: getattr(args, name) for name in LABEL_OPTIONS}
    by_value = count_values(values[args.labeler])
    of_labels = f"Studies by label, {args.labeler}" if is_mimic else "Images by label and value"
    tables = [
        counts_table(found["images"], title="Images, studies and patients", of="split"),
        label_table(found["labels"], kept, args, with_published=options == LABEL_OPTIONS and is_mimic),
        view_table(views),
        exclusion_table(exclusions),
    ]
    if by_value:  # a manifest may have no labels
        tables.append(counts_table(by_value, title=of_labels, of="label"))
    if args.dataset_config_name == MULTI_LABEL:
        tables.insert(2, finding_table(kept, rule.label_names))
    if found["agreement"]:
        title = "Training studies by label, where NegBio and CheXpert agree"
        tables.append(counts_table(found["agreement"], title=title, of="label"))
    if not is_mimic:
        return tables, []
    verdicts, differences = zip(*compare_all(root, options, found))
    if rows := [row for of_kind in differences for row in of_kind]:
        columns = ("compared", "of", "found", "published")
        title = "Differences from the published counts"
        tables.append(CountTable(title=title, columns=columns, rows=rows, num_names=4))
    return tables, list(verdicts)


def describe(root: Path, args: argparse.Namespace) -> None:
    """Counts the images and labels, compares them, and writes and prints the tables."""
    rule, output_dir = label_rule(args), args.output_dir
    root = resolve_root(root)  # image paths begin with the resolved folder
    kept, exclusions = index_images(root, **vars(rule))
    make_output_dir(output_dir)
    print(f"Describing {root}" if args.data_dir else f"No --data_dir given: the synthetic sample in {root}")
    tables, verdicts = count_and_compare(root, kept, exclusions, args)
    # Files first: printing may fail, for example in a closed pipe.
    write_text(output_dir / "dataset.md", to_markdown(str(rule), tables, verdicts))
    write_text(output_dir / "dicoms_with_labels_and_splits.csv", index_csv(kept, root), private=True)
    reason = draw_examples(root, kept, output_dir / "examples.png", args)
    for table in tables:
        print_table(table)
    print(*verdicts, sep="\n")
    print(f"Wrote dataset.md and dicoms_with_labels_and_splits.csv to {output_dir}")
    print(f"No examples.png: {reason}" if reason else f"Wrote examples.png to {output_dir}")
    private = "dicoms_with_labels_and_splits.csv" + ("" if reason else " and examples.png")
    if args.data_dir and has_manifest(root):
        print(f"Keep {private} as private as the collection: data of its patients, mode 0600")
    elif args.data_dir:
        print(f"The data-use agreement requires to keep {private} private: patient data, mode 0600")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with user_errors():
        describe(args.data_dir or make_sample_data_once(), args)


if __name__ == "__main__":
    run_script(main)
