"""Fine-tunes and evaluates a chest X-ray classifier, MAE-ViT or ResNet: one finding, or up to 14 at once.

    # A few minutes on a laptop: a tiny ViT from scratch on a synthetic sample.
    python scripts/run_classification.py

    # The paper's MAE-ViT on MIMIC-CXR-JPG with 1,000 labelled images, on one GPU.
    accelerate launch --quiet --config_file accelerate_configs/single_gpu_fp16.yaml \\
        scripts/run_classification.py --data_dir /data/mimic-cxr-jpg \\
        --model_name_or_path facebook/vit-mae-base --augmentation mae \\
        --max_train_samples 1000 --evaluate_test --output_dir runs/vit-1k

    # The paper's ResNet-18, and a ViT pretrained by run_mae_pretrain.py.
    accelerate launch --quiet scripts/run_classification.py --data_dir /data/mimic-cxr-jpg \\
        --model_name_or_path microsoft/resnet-18 --augmentation classic --output_dir runs/resnet
    accelerate launch --quiet scripts/run_classification.py --data_dir /data/mimic-cxr-jpg \\
        --model_name_or_path runs/mae/model --learning_rate 1e-4 --output_dir runs/vit

    # All 14 labels at once, also measured against a radiologist's labels (MIMIC-CXR-JPG 2.1.0).
    accelerate launch --quiet scripts/run_classification.py --data_dir /data/mimic-cxr-jpg \\
        --dataset_config_name findings --uncertain mix --model_name_or_path runs/mae/model \\
        --learning_rate 1e-4 --evaluate_test --output_dir runs/vit-findings

The run folder gets model/ (of the epoch with the best validation AUROC), metrics.jsonl, predictions, plots
and, last, results.json. Without --data_dir and a model, the defaults are those of a tiny ViT on synthetic
images: 15 epochs at 1e-3.
"""

from cxr.cli import classification

if __name__ == "__main__":  # --help and a wrong flag are answered before the slow imports
    classification.parse_args(None, description=__doc__)

import argparse
import contextlib
import functools
import logging
from collections.abc import Iterator

import torch
from cxr.choices import DEFAULT_IMAGE_SIZE
from cxr.choices import EVALUATION_LEVELS
from cxr.choices import LEARNING_RATES
from cxr.cli import arguments
from cxr.cli import recipes
from cxr.data import transforms
from cxr.data.images import RADIOLOGIST
from cxr.data.images import LabelledImages
from cxr.data.images import are_equalized
from cxr.data.images import check_studies
from cxr.data.images import default_cache_image_size
from cxr.data.images import first_images
from cxr.data.loading import EVALUATION_SEED
from cxr.data.loading import ChestXrays
from cxr.data.loading import gather_in_order
from cxr.data.mixing import Mixing
from cxr.data.radiologist import read_opinions
from cxr.errors import TRAINING_ADVICE
from cxr.errors import UserError
from cxr.errors import run_script
from cxr.evaluation import plots
from cxr.models import configs
from cxr.models import families
from cxr.models import heads
from cxr.models import pooling
from cxr.models import pretrained
from cxr.models.layers import add_drop_path
from cxr.models.layers import has_batchnorm
from cxr.models.layers import remove_drop_path
from cxr.models.layers import synchronize_batchnorm
from cxr.models.masking import PatchDropout
from cxr.models.masking import hide_patches
from cxr.models.scratch import new_classifier
from cxr.run_folder.model_fields import TrainedLabels
from cxr.run_folder.record import ClassificationResults
from cxr.run_folder.record import Epoch
from cxr.sharing import push
from cxr.training import nonfinite
from cxr.training import optimization
from cxr.training import runtime
from cxr.training.convergence import why_undertrained
from cxr.training.run import Run
from cxr.training.scores import Measurer
from cxr.training.scores import make_scores
from torch.utils.data import DataLoader
from transformers import PretrainedConfig
from transformers import PreTrainedModel

logger = logging.getLogger("cxr.classification")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    return classification.parse_args(argv, description=__doc__)


