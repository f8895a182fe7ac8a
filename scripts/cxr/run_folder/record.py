"""What a run writes about itself: what each file is called, and what is in it."""

import csv
import io
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from cxr.run_folder.files import read_json
from cxr.run_folder.files import write_json
from cxr.run_folder.files import write_text

LIBRARIES = (
    "torch",
    "torchvision",
    "transformers",
    "accelerate",
    "datasets",
    "evaluate",
    "pillow",
    "scikit-learn",
)
PROGRESS_FILE = "progress.json"  # in a checkpoint that is complete
BAD_STEPS_FILE = "bad_steps.jsonl"
METRICS_FILE = "metrics.jsonl"
# Flags that may differ when a run is resumed: how it runs, not what. A batch may be shared out otherwise.
FREE_TO_CHANGE = {
    "resume_from_checkpoint",
    "output_dir",
    "evaluate_test",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "per_device_eval_batch_size",
    "max_bad_steps",
    "torch_compile",
    "dataloader_num_workers",
    "preprocessing_num_workers",
    "cache_dir",
    "data_dir",  # where it is mounted; `samples.json` says what is in it
    "logging_steps",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "with_tracking",
    "report_to",
    "push_to_hub",
    "hub_model_id",
    "hub_dir",
    "hub_revision",
    "hub_strategy",
}


def installed_versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def check_unchanged(before: dict[str, Any], now: dict[str, Any], *, where: Path) -> None:
    """Raises ValueError when the run in `where` began with other flags: half of each is no experiment."""
    for name, value in sorted(now.items()):
        if before.get(name) != value:
            raise ValueError(
                f"--{name}: found {value}, but {where} began with {before.get(name)}; "
                "use the same flags, or start anew in another --output_dir"
            )


class RunRecord:
    """Writes the records of one run; on processes that are not the main one it is not `enabled`."""

    def __init__(self, output_dir: Path, *, enabled: bool, lock: FileLock | None = None):
        self.output_dir = output_dir
        self.enabled = enabled
        self.lock = lock  # held as long as this object lives

    def write(self, name: str, content: Any) -> None:
        """Writes the JSON file `name`. `results.json` is written last of all: its presence means "done"."""
        if self.enabled:
            write_json(self.output_dir / name, content)

    def write_sample(self, sample: dict[str, Any]) -> None:
        """Writes `samples.json`. Raises ValueError when a resumed run began with other images."""
        path = self.output_dir / "samples.json"
        if path.exists() and read_json(path).get("sha256") != sample["sha256"]:
            raise ValueError(
                f"{path}: not the training images that this run began with; expected the same data "
                "and labels; restore them, or start anew in another --output_dir"
            )
        if self.enabled:
            write_json(path, sample, private=True)

    def append_epoch(self, record: dict[str, Any]) -> None:
        """Adds a line to `metrics.jsonl`."""
        if self.enabled:
            self._write_lines(METRICS_FILE, [*self.epochs(), record])

    def epochs(self) -> list[dict[str, Any]]:
        epochs = self._read_lines(METRICS_FILE)
        names = ("epoch", "train_loss", "eval_loss")
        if not all(isinstance(epoch.get(name), int | float) for epoch in epochs for name in names):
            path = self.output_dir / METRICS_FILE
            raise ValueError(f"{path}: found a line without {' or '.join(names)}; expected what a run wrote")
        return epochs

    def append_bad_step(self, step: int, dicom_ids: Sequence[str]) -> None:
        """Adds the images of a step that was left out to `bad_steps.jsonl`, which is private."""
        if self.enabled:
            bad_step = {"step": step, "dicom_ids": list(dicom_ids)}
            self._write_lines(BAD_STEPS_FILE, [*self._read_lines(BAD_STEPS_FILE), bad_step])

    def _read_lines(self, name: str) -> list[dict[str, Any]]:
        path = self.output_dir / name
        if not path.exists():
            return []
        try:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            return [{**line, "step": int(line["step"])} for line in lines]
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path}: found a broken line ({error}); expected what a run wrote") from error

    def _write_lines(self, name: str, lines: list[dict[str, Any]]) -> None:
        """All of them anew: a line that is appended may be cut off by a crash."""
        path = self.output_dir / name
        if lines or path.exists():
            text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
            write_text(path, text, private=name == BAD_STEPS_FILE)

    def write_predictions(
        self,
        name: str,
        images: dict[str, Sequence[str | int]],
        *,
        labels: Sequence[int],
        probabilities: Sequence[float],
    ) -> None:
        """Writes a line an image to `name`, private as the data-use agreement asks.

        `images` names them, by column: dicom_id, subject_id, by which intervals resample, and view_position.
        """
        if self.enabled:
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow([*images, "label", "probability"])
            # All digits: the figures of a report are those of the run.
            writer.writerows(zip(*images.values(), labels, map(repr, probabilities)))
            write_text(self.output_dir / name, text.getvalue(), private=True)
