"""Published numbers, in published.json, with which ours are compared.

`study_results`, `study_counts`, `study_sub_sample_counts`: Fradkin and Boxer 2023, "Implementation of Masked
Autoencoders Vision Learners on a medical chest X-Ray Images", section 6, "Results Tables", and section 3,
"Data labels size and distribution": frontal images, labels by NegBio.

`image_counts`, `agreement_counts`: MIMIC-CXR-JPG (Johnson et al. 2019, arXiv 1901.07042), as the notebook
notebooks/generate-stats-from-paper.ipynb of MIT-LCP/mimic-cxr prints them: "Summarize dataset", its table of
the splits (table2.tex), and "Frequency of labels in MIMIC-CXR-JPG on the training subset of 222,750 unique
radiologic studies" (findings_frequency.tex). There, a study counts as positive, negative or uncertain if
NegBio and CheXpert agree, and as disagreement if they differ or only one of them mentions the label. Our
"validation" is published as "validate". Two numbers are left out: the patients of the training split, 64,588,
which with the other two splits do not add up to 65,379; and the views, which are not from the ViewPosition
column alone.

`view_counts`: frontal images with a row in the NegBio table, by ViewPosition: the card of mimic_cxr_dataset.
"""

import json
from pathlib import Path

PUBLISHED = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
IMAGE_COUNTS, VIEW_COUNTS = PUBLISHED["image_counts"], PUBLISHED["view_counts"]
STUDY_COUNTS, STUDY_SUB_SAMPLE_COUNTS = PUBLISHED["study_counts"], PUBLISHED["study_sub_sample_counts"]
AGREEMENT_COUNTS = PUBLISHED["agreement_counts"]
AGREEMENT_COLUMNS = ("positive", "negative", "uncertain", "disagreement")
STUDY_COLUMNS = ("accuracy", "precision", "f1", "recall", "auroc")


def study_results(size: int, model: str, augmentation: str, masked: float) -> dict[str, float]:
    """Returns the paper's metrics of a row of its tables, {} if it has no such row."""
    name = {"size": size, "model": model, "augmentation": augmentation, "masked": masked}
    rows = (row for row in PUBLISHED["study_results"] if name.items() <= row.items())
    return {column: row[column] for row in rows for column in STUDY_COLUMNS}