def load_config(args: argparse.Namespace) -> tuple[PretrainedConfig, int]:
    """Returns the model configuration, still without labels, and the side of the input in pixels."""
    if args.config_name:
        config = configs.make_config(
            args.config_name, overrides=args.config_overrides, image_size=args.image_size
        )
    else:
        config = pretrained.load_config(
            args.model_name_or_path, expected=tuple(families.FAMILIES), **arguments.source_of(args)
        )
    pooling.choose_pooling(config, args.pooling)
    if args.mask_ratio and not families.has_patches(config):
        raise UserError(
            f"--mask_ratio {args.mask_ratio}: found a {families.describe_family(config)}, which has no "
            "patches; leave the flag out"
        )
    if config.model_type in ("resnet", "timm_wrapper"):
        families.check_input_size(config, args.image_size)
        size = args.image_size or families.own_size(config)
        if size is None and args.model_name_or_path:
            size = pretrained.stored_input_size(args.model_name_or_path, **arguments.source_of(args))
        return config, size or DEFAULT_IMAGE_SIZE
    pretrained.check_image_size(config, args.image_size)
    return config, args.image_size or config.image_size


def load_model(
    args: argparse.Namespace, config: PretrainedConfig, image_size: int, train_images: LabelledImages
) -> PreTrainedModel:
    """Returns the classifier, from scratch or pretrained; the head is new unless a stored one fits."""
    labels, multi_label = list(train_images.label_names), train_images.is_multi_label
    if args.config_name:
        model = new_classifier(config, labels, multi_label=multi_label)
        if args.learning_rate and args.learning_rate < 1e-5:
            logger.warning(
                "--learning_rate %g suits pretrained models; for a model from scratch, try %g",
                args.learning_rate,
                LEARNING_RATES["scratch"],
            )
    else:
        model = pretrained.load_pretrained(
            families.family_of(config).classifier,
            args.model_name_or_path,
            config=configs.classifier_config(config, labels, multi_label=multi_label),
            new_head=families.new_parameters(config),
            image_size=args.image_size,
            **arguments.source_of(args),
        )
        families.set_input_size(model, image_size)
        if config.architectures == [type(model).__name__] and list(config.id2label.values()) != labels:
            logger.warning(
                "The model's head was trained for %s; it is now trained for %s",
                list(config.id2label.values())[:3],
                labels,
            )
    if args.pooling == "mean" and config.model_type in pooling.OWN_VITS:
        model = pooling.with_mean_pooling(model)
    if args.drop_path:
        add_drop_path(model, args.drop_path)
    else:
        remove_drop_path(model)
    if args.sync_batchnorm:
        if not has_batchnorm(model):
            logger.warning("--sync_batchnorm has no effect: the model has no batch normalisation")
        model = synchronize_batchnorm(model)
    if args.train_last_layer_only:
        model.requires_grad_(False)
        for head in families.family_of(model.config).heads(model):
            head.requires_grad_(True)
    return model


def load_datasets(run: Run, config: PretrainedConfig, image_size: int) -> dict[str, ChestXrays]:
    """Returns the images by split and writes `samples.json`."""
    args = run.args
    splits = run.load_images(
        image_size=image_size,
        with_radiologist=args.evaluate_test,
        patients_dir=args.patients_dir,
        **arguments.data_options(args),
    )
    if args.evaluation_level == "study":
        check_studies({split: images for split, images in splits.items() if split != "train"})
    train_images = run.draw_training_images(splits["train"])
    if len(set(train_images["label"])) < 2:
        logger.warning(
            "All %d training images have the same label: there is nothing to learn", len(train_images)
        )
    num_patches = families.num_patches(config, image_size) if args.mask_ratio else None
    train_transform = transforms.training_transform(
        args.augmentation,
        image_size,
        crop_scale=args.crop_scale,
        random_erasing_prob=args.random_erasing_prob,
        randaugment=args.randaugment,
    )
    mixing = Mixing(mixup=args.mixup, cutmix=args.cutmix) if args.mixup or args.cutmix else None
    options = {"seed": args.seed, "num_patches": num_patches, "mixing": mixing}
    sets = {"train": ChestXrays(train_images, train_transform, **options)}
    if args.evaluate_test and "test" not in splits:
        raise UserError("--evaluate_test: found no test images; leave the flag out, or check the splits")
    for split in ("validation", "test", RADIOLOGIST) if args.evaluate_test else ("validation",):
        if split not in splits:  # few collections have a radiologist's labels
            continue
        images = first_images(splits[split], args.max_eval_samples)
        sets[split] = ChestXrays(images, transforms.evaluation_transform(image_size), seed=EVALUATION_SEED)
    return sets


