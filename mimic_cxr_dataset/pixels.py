"""The pixels of a collection, shrunk once into the cache of `datasets`, whatever their labels are."""

import hashlib
from dataclasses import dataclass

import datasets
import pandas as pd

from .builder import RadiographBuilder
from .choices import DEFAULTS
from .choices import VIEWS
from .errors import NoGoodImage
from .image_lists import SAME_PIXELS
from .radiographs import PIXELS_VERSION
from .radiographs import Reading


@dataclass
class PixelsConfig(datasets.BuilderConfig):
    """The config's name is the group: frontal, lateral or other; `files` has its `dicom_id`s and `path`s."""

    files: pd.DataFrame | None = None
    image_size: int = 0  # pixels of the shortest side
    reading: Reading | None = None
    on_bad_image: str = DEFAULTS["on_bad_image"]

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Names the cache folder after all that decides on pixels: no table but the list of files."""
        decides = (PIXELS_VERSION, self.image_size, self.reading)
        digest = hashlib.blake2b(repr(decides).encode(), digest_size=8)
        for column in ("dicom_id", "path"):
            digest.update("\n".join(self.files[column]).encode())
        return f"{self.name}-{self.image_size}-{digest.hexdigest()}"


class Pixels(RadiographBuilder):
    """One split, named after the group: an image (a gray JPEG) and its `dicom_id` in each row."""

    BUILDER_CONFIG_CLASS = PixelsConfig
    VERSION = datasets.Version("1.0.0")

    def _info(self) -> datasets.DatasetInfo:
        features = {"image": datasets.Image(mode="L"), "dicom_id": datasets.Value("string")}
        return datasets.DatasetInfo(features=datasets.Features(features))

    def _final_dir(self) -> str:
        return self.cache_dir  # although each process that shrinks images begins in a folder of its own

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        # Without `files`, which would be sent to each process with the builder.
        files, self.config.files = self.config.files, None
        rows = self.drop_missing(files.assign(split=self.config.name))
        if rows.empty:
            raise NoGoodImage(f"{self.config.data_dir}: every {self.config.name} image is missing.")
        gen_kwargs = {"chunks": self.split_rows(rows)}
        return [datasets.SplitGenerator(name=self.config.name, gen_kwargs=gen_kwargs)]

    def _generate_examples(self, chunks: list[pd.DataFrame]):
        seen = []
        for row, image in self.read_rows(chunks, self.config.name, self.config.reading, streaming=False):
            digest = hashlib.sha256(image["bytes"]).hexdigest()[:16]
            seen.append((row.Index, row.dicom_id, row.path, digest))
            yield row.dicom_id, {"image": image, "dicom_id": row.dicom_id}
        self._add_notes(SAME_PIXELS, self.config.name, seen)

    def doubt_view(self, view_position: str) -> tuple[str, ...]:
        opposite = {"frontal": "lateral", "lateral": "frontal"}.get(self.config.name)
        is_other = opposite is not None and view_position in VIEWS[opposite]
        return (f"the table says {self.config.name}, the header says {view_position}",) * is_other
