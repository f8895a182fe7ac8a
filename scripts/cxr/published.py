"""Published figures that ours are compared with.

MIMIC-CXR-JPG: Johnson et al. 2019, arXiv 1901.07042, and its pages on PhysioNet. The study: Fradkin and Boxer
2023, "Implementation of Masked Autoencoders Vision Learners on a medical chest X-Ray Images".
"""

# Section 6 of the study, "Results Tables": size -> (model, transformer, share masked) -> the columns.
STUDY_COLUMNS = ("accuracy", "precision", "f1", "recall", "auroc")
STUDY_RESULTS = {
    1_000: {
        ("MAE ViT", "augmented", 0.25): (0.645, 0.612, 0.717, 0.865, 0.675),
        ("MAE ViT", "augmented", 0.50): (0.660, 0.670, 0.676, 0.683, 0.715),
        ("MAE ViT", "augmented", 0.75): (0.710, 0.695, 0.739, 0.788, 0.729),
        ("MAE ViT", "not augmented", 0.0): (0.700, 0.686, 0.730, 0.779, 0.752),
        ("ResNet", "augmented", 0.0): (0.660, 0.638, 0.709, 0.798, 0.726),
        ("ResNet", "not augmented", 0.0): (0.685, 0.667, 0.722, 0.788, 0.734),
    },
    10_000: {
        ("MAE ViT", "augmented", 0.25): (0.749, 0.738, 0.803, 0.882, 0.809),
        ("MAE ViT", "augmented", 0.50): (0.747, 0.729, 0.805, 0.899, 0.796),
        ("MAE ViT", "augmented", 0.75): (0.750, 0.737, 0.805, 0.888, 0.799),
        ("MAE ViT", "not augmented", 0.0): (0.755, 0.775, 0.795, 0.817, 0.802),
        ("ResNet", "augmented", 0.0): (0.750, 0.755, 0.797, 0.844, 0.807),
        ("ResNet", "not augmented", 0.0): (0.743, 0.759, 0.788, 0.819, 0.780),
    },
}
