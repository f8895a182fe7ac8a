"""Which label of a collection is which of MIMIC-CXR-JPG's 14; docs/collections.md shows the same table.

A label without a counterpart stays a column of its own, under the name that stands here. A finding that a
collection does not annotate has no column at all: it is unknown, not negative.
"""

from pathlib import Path

import pandas as pd

from cxr.errors import UserError
from mimic_cxr_dataset.manifest import label_name

NIH = {
    "No Finding": "No Finding",
    "Atelectasis": "Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Consolidation": "Consolidation",
    "Edema": "Edema",
    "Effusion": "Pleural Effusion",
    "Mass": "Lung Lesion",
    "Nodule": "Lung Lesion",
    "Pleural_Thickening": "Pleural Other",
    "Pneumonia": "Pneumonia",
    "Pneumothorax": "Pneumothorax",
    "Emphysema": "Emphysema",
    "Fibrosis": "Fibrosis",
    "Hernia": "Hernia",
    "Infiltration": "Infiltration",
}
# The order of the columns of chestmnist.npz.
CHESTMNIST = {
    name: NIH[name]
    for name in (
        *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia"),
        *("Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia"),
    )
}
PNEUMONIAMNIST = {"normal": "No Finding", "pneumonia": "Pneumonia"}
VINDR = {
    "No finding": "No Finding",
    "Atelectasis": "Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Consolidation": "Consolidation",
    "Edema": "Edema",
    "Clavicle fracture": "Fracture",
    "Rib fracture": "Fracture",
    "Nodule/Mass": "Lung Lesion",
    "Lung Opacity": "Lung Opacity",
    "Pleural effusion": "Pleural Effusion",
    "Pleural thickening": "Pleural Other",
    "Pneumonia": "Pneumonia",
    "Pneumothorax": "Pneumothorax",
    "Aortic enlargement": "Aortic Enlargement",
    "COPD": "COPD",
    "Calcification": "Calcification",
    "Emphysema": "Emphysema",
    "Enlarged PA": "Enlarged Pulmonary Artery",
    "ILD": "Interstitial Lung Disease",
    "Infiltration": "Infiltration",
    "Lung cavity": "Lung Cavity",
    "Lung cyst": "Lung Cyst",
    "Lung tumor": "Lung Tumor",
    "Mediastinal shift": "Mediastinal Shift",
    "Other diseases": "Other Disease",
    "Other lesion": "Other Lesion",
    "Pulmonary fibrosis": "Fibrosis",
    "Tuberculosis": "Tuberculosis",
}
RSNA = {
    "Normal": "No Finding",
    "Lung Opacity": "Lung Opacity",
    "No Lung Opacity / Not Normal": "Other Abnormality",
}
# A term is joined with the terms below it in PadChest's hierarchy: an empyema is a pleural effusion.
PADCHEST = {
    "normal": "No Finding",
    **dict.fromkeys(
        (
            *("atelectasis", "atelectasis basal", "laminar atelectasis", "lobar atelectasis"),
            *("round atelectasis", "segmental atelectasis", "total atelectasis"),
        ),
        "Atelectasis",
    ),
    "cardiomegaly": "Cardiomegaly",
    **dict.fromkeys(("consolidation", "air bronchogram"), "Consolidation"),
    "pulmonary edema": "Edema",
    **dict.fromkeys(
        ("mediastinal enlargement", "superior mediastinal enlargement"), "Enlarged Cardiomediastinum"
    ),
    **dict.fromkeys(
        (
            *("fracture", "rib fracture", "callus rib fracture", "clavicle fracture", "humeral fracture"),
            "vertebral fracture",
        ),
        "Fracture",
    ),
    **dict.fromkeys(("nodule", "multiple nodules", "pulmonary mass", "lung metastasis"), "Lung Lesion"),
    **dict.fromkeys(
        (
            *("infiltrates", "alveolar pattern", "interstitial pattern", "ground glass pattern"),
            *("reticular interstitial pattern", "reticulonodular interstitial pattern"),
            *("miliary opacities", "increased density"),
        ),
        "Lung Opacity",
    ),
    **dict.fromkeys(
        (
            *("pleural effusion", "loculated pleural effusion", "loculated fissural effusion"),
            *("empyema", "hemothorax"),
        ),
        "Pleural Effusion",
    ),
    **dict.fromkeys(
        (
            *("pleural thickening", "apical pleural thickening", "calcified pleural thickening"),
            *("pleural plaques", "calcified pleural plaques"),
        ),
        "Pleural Other",
    ),
    **dict.fromkeys(("pneumonia", "atypical pneumonia"), "Pneumonia"),
    "pneumothorax": "Pneumothorax",
    **dict.fromkeys(
        (
            *("electrical device", "single chamber device", "dual chamber device", "pacemaker", "dai"),
            *("catheter", "central venous catheter", "central venous catheter via jugular vein"),
            *("central venous catheter via subclavian vein", "central venous catheter via umbilical vein"),
            *("reservoir central venous catheter", "nsg tube", "endotracheal tube", "tracheostomy tube"),
            *("chest drain tube", "ventriculoperitoneal drain tube", "gastrostomy tube", "nephrostomy tube"),
            *("artificial heart valve", "artificial aortic heart valve", "artificial mitral heart valve"),
        ),
        "Support Devices",
    ),
    "air trapping": "Air Trapping",
    "aortic atheromatosis": "Aortic Atheromatosis",
    **dict.fromkeys(
        (
            *("aortic elongation", "ascendent aortic elongation", "descendent aortic elongation"),
            *("aortic button enlargement", "supra aortic elongation"),
        ),
        "Aortic Elongation",
    ),
    "bronchiectasis": "Bronchiectasis",
    "copd signs": "COPD",
    "costophrenic angle blunting": "Costophrenic Angle Blunting",
    "emphysema": "Emphysema",
    "granuloma": "Granuloma",
    "calcified granuloma": "Granuloma",
    "hemidiaphragm elevation": "Hemidiaphragm Elevation",
    "hiatal hernia": "Hernia",
    **dict.fromkeys(
        (
            *("hilar enlargement", "vascular hilar enlargement", "pulmonary artery enlargement"),
            *("adenopathy", "calcified adenopathy"),
        ),
        "Hilar Enlargement",
    ),
    **dict.fromkeys(("pulmonary fibrosis", "post radiotherapy changes", "asbestosis signs"), "Fibrosis"),
    "scoliosis": "Scoliosis",
    "tuberculosis": "Tuberculosis",
    "tuberculosis sequelae": "Tuberculosis",
    "volume loss": "Volume Loss",
}
TWO_OF_PADCHEST = {"hydropneumothorax": ["pleural effusion", "pneumothorax"]}  # both, in its own hierarchy
OTHER_OF_PADCHEST = "Other Abnormality"  # any of its other findings
NEUTRAL_OF_PADCHEST = ("", "unchanged", "suboptimal study")  # neither normal nor a finding
EXCLUDED_OF_PADCHEST = "exclude"  # of a report that its authors do not use


