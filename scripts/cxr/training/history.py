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
from cxr.sharing.card import dataset_name


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


def count_seen(args: argparse.Namespace, sample: Sample, last: Stage, *, pool: Sequence[str]) -> int | None:
    """Returns how many images of `sample` were also in the model's training `last`, None if unknown.

    If the model is still in its run folder, the list of its images is beside it. Otherwise only their hash is
    known, which is compared with those of the sample and of the whole `pool` that it was drawn from.
    """
    with contextlib.suppress(UserError, OSError):  # no list, or not readable for this user
        before = Sample.read(Path(args.model_name_or_path).parent / "samples.json")
        if before.sha256 == last.sha256:
            dataset = args.data_dir and dataset_name(args.data_dir)
            seen = _ids_as_in(sample, before, dataset=last.dataset)
            ids = _ids_as_in(before, sample, dataset=dataset)
            return None if seen is None or ids is None else len(seen & ids)
    is_known = last.sha256 in (sample.sha256, sample_record(pool, seed=0)["sha256"])
    return sample.num_images if is_known else None


def _ids_as_in(other: Sample, sample: Sample, *, dataset: str | None) -> set[str] | None:
    """Returns the ids of `sample`, of one `dataset`, as `other` would have them, None if it has none of it.

    Those of a training on several collections begin with the name of their collection.
    """
    if other.collections is None or sample.collections is not None:
        return set(sample.dicom_ids)
    if dataset not in other.collections:
        return None
    return {f"{dataset}/{one}" for one in sample.dicom_ids}
