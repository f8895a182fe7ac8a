"""How the rows of a report were trained: what is the same for all of them, and what differs between them."""

import functools
from collections.abc import Callable

from cxr.choices import TASKS
from cxr.run_folder.record import FREE_TO_CHANGE
from cxr.study.costs import duration
from cxr.study.results import Pretraining
from cxr.study.results import ResultTable
from cxr.study.results import Row
from cxr.study.results import Run
from cxr.study.results import count_images
from cxr.study.results import plural
from cxr.study.results import read_predictions

UNKNOWN = "not recorded"
# Flags that a fact speaks of, that name a model or a place, or that only say how to run. Of the others, those
# that differ between rows are shown by their names.
SAID_BY_FACTS = FREE_TO_CHANGE | {
    *("seed", "dataset_config_name", "labeler", "view", "uncertain", "max_train_samples", "image_size"),
    *("augmentation", "mask_ratio", "random_erasing_prob", "train_last_layer_only", "weight_decay"),
    *("num_train_epochs", "max_train_steps", "learning_rate", "base_learning_rate"),
    *("lr_scheduler_type", "warmup_ratio", "config_name", "model_name_or_path", "model_revision"),
}


def how_trained(tables: list[ResultTable]) -> tuple[dict[str, str], list[str], list[dict[str, str]]]:
    """Returns the facts that all rows have in common, the names of the others, and those others a row."""
    rows = [row for table in tables for row in table.measured]
    flags = {name for row in rows for run in row.runs for name in run.args.flags} - SAID_BY_FACTS
    others = {name: functools.partial(flag, name=name, unknown="none") for name in sorted(flags)}
    found = [{name: fact(row, one) for name, one in (FACTS | others).items()} for row in rows]
    differing = [name for name in FACTS | others if len({facts[name] for facts in found}) > 1]
    common = {name: found[0][name] for name in FACTS if name not in differing} if found else {}
    names = [", ".join([row.name.model, *[row.name.setup] * bool(row.name.setup)]) for row in rows]
    # The name of a row stands in its table, whatever else does.
    of_rows = [{"model": name} | {one: facts[one] for one in differing} for name, facts in zip(names, found)]
    return common, ["model", *differing] if differing else [], of_rows


def fact(row: Row, one: Callable[[Run], str]) -> str:
    """What is so of all runs of a row or, in the order of their seeds, all that there is."""
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
        patients = found.results.num_train_patients
        images = plural(found.results.num_train_images, "image")
        images += f" of {plural(patients, 'patient')}" if patients else ""
        return (
            f"masked autoencoder, on {images} of {found.args.origin.dataset}: "
            f"{length(found)}, {rate(found)}, batch {found.results.images_per_step}"
        )
    return (
        f"as published: {run.args.origin.base_model or run.results.model}"
        if run.results.pretrained
        else "none"
    )


def length(run: Run | Pretraining) -> str:
    """What a run was asked to train for."""
    if run.args.flags.get("max_train_steps"):
        return plural(run.results.steps, "step")
    return plural(run.args.num_train_epochs, "epoch") if run.args.num_train_epochs else UNKNOWN


def rate(run: Pretraining) -> str:
    """Of a pretraining: the peak learning rate, which a base rate means for 256 images a step."""
    base = run.args.flags.get("base_learning_rate") or 0
    peak = run.args.flags.get("learning_rate") or base * run.results.images_per_step / 256
    return f"learning rate {peak:.3g}" if peak else f"learning rate {UNKNOWN}"


def schedule(run: Run) -> str:
    warmup = run.args.flags.get("warmup_ratio")
    return flag(run, "lr_scheduler_type") + (f", {warmup:.0%} of the steps warm-up" if warmup else "")


def masking(run: Run) -> str:
    shares = {
        "of the patches": run.results.mask_ratio,
        "probability of erasing": run.results.random_erasing_prob,
    }
    return ", ".join(f"{share:.0%} {what}" for what, share in shares.items() if share) or "none"


def precision(run: Run) -> str:
    name = run.results.mixed_precision
    return {None: UNKNOWN, "no": "float32"}.get(name, f"{name} mixed with float32")


def num_train_patients(run: Run) -> str:
    number = run.results.num_train_patients
    return UNKNOWN if number is None else f"{number:,}"


def images_of(run: Run, *, split: str) -> str:
    """The images of a split that was measured: counted in the predictions where a run has them."""
    if split == run.split:
        return count_images(run.predictions)
    measured = getattr(run.results, split)
    path = run.folder / f"predictions_{split}.csv"
    if measured and path.is_file():
        return count_images(read_predictions(path, measured.n))
    return plural(measured.n, "image") if measured else "not measured"


def data(run: Run) -> str:
    return run.args.origin.dataset + " (drawn, not radiographs)" * run.args.origin.is_synthetic


def label_rule(run: Run) -> str:
    results = run.results
    classes = " vs ".join(reversed(TASKS.get(results.task, (results.task,))))
    return f"{classes}, by {results.labeler}, uncertain counts as {results.uncertain}, {results.view} views"


def commit(run: Run) -> str:
    name, _, changed = run.args.origin.git_commit.partition("-")
    return name[:10] + " with changes" * bool(changed)


def training_time(run: Run) -> str:
    results = run.results
    return duration(results.steps * results.images_per_step / results.images_per_second)


# Heading -> the fact of a run.
FACTS: dict[str, Callable[[Run], str]] = {
    "training images": lambda run: f"{run.results.num_train_images:,}",
    "training patients": num_train_patients,
    "positive training images": lambda run: f"{run.results.num_train_positive:,}",
    "pretraining": pretraining,
    "parameters": parameters,
    "augmentation": lambda run: run.results.augmentation,
    "masking": masking,
    "image size": image_size,
    "trained layers": lambda run: "the last" if run.results.train_last_layer_only else "all",
    "epochs": length,
    "epoch kept (best validation AUC)": lambda run: str(run.results.best_epoch),
    "learning rate": lambda run: f"{run.results.learning_rate:.3g}",
    "schedule": schedule,
    "weight decay": functools.partial(flag, name="weight_decay"),
    "batch": lambda run: plural(run.results.images_per_step, "image"),
    "precision": precision,
    "seeds": lambda run: str(run.results.seed),
    "validation split": functools.partial(images_of, split="validation"),
    "test split": functools.partial(images_of, split="test"),
    "data": data,
    "label rule": label_rule,
    "commit": commit,
    "hardware": lambda run: run.results.hardware or UNKNOWN,
    "time of training": training_time,
}
