"""The state of a training run in one object, and the steps of its loop that both scripts share.

The loop itself, its order and everything specific to an experiment are in the scripts.
"""

import argparse
import logging
import math
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate import DistributedType
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers import ViTImageProcessor

from cxr.choices import RECIPES
from cxr.data.images import LabelledImages
from cxr.data.images import default_cache_image_size
from cxr.data.images import draw_training_images
from cxr.data.images import load_images
from cxr.data.loading import ChestXrays
from cxr.data.loading import make_evaluation_loader
from cxr.data.loading import make_training_loader
from cxr.data.roots import count_by_root
from cxr.data.roots import load_roots
from cxr.data.seeding import derive_seed
from cxr.data.sources import is_synthetic
from cxr.data.transforms import Normalizer
from cxr.errors import UserError
from cxr.errors import undo_nothing
from cxr.errors import undo_on_user_error
from cxr.models.acceleration import speed_up
from cxr.models.architectures import FIELDS
from cxr.models.architectures import describe_architecture
from cxr.run_folder.files import write_text
from cxr.run_folder.model_fields import Stage
from cxr.run_folder.record import Arguments
from cxr.run_folder.record import RunRecord
from cxr.run_folder.record import Sample
from cxr.run_folder.record import Training
from cxr.run_folder.record import installed_versions
from cxr.sharing import push
from cxr.sharing.card import name_roots
from cxr.training import checkpoints
from cxr.training import nonfinite
from cxr.training import optimization
from cxr.training import runtime
from cxr.training.average import WeightAverage
from cxr.training.batch_size import find_batch_size
from cxr.training.history import count_seen
from cxr.training.history import read_base
from cxr.training.preemption import Preemption
from cxr.training.progress import Progress
from cxr.training.step_size import StepFlags
from cxr.training.step_size import StepSize
from cxr.training.throughput import Stopwatch
from cxr.training.throughput import seconds_of_process

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Run:
    """The state of a run, filled in by `start`, `plan` and `prepare`, in this order."""

    args: argparse.Namespace
    accelerator: Accelerator
    record: RunRecord
    losses: list[torch.Tensor] = field(default_factory=list)  # of the steps since losses were last read
    # Set by `draw_training_images`.
    sample: Sample = field(init=False)
    history: list[Stage] = field(init=False)  # the earlier trainings of the pretrained model
    base_commit: str | None = field(init=False)  # the commit of the pretrained model, if known
    # Set by `plan`.
    model: nn.Module = field(init=False)
    network: dict[str, Any] = field(init=False)  # its description, for the records
    image_processor: ViTImageProcessor = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    step_size: StepSize = field(init=False)
    schedule: optimization.Schedule = field(init=False)
    stopwatch: Stopwatch = field(init=False)
    # Set by `prepare`.
    progress: Progress = field(init=False)
    train_loader: DataLoader = field(init=False)
    eval_loader: DataLoader = field(init=False)
    normalize: Normalizer = field(init=False)
    preemption: Preemption = field(init=False)
    bar: tqdm = field(init=False)  # set by `steps`
    average: WeightAverage | None = field(init=False)  # set by `prepare`
    # Set by `end_step`, for the step that has just ended.
    ends_epoch: bool = field(init=False)
    saves: bool = field(init=False)
    stops: bool = field(init=False)

    @classmethod
    def start(cls, args: argparse.Namespace, *, default_output_dir: str) -> "Run":
        """Starts the processes and claims the run folder."""
        accelerator, record = runtime.start_run(args, default_output_dir=default_output_dir)
        if all(map(is_synthetic, [args.data_dir, *args.other_data_dirs])):
            logger.info("Training on synthetic radiographs: the results say nothing about patients")
        return cls(args=args, accelerator=accelerator, record=record)

    @property
    def roots(self) -> dict[str, Path]:
        """Returns the data folders by name if there are several, else {}."""
        others = self.args.other_data_dirs
        return name_roots([self.args.data_dir, *others]) if others else {}

    def load_images(self, *, image_size: int, **options: Any) -> dict[str, LabelledImages]:
        """Returns the images by split; on first use, one process per machine shrinks them."""
        load = partial(load_roots, self.roots) if self.roots else partial(load_images, self.args.data_dir)
        splits = load(
            shortest_side=self.args.cache_image_size or default_cache_image_size(image_size),
            shows_progress=self.accelerator.is_local_main_process,
            stage_dir=self.args.stage_dir,
            **options,
        )
        runtime.wait_for_all(self.accelerator, "images")  # machines may take different times
        return splits

    def draw_training_images(self, images: LabelledImages) -> LabelledImages:
        """Draws the training images that the flags ask for, and writes `samples.json`."""
        args, pool = self.args, images["dicom_id"]
        images, sample = draw_training_images(images, num_samples=args.max_train_samples, seed=args.seed)
        self.sample = Sample(**sample)
        if self.roots:
            self.sample.collections = count_by_root(images)
        self.history, self.base_commit = read_base(args)
        if self.history:
            self.sample.num_seen_before = count_seen(args, self.sample, self.history[-1], pool=pool)
        self.record.write_sample(self.sample)
        return images

    def plan(
        self,
        model: nn.Module,
        image_processor: ViTImageProcessor,
        synthetic_loss: Callable[[nn.Module, int], torch.Tensor],
        *,
        num_images: int,
        betas: tuple[float, float],
    ) -> None:
        """Decides the images of a step and the schedule, and makes the optimizer.

        `synthetic_loss` takes a model and a number of images and returns a loss on empty images, to measure
        the cost of a step. `num_images` is the size of the training set, `betas` are AdamW's.
        """
        args, output_dir = self.args, self.record.output_dir
        self.step_size = StepFlags.of(args).resolve(
            num_images=num_images,
            num_processes=self.accelerator.num_processes,
            resumed_images_per_step=checkpoints.resumed_images_per_step(
                output_dir, args.resume_from_checkpoint
            ),
            find_largest=partial(find_batch_size, self.accelerator, model, synthetic_loss),
        )
        images_per_step = self.step_size.images_per_step
        self.schedule = optimization.make_schedule(
            num_images,
            images_per_step=images_per_step,
            num_epochs=args.num_train_epochs,
            max_steps=args.max_train_steps,
            warmup=optimization.Warmup(ratio=args.warmup_ratio, epochs=args.warmup_epochs),
            min_learning_rate=args.min_learning_rate,
            peak_learning_rate=args.learning_rate or args.base_learning_rate * images_per_step / 256,
            kind=args.lr_scheduler_type,
        )
        if asked := args.images_per_step:
            who = "--images_per_step" if args.recipe == RECIPES[0] else f"Recipe {args.recipe}"
            said = self.step_size.describe(asked, num_images=num_images)
            logger.info("%s: %s; learning rate %.3g", who, said, self.schedule.peak_learning_rate)
        self.model, self.image_processor = model, image_processor
        fields = FIELDS[model.config.model_type].model_validate(model.config.to_dict())
        self.network = {
            "architecture": describe_architecture(fields),
            "num_parameters": sum(one.numel() for one in model.parameters()),
            "image_size": image_processor.size["height"],
        }
        self.optimizer = optimization.make_adamw(
            model,
            learning_rate=self.schedule.peak_learning_rate,
            weight_decay=args.weight_decay,
            betas=betas,
            layer_decay=getattr(args, "layer_decay", None) or 1.0,
        )
        self.stopwatch = Stopwatch(self.accelerator, model, synthetic_loss, images_per_step=images_per_step)

    def log_plan(self, plan: dict[str, object]) -> None:
        """Logs `plan` and the numbers derived from flags and data, before the first step."""
        accelerator, schedule = self.accelerator, self.schedule
        trainable = sum(one.numel() for one in self.model.parameters() if one.requires_grad)
        plan = {
            "processes": f"{accelerator.num_processes} on {accelerator.device}, "
            f"mixed precision {accelerator.mixed_precision}",
            **plan,
            "images per step": schedule.images_per_step,
            "optimizer steps": f"{schedule.num_steps:,}, {schedule.steps_per_epoch:,} per epoch",
            "learning rate": f"{schedule.peak_learning_rate:.3g} at its peak, {schedule.kind}, "
            f"after {schedule.num_warmup_steps:,} steps of warm-up",
            "trainable parameters": f"{trainable:,} of {self.network['num_parameters']:,}",
        }
        for name, value in plan.items():
            logger.info("  %-22s %s", name, f"{value:,}" if isinstance(value, int) else value)

    def prepare(self, train_set: ChestXrays, eval_set: ChestXrays) -> None:
        """Moves everything to its device and restores the checkpoint of a resumed run. The order matters:

        1. the moving average copies the model before it is compiled;
        2. the model is sped up before Accelerate wraps it, because the wrapper keeps its forward;
        3. a checkpoint is loaded after Accelerate has prepared everything: each process gets its share;
        4. the loader starts at the step after the checkpoint.
        """
        args, process = self.args, self.accelerator.process_index
        if process:  # for drop path, which would skip the same places on all processes
            torch.manual_seed(derive_seed(args.seed, "process", process))
        self.average = self._make_average()
        speed_up(self.model, torch_compile=args.torch_compile)
        self.model, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        self.progress = checkpoints.resume(
            self.accelerator,
            self.optimizer,
            self.record.output_dir,
            args.resume_from_checkpoint,
            images_per_step=self.schedule.images_per_step,
        )
        self.train_loader = make_training_loader(
            self.accelerator,
            train_set,
            images_per_step=self.schedule.images_per_step,
            gradient_accumulation_steps=self.step_size.num_passes,
            steps=range(self.progress.step, self.schedule.num_steps),
            num_workers=args.dataloader_num_workers,
        )
        self.eval_loader = self.evaluation_loader(eval_set)
        self.normalize = Normalizer(
            self.image_processor.image_mean, self.image_processor.image_std, self.accelerator.device
        )
        self.preemption = Preemption(self.accelerator)

    def _make_average(self) -> WeightAverage | None:
        """Returns the moving average that --ema_decay asks for. Raises UserError under FSDP."""
        decay = getattr(self.args, "ema_decay", None)
        if decay is None:
            return None
        if self.accelerator.distributed_type == DistributedType.FSDP:
            raise UserError(
                "--ema_decay: found FSDP, which divides the weights; leave the flag out, or use DDP"
            )
        average = WeightAverage(self.model, decay=decay)
        speed_up(average.model, torch_compile=False)
        average.to(self.accelerator.device)
        self.accelerator.register_for_checkpointing(average)
        return average

    @property
    def evaluated(self) -> nn.Module:
        """Returns the model that is evaluated and saved: the moving average, if there is one."""
        return self.average.model if self.average else self.model

    def evaluation_loader(self, eval_set: ChestXrays) -> DataLoader:
        return make_evaluation_loader(
            self.accelerator,
            eval_set,
            batch_size=self.args.per_device_eval_batch_size,
            num_workers=self.args.dataloader_num_workers,
        )

    def steps(self) -> Iterator[int]:
        """Yields the remaining steps, with the learning rate set for each, and shows a progress bar."""
        undo_on_user_error(undo_nothing)  # from the first step on, the folder stays
        self.bar = runtime.progress_bar(self.accelerator, range(self.progress.step, self.schedule.num_steps))
        self.stopwatch.start(self.progress.step)
        for step in self.bar:
            optimization.set_learning_rate(self.optimizer, self.schedule.learning_rate(step))
            yield step

    def update_weights(self, loss: torch.Tensor, *, buffers: Sequence[tuple] = ()) -> torch.Tensor:
        """Takes an optimizer step, or skips it if it is not finite; see `optimization.update_weights`."""
        # With fp16, a step whose gradients overflow is skipped, too, although its loss is finite.
        scales = self.average is not None and self.accelerator.scaler is not None
        largest = optimization.gradient_norm(self.model, order=math.inf) if scales else 0.0
        loss = optimization.update_weights(
            self.accelerator,
            self.model,
            self.optimizer,
            loss,
            max_grad_norm=self.args.max_grad_norm,
            buffers=buffers,
        )
        if self.average:
            loss_if_taken = loss + 0 * largest  # NaN or infinite if the step was skipped
            self.average.update(self.accelerator.unwrap_model(self.model), loss_if_taken)
        return loss

    def end_step(self, loss: torch.Tensor) -> bool:
        """Keeps a step's loss; returns whether logging, saving or evaluating is due.

        The loss is not read at every step, because reading it makes the host wait for the device.
        """
        self.losses.append(loss)
        self.progress.step += 1
        step = self.progress.step
        self.ends_epoch = self.schedule.ends_epoch(step)
        self.stops = self.preemption.requested()
        self.saves = self.stops or checkpoints.is_due(self.args.checkpointing_steps, self.schedule, step)
        return self.ends_epoch or self.saves or step % self.args.logging_steps == 0

    def read_losses(self) -> dict[str, float]:
        """Reads the losses since the last call; logs and returns this epoch's mean loss and the speed.

        Raises UserError if training has diverged.
        """
        progress = self.progress
        bad_steps = progress.add_losses(torch.stack(self.losses).tolist())
        self.losses.clear()
        speed = self.stopwatch.read(progress.step)
        progress.train_seconds += self.stopwatch.seconds
        nonfinite.note_bad_steps(self.record, bad_steps, loader=self.train_loader)
        nonfinite.check_training(
            self.accelerator,
            self.model,
            progress,
            output_dir=self.record.output_dir,
            ends_epoch=self.ends_epoch,
            max_bad_steps=self.args.max_bad_steps,
        )
        learning_rate = self.schedule.learning_rate(progress.step - 1)
        reading = {"train_loss": progress.train_loss, "learning_rate": learning_rate, **speed}
        runtime.log_reading(self.accelerator, self.bar, reading, step=progress.step)
        return reading

    def end_epoch(self, reading: dict[str, float], measured: dict[str, Any]) -> dict[str, Any]:
        """Records an epoch with its last `reading` and its evaluation; returns its line of metrics.jsonl."""
        step = self.progress.step
        epoch = {"epoch": self.schedule.epoch(step), "step": step, **reading, **measured}
        self.record.append_epoch(epoch)
        runtime.log_epoch(self.accelerator, epoch)
        self.progress.start_epoch()
        return epoch

    def end_training(self) -> None:
        """Lets a signal end the run at once from now on, as the last step is saved."""
        self.preemption.nothing_left_to_save(self.record.output_dir, step=self.progress.step)

    def load_saved(self, model_class: type[PreTrainedModel]) -> PreTrainedModel:
        """Loads the model in `model/` as a user does, in float32 without autocast, to evaluate it."""
        model = model_class.from_pretrained(self.record.output_dir / "model", dtype=torch.float32)
        return model.to(self.accelerator.device).eval()

    def save_model(self) -> None:
        """Writes `model/`, which `from_pretrained` can load."""
        model_dir = self.record.output_dir / "model"
        if self.accelerator.is_main_process:
            config = self.accelerator.unwrap_model(self.evaluated).config
            history = [*self.history, self._stage(config.model_type)]
            config.training_history = [stage.as_json() for stage in history]
        checkpoints.save_model(self.accelerator, self.evaluated, self.image_processor, model_dir)

    def _stage(self, model_type: str) -> Stage:
        """Returns the entry of this training in the model's `training_history`."""
        origin = Arguments.read(self.record.output_dir / "args.json").origin
        return Stage(
            **origin.model_dump(include={"dataset", "derived_from", "is_synthetic", "base_model"}),
            task="mae_pretraining" if model_type == "vit_mae" else self.args.dataset_config_name,
            num_images=self.sample.num_images,
            sha256=self.sample.sha256,
            num_epochs=self.progress.step / self.schedule.steps_per_epoch,
            base_model_revision=self.base_commit or origin.base_model_revision,
        )

    def save_config(self, model: PreTrainedModel, **fields: Any) -> None:
        """Adds our `fields` to the config.json of `model/`, from which `model` was loaded."""
        if self.accelerator.is_main_process:
            model.config.update(fields)
            write_text(self.record.output_dir / "model" / "config.json", model.config.to_json_string())

    def save_checkpoint(self) -> None:
        limit = self.args.checkpoints_total_limit
        checkpoints.save_checkpoint(
            self.accelerator, self.record.output_dir, self.progress, total_limit=limit
        )

    @property
    def pushes_now(self) -> bool:
        """Returns whether the model is pushed with every checkpoint."""
        return self.args.push_to_hub and self.args.hub_strategy == "every_save"

    def share_unfinished(self, *, task: str, step: int) -> None:
        """Pushes `model/`, the model after `step`; the other processes wait without a time limit."""
        if self.accelerator.is_main_process:
            push.share_unfinished(
                self.record.output_dir,
                Training(
                    task=task,
                    steps=step,
                    images_per_step=self.schedule.images_per_step,
                    versions=installed_versions(),
                    **self.network,
                ),
            )
        runtime.wait_for_all(self.accelerator, f"pushed after step {self.progress.step}")

    def go_on(self) -> None:
        """Ends the run if a signal asked for it; otherwise restarts the stopwatch for the next steps."""
        if self.stops:
            self.preemption.end_run(self.record.output_dir, step=self.progress.step)
        self.stopwatch.start(self.progress.step)

    def end(self) -> None:
        """Ends trackers and processes; reminds the user if the data is synthetic."""
        if all(map(is_synthetic, [self.args.data_dir, *self.args.other_data_dirs])):
            logger.info("These results are from synthetic radiographs")
        self.accelerator.end_training()

    def finished_results(self) -> dict[str, Any]:
        """Returns the fields of `results.json` that both scripts write."""
        progress, args, images = self.progress, self.args, self.train_loader.dataset.images
        return {
            "model": args.config_name or args.model_name_or_path,
            "images_per_second": progress.step * self.schedule.images_per_step / progress.train_seconds,
            "data_wait": self.stopwatch.data_wait,
            "other_seconds": max(0.0, seconds_of_process() - self.stopwatch.total_seconds),
            "steps": progress.step,
            "bad_steps": progress.num_bad_steps,
            "images_per_step": self.schedule.images_per_step,
            "num_train_images": len(images),
            "num_train_patients": len(set(images["subject_id"])),
            "mixed_precision": self.accelerator.mixed_precision,
            "hardware": runtime.describe_hardware(self.accelerator),
            "num_epochs": self.schedule.epoch(progress.step),
            "seed": args.seed,
            "recipe": args.recipe,
            **({"collections": self.sample.collections} if self.roots else {}),
            "versions": installed_versions(),
            **self.network,
        }
