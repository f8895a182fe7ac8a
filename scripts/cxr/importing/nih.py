"""NIH ChestX-ray14: one table with labels from reports, two lists of images that are the official split."""

from pathlib import Path

import pandas as pd

from cxr.data.images import user_errors
from cxr.errors import UserError
from cxr.importing import label_maps
from cxr.importing.manifest_table import Facts
from cxr.importing.manifest_table import Imported
from cxr.importing.manifest_table import Options
from cxr.importing.manifest_table import cut_split
from cxr.importing.manifest_table import find_file
from cxr.importing.manifest_table import find_images
from cxr.importing.manifest_table import only_found
from cxr.importing.manifest_table import read_words
from mimic_cxr_dataset.csv_files import read_csv

FACTS = Facts(
    name="NIH ChestX-ray14",
    license="free of use restrictions, with acknowledgement of the NIH Clinical Center",
    citation="Wang et al., ChestX-ray8, CVPR 2017 (images: NIH Clinical Center)",
    address="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    layout="Data_Entry_2017*.csv, train_val_list.txt, test_list.txt and the images of images_*.tar.gz",
    equalized=False,
    published={
        "images": 112_120,
        "patients": 30_805,
        "train and validation images": 86_524,
        "test images": 25_596,
    },
)
TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
COLUMNS = ["Image Index", "Finding Labels", "Patient ID", "View Position"]


def read(source: Path, options: Options) -> Imported:
    """Reads the collection; validation is cut from the official train_val by patient. Raises UserError."""
    path = find_file(source, FACTS, *TABLES)
    with user_errors():
        table = read_csv(path, COLUMNS)
    lists = {
        split: find_file(source, FACTS, f"{name}_list.txt", f"{name}_list_NIH.txt")
        for split, name in (("train", "train_val"), ("test", "test"))
    }
    split = pd.concat([pd.Series(name, index=read_words(listing)) for name, listing in lists.items()])
    if (unlisted := ~table["Image Index"].isin(split.index)).any() or split.index.duplicated().any():
        raise UserError(
            f"{path}: found {unlisted.sum():,} images that are in no list, and "
            f"{split.index.duplicated().sum():,} that are there twice, expected each once; download both"
        )
    patient = table["Patient ID"]
    split = cut_split(
        table["Image Index"].map(split), patient, "validation", options.validation_share, seed=options.seed
    )
    rows = pd.DataFrame(
        {
            "image_id": table["Image Index"],
            "path": find_images(table["Image Index"], source, FACTS),
            "subject_id": patient,
            "study_id": table["Image Index"],
            "view_position": table["View Position"],
            "split": split,
        }
    )
    columns = label_maps.rename(label_maps.NIH, keeps_labels=options.keep_labels)
    labels = label_maps.read_lists(table["Finding Labels"].str.split("|"), columns, where=path)
    rows, notes = only_found(rows.join(labels), source)
    return Imported(facts=FACTS, rows=rows, notes=notes, used=("validation_share", "keep_labels"))
