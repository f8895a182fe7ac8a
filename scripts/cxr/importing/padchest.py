"""PadChest: PNG files of 16 bits, and one table with terms that radiologists or a program gave."""

from pathlib import Path

import pandas as pd

from cxr.data.images import user_errors
from cxr.importing import label_maps
from cxr.importing.label_maps import EXCLUDED_OF_PADCHEST
from cxr.importing.label_maps import NEUTRAL_OF_PADCHEST
from cxr.importing.label_maps import OTHER_OF_PADCHEST
from cxr.importing.label_maps import TWO_OF_PADCHEST
from cxr.importing.manifest_table import SHARES
from cxr.importing.manifest_table import Facts
from cxr.importing.manifest_table import Imported
from cxr.importing.manifest_table import Options
from cxr.importing.manifest_table import cut_missing_splits
from cxr.importing.manifest_table import find_file
from cxr.importing.manifest_table import find_images
from cxr.importing.manifest_table import only_found
from mimic_cxr_dataset.csv_files import read_csv

FACTS = Facts(
    name="PadChest",
    license="PadChest Dataset Research Use Agreement",
    citation="Bustos et al., PadChest, Medical Image Analysis 2020",
    address="https://bimcv.cipf.es/bimcv-projects/padchest/",
    layout="PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv and the unpacked folders of images",
    equalized=False,
    published={"images": 160_868, "patients": 67_625},
)
TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
COLUMNS = ["ImageID", "StudyID", "PatientID", "Projection", "Labels"]
VIEWS = {"PA": "PA", "AP": "AP", "AP_horizontal": "AP", "L": "LATERAL", "COSTAL": "COSTAL"}


def read(source: Path, options: Options) -> Imported:
    """Reads the collection; validation and test are cut by patient. Raises UserError."""
    with user_errors():
        path = find_file(source, FACTS, TABLE, f"{TABLE}.gz")
        table = read_csv(path, COLUMNS, optional=("PhotometricInterpretation_DICOM",))
    terms = table["Labels"].str.findall(r"'([^']*)'").map(_read_terms)
    is_unreadable = ~table["Labels"].str.strip().isin(["", "[]"]) & (terms.map(len) == 0)
    unreadable = _describe_unreadable(table.loc[is_unreadable, "Labels"])
    of_table = {"images": len(table), "patients": table["PatientID"].nunique()}
    inverted = _describe_inverted(table.get("PhotometricInterpretation_DICOM"))
    has_labels = terms.map(lambda found: any(one not in NEUTRAL_OF_PADCHEST for one in found))
    has_labels &= ~terms.map(lambda found: EXCLUDED_OF_PADCHEST in found)
    is_used = has_labels & table["Projection"].isin(list(VIEWS))
    left_out = (
        f"{(~has_labels).sum():,} images without labels or with the label {EXCLUDED_OF_PADCHEST}, and "
        f"{(has_labels & ~is_used).sum():,} of a projection that is excluded or unknown"
    )
    table, terms = table[is_used].reset_index(drop=True), terms[is_used].reset_index(drop=True)
    rows = pd.DataFrame(
        {
            "image_id": table["ImageID"],
            "path": find_images(table["ImageID"], source, FACTS),
            "subject_id": table["PatientID"],
            "study_id": table["StudyID"],
            "view_position": table["Projection"].map(VIEWS),
        }
    )
    train = pd.Series("train", index=rows.index)
    rows["split"] = cut_missing_splits(train, rows["subject_id"], options)
    rows, notes = only_found(rows.join(_labels(terms, keeps_labels=options.keep_labels)), source)
    notes = (f"left out: {left_out}", *unreadable, *inverted, *notes)
    used = (*SHARES, "keep_labels")
    return Imported(facts=FACTS, rows=rows, notes=notes, of_table=of_table, used=used)


def _describe_unreadable(cells: pd.Series) -> tuple[str, ...]:
    if cells.empty:
        return ()
    return (
        f"{len(cells):,} of the images without labels have something else than a list such as ['nodule']: "
        f"{cells.iloc[0]!r:.60}",
    )


def _describe_inverted(interpretations: pd.Series | None) -> tuple[str, ...]:
    """Returns a note about files that came from DICOM files in which high values are dark."""
    num_inverted = 0 if interpretations is None else (interpretations.str.strip() == "MONOCHROME1").sum()
    if not num_inverted:
        return ()
    return (
        f"{num_inverted:,} images of the table are MONOCHROME1; their PNGs are read as they are, so look at "
        "some: if air is bright in them, leave these images out",
    )


def _read_terms(found: list[str]) -> list[str]:
    terms = [one.strip().lower() for one in found]
    return [part for one in terms for part in TWO_OF_PADCHEST.get(one, [one])]


def _labels(terms: pd.Series, *, keeps_labels: bool) -> pd.DataFrame:
    """Returns a column of 1 and 0 for each label; terms that the map does not have are one of them."""
    columns = label_maps.rename(label_maps.PADCHEST, keeps_labels=keeps_labels)
    others = {*terms.explode()} - {*columns} - {*NEUTRAL_OF_PADCHEST}
    columns = columns | dict.fromkeys(sorted(others), OTHER_OF_PADCHEST)
    known = terms.map(lambda found: [one for one in found if one not in NEUTRAL_OF_PADCHEST])
    return label_maps.read_lists(known, columns, where=Path(TABLE))
