"""Fine-tunes and measures a binary chest X-ray classifier: MAE-ViT or ResNet.

    # Minutes on a laptop: a tiny ViT from scratch on a synthetic sample.
    python scripts/run_classification.py

    # The paper's MAE-ViT on MIMIC-CXR-JPG with 1,000 labelled images, on one GPU.
    accelerate launch --config_file accelerate_configs/single_gpu_fp16.yaml scripts/run_classification.py \\
        --data_dir /data/mimic-cxr-jpg --model_name_or_path facebook/vit-mae-base --augmentation mae \\
        --max_train_samples 1000 --evaluate_test --output_dir runs/vit-1k

    # Its ResNet-18, and a ViT that run_mae_pretrain.py pretrained.
    accelerate launch scripts/run_classification.py --data_dir /data/mimic-cxr-jpg \\
        --model_name_or_path microsoft/resnet-18 --augmentation classic --output_dir runs/resnet
    accelerate launch scripts/run_classification.py --data_dir /data/mimic-cxr-jpg \\
        --model_name_or_path runs/mae/model --output_dir runs/vit

The run folder gets model/ (of the epoch with the best validation AUROC), metrics.jsonl, predictions, plots
and, last, results.json.
"""

import argparse
import contextlib
import functools
import logging
from collections.abc import Iterator

import numpy as np
import torch
from accelerate import Accelerator
from cxr.cli import arguments
from cxr.cli import command_line
from cxr.data import transforms
from cxr.data.images import default_cache_image_size
from cxr.data.images import draw_training_images
from cxr.data.images import first_images
from cxr.data.images import load_images
from cxr.data.loading import EVALUATION_SEED
from cxr.data.loading import ChestXrays
from cxr.data.loading import gather_in_order
from cxr.data.loading import make_evaluation_loader
from cxr.data.loading import make_loaders
from cxr.errors import TRAINING_ADVICE
from cxr.errors import UserError
from cxr.errors import run_script
from cxr.evaluation import intervals
from cxr.evaluation import metrics
from cxr.evaluation import plots
from cxr.models import acceleration
from cxr.models import architectures
from cxr.models import configs
from cxr.models import pretrained
from cxr.models.scratch import new_classifier
from cxr.run_folder.record import RunRecord
from cxr.run_folder.record import installed_versions
from cxr.sharing.push import share_finished
from cxr.sharing.push import share_unfinished
from cxr.training import checkpoints
from cxr.training import nonfinite
from cxr.training import optimization
from cxr.training import runtime
from cxr.training import throughput
from cxr.training.preemption import Preemption
from cxr.training.progress import Progress
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PretrainedConfig
from transformers import PreTrainedModel
from transformers import ResNetForImageClassification
from transformers import ViTForImageClassification
from transformers import ViTImageProcessor

