"""Writes the model card: README.md of a run and of its model, with metadata for the Hugging Face Hub."""

import argparse
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult
from huggingface_hub import ModelCard
from huggingface_hub import ModelCardData

from cxr.choices import BINARY_TASKS
from cxr.choices import MULTI_LABEL
from cxr.choices import SMOOTH_TARGETS
from cxr.data.images import user_errors
from cxr.data.sources import is_mimic
from cxr.data.sources import is_synthetic
from cxr.data.sources import source_address
from cxr.data.sources import source_revision
from cxr.errors import UserError
from cxr.evaluation.subgroups import MACRO
from cxr.evaluation.subgroups import MIN_PATIENTS
from cxr.run_folder.fields import Record
from cxr.run_folder.files import read_json
from cxr.run_folder.files import write_text
from cxr.run_folder.measured import Groups
from cxr.run_folder.measured import Measured
from cxr.run_folder.model_fields import ModelFields
from cxr.run_folder.model_fields import Stage
from cxr.run_folder.privacy import mask_ids
from cxr.run_folder.record import Arguments
from cxr.run_folder.record import Origin
from cxr.run_folder.record import Results
from cxr.run_folder.record import Sample
from cxr.run_folder.record import Training
from cxr.sharing.local_hub import MODEL_ID
from cxr.sharing.local_hub import read_refs
from cxr.version import VERSION
from mimic_cxr_dataset.choices import MANIFEST_FILE
from mimic_cxr_dataset.collection import read_collection
from mimic_cxr_dataset.errors import DatasetError
from mimic_cxr_dataset.label_rule import LabelRule
from mimic_cxr_dataset.labels import labels_of_collection

TEMPLATE = Path(__file__).parent / "templates" / "card.md.j2"
# Figures that may be shared, because they show no image and no patient.
FIGURES = {
    "loss.png": "Mean loss by epoch",
    "roc_pr_validation.png": "ROC and precision-recall curves on validation",
    "roc_pr_test.png": "ROC and precision-recall curves on test",
    "confusion_matrix_validation.png": "Confusion matrices on validation",
    "confusion_matrix_test.png": "Confusion matrices on test",
    "roc_validation.png": "ROC curve of each finding on validation",
    "roc_test.png": "ROC curve of each finding on test",
    "auroc_validation.png": "AUROC of each finding on validation, with its interval",
    "auroc_test.png": "AUROC of each finding on test, with its interval",
}
ATTRIBUTES_OF_PATIENTS = ("sex", "age", "race")
# How an uncertain label counts: in a task with one label, and in one with several.
POLICIES = {
    "negative": ("count as negative", "count as negative"),
    "positive": ("count as positive", "count as positive"),
    "exclude": ("their studies are left out", "are not used"),
    "smooth": (
        "",
        f"count as a number from {SMOOTH_TARGETS[0]} to {SMOOTH_TARGETS[1]} in training, and as positive in "
        "an evaluation",
    ),
}
METRICS = {  # our name -> the Hub's id and the name to show
    "auroc": ("roc_auc", "AUROC"),
    "average_precision": ("average_precision", "Average precision"),
    "accuracy": ("accuracy", "Accuracy"),
    "precision": ("precision", "Precision"),
    "recall": ("recall", "Recall"),
    "f1": ("f1", "F1"),
}
SUMMARY = ("auroc", "average_precision")  # those that need no threshold
# How published base models were trained, by the beginning of their name.
PUBLISHED = {
    "facebook/vit-mae-": "a masked autoencoder trained on the photographs of ImageNet-1k (He et al. 2022)",
    "microsoft/resnet-": "a classifier trained on the photographs of ImageNet-1k (He et al. 2015)",
    "facebook/dinov2-": "an encoder trained on 142 million photographs without labels (Oquab et al. 2023)",
    "microsoft/rad-dino": "an encoder trained on chest X-rays of several collections, MIMIC-CXR among them, "
    "without labels (Pérez-García et al. 2024)",
}
# Flags that the card lists. The others change only how, where or how fast a run works.
HYPERPARAMETERS = (
    "config_name",
    "config_overrides",
    "image_size",
    "pooling",
    "mask_ratio",
    "norm_pix_loss",
    "crop_scale",
    "horizontal_flip",
    "augmentation",
    "randaugment",
    "random_erasing_prob",
    "train_last_layer_only",
    "num_train_epochs",
    "max_train_steps",
    "learning_rate",
    "base_learning_rate",
    "lr_scheduler_type",
    "warmup_ratio",
    "warmup_epochs",
    "min_learning_rate",
    "layer_decay",
    "drop_path",
    "label_smoothing",
    "ema_decay",
    "mixup",
    "cutmix",
    "class_weights",
    "weight_decay",
    "max_grad_norm",
    "seed",
)
SHOWN = {  # in each card, as far as a run has it
    "metrics": METRICS,
    "summary": SUMMARY,
    "at_threshold": ("accuracy", "precision", "recall", "f1"),
    "hyperparameters": HYPERPARAMETERS,
}
LICENSE = {
    "license": "other",
    "license_name": "physionet-credentialed-health-data-license-1.5.0",
    "license_link": "https://physionet.org/content/mimic-cxr-jpg/view-license/2.1.0/",
}


