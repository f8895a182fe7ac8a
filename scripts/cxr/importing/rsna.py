"""RSNA Pneumonia Detection Challenge, stage 2: DICOM files of NIH's images, labelled by radiologists."""

from pathlib import Path

import pandas as pd

from cxr.data.images import user_errors
from cxr.errors import UserError
from cxr.importing import nih
from cxr.importing.label_maps import RSNA
from cxr.importing.manifest_table import SHARES
from cxr.importing.manifest_table import Facts
from cxr.importing.manifest_table import Imported
from cxr.importing.manifest_table import Options
from cxr.importing.manifest_table import cut_missing_splits
from cxr.importing.manifest_table import find_file
from cxr.importing.manifest_table import find_images
from cxr.importing.manifest_table import only_found
from mimic_cxr_dataset.csv_files import read_csv
from mimic_cxr_dataset.dicom import read_view
from mimic_cxr_dataset.errors import DatasetError

FACTS = Facts(
    name="RSNA Pneumonia Detection Challenge",
    license="non-commercial, as the rules of the challenge say",
    citation="Shih et al., Radiology: Artificial Intelligence 2019; Wang et al., ChestX-ray8, CVPR 2017",
    address="https://www.kaggle.com/competitions/rsna-pneumonia-detection-challenge/data",
    layout="stage_2_train_labels.csv, stage_2_detailed_class_info.csv and stage_2_train_images/",
    equalized=False,
    derived_from=nih.FACTS.name,
    published={"images": 26_684},
)
NOTES = (
    "the labels of the test images are not published: validation and test are cut from the training images",
    "the patients are not published, and a patient of NIH may have several images: each counts as a patient",
)


def read(source: Path, options: Options) -> Imported:
    """Reads the collection. Raises UserError.

    An image of the class "No Lung Opacity / Not Normal" has another abnormality, which is not named; whether
    one with an opacity has others as well is unknown.
    """
    boxes = find_file(source, FACTS, "stage_2_train_labels.csv")
    classes = find_file(source, FACTS, "stage_2_detailed_class_info.csv")
    with user_errors():
        targets = read_csv(boxes, ["patientId", "Target"]).groupby("patientId")["Target"].max()
        table = read_csv(classes, ["patientId", "class"]).drop_duplicates()
    table = table.set_index("patientId")["class"]
    has_opacity = targets.reindex(table.index) == "1"
    is_known = table.isin(list(RSNA)) & table.index.isin(targets.index) & ~table.index.duplicated()
    if not (is_known & ((table == "Lung Opacity") == has_opacity)).all() or len(table) < len(targets):
        raise UserError(
            f"{classes}: found classes that do not fit the targets of {boxes.name}, expected tables of "
            "the same stage; download them again"
        )
    ids = table.index.to_series().reset_index(drop=True)
    paths = find_images(ids, source, FACTS, name_of=lambda path: Path(path).stem)
    rows = pd.DataFrame({"image_id": ids, "path": paths, "subject_id": ids, "study_id": ids})
    rows["split"] = cut_missing_splits(pd.Series("train", index=rows.index), ids, options)
    found = table.reset_index(drop=True)
    for label, ours in RSNA.items():
        rows[ours] = (found == label).astype("Int8")
    rows["Other Abnormality"] = rows["Other Abnormality"].mask(rows["Lung Opacity"] == 1)
    rows, notes = only_found(rows, source)
    return Imported(facts=FACTS, rows=rows, notes=(*NOTES, *notes), used=SHARES, view_of=_view)


def _view(path: str) -> str:
    """Returns AP or PA, FRONTAL if the header does not say it. Raises UserError."""
    try:
        view = read_view(path)
    except DatasetError as error:
        raise UserError(f"{path}: {error}; download it again") from error
    return view if view in ("AP", "PA") else "FRONTAL"
