"""Finds out whether images of an evaluation were in the training of a model.

Three signs, as far as they can be known here: a training on the same collection, by its name or that of its
origin, equal ids, and equal pixels. Ids are known if the model is in its run folder, which lists its training
images; pixels are compared if all of these images are still in the cache. Nothing of it is stored with a
model, where it could be published.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from cxr.data.images import LabelledImages
from cxr.data.images import find_cached
from cxr.data.sources import is_synthetic
from cxr.errors import UserError
from cxr.external.subject import Subject
from cxr.run_folder.evaluation_record import Overlap
from cxr.run_folder.record import Arguments
from cxr.run_folder.record import Sample
from cxr.sharing.card import dataset_name
from cxr.sharing.card import derived_from
from cxr.sharing.card import name_roots
from cxr.sharing.card import start_in_words
from cxr.study.names import plural


@dataclass(frozen=True, kw_only=True)
class TrainingImages:
    """The images of one folder that a training of a model used."""

    data_dir: Path | None  # None: not known
    cache_dir: Path | None
    dicom_ids: list[str]


def find_trainings(run: Path | None) -> list[list[TrainingImages]]:
    """Returns the images of the run, and of the runs before it whose folders are still there."""
    found = []
    while run is not None and (run / "samples.json").is_file() and len(found) < 10:
        try:
            args, sample = Arguments.read(run / "args.json"), Sample.read(run / "samples.json")
        except (UserError, OSError):  # not readable for this user
            break
        found.append(by_folder(args, sample.dicom_ids))
        base = args.flags.get("model_name_or_path")
        run = Path(base).parent if base and Path(base).is_dir() else None
    return found


def by_folder(args: Arguments, dicom_ids: list[str]) -> list[TrainingImages]:
    """Returns the images of a training by folder; those of several have ids such as nih-cxr/00000001_000."""
    data_dir, cache_dir = (args.flags.get(name) for name in ("data_dir", "cache_dir"))
    others = args.flags.get("other_data_dirs") or []
    ids = {data_dir and Path(data_dir): dicom_ids}
    if others:
        roots, ids = name_roots([Path(one) for one in (data_dir, *others)]), defaultdict(list)
        for one in dicom_ids:
            name, _, own = one.partition("/")
            ids[roots.get(name)].append(own)
    cache_dir = Path(cache_dir) if cache_dir else None
    return [
        TrainingImages(data_dir=folder, cache_dir=cache_dir, dicom_ids=of_folder)
        for folder, of_folder in ids.items()
    ]


def name_of(data_dir: Path) -> str:
    """Returns the name of a folder as the training history of a model has it."""
    return "synthetic-radiographs" if is_synthetic(data_dir) else dataset_name(data_dir)


def find_overlap(subject: Subject, data_dir: Path, images: LabelledImages) -> Overlap:
    """Compares the images of an evaluation with those of all known trainings of a model."""
    trainings = find_trainings(subject.run)
    folders = [one for training in trainings for one in training]
    trained_ids = {one for folder in folders for one in folder.dicom_ids}
    side, pixels = subject.classifier.shortest_side, set()
    cached = [_cached(folder, shortest_side=side) for folder in folders]
    is_known = bool(folders) and all(one is not None for one in cached)
    if is_known:
        pixels = {digest for one in cached for digest in one.hashes()}
    names = {name for stage in subject.history for name in stage.dataset.split(", ")}
    origins = {name for stage in subject.history for name in stage.derived_from}
    first = subject.history[0] if subject.history else None
    same_name = name_of(data_dir) in names if names else None
    same_origin = {name_of(data_dir), derived_from(data_dir)} & {*names, *origins}
    return Overlap(
        same_name=same_name,
        same_origin=[] if same_name else sorted(same_origin),
        start=start_in_words(first) if first and first.base_model else None,
        num_unknown_trainings=max(0, len(subject.history) - len(trainings)),
        num_same_ids=len(trained_ids & set(images["dicom_id"])) if trainings else None,
        num_same_pixels=sum(digest in pixels for digest in images.hashes()) if is_known else None,
    )


def _cached(training: TrainingImages, *, shortest_side: int) -> LabelledImages | None:
    """Returns the training images if they are in the cache; nothing is shrunk again for a comparison."""
    if training.data_dir is None or not training.data_dir.is_dir():
        return None
    try:
        return find_cached(
            training.data_dir,
            training.dicom_ids,
            shortest_side=shortest_side,
            cache_dir=training.cache_dir,
        )
    except UserError:  # the tables are no longer those of the training
        return None


def overlap_in_words(found: Overlap, *, num_images: int) -> list[str]:
    """Returns warnings, and what is not known."""
    said = []
    if found.same_name:
        said.append(
            "WARNING: the model was trained on a collection of the same name: its test split is not external."
        )
    if found.same_origin:
        said.append(
            f"WARNING: these images are also in {', '.join(found.same_origin)}, on which the model was "
            "trained: this test split is not external."
        )
    if found.num_same_ids:
        said.append(
            f"WARNING: {found.num_same_ids:,} of the {num_images:,} images have ids of training images."
        )
    if found.num_same_pixels:
        said.append(
            f"WARNING: {found.num_same_pixels:,} of the {num_images:,} images have the pixels of training "
            "images."
        )
    if found.same_name is None:
        said.append(
            "The model does not say on which collections it was trained: their names were not compared."
        )
    if found.start is not None:
        said.append(f"The trainings started from {found.start}. Its training images were not compared.")
    if found.num_same_ids is None:
        said.append(
            "The training images are not known (the model is not in its run folder): their ids and pixels "
            "were not compared."
        )
    elif found.num_unknown_trainings:
        said.append(
            f"The images of {plural(found.num_unknown_trainings, 'earlier training')} are not known (the run "
            "folder is not here): their ids and pixels were not compared."
        )
    if found.num_same_ids is not None and found.num_same_pixels is None:
        said.append("Not all training images are in the cache: their pixels were not compared.")
    return said
