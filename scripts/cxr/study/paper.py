"""Published figures that ours are compared with.

MIMIC-CXR-JPG: Johnson et al. 2019, arXiv 1901.07042, and its pages on PhysioNet. The study: Fradkin and Boxer
2023, "Implementation of Masked Autoencoders Vision Learners on a medical chest X-Ray Images".
"""

# Section 6 of the study, "Results Tables": size -> (model, augmentation, share masked) -> columns.
STUDY_COLUMNS = ("accuracy", "precision", "f1", "recall", "auroc")
STUDY_RESULTS = {
    1_000: {
        ("MAE ViT", "mae", 0.25): (0.645, 0.612, 0.717, 0.865, 0.675),
        ("MAE ViT", "mae", 0.50): (0.660, 0.670, 0.676, 0.683, 0.715),
        ("MAE ViT", "mae", 0.75): (0.710, 0.695, 0.739, 0.788, 0.729),
        ("MAE ViT", "none", 0.0): (0.700, 0.686, 0.730, 0.779, 0.752),
        ("ResNet", "classic", 0.0): (0.660, 0.638, 0.709, 0.798, 0.726),
        ("ResNet", "none", 0.0): (0.685, 0.667, 0.722, 0.788, 0.734),
    },
    10_000: {
        ("MAE ViT", "mae", 0.25): (0.749, 0.738, 0.803, 0.882, 0.809),
        ("MAE ViT", "mae", 0.50): (0.747, 0.729, 0.805, 0.899, 0.796),
        ("MAE ViT", "mae", 0.75): (0.750, 0.737, 0.805, 0.888, 0.799),
        ("MAE ViT", "none", 0.0): (0.755, 0.775, 0.795, 0.817, 0.802),
        ("ResNet", "classic", 0.0): (0.750, 0.755, 0.797, 0.844, 0.807),
        ("ResNet", "none", 0.0): (0.743, 0.759, 0.788, 0.819, 0.780),
    },
}
# What follows are aggregate counts. Splits are named as in mimic_cxr_dataset: "validation" is published as
# "validate". The notebook is notebooks/generate-stats-from-paper.ipynb of MIT-LCP/mimic-cxr, which makes the
# tables of the MIMIC-CXR-JPG paper and prints them.
# The notebook, "Summarize dataset" and its table of the splits (table2.tex). Left out: its patients of the
# training split, 64,588, which do not add up to 65,379 with the other two; and its views, which are not those
# of the ViewPosition column alone.
IMAGE_COUNTS = {
    "all": {"images": 377_110, "studies": 227_835, "patients": 65_379},
    "train": {"images": 368_960, "studies": 222_758},
    "validation": {"images": 2_991, "studies": 1_808, "patients": 500},
    "test": {"images": 5_159, "studies": 3_269, "patients": 293},
}
# Frontal images with a row in the NegBio table, by ViewPosition: the card of mimic_cxr_dataset.
VIEW_COUNTS = {"images with a label row": {"AP": 147_169, "PA": 96_155}}
# Section 3 of the study, "Data labels size and distribution": frontal images, labels by NegBio.
STUDY_COUNTS = {
    "train": {"No Finding": 96_694, "Finding": 141_268},
    "validation": {"No Finding": 813, "Finding": 1_146},
}
STUDY_SUB_SAMPLE_COUNTS = {
    "train": {"No Finding": 4_126, "Finding": 5_875},
    "validation": {"No Finding": 767, "Finding": 1_065},
}
# The notebook, "Frequency of labels in MIMIC-CXR-JPG on the training subset of 222,750 unique radiologic
# studies" (findings_frequency.tex): a study counts as positive, negative or uncertain where NegBio and
# CheXpert agree, as disagreement where they differ or only one of them mentions the label.
AGREEMENT_COLUMNS = ("positive", "negative", "uncertain", "disagreement")
AGREEMENT_COUNTS = {
    "Atelectasis": (44_012, 921, 9_623, 1_705),
    "Cardiomegaly": (38_002, 15_563, 5_753, 5_769),
    "Consolidation": (10_199, 7_791, 2_913, 1_576),
    "Edema": (25_549, 24_746, 11_426, 2_282),
    "Enlarged Cardiomediastinum": (6_798, 5_158, 9_015, 248),
    "Fracture": (3_675, 871, 295, 867),
    "Lung Lesion": (5_939, 822, 996, 289),
    "Lung Opacity": (49_512, 2_794, 2_052, 2_460),
    "No Finding": (74_019, 0, 0, 3_825),
    "Pleural Effusion": (51_680, 26_532, 5_184, 1_617),
    "Pleural Other": (1_884, 120, 707, 91),
    "Pneumonia": (15_333, 23_771, 17_313, 1_377),
    "Pneumothorax": (9_159, 41_250, 848, 1_291),
    "Support Devices": (63_971, 3_014, 95, 1_785),
}
