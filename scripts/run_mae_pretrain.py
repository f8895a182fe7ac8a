"""Pretrains a masked autoencoder (ViT-MAE, He et al. 2021) on chest X-rays.

    # Two minutes on a laptop: a tiny model on a synthetic sample.
    python scripts/run_mae_pretrain.py

    # From the ImageNet checkpoint, on MIMIC-CXR-JPG, on one GPU.
    accelerate launch --config_file accelerate_configs/single_gpu_fp16.yaml scripts/run_mae_pretrain.py \\
        --data_dir /data/mimic-cxr-jpg --model_name_or_path facebook/vit-mae-base --output_dir runs/mae

    # From scratch, with the masking and crops of Medical MAE (Xiao et al. 2023).
    accelerate launch scripts/run_mae_pretrain.py --data_dir /data/mimic-cxr-jpg --config_name vit-mae-base \\
        --mask_ratio 0.9 --crop_scale 0.5 1.0 --no-norm_pix_loss --output_dir runs/mae-scratch

The run folder gets model/ (for `from_pretrained`), metrics.jsonl, loss.png, reconstructions.png and, last,
results.json. Fine-tune the model with run_classification.py --model_name_or_path OUTPUT_DIR/model.
"""

import argparse
import contextlib
import logging
from collections.abc import Iterator

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
from cxr.data.loading import make_loaders
from cxr.errors import TRAINING_ADVICE
from cxr.errors import UserError
from cxr.errors import run_script
from cxr.evaluation import plots
from cxr.models import acceleration
from cxr.models import architectures
from cxr.models import configs
from cxr.models import pretrained
from cxr.models.scratch import new_mae
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
from torch.utils.data import DataLoader
from transformers import ViTImageProcessor
from transformers import ViTMAEForPreTraining

NUM_PICTURES = 6
logger = logging.getLogger("cxr.pretrain")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command_line.ArgumentParser(__doc__)
    default_model = "facebook/vit-mae-base"
    arguments.add_model_arguments(
        parser, default_model=default_model, config_names=list(architectures.VIT_MAE_CONFIGS)
    )

    mae = parser.add_argument_group("masked autoencoder")
    mae.add_argument(
        "--mask_ratio",
        metavar="R",
        type=command_line.share_below_one,
        default=0.75,
        help="share of the patches that is hidden",
    )
    mae.add_argument(
        "--norm_pix_loss",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="predict each patch's pixels normalised by its own mean and deviation",
    )
    mae.add_argument(
        "--crop_scale",
        type=command_line.share_above_zero,
        nargs=2,
        default=(0.2, 1.0),
        metavar=("MIN", "MAX"),
        help="share of the image's area that a random resized crop covers",
    )
    mae.add_argument(
        "--horizontal_flip", action=argparse.BooleanOptionalAction, default=True, help="at random"
    )

    arguments.add_data_arguments(parser)
    training = arguments.add_training_arguments(
        parser,
        num_train_epochs=100,
        per_device_train_batch_size=64,
        weight_decay=0.05,
        lr_scheduler_type="cosine",
        warmup_ratio=0.05,
    )
    arguments.add_learning_rate_arguments(training, default="base_learning_rate 1.5e-4")
    arguments.add_output_arguments(parser, default_output_dir="runs/mae_pretrain")
    return arguments.parse_with_defaults(
        parser,
        argv,
        default_model=default_model,
        default_learning_rate={"base_learning_rate": 1.5e-4},
        sample_defaults={
            **arguments.SAMPLE_MODEL,
            "num_train_epochs": 30,
            "per_device_train_batch_size": 32,
            "learning_rate": 1e-3,
        },
    )


