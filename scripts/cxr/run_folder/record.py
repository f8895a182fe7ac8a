"""Declares the records that a run writes, each file's name and fields, in one place."""

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Annotated
from typing import Any
from typing import Literal

from pydantic import Field
from pydantic import model_validator
from typing_extensions import Self

from cxr.choices import DATASET_DEFAULTS
from cxr.choices import EVALUATION_LEVELS
from cxr.choices import LABEL_OPTIONS
from cxr.choices import RECIPES
from cxr.errors import UserError
from cxr.run_folder.fields import Count
from cxr.run_folder.fields import Name
from cxr.run_folder.fields import Record
from cxr.run_folder.fields import Seconds
from cxr.run_folder.fields import Seed
from cxr.run_folder.fields import Share
from cxr.run_folder.fields import Word
from cxr.run_folder.files import write_json
from cxr.run_folder.files import write_text
from cxr.run_folder.lock import Lock
from cxr.run_folder.measured import AgainstRadiologist
from cxr.run_folder.measured import EitherMeasured

if TYPE_CHECKING:
    import pandas as pd

LIBRARIES = (
    "torch",
    "torchvision",
    "transformers",
    "timm",
    "accelerate",
    "datasets",
    "evaluate",
    "pillow",
    "scikit-learn",
)
MAX_FLAG = 10_000  # letters of a flag: some name many findings, or many folders
PROGRESS_FILE = "progress.json"  # in every complete checkpoint
BAD_STEPS_FILE = "bad_steps.jsonl"
METRICS_FILE = "metrics.jsonl"
# Flags that may change when a run is resumed: they say how it runs, not what it computes. A batch may be
# divided differently among processes and micro-batches.
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
    "stage_dir",
    "patients_dir",
    "other_data_dirs",
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


class Origin(Record):
    """The origin of a run: code, data and base model, without paths of the machine."""

    git_commit: Name = Field(description="commit of this code; ends in -dirty if files were changed")
    is_synthetic: bool = Field(description="whether the images were drawn by make_sample_data.py")
    dataset: Name = Field(
        description="name of the collection, from collection.json or else its folder; or several"
    )
    derived_from: list[Name] = Field(
        default=[], description="collections whose images these are, as collection.json says"
    )
    base_model: str | None = Field(description="the pretrained model that training started from")
    base_model_revision: str | None = Field(description="commit of that model, if it was named on a hub")
    repository: Name | None = Field(
        default=None, description="git's origin of this code, without credentials; null if it is local"
    )
    labeler: Word | None = Field(
        default=None, description="labeler of MIMIC-CXR-JPG; null if the labels are another collection's"
    )
    labels: list[Word] | None = Field(
        default=None, description="label columns of the data's manifest; null for MIMIC-CXR-JPG, which has 14"
    )
    license: Name | None = Field(default=None, description="of the data, as its collection.json says")
    citation: Name | None = Field(default=None, description="for the data, as its collection.json says")
    version: Word | None = Field(default=None, description="version of this code, from cxr/version.py")


class Arguments(Record):
    """`args.json`: every parsed flag; only those that other programs read are declared here."""

    origin: Origin
    seed: Seed = 0
    dataset_config_name: Word = LABEL_OPTIONS["dataset_config_name"]
    labeler: Word = LABEL_OPTIONS["labeler"]
    view: Word = LABEL_OPTIONS["view"]
    uncertain: Name = LABEL_OPTIONS["uncertain"]
    blank: Word = DATASET_DEFAULTS["blank"]
    findings: list[Word] | None = None
    evaluation_level: Word = EVALUATION_LEVELS[0]
    mask_ratio: Share | None = None
    num_train_epochs: Count | None = None
    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_dir: str | None = None
    hub_revision: str | None = None

    @model_validator(mode="after")
    def _check_flags(self) -> Self:
        for name, value in self.flags.items():
            if len(text := f"{name} {value}") > MAX_FLAG or not text.isprintable():
                raise ValueError(f"found {text!r:.50}, expected at most {MAX_FLAG:,} printable characters")
        return self

    @property
    def flags(self) -> dict[str, Any]:
        """Returns all flags by name, without `origin`."""
        return {name: value for name, value in self.as_json().items() if name != "origin"}