CLASSIFIERS = {
    "vit_mae": ViTForImageClassification,
    "vit": ViTForImageClassification,
    "resnet": ResNetForImageClassification,
}
logger = logging.getLogger("cxr.classification")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command_line.ArgumentParser(__doc__)
    default_model = "facebook/vit-mae-base"
    config_names = [*architectures.VIT_MAE_CONFIGS, *architectures.RESNET_CONFIGS]
    arguments.add_model_arguments(parser, default_model=default_model, config_names=config_names)

    study = parser.add_argument_group("what the study varies")
    study.add_argument(
        "--augmentation", choices=transforms.AUGMENTATIONS, default="none", help="of training images"
    )
    study.add_argument(
        "--crop_scale",
        type=command_line.share_above_zero,
        nargs=2,
        default=(0.08, 1.0),
        metavar=("MIN", "MAX"),
        help="share of the image's area that the random resized crop of --augmentation mae covers",
    )
    study.add_argument(
        "--random_erasing_prob",
        metavar="P",
        type=command_line.probability,
        default=0.0,
        help="probability that a rectangle of a training image becomes noise",
    )
    study.add_argument(
        "--mask_ratio",
        metavar="R",
        type=command_line.share_below_one,
        default=0.0,
        help="share of the patches that a ViT does not see while training; at evaluation it sees all",
    )
    study.add_argument(
        "--train_last_layer_only", action="store_true", help="freeze all but the classifier's head"
    )

    arguments.add_data_arguments(parser)
    training = arguments.add_training_arguments(
        parser,
        num_train_epochs=20,
        per_device_train_batch_size=32,
        weight_decay=0.01,
        lr_scheduler_type="constant",
        warmup_ratio=0.0,
    )
    arguments.add_learning_rate_arguments(training, default="learning_rate 1e-6")
    training.add_argument(
        "--sync_batchnorm",
        action="store_true",
        help="a ResNet's batch normalisation sees the images of all GPUs, not those of each",
    )
    training.add_argument(
        "--evaluate_test", action="store_true", help="measure the best epoch on the test split too"
    )
    arguments.add_output_arguments(parser, default_output_dir="runs/classification")
    return arguments.parse_with_defaults(
        parser,
        argv,
        default_model=default_model,
        default_learning_rate={"learning_rate": 1e-6},
        sample_defaults={
            **arguments.SAMPLE_MODEL,
            "num_train_epochs": 15,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.1,
        },
    )


def load_config(args: argparse.Namespace) -> tuple[PretrainedConfig, int]:
    """Returns the configuration that the flags name, yet without labels, and the side of its input."""
    if args.config_name:
        config = configs.make_config(
            args.config_name, overrides=args.config_overrides, image_size=args.image_size
        )
    else:
        config = pretrained.load_config(
            args.model_name_or_path, expected=tuple(CLASSIFIERS), **arguments.source_of(args)
        )
    if config.model_type == "resnet":
        if args.mask_ratio:
            raise UserError(
                f"--mask_ratio {args.mask_ratio}: found a ResNet, which has no patches; leave it out"
            )
        return config, args.image_size or architectures.DEFAULT_IMAGE_SIZE
    pretrained.check_image_size(config, args.image_size)
    return config, config.image_size


def load_model(args: argparse.Namespace, config: PretrainedConfig, labels: list[str]) -> PreTrainedModel:
    """Returns the classifier, from scratch or with a pretrained body; the head is new unless it fits."""
    if args.config_name:
        model = new_classifier(config, labels)
        if args.learning_rate and args.learning_rate < 1e-5:
            logger.warning(
                "--learning_rate %g is for pretrained models: from scratch try 5e-4", args.learning_rate
            )
    else:
        model = pretrained.load_pretrained(
            CLASSIFIERS[config.model_type],
            args.model_name_or_path,
            config=configs.classifier_config(config, labels),
            new_head="classifier.",
            **arguments.source_of(args),
        )
        if config.architectures == [type(model).__name__] and list(config.id2label.values()) != labels:
            logger.warning(
                "Its head was for %s: it is trained on for %s", list(config.id2label.values())[:3], labels
            )
    if args.sync_batchnorm:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if args.train_last_layer_only:
        model.requires_grad_(False)
        model.classifier.requires_grad_(True)
    return model


