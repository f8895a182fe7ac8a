"""Turns shrunk images into batches of uint8 tensors, the same for any number of processes and workers."""

import atexit
import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from torch.utils.data import Dataset
from torch.utils.data import Sampler
from torchvision.io import ImageReadMode
from torchvision.io import decode_jpeg
from torchvision.transforms import v2

from cxr.choices import SMOOTH
from cxr.choices import SMOOTH_TARGETS
from cxr.data.images import LabelledImages
from cxr.data.images import num_cores
from cxr.data.mixing import Mixing
from cxr.data.mixing import mix_labels
from cxr.data.seeding import derive_seed

# The signals that ask a run to end. At the end of its time limit, a batch system sends SIGTERM or, with
# `sbatch --signal=USR2@120`, SIGUSR2; SIGUSR1 also works, but on several GPUs NCCL may catch it.
ENDING = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
SIGNALS = [getattr(signal, name) for name in ENDING if hasattr(signal, name)]  # Windows has two of them
# Not --seed: validation masks are the same in all runs, so that their losses can be compared.
EVALUATION_SEED = 0


class ChestXrays(Dataset):
    """The images of one split as tensors; their augmentation depends only on (seed, epoch, image).

    A key is (epoch, index) instead of an index, so that persistent workers, which fetch ahead, know the
    epoch. An item has `image` (1, H, W) uint8, `label`, and, if `num_patches` is set, `noise` (num_patches,)
    float32 in [0, 1): a masked model sees the patches with the lowest noise. `label` is 0 or 1; with several
    labels, it is (K,) float32, from 0 to 1 or MASKED; one label that is mixed is () float32, from 0 to 1.
    """

    def __init__(
        self,
        images: LabelledImages,
        transform: v2.Transform,
        *,
        seed: int,
        num_patches: int | None = None,
        mixing: Mixing | None = None,
    ):
        self.images = images
        self.labels = images.labels
        # Bytes, not strings: counting the references to strings makes forked workers copy their memory.
        self.dicom_ids = np.array(images["dicom_id"], dtype="S")
        self.transform = transform
        self.seed = seed
        self.num_patches = num_patches
        self.mixing = mixing

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor | int]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[dict[str, torch.Tensor | int]]:
        """Returns the items of a batch, which a DataLoader requests in one call."""
        items = self._read(keys)
        if self.mixing is None:
            return items
        mixes = [
            self.mixing.draw(
                seed=self.seed,
                epoch=epoch,
                dicom_id=self.dicom_ids[index].decode(),
                num_images=len(self),
            )
            for epoch, index in keys
        ]
        partners = self._read([(epoch, mix.partner) for (epoch, _), mix in zip(keys, mixes)])
        for item, partner, mix in zip(items, partners, mixes):
            item["image"], share = mix.images(item["image"], partner["image"])
            labels = (torch.as_tensor(one["label"], dtype=torch.float32) for one in (item, partner))
            item["label"] = mix_labels(*labels, share)
        return items

    def _read(self, keys: list[tuple[int, int]]) -> list[dict[str, torch.Tensor | int]]:
        """Returns the items before mixing."""
        contents = self.images.read([index for _, index in keys])
        items = []
        with torch.random.fork_rng(devices=[]):  # without workers, this runs in the training process
            for (epoch, index), content in zip(keys, contents, strict=True):
                encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
                image = decode_jpeg(encoded, mode=ImageReadMode.GRAY)
                dicom_id = self.dicom_ids[index].decode()
                torch.default_generator.manual_seed(derive_seed(self.seed, epoch, dicom_id))
                item = {"image": self.transform(image), "label": self._label(epoch, index, dicom_id)}
                if self.num_patches is not None:
                    item["noise"] = torch.rand(self.num_patches)
                items.append(item)
        return items

    def _label(self, epoch: int, index: int, dicom_id: str) -> int | torch.Tensor:
        codes = self.labels[index]
        if codes.ndim == 0:
            return int(codes)
        # All findings are drawn, so that a draw does not depend on which of them are uncertain.
        generator = np.random.default_rng(derive_seed(self.seed, "smooth", epoch, dicom_id))
        drawn = generator.uniform(*SMOOTH_TARGETS, len(codes))
        return torch.from_numpy(np.where(codes == SMOOTH, drawn, codes).astype("float32"))