def rename(label_map: dict[str, str], *, keeps_labels: bool) -> dict[str, str]:
    """Returns the column of each published label; with `keeps_labels`, each has a column of its own.

    A label that is also one of LABELS has its spelling there.
    """
    if not keeps_labels:
        return label_map
    own = {label: label.replace("_", " ").replace("/", " or ") for label in label_map}
    own = {label: name.replace("central venous catheter via", "catheter via") for label, name in own.items()}
    own = {label: label_name(name) for label, name in own.items()}
    return own | {label: "No Finding" for label, ours in label_map.items() if ours == "No Finding"}


def read_lists(lists: pd.Series, columns: dict[str, str], *, where: Path) -> pd.DataFrame:
    """Returns a column of 1 and 0 for each label, from the list of the positive ones of each image.

    Raises UserError for a label that `columns` does not have.
    """
    labels = lists.explode()
    if (unknown := ~labels.isin(list(columns))).any():
        raise UserError(
            f"{where}: found the label {labels[unknown].iloc[0]!r:.60}, expected one of "
            f"{', '.join(columns)}; use the table as published"
        )
    names = list(dict.fromkeys(columns.values()))
    found = pd.crosstab(labels.index, labels.map(columns)).reindex(lists.index, fill_value=0)
    return found.reindex(columns=names, fill_value=0).clip(upper=1)


def join_columns(table: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    """Returns `table`, a column of 1 and 0 for each published label, under our names: any 1 counts."""
    return table[list(columns)].T.groupby(columns, sort=False).max().T
