"""MIMIC-CXR-JPG as a `datasets` loading script: chest X-rays with a binary label, shrunk once into the cache.

ROOT is the PhysioNet folder as downloaded: `files/` and the metadata, split and label tables.

    load_dataset("mimic_cxr_dataset", "finding", data_dir=ROOT, trust_remote_code=True)
    load_dataset("mimic_cxr_dataset", "pleural_effusion", data_dir=ROOT, trust_remote_code=True,
                 labeler="chexpert", view="lateral", uncertain="exclude", image_size=256, num_proc=8)

`datasets` 4 and later do not run loading scripts, but the class itself works with them:

    builder = MimicCxr(config_name="finding", data_dir=ROOT, image_size=256)
    builder.download_and_prepare(num_proc=8)
    builder.as_dataset(split="train")

README.md beside this file gives the label rules, the options and the published counts.
"""

# One import per line: the loader of `datasets` 3 reads "import a, b" as one package named "a, b". It copies
# only files that are imported here, so this file imports from every file of the folder, used or not.
import csv
import hashlib
import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
from datasets.exceptions import DatasetGenerationError

from .choices import CHOICES
from .choices import DEFAULTS
from .choices import TASKS
from .collection import read_collection
from .dicom import read_dicom
from .errors import DatasetError
from .gray_levels import equalize
from .radiographs import Reading
from .radiographs import check_jpeg
from .radiographs import find_image
from .radiographs import is_jpeg
from .radiographs import shrink_radiograph
from .tables import REASONS
from .tables import SPLITS
from .tables import check_options
from .tables import find_csv
from .tables import format_exclusions
from .tables import index_images
from .tables import read_bytes
from .tables import resolve_root

# A fixed name, because `datasets` imports this file under a name that contains a hash.
logger = logging.getLogger("mimic_cxr_dataset")

# Lists of images in the cache folder, NAME_SPLIT.csv: images left out, and images used with a warning.
BAD_IMAGES, DOUBTFUL_IMAGES = "bad_images", "doubtful_images"


