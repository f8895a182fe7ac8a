"""What both builders of this folder share: image files read into the cache, and lists of the bad ones."""

# One import per line: the loader of `datasets` 3 reads "import a, b" as one package named "a, b".
import csv
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
from datasets.exceptions import DatasetGenerationError

from .errors import DatasetError
from .errors import NoGoodImage
from .image_lists import BAD_IMAGES
from .image_lists import DOUBTFUL_IMAGES
from .image_lists import SAME_PIXELS
from .image_lists import describe_doubtful
from .image_lists import listing_of
from .labels import MISSING_FILE
from .radiographs import Reading
from .radiographs import check_jpeg
from .radiographs import find_image
from .radiographs import is_jpeg
from .radiographs import shrink_radiograph

# A fixed name, because `datasets` imports this file under a name that contains a hash.
logger = logging.getLogger("mimic_cxr_dataset")


class RadiographBuilder(datasets.GeneratorBasedBuilder):
    """Reads the image files of a table's rows, each of which has `dicom_id` and `path`.

    Its config has `image_size`, None for files as they are, and `on_bad_image`.
    """

    def split_rows(self, rows: pd.DataFrame) -> list[pd.DataFrame]:
        """Returns the rows in chunks, which the processes (num_proc) or the workers of a stream share out."""
        num_chunks = min(256, -(-len(rows) // 8))
        return [rows.iloc[part] for part in np.array_split(np.arange(len(rows)), num_chunks)]

    def read_rows(
        self, chunks: list[pd.DataFrame], split: str, reading: Reading, *, streaming: bool
    ) -> Iterator[tuple]:
        """Yields each row that has a good image, and the image as `datasets` takes it."""
        for row in (row for chunk in chunks for row in chunk.itertuples()):
            if streaming:  # otherwise `drop_missing` did this
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
            yield row, image

    def _load_image(self, path: str, reading: Reading) -> tuple[dict, tuple[str, ...]]:
        """Returns the image in the form of `datasets` (only a path if it is not shrunk) and its warnings."""
        size = self.config.image_size
        if size is None and is_jpeg(path):
            return {"path": path, "bytes": None}, check_jpeg(path)
        shrunk = shrink_radiograph(path, size, reading)
        # No path: `datasets` drops the bytes if the current folder has a file of that name.
        warnings = shrunk.warnings + self.doubt_view(shrunk.view_position)
        return {"path": None, "bytes": shrunk.content}, warnings

    def doubt_view(self, view_position: str) -> tuple[str, ...]:
        """Returns a warning if a header's view is not that of the table; a builder may know that one."""
        return ()

    def drop_missing(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Returns the rows whose file exists, with its path; lists the others, or raises DatasetError."""
        with ThreadPoolExecutor(max_workers=16) as pool:  # hides the latency of a network disk
            found = pd.Series(list(pool.map(find_image, rows["path"], chunksize=256)), index=rows.index)
        rows = rows.assign(path=found.fillna(rows["path"]))
        lost = rows[found.isna()]
        if len(lost) and self.config.on_bad_image == "error":
            raise DatasetError(
                f"{len(lost):,} of {len(rows):,} images are missing, the first is {lost['path'].iloc[0]}: "
                'download them, or skip them with on_bad_image="skip" (--on_bad_image skip).'
            )
        for row in lost.itertuples():
            self._note_image(BAD_IMAGES, row.split, row, MISSING_FILE, streaming=False)
        return rows[found.notna()]

    def count_damaged(self, split: str, num_damaged: int) -> None:
        """Called with the number of damaged images of a split; a builder may count them."""

    def _note_image(self, kind: str, split: str, row, reason: object, *, streaming: bool) -> None:
        """Adds an image to this process's part of a list, see `_join_notes`; a stream only logs it."""
        if streaming:
            fate = "is a bad image, skipped" if kind == BAD_IMAGES else "is used with a warning"
            logger.warning(f"{row.path} {fate}: {reason}.")
            return
        self._add_notes(kind, split, [(row.Index, row.dicom_id, row.path, reason)])

    def _add_notes(self, kind: str, split: str, rows: list[tuple]) -> None:
        """Adds images (number, dicom_id, path, reason) to this process's part of a list."""
        path = Path(self._output_dir, f"{kind}_{split}.{os.getpid()}.part")
        with path.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)

    def _join_notes(self, kind: str, split: str) -> pd.DataFrame:
        """Writes KIND_SPLIT.csv into the cache folder unless it would be empty; returns its rows.

        Of SAME_PIXELS, for which all images are noted, it has those whose pixels occur again.
        """
        names = ["row", "dicom_id", "path", "reason"]
        parts = sorted(Path(self._output_dir).glob(f"{kind}_{split}.*.part"))
        if not parts:
            return pd.DataFrame(columns=names)
        # An id of a manifest may be the text "NA", which is not a missing value.
        options = {"names": names, "dtype": {"dicom_id": str, "reason": str}, "keep_default_na": False}
        notes = pd.concat([pd.read_csv(part, **options) for part in parts])
        for part in parts:
            part.unlink()
        if kind == SAME_PIXELS:
            notes = notes[notes["reason"].duplicated(keep=False)]
        if notes.empty:
            return notes
        # Written without a temporary name: `datasets` renames the whole folder when it is complete.
        path = listing_of(Path(self._output_dir), kind, split)
        notes.sort_values("row", kind="stable").drop(columns="row").to_csv(path, index=False)
        return notes

    def _final_dir(self) -> str:
        """Returns what the folder is named when it is complete."""
        return str(self._output_dir).removesuffix(".incomplete")

    def _list_images(self, split: str) -> None:
        """Lists and counts the images of a finished split that were left out or used with a warning."""
        folder = Path(self._final_dir())
        bad = self._join_notes(BAD_IMAGES, split)
        self._join_notes(SAME_PIXELS, split)
        if len(bad):
            num_damaged = int((bad["reason"] != MISSING_FILE).sum())
            self.count_damaged(split, num_damaged)
            listing = listing_of(folder, BAD_IMAGES, split)
            logger.warning(
                f"{split}: bad images skipped: {len(bad):,} ({num_damaged:,} damaged), see {listing}"
            )
        if len(doubtful := self._join_notes(DOUBTFUL_IMAGES, split)):
            listing = listing_of(folder, DOUBTFUL_IMAGES, split)
            logger.warning(describe_doubtful(doubtful, listing, split))

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
            raise NoGoodImage(f"{self.config.data_dir}: every {split} image is missing or damaged.")

    def _prepare_split_single(self, *args, **kwargs):
        try:
            yield from super()._prepare_split_single(*args, **kwargs)
        except DatasetGenerationError as error:
            # `datasets` hides every error behind "An error occurred while generating the dataset".
            if isinstance(error.__cause__, DatasetError):
                raise error.__cause__ from None
            raise
