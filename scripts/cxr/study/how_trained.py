"""Describes how the rows of a report were trained: what is the same for all rows, and what differs."""

import functools
from collections.abc import Callable

from cxr.choices import DATASET_DEFAULTS
from cxr.choices import EVALUATION_LEVELS
from cxr.run_folder.record import FREE_TO_CHANGE
from cxr.study.costs import duration
from cxr.study.names import labels_of
from cxr.study.names import plural
from cxr.study.names import task_in_words
from cxr.study.predictions import count_images
from cxr.study.predictions import read_predictions
from cxr.study.results import Pretraining
from cxr.study.results import ResultTable
from cxr.study.results import Row
from cxr.study.results import Run

UNKNOWN = "not recorded"
FINE_TUNING = {  # flag -> in words; all are off by default
    "layer_decay": "layer decay",
    "drop_path": "drop path",
    "label_smoothing": "label smoothing",
    "mixup": "mixup",
    "cutmix": "cutmix",
    "ema_decay": "averaged weights (EMA)",
    "early_stopping_patience": "early stopping, patience",
    "class_weights": "class weights",
    "pooling": "pooling",
}
# Flags that FACTS already shows, that name a model or a place, or that only say how to run. All other flags
# are shown by their names if they differ between rows.
SAID_BY_FACTS = FREE_TO_CHANGE | {
    *FINE_TUNING,
    *("seed", "dataset_config_name", "labeler", "view", "uncertain", "blank", "findings"),
    *("evaluation_level", "max_train_samples", "image_size"),
    *(
        "augmentation",
        "randaugment",
        "crop_scale",
        "mask_ratio",
        "random_erasing_prob",
        "train_last_layer_only",
        "weight_decay",
    ),
    *("num_train_epochs", "max_train_steps", "learning_rate", "base_learning_rate"),
    *(
        "lr_scheduler_type",
        "warmup_ratio",
        "warmup_epochs",
        "min_learning_rate",
        "recipe",
        "images_per_step",
        "config_name",
        "config_overrides",
        "model_name_or_path",
        "model_revision",
    ),
}


Facts = list[dict[str, str]]  # the rows of a table: heading -> cell


def how_trained(tables: list[ResultTable]) -> tuple[dict[str, str], list[Facts]]:
    """Returns the facts that all rows share, and tables of the others: first by model, then by row."""
    rows = [row for table in tables for row in table.measured]
    flags = {name for row in rows for run in row.runs for name in run.args.flags} - SAID_BY_FACTS
    others = {name: functools.partial(flag, name=name, unknown="none") for name in sorted(flags)}
    found = [{name: fact(row, one) for name, one in (FACTS | others).items()} for row in rows]
    models = [", ".join([row.name.model, *[row.name.remark] * bool(row.name.remark)]) for row in rows]
    by_model: list[str] = []
    by_row: list[str] = []
    for name in FACTS | others:
        values = {(model, facts[name]) for model, facts in zip(models, found)}
        if len({value for _, value in values}) > 1:
            (by_model if len(values) == len(set(models)) else by_row).append(name)
    common = {name: found[0][name] for name in FACTS if name not in (*by_model, *by_row)} if found else {}
    differing = []
    for names in filter(None, (by_model, by_row)):
        cells = [
            {"model": model} | {name: facts[name] for name in names} for model, facts in zip(models, found)
        ]
        differing.append(cells if names is by_row else [*{one["model"]: one for one in cells}.values()])
    return common, differing


def fact(row: Row, one: Callable[[Run], str]) -> str:
    """Returns the fact that all runs of a row share, or their different facts in the order of the seeds."""
    values = dict.fromkeys(one(run) for run in sorted(row.runs, key=lambda run: run.results.seed))
    return ("; " if any(", " in value for value in values) else ", ").join(values)


def flag(run: Run | Pretraining, name: str, unknown: str = UNKNOWN) -> str:
    value = run.args.flags.get(name)
    return unknown if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def image_size(run: Run) -> str:
    size = run.results.image_size
    return f"{size} x {size} pixels" if size else UNKNOWN


def parameters(run: Run) -> str:
    number = run.results.num_parameters
    return f"{number / 1e6:.3g} million" if number else UNKNOWN


def pretraining(run: Run) -> str:
    if found := run.pretraining:
        images = plural(found.results.num_train_images, "image")
        return f"here, as a masked autoencoder, on {images} of {found.args.origin.dataset}, {length(found)}"
    return (
        f"as published: {run.args.origin.base_model or run.results.model}"
        if run.results.pretrained
        else "none"
    )


def configuration(run: Run) -> str:
    """Returns the overrides of the model's named configuration, which may be those of its pretraining."""
    changes = run.args.flags.get("config_overrides")
    if run.pretraining and not changes:
        changes = run.pretraining.args.flags.get("config_overrides")
    return changes.replace(",", ", ") if changes else "as named"


