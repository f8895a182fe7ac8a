"""What the model that a run starts from was trained on before, and on how many of the same images."""

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
    """Returns the trainings of ours that the pretrained model has gone through, and its commit.

    That is None of a model in a folder, and of none. Raises UserError.
    """
    name, source = args.model_name_or_path, {"hub_dir": args.hub_dir, "revision": args.model_revision}
    if name is None:
        return [], None
    fields = pretrained.read_config(name, **source)
    history = ModelFields.of(fields, where=f"model {name}: config.json").training_history
    config = None if Path(name).is_dir() else pretrained.find_file(name, "config.json", **source)
    return history, config and config.parent.name  # in the Hub's layout the folder is named for the commit


def count_seen(sample: Sample, last: Stage, *, pool: Sequence[str], model: str) -> int | None:
    """Returns how many images of `sample` the training `last` of `model` had, None where that is unknown.

    A model in its run's folder has the list beside it. Of another one the hash is known: that of the same
    images, or of the whole `pool` that the sample was drawn from.
    """
    with contextlib.suppress(UserError, OSError):  # no list, or another user's private one
        before = Sample.read(Path(model).parent / "samples.json")
        if before.sha256 == last.sha256:
            return len(set(before.dicom_ids) & set(sample.dicom_ids))
    is_known = last.sha256 in (sample.sha256, sample_record(pool, seed=0)["sha256"])
    return sample.num_images if is_known else None