@dataclass
class MimicCxrConfig(datasets.BuilderConfig):
    """The config's name is the task; README.md explains the options."""

    labeler: str = DEFAULTS["labeler"]
    view: str = DEFAULTS["view"]
    uncertain: str = DEFAULTS["uncertain"]
    image_size: int | None = None
    on_bad_image: str = DEFAULTS["on_bad_image"]

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Returns the cache folder's name, which depends on the options, the tables and this package's code.

        The default of `datasets` depends only on the text of data_dir and the options: it would not notice a
        changed table, nor changed code where the class is used directly.
        """
        size = self.image_size
        options = {name: getattr(self, name) for name in CHOICES if name != "task"}
        check_options(**options)  # not in __post_init__: `datasets` sets options after the config is made
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise DatasetError(f"image_size={size!r}: expected a whole number of pixels from 1, or None.")
        parts = [repr((self.name, options, size, custom_features)).encode("utf-8")]
        parts += [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
        if self.data_dir is not None:
            parts.append(str(resolve_root(self.data_dir)).encode("utf-8"))
            tables = ("metadata", "split", self.labeler)
            parts += [read_bytes(find_csv(self.data_dir, table)) for table in tables]
            parts.append(repr(read_collection(resolve_root(self.data_dir)).equalized).encode("utf-8"))
        digests = b"".join(hashlib.blake2b(part).digest() for part in parts)
        return f"{self.name}-{hashlib.blake2b(digests, digest_size=8).hexdigest()}"


class MimicCxr(datasets.GeneratorBasedBuilder):
    """Chest X-rays of MIMIC-CXR-JPG with a binary label per study."""

    BUILDER_CONFIG_CLASS = MimicCxrConfig
    BUILDER_CONFIGS = [MimicCxrConfig(name=task, version=datasets.Version("1.0.0")) for task in TASKS]
    DEFAULT_CONFIG_NAME = DEFAULTS["task"]

    def _info(self) -> datasets.DatasetInfo:
        features = {
            "image": datasets.Image(mode="L"),
            "label": datasets.ClassLabel(names=list(TASKS[self.config.name])),
            "dicom_id": datasets.Value("string"),
            "subject_id": datasets.Value("int64"),
            "study_id": datasets.Value("int64"),
            "view_position": datasets.Value("string"),
        }
        return datasets.DatasetInfo(
            description=self._title(),
            features=datasets.Features(features),
            homepage="https://physionet.org/content/mimic-cxr-jpg/",
            license="PhysioNet Credentialed Health Data License 1.5.0",
        )

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        config, streaming = self.config, dl_manager.is_streaming
        options = {"labeler": config.labeler, "view": config.view, "uncertain": config.uncertain}
        rows, self._exclusions = index_images(config.data_dir, task=config.name, **options)
        if not streaming:  # a stream starts at once and looks for each file when it reads it
            rows = self._drop_missing(rows)
        self._describe()
        # A warning, so that it is shown by default: a result means little without knowing what was left out.
        logger.warning(self.info.description)
        if rows.empty:
            left_out = ", ".join(f"{self._exclusions[reason].sum():,} {reason}" for reason in REASONS)
            raise DatasetError(
                f"{config.data_dir}: no image is left ({self._title()}); left out: {left_out}."
            )
        generators = []
        for split in SPLITS.values():
            of_split = rows[rows["split"] == split]
            if of_split.empty:  # `datasets` cannot read back a split without rows
                continue
            # Processes (num_proc) and the workers of a stream divide this list among them, in order.
            num_chunks = min(256, -(-len(of_split) // 8))
            chunks = [of_split.iloc[part] for part in np.array_split(np.arange(len(of_split)), num_chunks)]
            gen_kwargs = {"chunks": chunks, "split": split, "streaming": streaming}
            generators.append(datasets.SplitGenerator(name=split, gen_kwargs=gen_kwargs))
        return generators

    def _generate_examples(self, chunks: list[pd.DataFrame], split: str, streaming: bool):
        reading = read_collection(resolve_root(self.config.data_dir)).reading
        for row in (row for chunk in chunks for row in chunk.itertuples()):
            if streaming:  # otherwise `_drop_missing` did this
                row = row._replace(path=find_image(row.path) or row.path)
            try:
                image, warnings = self._load_image(row.path, reading)
            except DatasetError as error:
                if self.config.on_bad_image == "error":
                    advice = 'replace it, or skip such images with on_bad_image="skip" (--on_bad_image skip)'
                    raise DatasetError(f"{row.path} is a bad image ({error}): {advice}.") from error
                self._note_image(BAD_IMAGES, split, row, error, streaming=streaming)
                continue
            for warning in warnings:
                self._note_image(DOUBTFUL_IMAGES, split, row, warning, streaming=streaming)
            columns = ("label", "dicom_id", "subject_id", "study_id", "view_position")
            yield row.dicom_id, {"image": image, **{column: getattr(row, column) for column in columns}}

    def _load_image(self, path: str, reading: Reading) -> tuple[dict, tuple[str, ...]]:
        """Returns the image in the form of `datasets` (only a path if it is not shrunk) and its warnings."""
        size = self.config.image_size
        if size is None and is_jpeg(path):
            return {"path": path, "bytes": None}, check_jpeg(path)
        shrunk = shrink_radiograph(path, size, reading)
        # No path: `datasets` drops the bytes if the current folder has a file of that name.
        return {"path": None, "bytes": shrunk.content}, shrunk.warnings

    def _title(self) -> str:
        config = self.config
        return f"{config.name}, labels by {config.labeler}, view {config.view}, uncertain {config.uncertain}"

    def _describe(self) -> None:
        """Writes the exclusion table into the dataset's info, which is stored in the cache."""
        self.info.description = f"MIMIC-CXR-JPG, {self._title()}\n{format_exclusions(self._exclusions)}"

    def _drop_missing(self, rows: pd.DataFrame) -> pd.DataFrame:
        with ThreadPoolExecutor(max_workers=16) as pool:  # hides the latency of a network disk
            found = pd.Series(list(pool.map(find_image, rows["path"], chunksize=256)), index=rows.index)
        rows = rows.assign(path=found.fillna(rows["path"]))
        lost = rows[found.isna()]
        if len(lost) and self.config.on_bad_image == "error":
            raise DatasetError(
                f"{len(lost):,} of {len(rows):,} images are missing, the first is {lost['path'].iloc[0]}: "
                'download them, or skip them with on_bad_image="skip" (--on_bad_image skip).'
            )
        for split, of_split in lost.groupby("split"):
            for row in of_split.itertuples():
                self._note_image(BAD_IMAGES, split, row, "missing file", streaming=False)
            self._count_left_out(split, "missing file", len(of_split))
        return rows[found.notna()]

    def _count_left_out(self, split: str, reason: str, count: int) -> None:
        self._exclusions.loc[split, reason] += count
        self._exclusions.loc[split, "kept"] -= count

    def _note_image(self, kind: str, split: str, row, reason: object, *, streaming: bool) -> None:
        """Adds an image to this process's part of a list, see `_join_notes`; a stream only logs it."""
        if streaming:
            fate = "is a bad image, skipped" if kind == BAD_IMAGES else "is used with a warning"
            logger.warning(f"{row.path} {fate}: {reason}.")
            return
        path = Path(self._output_dir, f"{kind}_{split}.{os.getpid()}.part")
        with path.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerow((row.Index, row.dicom_id, row.path, reason))

    def _join_notes(self, kind: str, split: str) -> pd.DataFrame:
        """Writes KIND_SPLIT.csv into the cache folder unless it would be empty; returns its rows."""
        names = ["row", "dicom_id", "path", "reason"]
        parts = sorted(Path(self._output_dir).glob(f"{kind}_{split}.*.part"))
        if not parts:
            return pd.DataFrame(columns=names)
        notes = pd.concat([pd.read_csv(part, names=names, dtype={"dicom_id": str}) for part in parts])
        # Written without a temporary name: `datasets` renames the whole folder when it is complete.
        path = Path(self._output_dir, f"{kind}_{split}.csv")
        notes.sort_values("row", kind="stable").drop(columns="row").to_csv(path, index=False)
        for part in parts:
            part.unlink()
        return notes

    def _list_images(self, split: str) -> None:
        """Lists and counts the images of a finished split that were left out or used with a warning."""
        folder = str(self._output_dir).removesuffix(".incomplete")
        bad, doubtful = (self._join_notes(kind, split) for kind in (BAD_IMAGES, DOUBTFUL_IMAGES))
        if len(bad):
            num_damaged = int((bad["reason"] != "missing file").sum())
            self._count_left_out(split, "damaged file", num_damaged)
            self._describe()
            listing = Path(folder, f"{BAD_IMAGES}_{split}.csv")
            logger.warning(
                f"{split}: bad images skipped: {len(bad):,} ({num_damaged:,} damaged), see {listing}"
            )
        if len(doubtful):
            reasons = doubtful["reason"].value_counts()
            listing = Path(folder, f"{DOUBTFUL_IMAGES}_{split}.csv")
            logger.warning(
                f"{split}: images used with a warning: {doubtful['dicom_id'].nunique():,}, most often "
                f'"{reasons.index[0]}" ({reasons.iloc[0]:,}), see {listing}'
            )

    # The methods below wrap private methods of `datasets` (tried with 3.6 and 5.2): it has no public hook.

    def _download_and_prepare(self, *args, **kwargs):
        output_dir = Path(self._output_dir)  # a temporary folder, renamed when it is complete
        shutil.rmtree(output_dir)  # a killed run may have left files in it
        output_dir.mkdir(mode=0o700)  # only the owner may see images and ids
        # Otherwise a forced rebuild is compared with the old counts, and fails if images were repaired.
        self.info.splits = None
        super()._download_and_prepare(*args, **kwargs)
        for path in output_dir.iterdir():
            path.chmod(0o600)

    def _prepare_split(self, split_generator, *args, **kwargs):
        try:
            super()._prepare_split(split_generator, *args, **kwargs)
        except DatasetError as error:
            raise error from None  # drops the traceback of a worker process
        split = split_generator.name
        self._list_images(split)
        if split_generator.split_info.num_examples == 0:
            raise DatasetError(f"{self.config.data_dir}: every image of the {split} split is damaged.")

    def _prepare_split_single(self, *args, **kwargs):
        try:
            yield from super()._prepare_split_single(*args, **kwargs)
        except DatasetGenerationError as error:
            # `datasets` hides every error behind "An error occurred while generating the dataset".
            if isinstance(error.__cause__, DatasetError):
                raise error.__cause__ from None
            raise
