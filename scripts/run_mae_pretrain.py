"""Pretrains a masked autoencoder (ViT-MAE, He et al. 2022) on chest X-rays.

    # Two minutes on a laptop: a tiny model on a synthetic sample.
    python scripts/run_mae_pretrain.py

    # From the ImageNet checkpoint, on MIMIC-CXR-JPG, on one GPU.
    accelerate launch --quiet --config_file accelerate_configs/single_gpu_fp16.yaml \\
        scripts/run_mae_pretrain.py --data_dir /data/mimic-cxr-jpg \\
        --model_name_or_path facebook/vit-mae-base --output_dir runs/mae

    # From scratch, as Medical MAE (Xiao et al. 2023).
    accelerate launch --quiet scripts/run_mae_pretrain.py --data_dir /data/mimic-cxr-jpg \\
        --config_name vit-mae-base --recipe medical_mae --output_dir runs/mae-scratch

The run folder gets model/ (for `from_pretrained`), metrics.jsonl, loss.png, reconstructions.png and, last,
results.json. Fine-tune the model with run_classification.py --model_name_or_path OUTPUT_DIR/model.
Without --data_dir and a model, the defaults are those of a tiny ViT on synthetic images: 30 epochs at 1e-3.
"""

from cxr.cli import pretraining

if __name__ == "__main__":  # --help and a wrong flag are answered before the slow imports
    pretraining.parse_args(None, description=__doc__)

import argparse
import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace

import torch
from cxr.cli import arguments
from cxr.cli import recipes
from cxr.data import transforms
from cxr.data.images import are_equalized
from cxr.data.images import first_images
from cxr.data.loading import EVALUATION_SEED
from cxr.data.loading import ChestXrays
from cxr.data.loading import gather_in_order
from cxr.data.roots import are_all_equalized
from cxr.errors import TRAINING_ADVICE
from cxr.errors import UserError
from cxr.errors import run_script
from cxr.evaluation import plots
from cxr.models import configs
from cxr.models import pretrained
from cxr.models.scratch import new_mae
from cxr.run_folder.record import PretrainingResults
from cxr.sharing import push
from cxr.training import nonfinite
from cxr.training import runtime
from cxr.training.pretraining_probe import PretrainingProbe
from cxr.training.pretraining_probe import reconstruction_target
from cxr.training.run import Run
from transformers import ViTImageProcessor
from transformers import ViTMAEConfig
from transformers import ViTMAEForPreTraining

NUM_PICTURES = 6
logger = logging.getLogger("cxr.pretrain")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    return pretraining.parse_args(argv, description=__doc__)


