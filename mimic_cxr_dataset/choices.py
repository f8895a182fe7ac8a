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
# The names of labels 0 and 1. But for "finding", which is any of them, label 1 is the column of that name.
TASKS = {
    "finding": ("No Finding", "Finding"),
    "pleural_effusion": ("No Finding", "Pleural Effusion"),
}
LABELERS = ("negbio", "chexpert")
VIEWS = {"frontal": ("AP", "PA"), "lateral": ("LATERAL", "LL"), "all": None}  # None: any code, or no code
UNCERTAIN = ("negative", "positive", "exclude")
ON_BAD_IMAGE = ("error", "skip")

# The options of the builder and the values of each; the first value is the default.
CHOICES = {
    "task": tuple(TASKS),
    "labeler": LABELERS,
    "view": tuple(VIEWS),
    "uncertain": UNCERTAIN,
    "on_bad_image": ON_BAD_IMAGE,
}
DEFAULTS = {name: values[0] for name, values in CHOICES.items()}