def describe_origin(args: argparse.Namespace) -> Origin:
    """Returns the origin of a run for its card (code, data, base model), without paths of this machine.

    Call it at the start of the run: code, data and base model may have changed by the end.
    """
    base_model = args.model_name_or_path
    is_by_name = base_model is not None and not Path(base_model).exists() and MODEL_ID.fullmatch(base_model)
    refs = read_refs(args.hub_dir, base_model) if is_by_name and args.hub_dir else {}
    dataset = "synthetic-radiographs" if is_synthetic(args.data_dir) else dataset_name(args.data_dir)
    if args.other_data_dirs:
        dataset = ", ".join(name_roots([args.data_dir, *args.other_data_dirs]))
    root = None if args.other_data_dirs else args.data_dir
    has_manifest = root is not None and (root / MANIFEST_FILE).is_file()
    return Origin(
        git_commit=source_revision(),
        is_synthetic=all(map(is_synthetic, [args.data_dir, *args.other_data_dirs])),
        dataset=dataset,
        derived_from=sorted({*map(derived_from, [args.data_dir, *args.other_data_dirs])} - {None}),
        base_model=base_model and mask_ids(base_model if is_by_name else Path(base_model).name),
        base_model_revision=refs.get(args.model_revision, args.model_revision) if is_by_name else None,
        repository=source_address(),
        labeler=args.labeler if root is not None and is_mimic(root) else None,
        **(describe_manifest(root) if has_manifest else {}),
        version=VERSION,
    )


def describe_manifest(data_dir: Path) -> dict[str, object]:
    """Returns the fields of `Origin` that a manifest and its collection.json give."""
    collection = read_collection(data_dir)
    labels = list(labels_of_collection(data_dir))
    return {"labels": labels, "license": collection.license, "citation": collection.citation}


def write_card(output_dir: Path, args: Arguments, training: Training) -> None:
    """Writes README.md into the run folder and its model/, with copies of the figures that may be shared."""
    model_dir = output_dir / "model"
    for name in FIGURES:
        if (output_dir / name).is_file():
            temporary = model_dir / f".{name}.tmp"
            shutil.copyfile(output_dir / name, temporary)
            temporary.replace(model_dir / name)
    text = make_card(model_dir, args, training, Sample.read(output_dir / "samples.json"))
    for folder in (model_dir, output_dir):
        write_text(folder / "README.md", text)