def synthetic_loss(model: PreTrainedModel, num_images: int, *, image_size: int) -> torch.Tensor:
    """Returns a loss of blank images, to measure the cost of a step before the first one."""
    pixel_values = torch.zeros(num_images, 3, image_size, image_size, device=model.device)
    return model(pixel_values=pixel_values).logits.float().logsumexp(1).mean()


def train_step(
    run: Run, batches: Iterator[dict], patch_dropout: PatchDropout, class_weights: torch.Tensor | None
) -> torch.Tensor:
    """Does one optimizer step over all its micro-batches; returns the loss, NaN if the step was skipped."""
    accelerator, num_micro_batches = run.accelerator, run.step_size.num_passes
    total = torch.zeros((), device=accelerator.device)
    buffers = optimization.keep_buffers(run.model)
    for micro_batch in range(1, num_micro_batches + 1):
        batch = next(batches)
        last = micro_batch == num_micro_batches
        with contextlib.nullcontext() if last else accelerator.no_sync(run.model):
            patch_dropout.noise = batch.get("noise")
            logits = run.model(pixel_values=run.normalize(batch["image"])).logits
            labels = batch["label"].to(accelerator.device, non_blocking=True)
            loss = heads.classification_loss(
                logits, labels, class_weights, smoothing=run.args.label_smoothing
            )
            loss = loss / num_micro_batches
            accelerator.backward(loss)
        total += loss.detach()
    patch_dropout.noise = None
    return run.update_weights(total, buffers=buffers)


def train(run: Run, patch_dropout: PatchDropout) -> None:
    """Trains from `run.progress` to the end, evaluates after each epoch and saves the best model."""
    batches = run.stopwatch.watch(iter(run.train_loader))
    trains_body = not run.args.train_last_layer_only  # a frozen body also keeps its batch-norm statistics
    run.model.train(trains_body)
    weights = class_weights(run)
    for _ in run.steps():
        if has_stopped_improving(run):
            patience, best = run.args.early_stopping_patience, run.progress.best
            logger.info("Stopped early: %d epochs were not better than epoch %d", patience, best.epoch)
            break
        loss = train_step(run, batches, patch_dropout, weights)
        if not run.end_step(loss):
            continue
        reading = run.read_losses()
        if run.ends_epoch:
            epoch = run.end_epoch(reading, validate(run))
            run.model.train(trains_body)
            if is_better(epoch, run.progress.best):
                run.progress.best = Epoch(**epoch)
                run.save_model()
            run.saves |= has_stopped_improving(run)  # this step is the last
        if run.saves:
            run.save_checkpoint()
            if run.pushes_now and run.progress.best:
                run.share_unfinished(task=run.args.dataset_config_name, step=run.progress.best.step)
        run.go_on()


def validate(run: Run) -> dict:
    """Returns the loss and the metrics of the validation split, at thresholds chosen on it."""
    if run.average:
        run.average.share_statistics()
    with run.accelerator.autocast():  # for the average, which Accelerate has not prepared
        logits, labels, loss = evaluate(run, run.evaluated, run.eval_loader, split="validation")
    images, level = run.eval_loader.dataset.images, run.args.evaluation_level
    scores = make_scores(logits, labels, images, level=level, split="validation")
    return {"eval_loss": loss, **scores.measure(scores.choose_thresholds())}