class Sample(Record):
    """`samples.json`: the images that a run was trained on. Private, because it names images."""

    num_images: Count
    seed: Seed
    sha256: str = Field(description="hash of the sorted ids: equal for runs with the same training images")
    dicom_ids: list[str]
    collections: dict[Name, Count] | None = Field(
        default=None, description="images by collection, of a pretraining on several"
    )
    num_seen_before: Count | None = Field(
        default=None,
        description="how many of the images the model was already trained on before; null: unknown",
    )


class Epoch(Record):
    """A line of `metrics.jsonl`; a classifier's lines also have the metrics of the validation split."""

    epoch: Count
    step: Count = Field(description="optimizer steps done")
    train_loss: float = Field(description="mean loss over the steps of the epoch")
    eval_loss: float = Field(description="mean loss over the validation images")
    data_wait: Share | None = Field(
        default=None, description="share of the time that the device waited for data"
    )
    auroc: Share | None = None
    probe_auroc: Share | None = Field(
        default=None,
        description="of a linear probe of the frozen features, by --probe_epochs; so is the next",
    )
    rankme: Annotated[float, Field(ge=1)] | None = Field(
        default=None, description="effective rank of the features of training images"
    )


class BadStep(Record):
    """A line of `bad_steps.jsonl`: the images of a skipped step. Private, because it names images."""

    step: Count
    dicom_ids: list[str]


class Training(Record):
    """How a model was trained up to some step; the card of an unfinished model shows this."""

    task: Word
    steps: Count
    images_per_step: Annotated[int, Field(gt=0, le=10**9)]
    versions: dict[str, str] = Field(description="versions of the libraries")
    architecture: Name | None = Field(default=None, description="kind and size of the network, in words")
    num_parameters: Count | None = Field(default=None, description="parameters of the network")
    image_size: Count | None = Field(default=None, description="side of the square input, in pixels")


class Results(Training):
    """`results.json`, which a run writes last: if it exists, the run is finished."""

    model: Name = Field(description="--config_name or --model_name_or_path")
    train_loss: float
    images_per_second: Annotated[float, Field(gt=0)] = Field(description="speed of training")
    data_wait: Share | None = Field(
        default=None,
        description="share of the training time that the device waited for data, since the last start",
    )
    other_seconds: Seconds | None = Field(
        default=None,
        description="time since the last start that training steps did not take: imports, tables, evaluation",
    )
    bad_steps: Count = Field(description="steps skipped for a NaN or infinite loss or gradient")
    num_train_images: Annotated[int, Field(gt=0, le=10**9)]
    num_epochs: Count | None = Field(default=None, description="epochs started; the last may be incomplete")
    num_train_patients: Count | None = Field(default=None, description="patients of the training images")
    mixed_precision: Word | None = Field(default=None, description="precision of training; `no`: float32")
    hardware: Name | None = Field(default=None, description="number and name of the devices")
    seed: Seed
    recipe: Word = Field(default=RECIPES[0], description="the named set of flags, `--recipe`")
    collections: dict[Name, Count] | None = Field(
        default=None, description="training images by collection, of a pretraining on several"
    )
    hub_commit: str | None = Field(default=None, description="commit of the pushed revision")


class PretrainingResults(Results):
    """`results.json` of run_mae_pretrain.py."""

    task: Literal["mae_pretraining"]
    eval_loss: float
    num_eval_images: Count


class ClassificationResults(Results):
    """`results.json` of run_classification.py."""

    pretrained: bool
    labeler: Word | None = Field(description="null: the labels of a manifest have none")
    view: Word
    uncertain: Name
    blank: Word = DATASET_DEFAULTS["blank"]
    findings: list[Word] | None = Field(default=None, description="the labels of the task `findings`")
    evaluation_level: Word = Field(
        default=EVALUATION_LEVELS[0],
        description="image, or study: the mean of the logits of a study's images",
    )
    class_weights: Word | None = None
    augmentation: Word
    mask_ratio: Share
    random_erasing_prob: Share
    train_last_layer_only: bool
    learning_rate: float = Field(description="peak learning rate")
    best_epoch: Count = Field(description="the epoch whose weights are in model/")
    undertrained: Name | None = Field(
        default=None, description="in words, why the training has not converged; null: no sign of it"
    )
    num_train_positive: Count
    validation: EitherMeasured
    test: EitherMeasured | None = None
    radiologist: AgainstRadiologist | None = Field(
        default=None, description="null without --evaluate_test or the radiologist's table"
    )


