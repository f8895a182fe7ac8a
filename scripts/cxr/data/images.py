"""Loads the images of a run, which the dataset package shrinks once, and selects those to train on."""

import contextlib
import hashlib
import io
import logging
import os
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from cxr.data.shared_cache import shrink_once
from cxr.data.shared_cache import stage_once
from cxr.data.sources import make_sample_data_once
from cxr.data.subsets import draw_sample
from cxr.data.subsets import sample_record
from cxr.errors import UserError
from mimic_cxr_dataset.choices import DEFAULTS
from mimic_cxr_dataset.choices import MULTI_LABEL
from mimic_cxr_dataset.collection import read_collection
from mimic_cxr_dataset.errors import DatasetError
from mimic_cxr_dataset.errors import NoGoodImage
from mimic_cxr_dataset.gray_levels import LARGEST_DISTANCE_OF_EQUALIZED
from mimic_cxr_dataset.gray_levels import distance_from_uniform
from mimic_cxr_dataset.image_lists import BAD_IMAGES
from mimic_cxr_dataset.image_lists import LIST_COLUMNS
from mimic_cxr_dataset.image_lists import SAME_PIXELS
from mimic_cxr_dataset.image_lists import listing_of
from mimic_cxr_dataset.image_lists import read_listing
from mimic_cxr_dataset.label_rule import LabelRule
from mimic_cxr_dataset.label_rule import check_options
from mimic_cxr_dataset.labels import DAMAGED_FILE
from mimic_cxr_dataset.labels import MISSING_FILE
from mimic_cxr_dataset.labels import format_exclusions
from mimic_cxr_dataset.labels import label_images
from mimic_cxr_dataset.labels import labels_of_collection
from mimic_cxr_dataset.labels import read_labels
from mimic_cxr_dataset.labels import read_radiologist
from mimic_cxr_dataset.patients import describe_patients
from mimic_cxr_dataset.patients import read_patients
from mimic_cxr_dataset.patients import scanner_of
from mimic_cxr_dataset.radiographs import find_image
from mimic_cxr_dataset.tables import SPLITS
from mimic_cxr_dataset.tables import group_images
from mimic_cxr_dataset.tables import read_images
from mimic_cxr_dataset.tables import resolve_root

if TYPE_CHECKING:
    import datasets

    from mimic_cxr_dataset.pixels import Pixels