def load_datasets(
    args: argparse.Namespace,
    accelerator: Accelerator,
    record: RunRecord,
    config: PretrainedConfig,
    image_size: int,
) -> dict[str, ChestXrays]:
    """Returns the images by split and writes `samples.json`."""
    splits = load_images(
        accelerator,
        args.data_dir,
        shortest_side=args.cache_image_size or default_cache_image_size(image_size),
        **arguments.data_options(args),
    )
    train_images, sample = draw_training_images(
        splits["train"], num_samples=args.max_train_samples, seed=args.seed
    )
    record.write_sample(sample)
    num_patches = (image_size // config.patch_size) ** 2 if args.mask_ratio else None
    train_transform = transforms.training_transform(
        args.augmentation,
        image_size,
        crop_scale=args.crop_scale,
        random_erasing_prob=args.random_erasing_prob,
    )
    sets = {"train": ChestXrays(train_images, train_transform, seed=args.seed, num_patches=num_patches)}
    for split in ("validation", "test") if args.evaluate_test else ("validation",):
        if split not in splits:
            raise UserError(f"--evaluate_test: found no {split} images; leave it out, or check the split CSV")
        images = first_images(splits[split], args.max_eval_samples)
        sets[split] = ChestXrays(images, transforms.evaluation_transform(image_size), seed=EVALUATION_SEED)
    return sets


class PatchDropout:
    """A forward hook on a ViT's embeddings that keeps a random share of the patches, and the class token.

    It is MAE's masking carried into fine-tuning. `noise` (B, L) names the patches to keep: those of lowest
    noise; (1, L) names the same ones for all images, and None keeps all, as at evaluation. A hook leaves the
    model the plain transformers one that is saved and loaded.
    """

    def __init__(self, mask_ratio: float):
        self.mask_ratio = mask_ratio
        self.noise: torch.Tensor | None = None

    def __call__(self, module: torch.nn.Module, inputs: tuple, tokens: torch.Tensor) -> torch.Tensor:
        if self.noise is None:
            return tokens
        class_token, patches = tokens[:, :1], tokens[:, 1:]  # (B, 1, D), (B, L, D)
        num_kept = max(1, int(patches.shape[1] * (1 - self.mask_ratio)))
        kept = self.noise.to(tokens.device, non_blocking=True).argsort(dim=1)[:, :num_kept, None]
        kept = kept.expand(len(patches), -1, patches.shape[2])
        return torch.cat([class_token, patches.gather(1, kept)], dim=1)


def synthetic_loss(model: PreTrainedModel, num_images: int, *, image_size: int) -> torch.Tensor:
    """A loss of so many empty images, to see what a step costs before there is one."""
    pixel_values = torch.zeros(num_images, 3, image_size, image_size, device=model.device)
    return model(pixel_values=pixel_values).logits.float().logsumexp(1).mean()


def train_step(
    args: argparse.Namespace,
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[dict],
    normalize: transforms.Normalizer,
    patch_dropout: PatchDropout,
) -> torch.Tensor:
    """One optimizer step over all its micro-batches; returns the loss, NaN where the step was left out."""
    total = torch.zeros((), device=accelerator.device)
    buffers = optimization.keep_buffers(model)
    for micro_batch in range(1, args.gradient_accumulation_steps + 1):
        batch = next(batches)
        last = micro_batch == args.gradient_accumulation_steps
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            if args.mask_ratio:
                patch_dropout.noise = batch["noise"]
            logits = model(pixel_values=normalize(batch["image"])).logits
            labels = batch["label"].to(accelerator.device, non_blocking=True)
            loss = F.cross_entropy(logits, labels) / args.gradient_accumulation_steps
            accelerator.backward(loss)
        total += loss.detach()
    patch_dropout.noise = None
    return optimization.update_weights(
        accelerator, model, optimizer, total, max_grad_norm=args.max_grad_norm, buffers=buffers
    )


def train(
    args: argparse.Namespace,
    accelerator: Accelerator,
    record: RunRecord,
    schedule: optimization.Schedule,
    progress: Progress,
    model: torch.nn.Module,
    image_processor: ViTImageProcessor,
    optimizer: torch.optim.Optimizer,
    loaders: tuple[DataLoader, DataLoader],
    normalize: transforms.Normalizer,
    patch_dropout: PatchDropout,
    stopwatch: throughput.Stopwatch,
    preemption: Preemption,
) -> None:
    """Trains from where `progress` stands to the end; evaluates each epoch and keeps the best model."""
    train_loader, eval_loader = loaders
    batches = iter(train_loader)
    losses = []  # of the steps since the last reading, on the device
    bar = runtime.progress_bar(accelerator, range(progress.step, schedule.num_steps))
    model.train(not args.train_last_layer_only)  # a frozen body also keeps its batch-norm statistics
    stopwatch.start(progress.step)
    for step in bar:
        learning_rate = schedule.learning_rate(step)
        optimization.set_learning_rate(optimizer, learning_rate)
        loss = train_step(args, accelerator, model, optimizer, batches, normalize, patch_dropout)
        losses.append(loss)
        progress.step = step + 1
        ends_epoch = schedule.ends_epoch(progress.step)
        stops = preemption.requested()
        saves = stops or checkpoints.is_due(args.checkpointing_steps, schedule, progress.step)
        if not (ends_epoch or saves or progress.step % args.logging_steps == 0):
            continue  # reading the loss makes the host wait for the device

        bad_steps = progress.add_losses(torch.stack(losses).tolist())
        losses.clear()
        speed = stopwatch.read(progress.step)
        progress.train_seconds += stopwatch.seconds
        nonfinite.check_steps(
            accelerator,
            record,
            progress,
            model,
            bad_steps,
            loader=train_loader,
            ends_epoch=ends_epoch,
            max_bad_steps=args.max_bad_steps,
        )
        reading = {"train_loss": progress.train_loss, "learning_rate": learning_rate, **speed}
        runtime.log_reading(accelerator, bar, reading, step=progress.step)
        if ends_epoch:
            validation, _, _ = evaluate(accelerator, model, eval_loader, normalize, split="validation")
            model.train(not args.train_last_layer_only)
            epoch = {"epoch": schedule.epoch(progress.step), "step": progress.step, **reading}
            epoch |= {"eval_loss": validation.pop("loss"), **validation}
            record.append_epoch(epoch)
            runtime.log_epoch(accelerator, epoch)
            if is_better(epoch, progress.best):
                progress.best = epoch
                # For those who want a decision and not a probability.
                threshold = epoch["at_chosen_threshold"]["threshold"]
                accelerator.unwrap_model(model).config.decision_threshold = threshold
                checkpoints.save_model(accelerator, model, image_processor, record.output_dir / "model")
            progress.start_epoch()
        if saves:
            limit = args.checkpoints_total_limit
            checkpoints.save_checkpoint(accelerator, record.output_dir, progress, total_limit=limit)
            if args.push_to_hub and args.hub_strategy == "every_save" and record.enabled and progress.best:
                best_step = progress.best["step"]  # that of model/
                share_unfinished(
                    record.output_dir,
                    task=args.dataset_config_name,
                    step=best_step,
                    images_per_step=schedule.images_per_step,
                )
        if stops:
            preemption.end_run(record.output_dir, step=progress.step)
        stopwatch.start(progress.step)


def is_better(epoch: dict, best: dict) -> bool:
    """The best epoch has the highest validation AUROC or, where that is undefined, the lowest loss."""
    if not best:
        return True
    if epoch["auroc"] is None:
        return epoch["eval_loss"] < best["eval_loss"]
    return epoch["auroc"] > best["auroc"]


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # to compile for its batch sizes takes longer
def evaluate(
    accelerator: Accelerator,
    model: torch.nn.Module,
    loader: DataLoader,
    normalize: transforms.Normalizer,
    *,
    split: str,
    threshold: float | None = None,
) -> tuple[dict, np.ndarray, np.ndarray]:
    """Returns the metrics of a split, its labels (N,) and the probabilities (N,) of the positive class.

    `threshold` is the chosen operating point; None chooses it on this split, which must be the validation
    split.
    """
    model.eval()
    logits, labels = [], []
    for batch in runtime.evaluation_bar(accelerator, loader, split):
        logits.append(model(pixel_values=normalize(batch["image"])).logits.float())
        labels.append(batch["label"].to(accelerator.device))
    num_samples = len(loader.dataset)
    logits = gather_in_order(accelerator, torch.cat(logits), num_samples=num_samples).double()
    labels = gather_in_order(accelerator, torch.cat(labels), num_samples=num_samples)
    loss = nonfinite.check_evaluation(F.cross_entropy(logits, labels).item(), split)
    labels, probabilities = labels.numpy(), logits.softmax(dim=1)[:, 1].numpy()
    if threshold is None:
        threshold = metrics.choose_threshold(labels, probabilities)
    measured = metrics.classification_metrics(labels, probabilities, chosen_threshold=threshold, split=split)
    return {"loss": loss, **measured}, labels, probabilities


def measure_best(
    args: argparse.Namespace,
    accelerator: Accelerator,
    record: RunRecord,
    model_class: type[PreTrainedModel],
    sets: dict[str, ChestXrays],
    normalize: transforms.Normalizer,
) -> dict[str, dict]:
    """Loads the best epoch's model as a user would, measures it on all splits but train, draws its curves."""
    best = model_class.from_pretrained(record.output_dir / "model", dtype=torch.float32)
    model = accelerator.prepare_model(best.to(accelerator.device), evaluation_mode=True)
    threshold, measured = None, {}
    for split in [name for name in sets if name != "train"]:
        loader = make_evaluation_loader(
            accelerator,
            sets[split],
            batch_size=args.per_device_eval_batch_size,
            num_workers=args.dataloader_num_workers,
        )
        measured[split], labels, probabilities = evaluate(
            accelerator, model, loader, normalize, split=split, threshold=threshold
        )
        threshold = measured[split]["at_chosen_threshold"]["threshold"]  # validation comes first
        images = sets[split].images
        if accelerator.is_main_process:
            measured[split]["intervals"] = intervals.patient_intervals(
                labels, probabilities, images["subject_id"], threshold=measured[split]["threshold"]
            )
        names = {name: images[name] for name in ("dicom_id", "subject_id", "view_position")}
        record.write_predictions(
            f"predictions_{split}.csv", names, labels=labels.tolist(), probabilities=probabilities.tolist()
        )
        if accelerator.is_main_process:
            draw_curves(
                record, split, labels, probabilities, threshold, names=list(best.config.id2label.values())
            )
    return measured


def draw_curves(
    record: RunRecord,
    split: str,
    labels: np.ndarray,
    probabilities: np.ndarray,
    threshold: float,
    *,
    names: list[str],
) -> None:
    title = f"{names[1]} on {split}, n = {len(labels):,}"
    if len(np.unique(labels)) == 2:
        plots.plot_roc_and_precision_recall(
            labels, probabilities, record.output_dir / f"roc_pr_{split}.png", title=title
        )
    thresholds = {"fixed": 0.5, "chosen on validation": threshold}
    path = record.output_dir / f"confusion_matrix_{split}.png"
    plots.plot_confusion_matrix(labels, probabilities, path, thresholds=thresholds, names=names, title=title)


def finish(
    args: argparse.Namespace,
    accelerator: Accelerator,
    record: RunRecord,
    schedule: optimization.Schedule,
    progress: Progress,
    sets: dict[str, ChestXrays],
    measured: dict[str, dict],
) -> None:
    """Draws the loss, pushes the model and, last of all, writes `results.json`."""
    plots.plot_losses(
        record.epochs(),
        record.output_dir / "loss.png",
        title=f"{args.dataset_config_name}, {len(sets['train']):,} training images",
    )
    results = {
        "task": args.dataset_config_name,
        "model": args.config_name or args.model_name_or_path,
        "pretrained": args.config_name is None,
        "labeler": args.labeler,
        "view": args.view,
        "uncertain": args.uncertain,
        "augmentation": args.augmentation,
        "mask_ratio": args.mask_ratio,
        "random_erasing_prob": args.random_erasing_prob,
        "train_last_layer_only": args.train_last_layer_only,
        "learning_rate": schedule.peak_learning_rate,
        "best_epoch": progress.best["epoch"],
        **measured,
        "train_loss": progress.best["train_loss"],
        "images_per_second": progress.step * schedule.images_per_step / progress.train_seconds,
        "steps": progress.step,
        "bad_steps": progress.num_bad_steps,
        "images_per_step": schedule.images_per_step,
        "num_train_images": len(sets["train"]),
        "num_train_positive": sum(sets["train"].images["label"]),
        "seed": args.seed,
        "versions": installed_versions(),
    }
    share_finished(record, results)
    for split, values in measured.items():
        numbers = ("n", "auroc", "average_precision", "accuracy", "f1")
        shown = ", ".join(f"{name} {values[name]:.4g}" for name in numbers if values[name] is not None)
        logger.info("%s, epoch %d: %s", split, progress.best["epoch"], shown)
    logger.info("Model, predictions, figures: %s", record.output_dir)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    accelerator, record = runtime.start_run(args, default_output_dir="classification")
    if args.sync_batchnorm and accelerator.device.type != "cuda":
        raise UserError(f"--sync_batchnorm needs GPUs, found {accelerator.device.type}; leave it out")
    config, image_size = load_config(args)
    sets = load_datasets(args, accelerator, record, config, image_size)
    label_feature = sets["train"].images.features["label"]
    model = load_model(args, config, label_feature.names)
    # What the saved model's user must know to show it images as this run does: `cxr.inference`.
    model.config.cache_image_size = args.cache_image_size or default_cache_image_size(image_size)
    model.config.trained_view = args.view
    image_processor = pretrained.load_image_processor(
        args.model_name_or_path, image_size=image_size, **arguments.source_of(args)
    )
    patch_dropout = PatchDropout(args.mask_ratio)
    if args.mask_ratio:
        model.vit.embeddings.register_forward_hook(patch_dropout)
        # Until the first step: its cost is counted with the patches that it will see.
        patch_dropout.noise = torch.zeros(1, sets["train"].num_patches)
    one_step = functools.partial(synthetic_loss, image_size=image_size)
    schedule = arguments.plan_steps(
        args, accelerator, model, one_step, num_images=len(sets["train"]), output_dir=record.output_dir
    )
    optimizer = optimization.make_adamw(
        model, learning_rate=schedule.peak_learning_rate, weight_decay=args.weight_decay, betas=(0.9, 0.999)
    )
    positives = {split: sum(images.images["label"]) for split, images in sets.items()}
    runtime.log_plan(
        accelerator,
        {
            "model": arguments.describe_model(args),
            **{
                split: f"{len(sets[split]):,} images, {positives[split]:,} {label_feature.names[1]}"
                for split in sets
            },
            **runtime.describe_training(model, schedule),
        },
    )
    stopwatch = throughput.Stopwatch(accelerator, model, one_step, images_per_step=schedule.images_per_step)
    acceleration.speed_up(model, torch_compile=args.torch_compile)
    model, optimizer = accelerator.prepare(model, optimizer)
    progress = checkpoints.resume(
        accelerator,
        optimizer,
        record.output_dir,
        args.resume_from_checkpoint,
        images_per_step=schedule.images_per_step,
    )

    loaders = make_loaders(
        accelerator,
        sets["train"],
        sets["validation"],
        images_per_step=schedule.images_per_step,
        num_steps=schedule.num_steps,
        start_step=progress.step,
        **arguments.loader_options(args),
    )
    normalize = transforms.Normalizer(
        image_processor.image_mean, image_processor.image_std, accelerator.device
    )
    with Preemption(accelerator) as preemption:
        train(
            args,
            accelerator,
            record,
            schedule,
            progress,
            model,
            image_processor,
            optimizer,
            loaders,
            normalize,
            patch_dropout,
            stopwatch,
            preemption,
        )
        preemption.nothing_left_to_save(record.output_dir, step=progress.step)
        model_class = CLASSIFIERS[config.model_type]
        measured = measure_best(args, accelerator, record, model_class, sets, normalize)
        if accelerator.is_main_process:
            finish(args, accelerator, record, schedule, progress, sets, measured)
    accelerator.end_training()


if __name__ == "__main__":
    run_script(main, advice=TRAINING_ADVICE)