def make_card(model_dir: Path, args: Arguments, training: Training, sample: Sample) -> str:
    """Returns the card of a model, with the figures that are in its folder.

    `training` is a `Results` if the run is finished. The card depends only on the run's records, and not on
    when or how fast it ran: equal runs have equal cards.
    """
    is_pretraining = training.task == "mae_pretraining"
    name, origin = args.hub_model_id or "model", args.origin
    splits = {split: getattr(training, split, None) for split in ("validation", "test")}
    splits = {split: metrics for split, metrics in splits.items() if metrics}
    fields = ModelFields.read(model_dir / "config.json")
    rule, is_multi_label = read_label_rule(args), args.dataset_config_name == MULTI_LABEL
    metric_names = SUMMARY if is_multi_label else METRICS
    groups = groups_to_share(list(splits.values())[-1].subgroups) if splits else None
    collections = collections_of(fields.training_history, origin)
    has_mimic = "mimic" in "".join(collections)
    metadata = ModelCardData(
        **(LICENSE if has_mimic else license_of(origin, collections)),
        library_name="transformers",
        pipeline_tag="image-feature-extraction" if is_pretraining else "image-classification",
        tags=["chest-x-ray", "radiology", "medical-imaging", "masked-autoencoder"],
        base_model=origin.base_model if origin.base_model_revision else None,
        datasets=list(collections),
        metrics=None if is_pretraining else [METRICS[metric][0] for metric in metric_names],
        model_name=name.rpartition("/")[2],
        eval_results=list(evaluations(splits, training.task, origin.dataset)) or None,
        language=None,
    )
    options = {"trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    body = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"), **options).render(
        metadata=metadata.to_yaml(),
        name=name,
        source=json.dumps(name) + local_keywords(args),
        history=describe_history(fields.training_history, origin, sample),
        fields=fields,
        is_pretraining=is_pretraining,
        needs_timm=read_json(model_dir / "config.json").get("model_type") == "timm_wrapper",
        is_multi_label=is_multi_label,
        label_names=rule.label_names,
        label_rule=describe_labels(rule),
        uncertain=describe_uncertain(rule),
        is_by_study=args.evaluation_level == "study",
        all_collections=[name for name, is_drawn in collections.items() if not is_drawn],
        has_one_source=come_from_one(fields.training_history, origin),
        is_finished=isinstance(training, Results),
        origin=origin,
        is_mimic=has_mimic,
        args=args,
        training=training,
        sample=sample,
        figures={name: caption for name, caption in FIGURES.items() if (model_dir / name).is_file()},
        groups=groups,
        fairness=groups is not None and any(gap.attribute in ATTRIBUTES_OF_PATIENTS for gap in groups.gaps),
        radiologist=None if origin.is_synthetic else getattr(training, "radiologist", None),
        with_interval=with_interval,
        splits=splits,
        decision=getattr(splits.get("validation"), "at_chosen_threshold", None),
        **SHOWN,
    )
    return str(ModelCard(body))


def collections_of(history: list[Stage], origin: Origin) -> dict[str, bool]:
    """Returns the collections of all trainings of the weights, and whether each is synthetic.

    With them are the collections that their images come from.
    """
    return {
        name: one.is_synthetic
        for one in (*history, origin)
        for name in (*one.dataset.split(", "), *one.derived_from)
    }


def come_from_one(history: list[Stage], origin: Origin) -> bool:
    """Returns whether all images are of one collection, perhaps under other ids or labels."""
    trainings = [one for one in (*history, origin) if not one.is_synthetic]
    return len({name for one in trainings for name in one.derived_from or one.dataset.split(", ")}) <= 1


def license_of(origin: Origin, collections: dict[str, bool]) -> dict[str, str]:
    """Returns the license of the data in the form of the Hub; that of several collections has no name."""
    if all(collections.values()):
        return {"license": "mit"}
    others = {name for name, is_synthetic in collections.items() if not is_synthetic} - {origin.dataset}
    if origin.license is None or others:
        return {"license": "other"}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", origin.license.lower())[:60]}