logger = logging.getLogger(__name__)
ROW_COLUMNS = ("dicom_id", "subject_id", "study_id", "view_position", "label", "position")
# What metrics are also measured by, where it is known, beside the view.
GROUP_COLUMNS = ("scanner", "sex", "age", "race", "is_known_patient")
RADIOLOGIST = "radiologist"  # the split of the test images whose study a radiologist has labelled
NUM_READ = 1000  # images that are hashed at once
NUM_TO_LOOK_AT = 200  # training images that are checked for equalisation
SHARE_OF_ANOTHER_KIND = 0.1  # of them, if some are equalised and others not, to be worth a warning


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns the dataset package's errors, about tables, options or image files, into UserErrors."""
    try:
        yield
    except DatasetError as error:
        raise UserError(str(error)) from error


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """The images of a split: their table rows, and their pixels as gray JPEGs.

    `rows` has ROW_COLUMNS and those GROUP_COLUMNS that are known; `position` is the index in `pixels`, which
    is one Arrow table for all splits. With one label, `label_names` are the names of its values 0 and 1. With
    several, they are the findings; `rows` has a column for each, and `label` is 1 if any is positive.
    """

    pixels: "datasets.Dataset"
    rows: pd.DataFrame
    label_names: tuple[str, ...]
    is_multi_label: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, column: str) -> list:
        return self.rows[column].tolist()

    @property
    def labels(self) -> np.ndarray:
        """Returns the labels: (N,), 0 or 1; or, with several, (N, K) int8: 1, 0, MASKED or SMOOTH."""
        if self.is_multi_label:
            return self.rows[[*self.label_names]].to_numpy(dtype="int8")
        return self.rows["label"].to_numpy()

    def select(self, indices: Sequence[int]) -> "LabelledImages":
        return replace(self, rows=self.rows.iloc[indices])

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Returns the JPEG files of some images."""
        found = self.pixels[self.rows["position"].iloc[indices].tolist()]  # one read of the Arrow table
        return [image["bytes"].as_py() for image in found["image"]]

    def hashes(self) -> Iterator[bytes]:
        """Yields a hash of the JPEG file of each image, in order: equal pixels have equal ones."""
        for first in range(0, len(self), NUM_READ):
            for content in self.read(range(first, min(first + NUM_READ, len(self)))):
                yield hashlib.sha256(content).digest()


def images_in_memory(contents: list[bytes], **columns: list) -> LabelledImages:
    """Returns images without a cache, with the given columns as rows: for benchmarks and tests."""
    import datasets

    rows = pd.DataFrame({**columns, "position": range(len(contents))})
    pixels = datasets.Dataset.from_dict({"image": [{"bytes": content} for content in contents]})
    names = ("negative", "positive")
    return LabelledImages(pixels=pixels.with_format("arrow"), rows=rows, label_names=names)


def load_images(
    data_dir: Path | None,
    rule: LabelRule,
    *,
    on_bad_image: str,
    patients_dir: Path | None = None,
    with_radiologist: bool = False,
    needs: Sequence[str] = ("train", "validation"),
    **of_pixels: Any,
) -> dict[str, LabelledImages]:
    """Loads the images by split, with the labels of the current tables.

    The first call shrinks all images of the view into the Arrow cache; later calls, of any script and with
    any labels, find them there and open no image file. Several processes, on any machines, may call it at
    once: one shrinks, and the others wait without a time limit. Without `data_dir` the images are the
    synthetic sample. `patients_dir`, MIMIC-IV's hosp/, adds sex, age and race. `with_radiologist` adds the
    split RADIOLOGIST, if its table is there: test images with the radiologist's labels. `of_pixels` are the
    keywords of `load_pixels`. Raises UserError, also if a split of `needs` has no image.
    """
    if data_dir is None:
        data_dir = make_sample_data_once()
        logger.warning("No --data_dir given: using the synthetic sample in %s", data_dir)
    with user_errors():
        check_options(on_bad_image=on_bad_image)
        images = read_images(data_dir)
        rule = replace(rule, collection=labels_of_collection(data_dir))
        labels = read_labels(data_dir, rule.labeler, rule.columns, images=images)
        of_radiologist = read_radiologist(data_dir, images=images) if with_radiologist else None
        if patients_dir is not None and rule.collection is not None:
            raise UserError(f"--patients_dir: found a manifest in {data_dir}, expected MIMIC; leave it out")
        images = add_groups(images, patients_dir)
        kept, exclusions = label_images(images, labels, rule)
        groups = group_images(images)
        in_view = groups.eq(rule.view) | (rule.view == "all")
        if not in_view.any():
            raise UserError(f"{data_dir}: found no image of the view {rule.view}; name another")
        pixels, bad = load_pixels(
            images.assign(group=groups)[in_view],
            data_dir,
            on_bad_image=on_bad_image,
            **of_pixels,
        )
    kept = leave_out_bad_images(kept, bad, exclusions, on_bad_image=on_bad_image)
    logger.info("Images (%s):\n%s", rule, format_exclusions(exclusions))
    rows = {split: kept[kept["split"] == split] for split in SPLITS.values()}
    for split in needs:
        if rows[split].empty:
            raise UserError(
                f"{data_dir}: found no {split} images ({rule}); expected some in the split CSV or manifest"
            )
    if of_radiologist is not None:
        of_test = images[(images["split"] == "test") & ~images["dicom_id"].isin(bad["dicom_id"])]
        rows[RADIOLOGIST], _ = label_images(of_test, of_radiologist, rule)
    return {split: with_pixels(of_split, pixels, rule) for split, of_split in rows.items() if len(of_split)}


def check_studies(splits: dict[str, LabelledImages]) -> None:
    """Raises UserError if the images of a study have different labels, as they may in a manifest."""
    for split, images in splits.items():
        labels = pd.DataFrame(images.labels)
        if (labels.groupby(images.rows["study_id"].to_numpy()).nunique() > 1).any(axis=None):
            raise UserError(
                f"--evaluation_level study: found a study of the {split} split whose images have different "
                "labels, expected the same; use --evaluation_level image"
            )


def add_groups(images: pd.DataFrame, patients_dir: Path | None) -> pd.DataFrame:
    """Returns the images with the GROUP_COLUMNS that are known, for metrics by group."""
    images = images.assign(scanner=scanner_of(images["procedure"]))
    if patients_dir is None:
        return images
    patients = read_patients(patients_dir)
    known = images["subject_id"].isin(patients.index)
    num_unknown = images.loc[~known, "subject_id"].nunique()
    logger.info("Patients: %s have no row in %s", f"{num_unknown:,}", patients_dir)
    return images.assign(**describe_patients(images, patients), is_known_patient=known)


def with_pixels(rows: pd.DataFrame, pixels: "datasets.Dataset", rule: LabelRule) -> LabelledImages:
    is_multi_label = rule.task == MULTI_LABEL
    position = pd.Index(pixels["dicom_id"].to_pandas()).get_indexer(rows["dicom_id"])
    assert (position >= 0).all(), "an image has no pixels"  # -1 would be those of the last image
    rows = rows.assign(position=position)
    columns = [*ROW_COLUMNS, *(name for name in GROUP_COLUMNS if name in rows)]
    columns += rule.label_names if is_multi_label else ()
    return LabelledImages(
        pixels=pixels.select_columns("image"),
        rows=rows[columns].reset_index(drop=True),
        label_names=rule.label_names,
        is_multi_label=is_multi_label,
    )


def load_pixels(
    images: pd.DataFrame,
    data_dir: Path,
    *,
    num_proc: int | None,
    shows_progress: bool,
    stage_dir: Path | None = None,
    **of_builder: Any,
) -> tuple["datasets.Dataset", pd.DataFrame]:
    """Returns the pixels of images in Arrow format, and a table with LIST_COLUMNS of the bad ones.

    `images` has dicom_id, path, split and group: frontal, lateral or other. Bad images have no pixels. With
    `stage_dir`, the pixels are read from a copy there. `of_builder` are the keywords of `make_builder`.
    Raises UserError.
    """
    import datasets  # not at the top: some scripts use this file without it

    caches, bad = {}, []
    plumbing = {"num_proc": num_proc or num_cores(), "shows_progress": shows_progress}
    for group, files in images.groupby("group"):
        builder = make_builder(group, files, data_dir, **of_builder)
        try:
            cache = shrink_once(builder, **plumbing)
        except NoGoodImage as error:  # such as all lateral ones, of somebody who has downloaded the others
            logger.warning("%s", error)
            reasons = [DAMAGED_FILE if find_image(path) else MISSING_FILE for path in files["path"]]
            bad.append(files.assign(reason=reasons)[[*LIST_COLUMNS]])
            continue
        caches[builder] = cache
        bad.append(read_listing(cache, BAD_IMAGES, group))
        warn_of_copies(files, cache, group)
    folders = list(caches.values())
    if stage_dir:
        folders = stage_once(folders, stage_dir, shows_progress=shows_progress)
    parts = [read_cache(builder, folder) for builder, folder in zip(caches, folders)]
    if not parts:
        view = images["group"].iloc[0] if images["group"].nunique() == 1 else "all"
        raise UserError(f"--view {view}: found no good image of this view; name another, or check the files")
    pixels = datasets.concatenate_datasets(parts).with_format("arrow")
    return pixels, pd.concat(bad)


def warn_of_copies(files: pd.DataFrame, cache: Path, group: str) -> None:
    """Warns of images to evaluate with that have the pixels of a training image; `files` has their split."""
    same = read_listing(cache, SAME_PIXELS, group)
    if same.empty:
        return
    found = files.merge(same[["dicom_id", "reason"]], on="dicom_id")
    is_train = found["split"] == "train"
    num_copies = (~is_train & found["reason"].isin(found.loc[is_train, "reason"])).sum()
    if num_copies:
        logger.warning(
            "%s: validation and test images with the pixels of a training image: %s; results on them say "
            "little: remove one of each pair, see %s",
            group,
            f"{num_copies:,}",
            listing_of(cache, SAME_PIXELS, group),
        )


def make_builder(
    group: str,
    files: pd.DataFrame,
    data_dir: Path,
    *,
    shortest_side: int,
    cache_dir: Path | None,
    on_bad_image: str = DEFAULTS["on_bad_image"],
) -> "Pixels":
    """Returns what shrinks the images of a group and finds them in the cache."""
    from mimic_cxr_dataset.pixels import Pixels

    return Pixels(
        config_name=group,
        files=files[["dicom_id", "path"]],
        data_dir=str(data_dir),
        cache_dir=str(cache_dir) if cache_dir else None,
        image_size=shortest_side,
        reading=read_collection(resolve_root(data_dir)).reading,
        on_bad_image=on_bad_image,
    )


def read_cache(builder: "Pixels", folder: Path) -> "datasets.Dataset":
    """Returns the images of a group from its cache folder, or from a copy of it."""
    builder.download_and_prepare(output_dir=str(folder))  # finds them
    return builder.as_dataset(split=builder.config.name)


def find_cached(
    data_dir: Path, dicom_ids: Sequence[str], *, shortest_side: int, cache_dir: Path | None
) -> LabelledImages | None:
    """Returns those images of a folder that have these ids, without labels, if all are in the cache.

    Opens no image file and shrinks nothing. Raises UserError if the tables are not valid.
    """
    import datasets

    with user_errors():
        images = read_images(data_dir)
        images = images.assign(group=group_images(images))
        wanted = images["group"].isin(images.loc[images["dicom_id"].isin(dicom_ids), "group"])
        builders = [
            make_builder(group, files, data_dir, shortest_side=shortest_side, cache_dir=cache_dir)
            for group, files in images[wanted].groupby("group")
        ]
    if not builders or not all(Path(builder.cache_dir).exists() for builder in builders):
        return None
    parts = [builder.as_dataset(split=builder.config.name) for builder in builders]
    pixels = datasets.concatenate_datasets(parts).with_format("arrow")
    position = pd.Index(pixels["dicom_id"].to_pandas()).get_indexer(list(dicom_ids))
    if (position == -1).any():
        return None
    rows = pd.DataFrame({"dicom_id": list(dicom_ids), "position": position})
    return LabelledImages(pixels=pixels.select_columns("image"), rows=rows, label_names=())


def leave_out_bad_images(
    kept: pd.DataFrame, bad: pd.DataFrame, exclusions: pd.DataFrame, *, on_bad_image: str
) -> pd.DataFrame:
    """Returns the rows that have pixels, and counts the others in `exclusions`.

    Raises UserError if there are others and `on_bad_image` is "error".
    """
    reasons = kept["dicom_id"].map(bad.drop_duplicates("dicom_id").set_index("dicom_id")["reason"])
    lost = kept[reasons.notna()]
    if len(lost) and on_bad_image == "error":
        raise UserError(
            f"found {len(lost):,} of {len(kept):,} images missing or damaged, first {lost['path'].iloc[0]} "
            f"({reasons[lost.index[0]]}); replace them, or skip them with --on_bad_image skip"
        )
    fates = reasons[lost.index].where(reasons[lost.index] == MISSING_FILE, DAMAGED_FILE)
    for (split, fate), count in lost.groupby([lost["split"], fates]).size().items():
        exclusions.loc[split, fate] += count
        exclusions.loc[split, "kept"] -= count
    return kept[reasons.isna()].copy()


def are_equalized(images: LabelledImages, data_dir: Path | None) -> bool:
    """Returns whether the histograms of the training images were equalised, as in MIMIC-CXR-JPG.

    collection.json decides if it says so, else the images. The model's config.json stores the answer.
    """
    with user_errors():
        said = read_collection(data_dir).equalized if data_dir else None
    if said is not None:
        logger.info("Images: %s, according to collection.json", "equalised" if said else "not equalised")
        return said
    chosen = np.linspace(0, len(images) - 1, min(NUM_TO_LOOK_AT, len(images)), dtype=int)
    distances = []
    for content in images.read(chosen):
        with Image.open(io.BytesIO(content)) as opened:
            distances.append(distance_from_uniform(np.asarray(opened.convert("L"))))
    distance = float(np.mean(distances))
    found = distance <= LARGEST_DISTANCE_OF_EQUALIZED
    share = np.mean(np.array(distances) <= LARGEST_DISTANCE_OF_EQUALIZED)
    if min(share, 1 - share) > SHARE_OF_ANOTHER_KIND:
        logger.warning(
            "Images of two kinds: %.0f%% of %d seem to be equalised, the others not. If these are DICOM "
            "files or have more than 8 bits, they were equalised when they were read: write "
            '"equalized": false into collection.json. Else import the two kinds as two collections',
            100 * share,
            len(chosen),
        )
    logger.info(
        "Images: %s: the mean distance of %d histograms from uniform is %.2f (equalised: at most %.2f)",
        "equalised" if found else "not equalised",
        len(chosen),
        distance,
        LARGEST_DISTANCE_OF_EQUALIZED,
    )
    return found


def draw_training_images(
    images: LabelledImages, *, num_samples: int | None, seed: int
) -> tuple[LabelledImages, dict]:
    """Returns the images to train on (see `cxr.data.subsets`) and the content of `samples.json`."""
    chosen = draw_sample(images["subject_id"], images["label"], num_samples=num_samples, seed=seed)
    images = images.select(chosen)
    return images, sample_record(images["dicom_id"], seed=seed)


def first_images(images: LabelledImages, num_images: int | None) -> LabelledImages:
    return images if num_images is None else images.select(range(min(num_images, len(images))))


def default_cache_image_size(image_size: int) -> int:
    """Returns, for example, 256 for 224: room for random crops, but small enough to be read quickly."""
    return round(image_size * 8 / 7)


def num_cores() -> int:
    """Returns the number of cores that this process may use; a batch system or container may limit it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
