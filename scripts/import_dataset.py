"""Imports a collection of chest X-rays as its publisher ships it, for all scripts of this repository.

    # PneumoniaMNIST: one file of 4 MB, in seconds.
    python scripts/import_dataset.py medmnist pneumoniamnist.npz data/pneumoniamnist

    # NIH ChestX-ray14, and a small subset of it: about half pneumonia, half normal.
    python scripts/import_dataset.py nih /data/ChestXray-NIHCC data/nih
    python scripts/import_dataset.py nih /data/ChestXray-NIHCC data/small --max_images 600 --balance Pneumonia

    # Your own images: a folder for each class, or a table with columns that you name.
    python scripts/import_dataset.py folder my-images data/mine
    python scripts/import_dataset.py table labels.csv data/mine --images_dir my-images --path_column file \\
        --label_columns Edema Pneumonia --subject_column patient

Writes OUT/manifest.csv, which lists the images where they lie with their labels and splits, and
OUT/collection.json. Then use --data_dir OUT. Nothing is downloaded, and images are not copied; only medmnist,
whose images are in no files, writes PNGs. The counts are compared with the published ones, and differences
are listed. docs/collections.md says where to get each collection, and how its labels are mapped.
"""

import argparse
import re
from pathlib import Path

from cxr.cli import command_line
from cxr.errors import UserError
from cxr.errors import run_script
from cxr.importing import chexpert
from cxr.importing import medmnist
from cxr.importing import nih
from cxr.importing import own_images
from cxr.importing import padchest
from cxr.importing import rsna
from cxr.importing import vindr
from cxr.importing.manifest_table import Facts
from cxr.importing.manifest_table import Imported
from cxr.importing.manifest_table import Options
from cxr.importing.manifest_table import check_images
from cxr.importing.manifest_table import describe_views
from cxr.importing.manifest_table import write_manifest
from rich.console import Console
from rich.table import Table

from mimic_cxr_dataset.collection import MAX_TEXT_LENGTH
from mimic_cxr_dataset.errors import one_line