def read_label_rule(args: Arguments) -> LabelRule:
    """Returns the label rule of a run. Raises UserError if this version does not know it."""
    try:
        return LabelRule(
            task=args.dataset_config_name,
            uncertain=args.uncertain,
            blank=args.blank,
            findings=args.findings and tuple(args.findings),
            collection=None if args.origin.labels is None else tuple(args.origin.labels),
        )
    except DatasetError as error:
        raise UserError(f"args.json: {error}") from error


def describe_labels(rule: LabelRule) -> str:
    """Returns in words when a label is 1 and when it is 0."""
    if rule.task == "finding" and not rule.all_findings:
        return "the collection has no labels of findings"
    if rule.task == "finding":
        names = "the 13 findings" if rule.collection is None else ", ".join(rule.all_findings)
        left_out = "; left out if No Finding is 0 and no finding positive" * ("No Finding" in rule.columns)
        return f"1 if any of {names} is positive, else 0{left_out}"
    if rule.task in BINARY_TASKS:
        return f"1 if {rule.label_names[1]} is positive, 0 if No Finding is; others are left out"
    blank = "counts as negative" if rule.blank == "negative" else "is not used unless No Finding decides it"
    names = ", ".join(rule.label_names)
    return f"one label each for {names}: 1 if it is positive, 0 if it is negative; one that is blank {blank}"


def describe_uncertain(rule: LabelRule) -> str:
    """Returns in words how uncertain labels count, for all findings or for each."""
    is_multi_label = rule.task == MULTI_LABEL
    names = {MULTI_LABEL: rule.label_names, "finding": rule.all_findings}.get(rule.task, rule.columns)
    findings_of = {}
    for name in names:
        findings_of.setdefault(rule.policies[name], []).append(name)
    if not findings_of:
        return "none"
    if len(findings_of) == 1:
        return POLICIES[next(iter(findings_of))][is_multi_label]
    most = max(findings_of, key=lambda policy: len(findings_of[policy]))
    named = {policy: ", ".join(findings) for policy, findings in findings_of.items() if policy != most}
    parts = [*named.items(), (most, "the others")]
    return "; ".join(f"{findings}: {POLICIES[policy][is_multi_label]}" for policy, findings in parts)


def groups_to_share(groups: Groups | None) -> Groups | None:
    """Returns the groups that are large enough for a card; with several findings, their means alone."""
    if groups is None:
        return None
    findings = {one.finding for one in groups.groups}
    shown = {MACRO} if MACRO in findings else findings
    return Groups(
        groups=[one for one in groups.groups if one.finding in shown and one.num_patients >= MIN_PATIENTS],
        gaps=[gap for gap in groups.gaps if gap.finding in shown],
        num_patients_unknown=groups.num_patients_unknown,
    )


def with_interval(measured: Record, metric: str) -> str:
    """Returns a metric with its interval as the text of a table cell."""
    value, interval = getattr(measured, metric), measured.intervals.get(metric)
    if value is None:
        return "undefined"
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def local_keywords(args: Arguments) -> str:
    """Returns the keywords that load a model from a local directory, without the path of this machine."""
    if not args.hub_model_id or not args.hub_dir:
        return ""
    name = mask_ids(Path(args.hub_dir).name)
    return f", cache_dir={json.dumps(name if name.strip('.') else 'models')}, local_files_only=True"