def load_model(args: argparse.Namespace) -> tuple[ViTMAEForPreTraining, ViTImageProcessor]:
    """Returns the model, pretrained or new, with this run's masking and loss, and its image processor."""
    source = arguments.source_of(args)
    if args.config_name:
        config = configs.make_config(
            args.config_name, overrides=args.config_overrides, image_size=args.image_size
        )
        model = new_mae(config)
    else:
        config = pretrained.load_config(args.model_name_or_path, expected=("vit_mae",), **source)
        pretrained.check_image_size(config, args.image_size)
        model = pretrained.load_pretrained(
            ViTMAEForPreTraining, args.model_name_or_path, config=config, **source
        )
    num_patches = (config.image_size // config.patch_size) ** 2
    num_visible = int(num_patches * (1 - args.mask_ratio))  # as the model computes it
    if not 0 < num_visible < num_patches:
        raise UserError(
            f"--mask_ratio {args.mask_ratio} hides {num_patches - num_visible} of {num_patches} patches; "
            "expected some hidden and some visible"
        )
    model.config.mask_ratio = args.mask_ratio
    model.config.norm_pix_loss = args.norm_pix_loss
    image_processor = pretrained.load_image_processor(
        args.model_name_or_path, image_size=config.image_size, **source
    )
    return model, image_processor


def load_datasets(
    args: argparse.Namespace, accelerator: Accelerator, record: RunRecord, config
) -> tuple[ChestXrays, ChestXrays]:
    """Returns the training and the validation images and writes `samples.json`."""
    splits = load_images(
        accelerator,
        args.data_dir,
        shortest_side=args.cache_image_size or default_cache_image_size(config.image_size),
        **arguments.data_options(args),
    )
    train_images, sample = draw_training_images(
        splits["train"], num_samples=args.max_train_samples, seed=args.seed
    )
    record.write_sample(sample)
    num_patches = (config.image_size // config.patch_size) ** 2
    train_transform = transforms.pretraining_transform(
        config.image_size, crop_scale=args.crop_scale, horizontal_flip=args.horizontal_flip
    )
    eval_images = first_images(splits["validation"], args.max_eval_samples)
    eval_transform = transforms.evaluation_transform(config.image_size)
    return (
        ChestXrays(train_images, train_transform, seed=args.seed, num_patches=num_patches),
        ChestXrays(eval_images, eval_transform, seed=EVALUATION_SEED, num_patches=num_patches),
    )


def synthetic_loss(model: ViTMAEForPreTraining, num_images: int) -> torch.Tensor:
    """The loss of so many empty images, to see what a step costs before there is one."""
    side, patch_size = model.config.image_size, model.config.patch_size
    pixel_values = torch.zeros(num_images, 3, side, side, device=model.device)
    noise = torch.rand(num_images, (side // patch_size) ** 2, device=model.device)
    return model(pixel_values=pixel_values, noise=noise).loss


def reconstruction_loss(model: ViTMAEForPreTraining, pixel_values: torch.Tensor, outputs) -> torch.Tensor:
    """Returns each image's loss (B,), of which the model's own is the mean: the MSE over hidden patches."""
    target = model.patchify(pixel_values)  # (B, L, patch_size² * 3)
    if model.config.norm_pix_loss:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    by_patch = ((outputs.logits - target) ** 2).mean(-1)
    return (by_patch * outputs.mask).sum(1) / outputs.mask.sum(1)


def train_step(
    args: argparse.Namespace,
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[dict],
    normalize: transforms.Normalizer,
) -> torch.Tensor:
    """One optimizer step over all its micro-batches; returns the loss, NaN where the step was left out."""
    total = torch.zeros((), device=accelerator.device)
    for micro_batch in range(1, args.gradient_accumulation_steps + 1):
        batch = next(batches)
        last = micro_batch == args.gradient_accumulation_steps
        with contextlib.nullcontext() if last else accelerator.no_sync(model):
            noise = batch["noise"].to(accelerator.device, non_blocking=True)
            loss = (
                model(pixel_values=normalize(batch["image"]), noise=noise).loss
                / args.gradient_accumulation_steps
            )
            accelerator.backward(loss)
        total += loss.detach()
    return optimization.update_weights(accelerator, model, optimizer, total, max_grad_norm=args.max_grad_norm)


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
    stopwatch: throughput.Stopwatch,
    preemption: Preemption,
) -> None:
    """Trains from where `progress` stands to the end, evaluating after each epoch."""
    train_loader, eval_loader = loaders
    batches = iter(train_loader)
    losses = []  # of the steps since the last reading, on the device
    bar = runtime.progress_bar(accelerator, range(progress.step, schedule.num_steps))
    model.train()
    stopwatch.start(progress.step)
    for step in bar:
        learning_rate = schedule.learning_rate(step)
        optimization.set_learning_rate(optimizer, learning_rate)
        loss = train_step(args, accelerator, model, optimizer, batches, normalize)
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
            eval_loss = evaluate(accelerator, model, eval_loader, normalize)
            epoch = {
                "epoch": schedule.epoch(progress.step),
                "step": progress.step,
                **reading,
                "eval_loss": eval_loss,
            }
            record.append_epoch(epoch)
            runtime.log_epoch(accelerator, epoch)
            progress.start_epoch()
        if saves:
            limit = args.checkpoints_total_limit
            checkpoints.save_checkpoint(accelerator, record.output_dir, progress, total_limit=limit)
            if args.push_to_hub and args.hub_strategy == "every_save":
                checkpoints.save_model(accelerator, model, image_processor, record.output_dir / "model")
                if accelerator.is_main_process:
                    share_unfinished(
                        record.output_dir,
                        task="mae_pretraining",
                        step=progress.step,
                        images_per_step=schedule.images_per_step,
                    )
        if stops:
            preemption.end_run(record.output_dir, step=progress.step)
        stopwatch.start(progress.step)


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # to compile for its batch sizes takes longer
def evaluate(
    accelerator: Accelerator, model: torch.nn.Module, loader: DataLoader, normalize: transforms.Normalizer
) -> float:
    """Returns the mean loss over all validation images, whole and with the same mask at every call."""
    model.eval()
    losses = []
    for batch in runtime.evaluation_bar(accelerator, loader, "validation"):
        pixel_values = normalize(batch["image"])
        outputs = model(pixel_values=pixel_values, noise=batch["noise"].to(accelerator.device))
        losses.append(reconstruction_loss(accelerator.unwrap_model(model), pixel_values, outputs))
    model.train()
    losses = gather_in_order(accelerator, torch.cat(losses), num_samples=len(loader.dataset))
    return nonfinite.check_evaluation(losses.mean().item(), "validation")


@torch.no_grad()
@torch.compiler.set_stance("force_eager")
def reconstruct(
    accelerator: Accelerator, model: torch.nn.Module, batch: dict, normalize: transforms.Normalizer
) -> dict[str, torch.Tensor]:
    """Returns gray images (B, H, W) in [0, 1]: whole, as the model saw them, and what it made of them."""
    model.eval()
    pixel_values = normalize(batch["image"])
    outputs = model(pixel_values=pixel_values, noise=batch["noise"].to(accelerator.device))
    autoencoder = accelerator.unwrap_model(model)
    patches, predicted = autoencoder.patchify(pixel_values), outputs.logits  # (B, L, patch_size² * 3)
    if autoencoder.config.norm_pix_loss:  # undone with the true patches, as in the figures of He et al.
        predicted = predicted * (patches.var(-1, keepdim=True) + 1e-6).sqrt() + patches.mean(-1, keepdim=True)
    hidden = outputs.mask.unsqueeze(-1).bool()
    columns = {
        "original": patches,
        "what the model saw": patches.masked_fill(hidden, 0.0),  # 0 is the mean gray
        "reconstruction": predicted,
        "reconstruction + visible": torch.where(hidden, predicted, patches),
    }
    return {name: normalize.invert(autoencoder.unpatchify(value)) for name, value in columns.items()}


def finish(
    args: argparse.Namespace,
    accelerator: Accelerator,
    record: RunRecord,
    schedule: optimization.Schedule,
    progress: Progress,
    model: torch.nn.Module,
    image_processor: ViTImageProcessor,
    loaders: tuple[DataLoader, DataLoader],
    normalize: transforms.Normalizer,
) -> None:
    """Writes the model, the figures and, last of all, `results.json`."""
    train_loader, eval_loader = loaders
    checkpoints.save_model(accelerator, model, image_processor, record.output_dir / "model")
    pictures = reconstruct(accelerator, model, next(iter(eval_loader)), normalize)
    if not accelerator.is_main_process:
        return
    plots.plot_reconstructions(
        {name: images[:NUM_PICTURES].cpu().numpy() for name, images in pictures.items()},
        record.output_dir / "reconstructions.png",
    )
    epochs = record.epochs()
    plots.plot_losses(
        epochs, record.output_dir / "loss.png", title=f"masked autoencoder, {args.mask_ratio:.0%} hidden"
    )
    results = {
        "task": "mae_pretraining",
        "model": args.config_name or args.model_name_or_path,
        "train_loss": epochs[-1]["train_loss"],
        "eval_loss": epochs[-1]["eval_loss"],
        "images_per_second": progress.step * schedule.images_per_step / progress.train_seconds,
        "steps": progress.step,
        "bad_steps": progress.num_bad_steps,
        "images_per_step": schedule.images_per_step,
        "num_train_images": len(train_loader.dataset),
        "num_eval_images": len(eval_loader.dataset),
        "seed": args.seed,
        "versions": installed_versions(),
    }
    share_finished(record, results)
    logger.info("Model: %s", record.output_dir / "model")
    logger.info("Figures: %s and loss.png beside it", record.output_dir / "reconstructions.png")
    logger.info(
        "Next: python scripts/run_classification.py --model_name_or_path %s%s",
        record.output_dir / "model",
        f" --data_dir {args.data_dir}" if args.data_dir else "",
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    accelerator, record = runtime.start_run(args, default_output_dir="mae_pretrain")
    model, image_processor = load_model(args)
    train_set, eval_set = load_datasets(args, accelerator, record, model.config)
    schedule = arguments.plan_steps(
        args, accelerator, model, synthetic_loss, num_images=len(train_set), output_dir=record.output_dir
    )
    optimizer = optimization.make_adamw(
        model, learning_rate=schedule.peak_learning_rate, weight_decay=args.weight_decay, betas=(0.9, 0.95)
    )
    runtime.log_plan(
        accelerator,
        {
            "model": arguments.describe_model(args),
            "images": f"{len(train_set):,} for training, {len(eval_set):,} for validation",
            "hidden patches": f"{args.mask_ratio:.0%} of {train_set.num_patches}",
            **runtime.describe_training(model, schedule),
        },
    )
    stopwatch = throughput.Stopwatch(
        accelerator, model, synthetic_loss, images_per_step=schedule.images_per_step
    )
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
        train_set,
        eval_set,
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
            stopwatch,
            preemption,
        )
        preemption.nothing_left_to_save(record.output_dir, step=progress.step)
        finish(args, accelerator, record, schedule, progress, model, image_processor, loaders, normalize)
    accelerator.end_training()


if __name__ == "__main__":
    run_script(main, advice=TRAINING_ADVICE)