def has_stopped_improving(run: Run) -> bool:
    """Returns whether --early_stopping_patience epochs have passed since the best one."""
    patience, best = run.args.early_stopping_patience, run.progress.best
    if patience is None or best is None:
        return False
    num_epochs = run.progress.step // run.schedule.steps_per_epoch
    return num_epochs - best.epoch >= patience


def is_better(epoch: dict, best: Epoch | None) -> bool:
    """Returns whether an epoch has a higher validation AUROC or, if that is undefined, a lower loss."""
    if best is None:
        return True
    if epoch["auroc"] is None:
        return epoch["eval_loss"] < best.eval_loss
    return epoch["auroc"] > best.auroc


def class_weights(run: Run) -> torch.Tensor | None:
    if run.args.class_weights is None:
        return None
    return heads.balanced_weights(run.train_loader.dataset.labels).to(run.accelerator.device)


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # compiling for the evaluation's batch sizes would take longer
def evaluate(
    run: Run, model: torch.nn.Module, loader: DataLoader, *, split: str
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Returns the logits (N, C), float64, the labels, (N,) or (N, K), of all images, and the mean loss."""
    model.eval()
    logits, labels = [], []
    for batch in runtime.evaluation_bar(run.accelerator, loader, split):
        logits.append(model(pixel_values=run.normalize(batch["image"])).logits.float())
        labels.append(batch["label"].to(run.accelerator.device))
    gather = functools.partial(gather_in_order, run.accelerator, num_samples=len(loader.dataset))
    logits, labels = gather(torch.cat(logits)).double(), gather(torch.cat(labels))
    weights = class_weights(run)
    loss = heads.classification_loss(logits, labels, None if weights is None else weights.cpu().double())
    return logits, labels, nonfinite.check_evaluation(loss.item(), split)


def measure_best(run: Run, model: PreTrainedModel, sets: dict[str, ChestXrays]) -> dict[str, dict]:
    """Evaluates the best epoch's model on validation and test, at thresholds chosen on validation."""
    found = {}
    for split in [name for name in sets if name != "train"]:
        with runtime.full_precision():
            found[split] = evaluate(run, model, run.evaluation_loader(sets[split]), split=split)
    scores = {
        (split, level): make_scores(logits, labels, sets[split].images, level=level, split=split)
        for split, (logits, labels, _) in found.items()
        for level in EVALUATION_LEVELS
        if level == run.args.evaluation_level or (split != "test" and RADIOLOGIST in found)
    }
    train_images, level = sets["train"].images, run.args.evaluation_level
    validation = {at: one for (split, at), one in scores.items() if split == "validation"}
    thresholds = {at: one.choose_thresholds() for at, one in validation.items()}
    if train_images.is_multi_label:  # for users who need a decision, not a probability
        run.save_config(model, decision_thresholds=dict(zip(train_images.label_names, thresholds[level])))
    else:
        run.save_config(model, decision_threshold=thresholds[level][0])
    if not run.accelerator.is_main_process:
        return {}
    measurer = Measurer(thresholds=thresholds, train_images=train_images, record=run.record)
    losses = {split: loss for split, (*_, loss) in found.items()}
    measured = {
        split: {"loss": losses[split], **measurer.measure(scores[split, level], level=level, name=split)}
        for split in found
        if split != RADIOLOGIST
    }
    if RADIOLOGIST in found:
        by_level = {level: scores[RADIOLOGIST, level] for level in EVALUATION_LEVELS}
        opinions = read_opinions(run.args.data_dir, arguments.label_rule(run.args))
        measured[RADIOLOGIST] = measurer.measure_against_radiologist(
            by_level, opinions, loss=losses[RADIOLOGIST]
        )
    return measured


def finish(run: Run, sets: dict[str, ChestXrays], measured: dict[str, dict]) -> None:
    """Draws the loss, pushes the model and, last, writes `results.json`."""
    args, best = run.args, run.progress.best
    title = f"{args.dataset_config_name}, {len(sets['train']):,} training images"
    epochs = run.record.epochs()
    plots.plot_losses(epochs, run.record.output_dir / "loss.png", title=title)
    undertrained = why_undertrained([epoch["eval_loss"] for epoch in epochs], best_epoch=best.epoch)
    flags = ("view", "uncertain", "blank", "findings", "evaluation_level", "class_weights")
    flags += ("augmentation", "mask_ratio", "random_erasing_prob")
    results = ClassificationResults(
        task=args.dataset_config_name,
        pretrained=args.config_name is None,
        labeler=trained_labels(args).get("labeler"),
        **{flag: getattr(args, flag) for flag in flags},
        train_last_layer_only=args.train_last_layer_only,
        learning_rate=run.schedule.peak_learning_rate,
        best_epoch=best.epoch,
        undertrained=undertrained,
        **measured,
        train_loss=best.train_loss,
        num_train_positive=sum(sets["train"].images["label"]),
        **run.finished_results(),
    )
    push.share_finished(run.record, results)
    for split, values in measured.items():
        values = values["image"] if split == RADIOLOGIST else values
        numbers = ("n", "auroc", "average_precision", "accuracy", "f1")
        shown = ", ".join(f"{name} {values[name]:.4g}" for name in numbers if values.get(name) is not None)
        logger.info("%s, epoch %d: %s", split, best.epoch, shown)
    if undertrained:
        logger.warning("undertrained: %s; train longer (--num_train_epochs)", undertrained)
    logger.info("Model, predictions, figures: %s", run.record.output_dir)


def describe_sets(sets: dict[str, ChestXrays]) -> dict[str, str]:
    """Returns, for the plan, the number of images and of positive images in each split."""
    train = sets["train"].images
    positive = "with a finding" if train.is_multi_label else train.label_names[1]
    return {
        split: f"{len(images):,} images, {sum(images.images['label']):,} {positive}"
        for split, images in sets.items()
    }


def trained_labels(args: argparse.Namespace) -> dict[str, str]:
    """Returns the fields of TrainedLabels; a manifest has no labeler."""
    has_labeler = arguments.labels_in(args.data_dir) is None
    flags = [flag for flag in TrainedLabels.model_fields if has_labeler or flag != "labeler"]
    return {flag: getattr(args, flag) for flag in flags}


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    run = Run.start(args, default_output_dir="classification")
    recipes.log_recipe(args, "classification")
    config, image_size = load_config(args)
    classification.warn_of_flags_without_effect(args)
    sets = load_datasets(run, config, image_size)
    model = load_model(args, config, image_size, sets["train"].images)
    # Stored in config.json, so that users of the model prepare images as this run does.
    model.config.cache_image_size = args.cache_image_size or default_cache_image_size(image_size)
    model.config.trained_view = args.view
    model.config.trained_labels = trained_labels(args)
    model.config.equalized = are_equalized(sets["train"].images, args.data_dir)
    image_processor = pretrained.load_image_processor(
        args.model_name_or_path, image_size=image_size, **arguments.source_of(args)
    )
    patch_dropout = hide_patches(model, args.mask_ratio)
    if args.mask_ratio:
        # For the plan, which computes the cost of a step: only the patches that a step sees must count.
        patch_dropout.noise = torch.zeros(1, sets["train"].num_patches)
    one_step = functools.partial(synthetic_loss, image_size=image_size)
    run.plan(model, image_processor, one_step, num_images=len(sets["train"]), betas=(0.9, 0.999))
    default = classification.describe_default_learning_rate(args)
    patch_dropout.noise = None
    run.log_plan(
        {"model": arguments.describe_model(args), **describe_sets(sets), "default learning rate": default}
    )
    run.prepare(sets["train"], sets["validation"])
    with run.preemption:
        train(run, patch_dropout)
        run.end_training()
        measured = measure_best(run, run.load_saved(families.family_of(model.config).classifier), sets)
        if run.accelerator.is_main_process:
            finish(run, sets, measured)
    run.end()


if __name__ == "__main__":
    run_script(main, advice=TRAINING_ADVICE)