def describe_history(history: list[Stage], origin: Origin, sample: Sample) -> list[str]:
    """Returns all trainings of the weights in order, one or two sentences each; the last is this one."""
    first = history[0] if history else origin
    if first.base_model is None:
        steps = ["Random weights." if len(history) > 1 else "Random weights: the model was not pretrained."]
    else:
        steps = [f"Start: {start_in_words(first)}."]
    for stage, following in itertools.pairwise(history):
        if stage.task == "mae_pretraining":
            what = "Pretraining as a masked autoencoder (`run_mae_pretrain.py`"
        else:
            what = f"Training as a classifier for `{stage.task}` (`run_classification.py`"
        epochs = f"{stage.num_epochs:.3g} epoch{'s' if stage.num_epochs != 1 else ''}"
        images = f"{stage.num_images:,} training images of `{stage.dataset}`, {epochs}."
        name = f" Result: {start_in_words(following)}." if following.base_model_revision else ""
        steps.append(f"{what} in the code named below): {images}{name}")
    last = "The training that this card describes."
    if len(history) > 1:
        number, seen, step = sample.num_images, sample.num_seen_before, f"step {len(steps)}"
        if history[-2].sha256 == sample.sha256:
            last += f" Its {number:,} images are the same as those of {step}."
        elif seen == number:
            last += f" All of its {number:,} images were also used in {step}."
        elif seen is None:
            last += f" It is not known how many of its {number:,} images were also used in {step}."
        else:
            last += f" Of its {number:,} images, {seen:,} were also used in {step}."
    return [*steps, last]


def start_in_words(start: Stage | Origin) -> str:
    """Returns the model that a training started from, and what it was trained on, as far as it is known."""
    name = start.base_model
    if not start.base_model_revision:
        return f"a model in a folder named `{name}`; it is not known what it was trained on"
    known = next((f": {text}" for prefix, text in PUBLISHED.items() if name.startswith(prefix)), "")
    revision = start.base_model_revision
    return f"the model `{name}`, revision `{revision}`, shared by `{name.partition('/')[0]}`{known}"


def dataset_name(data_dir: Path) -> str:
    """Returns a dataset id: the name in a manifest's collection.json, else the data folder's.

    Of PhysioNet's .../NAME/VERSION, it is NAME. MIMIC-CXR-JPG keeps its name in any folder. Raises UserError
    for a collection.json that is not valid.
    """
    folder = Path(os.path.abspath(data_dir))  # noqa: PTH100 - a link keeps its name
    name = folder.parent.name if re.fullmatch(r"[\d.]+", folder.name) else folder.name
    if (folder / MANIFEST_FILE).is_file():
        with user_errors():
            name = read_collection(folder).name or name
    elif "mimic-cxr" not in dataset_id(name) and is_mimic(folder):
        return "mimic-cxr-jpg"
    return dataset_id(name)


def dataset_id(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", mask_ids(name), flags=re.ASCII).strip("-.").lower() or "unnamed"


def derived_from(data_dir: Path | None) -> str | None:
    """Returns the dataset id of the collection whose images those of a manifest are, if it names one."""
    if data_dir is None or not (data_dir / MANIFEST_FILE).is_file():
        return None
    with user_errors():
        name = read_collection(data_dir).derived_from
    return name and dataset_id(name)


def name_roots(data_dirs: list[Path]) -> dict[str, Path]:
    """Returns several data folders by their names. Raises UserError if two have the same."""
    roots: dict[str, Path] = {}
    for data_dir in data_dirs:
        first = roots.setdefault(dataset_name(data_dir), data_dir)
        if first != data_dir:
            raise UserError(
                f"--data_dir: found {first} and {data_dir}, both called {dataset_name(data_dir)}, expected "
                "collections of different names; rename a folder, or leave out one"
            )
    return roots


def evaluations(splits: dict[str, Measured], task: str, data: str) -> Iterator[EvalResult]:
    """Yields the metrics of the test split, or else of validation, in the form of the Hub's model-index."""
    for split, measured in list(splits.items())[-1:]:
        for ours, (metric, name) in METRICS.items():
            if (value := getattr(measured, ours, None)) is not None:
                yield EvalResult(
                    task_type="image-classification",
                    dataset_type=data,
                    dataset_name=data,
                    dataset_config=task,
                    dataset_split=split,
                    metric_type=metric,
                    metric_name=f"{name}, mean over labels" if task == MULTI_LABEL else name,
                    metric_value=round(value, 4),
                )
