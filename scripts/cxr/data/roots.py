"""Loads the images of several collections together, for a pretraining; an id begins with its collection."""

import logging
from pathlib import Path
from typing import Any

import pandas as pd

from cxr.data.images import ROW_COLUMNS
from cxr.data.images import LabelledImages
from cxr.data.images import are_equalized
from cxr.data.images import load_images
from cxr.errors import UserError
from mimic_cxr_dataset.label_rule import LabelRule

ID_COLUMNS = ("dicom_id", "subject_id", "study_id")

logger = logging.getLogger(__name__)


def load_roots(roots: dict[str, Path], rule: LabelRule, **options: Any) -> dict[str, LabelledImages]:
    """Returns the training and validation images of all data folders, which are given by name.

    They are in the order of the names: a run does not depend on the order in which its folders were given.
    Each folder has its own image cache, as if it were the only one. `options` are those of `load_images`.
    Raises UserError.
    """
    loaded = {}
    for name, root in sorted(roots.items()):
        logger.info("Collection %s:", name)
        loaded[name] = load_images(root, rule, **options)
    if len({splits["train"].label_names for splits in loaded.values()}) > 1:
        raise UserError(
            f"--data_dir: found collections with different labels, {', '.join(roots)}; expected the same "
            "ones; name a task that all have, such as --dataset_config_name finding"
        )
    splits = {
        split: join({name: splits[split] for name, splits in loaded.items()})
        for split in ("train", "validation")
    }
    for split, images in splits.items():
        counts = ", ".join(f"{count:,} of {name}" for name, count in count_by_root(images).items())
        logger.info("Together: %s %s images: %s", f"{len(images):,}", split, counts)
    return splits


def join(images: dict[str, LabelledImages]) -> LabelledImages:
    """Returns the images of all collections as one split, with ids such as nih-cxr/00000001_000."""
    import datasets  # not at the top: it is slow to import

    rows, num_before = [], 0
    for name, one in images.items():
        ids = {column: f"{name}/" + one.rows[column].astype(str) for column in ID_COLUMNS}
        rows.append(one.rows.assign(**ids, position=one.rows["position"] + num_before))
        num_before += len(one.pixels)
    first = next(iter(images.values()))
    columns = [*ROW_COLUMNS, *(first.label_names if first.is_multi_label else ())]
    pixels = datasets.concatenate_datasets([one.pixels for one in images.values()])
    return LabelledImages(
        pixels=pixels.with_format("arrow"),
        rows=pd.concat(rows, ignore_index=True)[columns],
        label_names=first.label_names,
        is_multi_label=first.is_multi_label,
    )


def count_by_root(images: LabelledImages) -> dict[str, int]:
    """Returns the number of images of each collection."""
    names = images.rows["dicom_id"].str.partition("/")[0]
    return {name: int(count) for name, count in names.value_counts(sort=False).items()}


def are_all_equalized(images: LabelledImages, roots: dict[str, Path]) -> bool | None:
    """Returns whether the collections' histograms were equalised, None with a warning if they differ."""
    names = images.rows["dicom_id"].str.partition("/")[0]
    found = {}
    for name in names.unique():
        of_root = images.select((names == name).to_numpy().nonzero()[0])
        logger.info("Collection %s:", name)
        found[name] = are_equalized(of_root, roots[name])
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    some = [name for name, is_equalized in found.items() if is_equalized]
    which = f"{', '.join(some)} {'is' if len(some) == 1 else 'are'}"
    logger.warning(
        "Of the collections, only %s equalised: the model learns from both kinds of images, and its "
        "config.json says that it is not known which to use it for",
        which,
    )
    return None