PUBLISHED = {
    "nih": nih.read,
    "chexpert": chexpert.read,
    "medmnist": medmnist.read,
    "vindr": vindr.read,
    "rsna": rsna.read,
    "padchest": padchest.read,
}
# Collections of one's own -> the flags that only these have; both have also those in NAMING.
OWN = {
    "folder": ("view", "subject_pattern"),
    "table": (
        *("images_dir", "path_column", "label_columns"),
        *("image_column", "subject_column", "study_column", "view_column", "split_column"),
    ),
}
NAMING = ("name", "license", "citation")
# What `Imported.used` names -> why such a flag has no effect on a collection.
UNUSED = {
    "validation_share": "the validation split is already there",
    "test_share": "the test split is already there",
    "keep_labels": "none of the labels are joined",
}
FACTS = {
    "nih": nih.FACTS,
    "chexpert": chexpert.FACTS,
    "medmnist": medmnist.FACTS["pneumoniamnist"],
    "vindr": vindr.FACTS,
    "rsna": rsna.FACTS,
    "padchest": padchest.FACTS,
}
LAYOUTS = {"folder": "SOURCE/CLASS/image.png", "table": "a CSV file with a row for each image"}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    where = "\n".join(f"    {name}: {facts.address}" for name, facts in FACTS.items())
    parser = command_line.ArgumentParser(
        f"{__doc__}\nWhere to download:\n{where}\n", usage="COLLECTION SOURCE OUT [flags]"
    )
    parser.add_argument(
        "collection", choices=(*PUBLISHED, *OWN), metavar="COLLECTION", help=", ".join((*PUBLISHED, *OWN))
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the folder or file that you downloaded")
    parser.add_argument("out", type=Path, metavar="OUT", help="the new folder for the manifest")
    number = command_line.add_number
    number(
        parser,
        "--max_images",
        command_line.positive_int,
        "keep at most N images, of patients drawn at random",
    )
    parser.add_argument(
        "--balance",
        metavar="LABEL",
        help="keep only images with this label, such as Pneumonia, and in each split as many of No Finding",
    )
    number(
        parser,
        "--validation_share",
        command_line.share_above_zero,
        "share of the training patients for validation, where no split is published",
        default=Options.validation_share,
    )
    number(
        parser,
        "--test_share",
        command_line.share_above_zero,
        "share of the patients for the test, where no split is published",
        default=Options.test_share,
    )
    number(parser, "--seed", command_line.seed_number, "seed of the splits and of --max_images", default=0)
    parser.add_argument(
        "--keep_labels",
        action="store_true",
        help="keep each published label as a column of its own, under its own name, instead of joining them "
        "to MIMIC-CXR-JPG's 14",
    )
    _add_own_arguments(parser)
    args = parser.parse_args(argv)
    _check(parser, args)
    return args


def _add_own_arguments(parser: argparse.ArgumentParser) -> None:
    own = parser.add_argument_group("own images (folder and table)")
    for name, what in (
        ("name", "name of the collection (default: that of OUT)"),
        ("license", "license of the images and labels, for the model card"),
        ("citation", "what to cite, for the model card"),
    ):
        own.add_argument(f"--{name}", type=text_of_collection, default="", help=what)
    own.add_argument("--view", metavar="CODE", default="FRONTAL", help="folder: the view of all images")
    own.add_argument(
        "--subject_pattern",
        type=regular_expression,
        metavar="REGEX",
        help="folder: what is found in an image's path; the first group names the patient, as in "
        r"'person(\d+)' (default: each image counts as a patient)",
    )
    command_line.add_folder(
        own, "--images_dir", "table: the folder in which its paths start (default: that of the table)"
    )
    own.add_argument("--path_column", metavar="NAME", default="path", help="table: the column of paths")
    own.add_argument(
        "--label_columns", nargs="+", metavar="NAME", default=[], help="table: the columns of labels"
    )
    for name, holds, instead in (
        ("image", "image ids", "the path"),
        ("subject", "patient ids", "each image counts as a patient"),
        ("study", "study ids", "each image is a study"),
        ("view", "views, such as AP", "all images are frontal"),
        ("split", "splits: train, validation, test", "patients are drawn at random"),
    ):
        said = f"table: the column of {holds} (default: {instead})"
        own.add_argument(f"--{name}_column", metavar="NAME", help=said)


def text_of_collection(text: str) -> str:
    if not text.isprintable() or len(text) > MAX_TEXT_LENGTH:
        raise argparse.ArgumentTypeError(
            f"found {text!r:.50}, expected one line of at most {MAX_TEXT_LENGTH:,} printable characters"
        )
    return text


def regular_expression(text: str) -> re.Pattern:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"found {text!r} ({error}), expected a regular expression") from None
    if pattern.groups == 0:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a group in brackets around the patient")
    return pattern


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.collection == "table" and not args.label_columns:
        parser.error("table: found no --label_columns, expected the names of the columns with labels")
    for name in (*NAMING, *OWN["folder"], *OWN["table"]):
        for_it = [kind for kind, flags in OWN.items() if name in (*NAMING, *flags)]
        if args.collection not in for_it and getattr(args, name) != parser.get_default(name):
            parser.error(f"--{name} is for {' and '.join(for_it)}, not for {args.collection}; leave it out")
    if args.validation_share >= 1 or args.test_share >= 1:
        parser.error("--validation_share and --test_share: found 1, expected less: no training image is left")


def check_places(args: argparse.Namespace) -> None:
    """Raises UserError if there is no SOURCE, or something in OUT."""
    for what, path in (("SOURCE", args.source), ("OUT", args.out)):
        try:
            path.stat()
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:  # such as a name that is too long
            raise UserError(
                f"{what} {path}: cannot be read ({one_line(error)}); name another folder"
            ) from error
    if "::" in str(args.out.absolute()):
        raise UserError(f"OUT {args.out}: found '::' in its path, expected none; name another folder")
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise UserError(f"OUT {args.out}: found something there, expected a new folder; name another")
    if not args.source.exists():
        known = FACTS.get(args.collection)
        layout = known.layout if known else LAYOUTS[args.collection]
        hint = f"download it from {known.address}" if known else "name another"
        raise UserError(f"SOURCE {args.source}: found nothing there, expected {layout}; {hint}")


