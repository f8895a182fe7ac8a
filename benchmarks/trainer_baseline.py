"""Trains with `Trainer`, as transformers' examples do, and writes its speed, for benchmark.py.

    python benchmarks/trainer_baseline.py --config_name vit-mae-tiny --json trainer.json

With --images FILE, a list of paths, it reads these images with the transforms of the MAE example. Without it,
each step uses the same batch, already on the device, so that only the step is timed.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))  # for cxr

import torch
from cxr.cli import command_line
from cxr.data.images import num_cores
from cxr.data.transforms import GRAY_MEAN
from cxr.data.transforms import GRAY_STD
from cxr.models import architectures
from cxr.models import configs
from cxr.models.scratch import new_classifier
from cxr.models.scratch import new_mae
from mae_example import example_transform
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset
from transformers import Trainer
from transformers import TrainerCallback
from transformers import TrainingArguments

LABELS = ["No Finding", "Finding"]


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = command_line.ArgumentParser(__doc__)
    names = [*architectures.VIT_MAE_CONFIGS, *architectures.RESNET_CONFIGS]
    add, positive = parser.add_argument, command_line.positive_int
    add("--config_name", choices=names, default="vit-mae-tiny")
    command_line.add_number(parser, "--image_size", positive, "pixels", default=224)
    add("--images", type=Path, metavar="FILE", help="text file with one image path per line")
    command_line.add_number(parser, "--batch_size", positive, "images", default=32)
    command_line.add_number(parser, "--steps", positive, "steps per window", default=8)
    command_line.add_number(parser, "--windows", positive, "timed windows", default=4)
    add("--mixed_precision", choices=("no", "bf16", "fp16"), default="no", help="as in accelerate")
    add("--torch_compile", action="store_true", help="Trainer's own flag")
    add("--json", type=Path, required=True, metavar="FILE", help="where to write the speeds")
    return parser.parse_args(argv)


class ImageFiles(Dataset):
    """The images of the list, repeated until there are `length`."""

    def __init__(self, paths: list[str], image_size: int, length: int):
        self.paths = list(itertools.islice(itertools.cycle(paths), length))
        self.transform = example_transform(image_size, mean=GRAY_MEAN, std=GRAY_STD)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        with Image.open(self.paths[index]) as image:
            return {"pixel_values": self.transform(image)}


class BaselineTrainer(Trainer):
    """A `Trainer` that also accepts a list of ready batches."""

    def get_train_dataloader(self) -> DataLoader:
        if isinstance(self.train_dataset, list):
            return DataLoader(self.train_dataset, batch_size=None)
        return super().get_train_dataloader()


class Windows(TrainerCallback):
    """Records the time after every `steps` steps, when the device has finished."""

    def __init__(self, steps: int):
        self.steps = steps
        self.times: list[float] = []

    def on_step_end(self, args, state, control, **unused):
        if state.global_step % self.steps == 0:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    torch.manual_seed(0)
    is_mae = args.config_name in architectures.VIT_MAE_CONFIGS
    config = configs.make_config(
        args.config_name, overrides=None, image_size=args.image_size if is_mae else None
    )
    model = new_mae(config) if is_mae else new_classifier(config, LABELS)
    windows = Windows(args.steps)
    num_steps = args.steps * (args.windows + 1)  # the first window is a warm-up
    with tempfile.TemporaryDirectory() as folder:
        training_args = TrainingArguments(
            output_dir=folder,
            max_steps=num_steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=1e-4,
            weight_decay=0.05,
            bf16=args.mixed_precision == "bf16",
            fp16=args.mixed_precision == "fp16",
            torch_compile=args.torch_compile,
            use_cpu=not torch.cuda.is_available(),
            dataloader_num_workers=min(16, num_cores()) if torch.cuda.is_available() else 0,  # like ours
            remove_unused_columns=False,
            label_names=["pixel_values"] if is_mae else ["labels"],
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        if args.images:
            paths = args.images.read_text(encoding="utf-8").splitlines()
            dataset = ImageFiles(paths, args.image_size, num_steps * args.batch_size)
        else:
            side = args.image_size
            batch = {"pixel_values": torch.randn(args.batch_size, 3, side, side, device=training_args.device)}
            if not is_mae:
                batch["labels"] = torch.arange(args.batch_size, device=training_args.device) % len(LABELS)
            dataset = [batch] * num_steps
        BaselineTrainer(model, training_args, train_dataset=dataset, callbacks=[windows]).train()
    images = args.steps * args.batch_size
    speeds = [images / (end - start) for start, end in zip(windows.times, windows.times[1:], strict=False)]
    peak_memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    measured = {"images_per_second": speeds, "peak_memory_gib": peak_memory}
    args.json.write_text(json.dumps(measured), encoding="utf-8")


if __name__ == "__main__":
    main()
