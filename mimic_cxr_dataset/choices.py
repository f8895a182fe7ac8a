"""The dataset's options and their values: constants only, so that any file may import them."""

# The 13 findings of the paper (section "Data"): all label columns except No Finding.
FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
# The columns of the label tables.
LABELS = tuple(sorted((*FINDINGS, "No Finding")))
# The five findings of the CheXpert competition (Irvin et al. 2019).
CHEXPERT5 = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
# The tasks with one label, and the names of its values 0 and 1. But for "finding", which is any of them,
# value 1 is the column of that name.
BINARY_TASKS = {
    "finding": ("No Finding", "Finding"),
    "pleural_effusion": ("No Finding", "Pleural Effusion"),
}
MULTI_LABEL = "findings"  # the task with a label for each of LABELS, or for those that are chosen
TASKS = (*BINARY_TASKS, MULTI_LABEL)
LABELERS = ("negbio", "chexpert")
# None: any code, or no code. FRONTAL is for collections that do not say whether an image is AP or PA.
VIEWS = {"frontal": ("AP", "PA", "FRONTAL"), "lateral": ("LATERAL", "LL"), "all": None}
UNCERTAIN = ("negative", "positive", "exclude", "smooth")
BLANK = ("negative", "exclude")
# Codes of a label of a multi-label task, beside 0 and 1: not used, and drawn anew from SMOOTH_TARGETS in each
# epoch of training (Pham et al. 2019, "U-Ones+LSR"), which counts as 1 in an evaluation.
MASKED, SMOOTH = -1, 2
SMOOTH_TARGETS = (0.55, 0.85)
ON_BAD_IMAGE = ("error", "skip")

MANIFEST_FILE = "manifest.csv"  # the table of any other collection than MIMIC-CXR-JPG

# The options of the builder and the values of each; the first value is the default.
CHOICES = {
    "task": TASKS,
    "labeler": LABELERS,
    "view": tuple(VIEWS),
    "uncertain": UNCERTAIN,
    "blank": BLANK,
    "on_bad_image": ON_BAD_IMAGE,
}
DEFAULTS = {name: values[0] for name, values in CHOICES.items()}