def read_collection(args: argparse.Namespace) -> Imported:
    """Reads SOURCE. Raises UserError."""
    options = Options(
        keep_labels=args.keep_labels,
        validation_share=args.validation_share,
        test_share=args.test_share,
        seed=args.seed,
    )
    if args.collection in PUBLISHED:
        return PUBLISHED[args.collection](args.source, options)
    facts = Facts(
        name=args.name or args.out.absolute().name,
        license=args.license,
        citation=args.citation,
        address="",
        layout=LAYOUTS[args.collection],
    )
    if args.collection == "folder":
        return own_images.read_folder(
            args.source, options, facts, view=args.view, subject_pattern=args.subject_pattern
        )
    columns = own_images.Columns(
        path=args.path_column,
        labels=tuple(args.label_columns),
        image_id=args.image_column,
        subject_id=args.subject_column,
        study_id=args.study_column,
        view_position=args.view_column,
        split=args.split_column,
    )
    images_dir = args.images_dir or args.source.absolute().parent
    return own_images.read_table(args.source, options, facts, columns=columns, images_dir=images_dir)


def describe_flags(args: argparse.Namespace, used: tuple[str, ...]) -> list[str]:
    """Returns a note about each flag that has no effect on this collection."""
    given = [name for name in UNUSED if getattr(args, name) != getattr(Options, name)]
    return [f"--{name} has no effect: {UNUSED[name]}" for name in given if name not in used]


def describe(imported: Imported, out: Path, *, notes: list[str], is_sample: bool) -> None:
    """Prints the counts, and how they differ from the published ones."""
    rows, splits = imported.rows, ("train", "validation", "test")
    table = Table()
    for column in ("", *splits):
        table.add_column(column, justify="right" if column else "left")
    of_split = [rows[rows["split"] == split] for split in splits]
    table.add_row("images", *(f"{len(part):,}" for part in of_split))
    table.add_row("patients", *(f"{part['subject_id'].nunique():,}" for part in of_split))
    for label in imported.labels:
        table.add_row(label, *(f"{int((part[label] == 1).sum()):,}" for part in of_split))
    print(f"{imported.facts.name}: images, and those that are positive")
    Console(markup=False, highlight=False).print(table)
    views = None if imported.view_of else describe_views(rows)
    empty = [
        f"the {split} split has no image: keep more images, or choose another --seed"
        for split, part in zip(splits, of_split)
        if part.empty
    ]
    for note in filter(None, (*imported.notes, views, *notes, *empty)):
        print(f"Note: {note}.")
    differences = imported.differences()
    if is_sample:
        print("Counts: not compared with the published ones, because only a sample is kept.")
    elif differences:
        print("Counts that differ from the published ones:", *differences, sep="\n  ")
    elif imported.facts.published:
        print(f"Counts: equal to the published ones, all {len(imported.facts.published)} of them.")
    print(f"Wrote {out / 'manifest.csv'} and collection.json: use --data_dir {out}")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_places(args)
    whole = read_collection(args)
    check_images(args.source, whole.rows)
    imported = whole.balance(args.balance, seed=args.seed) if args.balance else whole
    imported = imported.sample(args.max_images, seed=args.seed)
    try:
        write_manifest(imported, args.out)
    except OSError as error:
        raise UserError(
            f"OUT {args.out}: cannot be written ({one_line(error)}); name another folder"
        ) from error
    notes = describe_flags(args, whole.used)
    describe(imported, args.out, notes=notes, is_sample=len(imported.rows) < len(whole.rows))


if __name__ == "__main__":
    run_script(main)