def load_model(args: argparse.Namespace) -> tuple[ViTMAEForPreTraining, ViTImageProcessor]:
    """Returns the model, with this run's mask ratio and loss, and its image processor."""
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
            ViTMAEForPreTraining,
            args.model_name_or_path,
            config=config,
            image_size=args.image_size,
            **source,
        )
        config = model.config
    num_patches = (config.image_size // config.patch_size) ** 2
    num_visible = int(num_patches * (1 - args.mask_ratio))  # as the model computes it
    if not 0 < num_visible < num_patches:
        raise UserError(
            f"--mask_ratio {args.mask_ratio} hides {num_patches - num_visible} of {num_patches} patches; "
            "expected some hidden and some visible: change it"
        )
    model.config.mask_ratio = args.mask_ratio
    model.config.norm_pix_loss = args.norm_pix_loss
    image_processor = pretrained.load_image_processor(
        args.model_name_or_path, image_size=config.image_size, **source
    )
    return model, image_processor


def load_datasets(run: Run, config: ViTMAEConfig) -> tuple[ChestXrays, ChestXrays]:
    """Returns the training and validation images and writes `samples.json`."""
    args = run.args
    options = arguments.data_options(args)
    options["rule"] = replace(options["rule"], keeps_unlabelled=True)
    splits = run.load_images(image_size=config.image_size, **options)
    train_images = run.draw_training_images(splits["train"])
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
    """Returns the loss of blank images, to measure the cost of a step before the first one."""
    side, patch_size = model.config.image_size, model.config.patch_size
    pixel_values = torch.zeros(num_images, 3, side, side, device=model.device)
    noise = torch.rand(num_images, (side // patch_size) ** 2, device=model.device)
    return model(pixel_values=pixel_values, noise=noise).loss


def reconstruction_loss(
    model: ViTMAEForPreTraining, pixel_values: torch.Tensor, outputs, *, by_image: bool = False
) -> torch.Tensor:
    """Returns the MSE over the hidden patches: one value or, `by_image`, one per image (B,).

    The one value equals the loss that the model itself returns, bit for bit. `model` is not wrapped.
    """
    target = reconstruction_target(model, pixel_values)
    by_patch = ((outputs.logits - target) ** 2).mean(-1) * outputs.mask
    dims = 1 if by_image else (0, 1)
    return by_patch.sum(dims) / outputs.mask.sum(dims)


def train_step(run: Run, batches: Iterator[dict]) -> torch.Tensor:
    """Does one optimizer step over all its micro-batches; returns the loss, NaN if the step was skipped."""
    accelerator, num_micro_batches = run.accelerator, run.step_size.num_passes
    model = accelerator.unwrap_model(run.model)
    total = torch.zeros((), device=accelerator.device)
    for micro_batch in range(1, num_micro_batches + 1):
        batch = next(batches)
        last = micro_batch == num_micro_batches
        with contextlib.nullcontext() if last else accelerator.no_sync(run.model):
            noise = batch["noise"].to(accelerator.device, non_blocking=True)
            pixel_values = run.normalize(batch["image"])
            outputs = run.model(pixel_values=pixel_values, noise=noise)
            loss = reconstruction_loss(model, pixel_values, outputs) / num_micro_batches
            accelerator.backward(loss)
        total += loss.detach()
    return run.update_weights(total)


def train(run: Run, probe: PretrainingProbe | None) -> None:
    """Trains from `run.progress` to the end, evaluates after each epoch, and probes when it is due."""
    batches = run.stopwatch.watch(iter(run.train_loader))
    run.model.train()
    for _ in run.steps():
        loss = train_step(run, batches)
        if not run.end_step(loss):
            continue
        reading = run.read_losses()
        if run.ends_epoch:
            measured = {"eval_loss": evaluate(run, run.model)}
            if probe and probe.is_due():
                measured |= probe.measure(**measured)
            run.end_epoch(reading, measured)
            run.model.train()
        if run.saves:
            run.save_checkpoint()
            if run.pushes_now:
                run.save_model()
                run.share_unfinished(task="mae_pretraining", step=run.progress.step)
        run.go_on()


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # compiling for the evaluation's batch sizes would take longer
def evaluate(run: Run, model: torch.nn.Module) -> float:
    """Returns the mean loss over all validation images, uncropped and with the same masks in every call."""
    model.eval()
    losses = []
    for batch in runtime.evaluation_bar(run.accelerator, run.eval_loader, "validation"):
        pixel_values = run.normalize(batch["image"])
        outputs = model(pixel_values=pixel_values, noise=batch["noise"].to(run.accelerator.device))
        unwrapped = run.accelerator.unwrap_model(model)
        losses.append(reconstruction_loss(unwrapped, pixel_values, outputs, by_image=True))
    num_samples = len(run.eval_loader.dataset)
    losses = gather_in_order(run.accelerator, torch.cat(losses), num_samples=num_samples)
    return nonfinite.check_evaluation(losses.mean().item(), "validation")


@torch.no_grad()
def reconstruct(run: Run, model: ViTMAEForPreTraining) -> dict[str, torch.Tensor]:
    """Returns gray images (B, H, W) in [0, 1]: originals, their visible patches, and reconstructions."""
    batch = next(iter(run.eval_loader))
    pixel_values = run.normalize(batch["image"])
    outputs = model(pixel_values=pixel_values, noise=batch["noise"].to(run.accelerator.device))
    patches, predicted = model.patchify(pixel_values), outputs.logits  # (B, L, patch_size² * 3)
    reconstruction = "reconstruction of\nthe hidden patches"
    if model.config.norm_pix_loss:  # undo it with the true patches' statistics, as He et al. do in figures
        predicted = predicted * (patches.var(-1, keepdim=True) + 1e-6).sqrt() + patches.mean(-1, keepdim=True)
        reconstruction += ", with\ntheir true mean and deviation"
    hidden = outputs.mask.unsqueeze(-1).bool()
    rows = {
        "original": patches,
        "what the model saw": patches.masked_fill(hidden, 0.0),  # 0 is the mean gray
        reconstruction: torch.where(hidden, predicted, patches),  # the loss is of hidden patches only
    }
    return {name: run.normalize.invert(model.unpatchify(value)) for name, value in rows.items()}


def finish(run: Run) -> None:
    """Saves the model, evaluates it as loaded from disk, draws figures and, last, writes `results.json`."""
    run.save_model()
    model_dir = run.record.output_dir / "model"
    with runtime.full_precision():
        model = run.load_saved(ViTMAEForPreTraining)
        eval_loss = evaluate(run, model)
        pictures = reconstruct(run, model)
    if not run.accelerator.is_main_process:
        return
    epochs = run.record.epochs()
    plots.plot_reconstructions(
        {name: images[:NUM_PICTURES].cpu().numpy() for name, images in pictures.items()},
        run.record.output_dir / "reconstructions.png",
    )
    title = f"masked autoencoder, {run.args.mask_ratio:.0%} of patches hidden"
    plots.plot_losses(epochs, run.record.output_dir / "loss.png", title=title)
    results = PretrainingResults(
        task="mae_pretraining",
        train_loss=epochs[-1]["train_loss"],
        eval_loss=eval_loss,
        num_eval_images=len(run.eval_loader.dataset),
        **run.finished_results(),
    )
    push.share_finished(run.record, results)
    logger.info("Model: %s", model_dir)
    logger.info("Figures: %s and loss.png beside it", run.record.output_dir / "reconstructions.png")
    data_dir = f" --data_dir {run.args.data_dir}" if run.args.data_dir else ""
    logger.info("Next: python scripts/run_classification.py --model_name_or_path %s%s", model_dir, data_dir)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    run = Run.start(args, default_output_dir="mae_pretrain")
    recipes.log_recipe(args, "pretraining")
    model, image_processor = load_model(args)
    train_set, eval_set = load_datasets(run, model.config)
    if run.roots:
        model.config.equalized = are_all_equalized(train_set.images, run.roots)
    else:
        model.config.equalized = are_equalized(train_set.images, args.data_dir)
    run.plan(model, image_processor, synthetic_loss, num_images=len(train_set), betas=(0.9, 0.95))
    run.log_plan(
        {
            "model": arguments.describe_model(args),
            "images": f"{len(train_set):,} for training, {len(eval_set):,} for validation",
            "hidden patches": f"{args.mask_ratio:.0%} of {train_set.num_patches}",
        }
    )
    arguments.warn_of_flags_without_effect(args)
    run.prepare(train_set, eval_set)
    probe = PretrainingProbe(run, train_set.images, eval_set.images) if args.probe_epochs else None
    with run.preemption:
        train(run, probe)
        run.end_training()
        finish(run)
    run.end()


if __name__ == "__main__":
    run_script(main, advice=TRAINING_ADVICE)
