"""The values and defaults of flags, grids and tables: constants only, so that any file may import them."""

from mimic_cxr_dataset.choices import BINARY_TASKS
from mimic_cxr_dataset.choices import BLANK
from mimic_cxr_dataset.choices import CHEXPERT5
from mimic_cxr_dataset.choices import DEFAULTS as DATASET_DEFAULTS
from mimic_cxr_dataset.choices import FINDINGS
from mimic_cxr_dataset.choices import LABELERS
from mimic_cxr_dataset.choices import LABELS
from mimic_cxr_dataset.choices import MASKED
from mimic_cxr_dataset.choices import MULTI_LABEL
from mimic_cxr_dataset.choices import ON_BAD_IMAGE
from mimic_cxr_dataset.choices import SMOOTH
from mimic_cxr_dataset.choices import SMOOTH_TARGETS
from mimic_cxr_dataset.choices import TASKS
from mimic_cxr_dataset.choices import UNCERTAIN
from mimic_cxr_dataset.choices import VIEWS

# The options of the label rule that decide which images are used, with the paper's values.
LABEL_OPTIONS = {"dataset_config_name": DATASET_DEFAULTS["task"]} | {
    name: DATASET_DEFAULTS[name] for name in ("labeler", "view", "uncertain")
}

# The augmentations of training images: "classic" is the paper's "flipping, rotation, and distortion", "mae"
# is the one of MAE's fine-tuning.
AUGMENTATIONS = ("none", "classic", "mae")
CLASS_WEIGHTS = ("balanced",)
EVALUATION_LEVELS = ("image", "study")
# RandAugment by timm's names: magnitude m, number of operations n, standard deviation of the magnitude mstd.
RANDAUGMENT = "rand-m9-mstd0.5-inc1"
RANDAUGMENT_NAMES = r"rand-m(\d+(?:\.\d+)?)(?:-n([1-9]\d*))?(?:-mstd(\d+(?:\.\d+)?))?-inc1"
POOLINGS = ("mean", "class")  # of a ViT's tokens to the features of an image: patches, or the class token
RECIPES = ("paper", "mae", "medical_mae")  # named sets of flags, in cxr/cli/recipes.py
HEAD_POOLINGS = ("token", "mean")  # what the head of a ViT reads
SCHEDULES = ("constant", "linear", "cosine")
TRACKERS = ("tensorboard", "wandb", "mlflow", "all")

DEFAULT_MODEL = "facebook/vit-mae-base"
DEFAULT_IMAGE_SIZE = 224
# The default learning rates of a classifier: the paper's, which is too low for a model from scratch, and one
# that trains small models from scratch.
LEARNING_RATES = {"pretrained": 1e-6, "scratch": 1e-4}

PREDICTION_FORMATS = (".csv", ".jsonl")  # of predict.py --output
CHECKPOINT_FORMATS = (".pth", ".pt", ".bin", ".tar", ".safetensors")  # that convert_checkpoint.py reads

# The study.
PRESETS = ("paper", "compare", "medmnist", "future", "smoke")
TRAINING_MODES = ("full", "last_layer")
# The flag that sets the share of masking: the paper's text hides patches, its code erases rectangles.
MASKINGS = {"patches": "mask_ratio", "erasing": "random_erasing_prob"}
# What a ViT starts from: the study's own pretraining (True), the named model (False), or once from each.
PRETRAINING_STARTS = {None: (False,), "beside": (False, True), "instead": (True,)}