def read_results(run: Path) -> PretrainingResults | ClassificationResults | None:
    """Returns the results of a run, None if it is not finished. Raises UserError if they are not valid."""
    path = run / "results.json"
    if not path.is_file():
        return None
    is_pretraining = Results.read(path).task == "mae_pretraining"
    return (PretrainingResults if is_pretraining else ClassificationResults).read(path)


def check_unchanged(before: dict[str, Any], now: dict[str, Any], *, where: Path) -> None:
    """Raises UserError if the run in `where` began with other flags, which must not be mixed in one run."""
    for name, value in sorted(now.items()):
        if before.get(name) != value:
            raise UserError(
                f"--{name}: found {value}, but {where} began with {before.get(name)}; "
                "use the same flags, or start again in another --output_dir"
            )


class RunRecord:
    """Writes the records of one run; `enabled` is false on all processes except the main one."""

    def __init__(self, output_dir: Path, *, enabled: bool, lock: Lock | None = None):
        self.output_dir = output_dir
        self.enabled = enabled
        self.lock = lock  # held as long as this object lives

    def write(self, name: str, content: Record, *, private: bool = False) -> None:
        """Writes the JSON file `name`. `results.json` must be written last: it marks the run as finished."""
        if self.enabled:
            write_json(self.output_dir / name, content.as_json(), private=private)

    def write_sample(self, sample: Sample) -> None:
        """Writes `samples.json`. Raises UserError if the resumed run began with other images."""
        path = self.output_dir / "samples.json"
        if path.exists() and Sample.read(path).sha256 != sample.sha256:
            raise UserError(
                f"{path}: found other training images than this run began with, expected the same data "
                "and labels; restore them, or start again in another --output_dir"
            )
        self.write("samples.json", sample, private=True)

    def append_epoch(self, epoch: dict[str, Any]) -> None:
        """Adds a line to `metrics.jsonl`."""
        if self.enabled:
            self._write_lines(METRICS_FILE, [*self._read_lines(METRICS_FILE, Epoch), Epoch(**epoch)])

    def epochs(self) -> list[dict[str, Any]]:
        return [epoch.as_json() for epoch in self._read_lines(METRICS_FILE, Epoch)]

    def append_bad_step(self, step: int, dicom_ids: Sequence[str]) -> None:
        """Adds the images of a skipped step to `bad_steps.jsonl`, which is private."""
        if self.enabled:
            bad_step = BadStep(step=step, dicom_ids=list(dicom_ids))
            self._write_lines(BAD_STEPS_FILE, [*self._read_lines(BAD_STEPS_FILE, BadStep), bad_step])

    def _read_lines(self, name: str, kind: type[Record]) -> list[Record]:
        path = self.output_dir / name
        if not path.exists():
            return []
        lines = path.read_bytes().splitlines()
        return [
            kind.parse(line, where=f"{path}, line {number}") for number, line in enumerate(lines, start=1)
        ]

    def _write_lines(self, name: str, lines: list[Record]) -> None:
        """Writes the whole file again, because a crash could cut off an appended line."""
        text = "".join(json.dumps(line.as_json(), allow_nan=False) + "\n" for line in lines)
        write_text(self.output_dir / name, text, private=name == BAD_STEPS_FILE)

    def write_predictions(self, name: str, table: "pd.DataFrame") -> None:
        """Writes a line per image or study to `name`, which is private as the data-use agreement asks.

        Numbers have all digits, so that a report gets exactly the run's metrics.
        """
        if self.enabled:
            write_text(self.output_dir / name, table.to_csv(index=False, lineterminator="\n"), private=True)