@dataclass(eq=False, kw_only=True)
class TrainingBatches(Sampler[list[tuple[int, int]]]):
    """Yields the micro-batches of one process for the optimizer steps `steps`, counted from 0.

    Each epoch has its own order of all images, a function of (seed, epoch). A step takes the next
    `images_per_step` images of it, so the images of a step do not depend on the number of processes. The last
    images of an epoch are not used in it if they do not fill a step.
    """

    num_images: int = field(kw_only=False)
    images_per_step: int
    gradient_accumulation_steps: int
    num_processes: int
    process_index: int
    seed: int
    steps: range

    def __post_init__(self):
        self.batch_size = self.images_per_step // (self.gradient_accumulation_steps * self.num_processes)
        self._ordered_epoch = None  # the epoch of `_order`

    def __len__(self) -> int:
        return len(self.steps) * self.gradient_accumulation_steps

    def images_of_step(self, step: int) -> tuple[int, list[int]]:
        """Returns the epoch of step `step` (from 0) and the indices of its images, for all processes."""
        epoch, step_in_epoch = divmod(step, self.num_images // self.images_per_step)
        if epoch != self._ordered_epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
            self._order, self._ordered_epoch = torch.randperm(self.num_images, generator=generator), epoch
        first = step_in_epoch * self.images_per_step
        return epoch, self._order[first : first + self.images_per_step].tolist()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            epoch, indices = self.images_of_step(step)
            for micro_batch in range(self.gradient_accumulation_steps):
                position = micro_batch * self.num_processes + self.process_index
                first = position * self.batch_size
                yield [(epoch, index) for index in indices[first : first + self.batch_size]]


def evaluation_batches(
    num_images: int, *, batch_size: int, num_processes: int, process_index: int
) -> list[list[tuple[int, int]]]:
    """Returns the batches of one process for an evaluation; always epoch 0, so the random draws are equal.

    All processes get the same number of samples, as collective operations need: if the images do not divide
    evenly, the last one is repeated, and `gather_in_order` drops the repetitions.
    """
    padded = -(-num_images // num_processes) * num_processes
    indices = np.minimum(np.arange(process_index, padded, num_processes), num_images - 1)
    keys = [(0, index) for index in indices.tolist()]
    return [keys[first : first + batch_size] for first in range(0, len(keys), batch_size)]


def whole_image_loader(
    images: LabelledImages, transform: v2.Transform, *, batch_size: int, device: torch.device
) -> DataLoader:
    """Returns the loader of all images in order, for one process that uses a finished network."""
    on_cpu = device.type == "cpu"  # whose cores are busy with the network
    return DataLoader(
        ChestXrays(images, transform, seed=EVALUATION_SEED),
        batch_sampler=evaluation_batches(
            len(images), batch_size=batch_size, num_processes=1, process_index=0
        ),
        num_workers=0 if on_cpu else min(8, num_cores()),
    )


def make_training_loader(
    accelerator: Accelerator,
    train_set: ChestXrays,
    *,
    images_per_step: int,
    gradient_accumulation_steps: int,
    steps: range,
    num_workers: int | None,
) -> DataLoader:
    """Returns this process's loader for the optimizer steps `steps`, which may span several epochs."""
    batches = TrainingBatches(
        len(train_set),
        images_per_step=images_per_step,
        gradient_accumulation_steps=gradient_accumulation_steps,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
        seed=train_set.seed,
        steps=steps,
    )
    return _make_loader(train_set, batches, accelerator, num_workers)


def make_evaluation_loader(
    accelerator: Accelerator, eval_set: ChestXrays, *, batch_size: int, num_workers: int | None
) -> DataLoader:
    batches = evaluation_batches(
        len(eval_set),
        batch_size=batch_size,
        num_processes=accelerator.num_processes,
        process_index=accelerator.process_index,
    )
    return _make_loader(eval_set, batches, accelerator, num_workers)


def _make_loader(
    dataset: ChestXrays, batches: Sampler | list, accelerator: Accelerator, num_workers: int | None
) -> DataLoader:
    if num_workers is None and accelerator.device.type == "cpu":
        num_workers = 0  # the cores are busy with the model
    elif num_workers is None:  # this process's share of the cores
        processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        num_workers = min(16, max(1, num_cores() // processes_here))
    if num_workers:
        atexit.register(end_workers)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        pin_memory=accelerator.device.type == "cuda",
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),  # its own: starting an iterator must not draw from the global generator
        worker_init_fn=leave_signals_to_main_process,
    )


def leave_signals_to_main_process(worker: int) -> None:
    """Ignores signals in a worker: sent to all processes of a job, they would end it during the last step."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_workers() -> None:
    """Kills the workers at exit: they ignore SIGTERM, so multiprocessing would wait for them."""
    for worker in multiprocessing.active_children():
        worker.kill()


def gather_in_order(accelerator: Accelerator, values: torch.Tensor, *, num_samples: int) -> torch.Tensor:
    """Returns what the processes computed over `evaluation_batches` in order, once each: (num_samples, ...).

    `values` has one row per key, equally many on all processes. The k-th row of process r belongs to sample
    k * num_processes + r; those from `num_samples` on are repetitions.
    """
    gathered = accelerator.gather(values)
    by_process = gathered.view(accelerator.num_processes, len(values), *values.shape[1:])
    return by_process.transpose(0, 1).reshape(-1, *values.shape[1:])[:num_samples].cpu()
