"""Reads the training history of a pretrained model, and counts the images that it has already seen."""

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path

from cxr.data.subsets import sample_record
from cxr.errors import UserError
from cxr.models import pretrained
from cxr.run_folder.model_fields import ModelFields
from cxr.run_folder.model_fields import Stage
from cxr.run_folder.record import Sample


def read_base(args: argparse.Namespace) -> tuple[list[Stage], str | None]:
    """Returns the recorded trainings of the pretrained model, and its commit.

    The commit is None without a pretrained model, and for one in a plain folder. Raises UserError if the
    config.json is missing or not valid.
    """
    name, source = args.model_name_or_path, {"hub_dir": args.hub_dir, "revision": args.model_revision}
    if name is None:
        return [], None
    fields = pretrained.read_config(name, **source)
    history = ModelFields.of(fields, where=f"model {name}: config.json").training_history
    config = None if Path(name).is_dir() else pretrained.find_file(name, "config.json", **source)
    return history, config and config.parent.name  # in the Hub's layout the folder's name is the commit


def count_seen(sample: Sample, last: Stage, *, pool: Sequence[str], model: str) -> int | None:
    """Returns how many images of `sample` were also in the training `last` of `model`, None if unknown.

    If the model is still in its run folder, the list of its images is beside it. Otherwise only their hash is
    known, which is compared with those of the sample and of the whole `pool` that it was drawn from.
    """
    with contextlib.suppress(UserError, OSError):  # no list, or not readable for this user
        before = Sample.read(Path(model).parent / "samples.json")
        if before.sha256 == last.sha256:
            return len(set(before.dicom_ids) & set(sample.dicom_ids))
    is_known = last.sha256 in (sample.sha256, sample_record(pool, seed=0)["sha256"])
    return sample.num_images if is_known else None
