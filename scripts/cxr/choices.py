"""Every choice that a flag, a grid or a table names, and the defaults: constants only, so no torch."""

from mimic_cxr_dataset.choices import DEFAULTS as DATASET_DEFAULTS
from mimic_cxr_dataset.choices import FINDINGS
from mimic_cxr_dataset.choices import LABELERS
from mimic_cxr_dataset.choices import LABELS
from mimic_cxr_dataset.choices import ON_BAD_IMAGE
from mimic_cxr_dataset.choices import TASKS
from mimic_cxr_dataset.choices import UNCERTAIN
from mimic_cxr_dataset.choices import VIEWS

# The options of a label rule that change which images there are, with the paper's values.
LABEL_OPTIONS = {"dataset_config_name": DATASET_DEFAULTS["task"]} | {
    name: DATASET_DEFAULTS[name] for name in ("labeler", "view", "uncertain")
}

# What happens to a training image. "classic" is the paper's "flipping, rotation, and distortion"; "mae" is
# that of MAE's fine-tuning.
AUGMENTATIONS = ("none", "classic", "mae")
SCHEDULES = ("constant", "linear", "cosine")
TRACKERS = ("tensorboard", "wandb", "mlflow", "all")

DEFAULT_MODEL = "facebook/vit-mae-base"
DEFAULT_IMAGE_SIZE = 224
# Of a classifier, by how it starts: the paper's, at which a new model would hardly move, and one that trains
# small new models (docs/study.md has the figures).
LEARNING_RATES = {"pretrained": 1e-6, "scratch": 1e-4}

# The study.
PRESETS = ("paper", "compare", "future", "smoke")
TRAINING_MODES = ("full", "last_layer")
# What a share of masking means (the paper's text says patches, its code erases): the flag that it sets.
MASKINGS = {"patches": "mask_ratio", "erasing": "random_erasing_prob"}
# Whether a ViT starts as it is named, from the study's own pretraining, or once from each.
PRETRAINING_STARTS = {None: (False,), "beside": (False, True), "instead": (True,)}