def length(run: Run | Pretraining) -> str:
    """Returns the requested length of a training, in steps or epochs."""
    if run.args.flags.get("max_train_steps"):
        return plural(run.results.steps, "step")
    return plural(run.args.num_train_epochs, "epoch") if run.args.num_train_epochs else UNKNOWN


def schedule(run: Run) -> str:
    share, epochs, least = map(run.args.flags.get, ("warmup_ratio", "warmup_epochs", "min_learning_rate"))
    said = [flag(run, "lr_scheduler_type") + (f" to {least:g}" if least else "")]
    if epochs:
        said.append(f"{epochs:g} epoch{'s' * (epochs != 1)} of warm-up")
    elif share:
        said.append(f"{share:.0%} of the steps warm-up")
    return ", ".join(said)


def augmentation(run: Run) -> str:
    """Returns the name; of `mae` also its two flags, which no other augmentation uses."""
    name, flags = run.results.augmentation, run.args.flags
    said = [name]
    if name == "mae" and flags.get("randaugment"):
        said.append(flags["randaugment"])
    if name == "mae" and flags.get("crop_scale"):
        said.append("crop {:g} to {:g}".format(*flags["crop_scale"]))
    return ", ".join(said)


def masking(run: Run) -> str:
    shares = {
        "of the patches": run.results.mask_ratio,
        "probability of erasing": run.results.random_erasing_prob,
    }
    return ", ".join(f"{share:.0%} {what}" for what, share in shares.items() if share) or "none"


def fine_tuning(run: Run) -> str:
    parts = [f"{words} {flag(run, name)}" for name, words in FINE_TUNING.items() if run.args.flags.get(name)]
    return ", ".join(parts) or "none"


def precision(run: Run) -> str:
    name = run.results.mixed_precision
    return {None: UNKNOWN, "no": "float32"}.get(name, f"{name} mixed with float32")


def num_train_patients(run: Run) -> str:
    number = run.results.num_train_patients
    return UNKNOWN if number is None else f"{number:,}"


def images_of(run: Run, *, split: str) -> str:
    """Returns the number of images of a split; if the run has predictions, with patients and positives."""
    level = run.results.evaluation_level
    if split == run.split:
        return count_images(run.predictions, level)
    measured = getattr(run.results, split)
    path = run.folder / f"predictions_{split}.csv"
    if measured and path.is_file():
        return count_images(read_predictions(path, measured), level)
    return plural(measured.n, level) if measured else "not measured"


def data(run: Run) -> str:
    return run.args.origin.dataset + " (synthetic radiographs)" * run.args.origin.is_synthetic


def label_rule(run: Run) -> str:
    results = run.results
    labels = run.args.origin.labels
    task = task_in_words(results.task, labels_of(results.task, results.findings, labels))
    source = f"by {results.labeler}" if labels is None else "by the collection"
    blank = f", blank counts as {results.blank}" * (results.blank != DATASET_DEFAULTS["blank"])
    level = f", measured by {results.evaluation_level}"
    level *= results.evaluation_level != EVALUATION_LEVELS[0]
    uncertain = f"uncertain counts as {results.uncertain}"
    return f"{task}, {source}, {uncertain}{blank}, {results.view} views{level}"


def commit(run: Run) -> str:
    name, _, changed = run.args.origin.git_commit.partition("-")
    return name[:10] + " with changes" * bool(changed)


def training_time(run: Run) -> str:
    results = run.results
    return duration(results.steps * results.images_per_step / results.images_per_second)


# Heading -> function that returns this fact of a run.
FACTS: dict[str, Callable[[Run], str]] = {
    "training images": lambda run: f"{run.results.num_train_images:,}",
    "training patients": num_train_patients,
    "positive training images": lambda run: f"{run.results.num_train_positive:,}",
    "pretraining": pretraining,
    "recipe": lambda run: run.results.recipe,
    "parameters": parameters,
    "configuration": configuration,
    "augmentation": augmentation,
    "masking": masking,
    "image size": image_size,
    "trained layers": lambda run: "last layer only" if run.results.train_last_layer_only else "all",
    "epochs": length,
    "best epoch (validation AUROC)": lambda run: str(run.results.best_epoch),
    "learning rate": lambda run: f"{run.results.learning_rate:.3g}",
    "schedule": schedule,
    "weight decay": functools.partial(flag, name="weight_decay"),
    "other parts": fine_tuning,
    "images per step": lambda run: f"{run.results.images_per_step:,}",
    "precision": precision,
    "seeds": lambda run: str(run.results.seed),
    "validation split": functools.partial(images_of, split="validation"),
    "test split": functools.partial(images_of, split="test"),
    "data": data,
    "label rule": label_rule,
    "commit": commit,
    "hardware": lambda run: run.results.hardware or UNKNOWN,
    "training time": training_time,
}
