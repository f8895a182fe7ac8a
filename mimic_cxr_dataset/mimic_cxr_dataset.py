"""MIMIC-CXR-JPG as a `datasets` loading script: chest X-rays and their labels, shrunk once into the cache.

ROOT is the PhysioNet folder as downloaded: `files/` and the metadata, split and label tables; or a folder
with `manifest.csv`, which lists the images and labels of any other collection.

    load_dataset("mimic_cxr_dataset", "finding", data_dir=ROOT, trust_remote_code=True)
    load_dataset("mimic_cxr_dataset", "pleural_effusion", data_dir=ROOT, trust_remote_code=True,
                 labeler="chexpert", view="lateral", uncertain="exclude", image_size=256, num_proc=8)
    load_dataset("mimic_cxr_dataset", "findings", data_dir=ROOT, trust_remote_code=True)

`datasets` 4 and later do not run loading scripts, but the class itself works with them:

    builder = MimicCxr(config_name="finding", data_dir=ROOT, image_size=256)
    builder.download_and_prepare(num_proc=8)
    builder.as_dataset(split="train")

README.md beside this file gives the label rules, the options and the published counts.
"""

# One import per line: the loader of `datasets` 3 reads "import a, b" as one package named "a, b". It copies
# only files that are imported here, so this file imports from every file of the folder, used or not.
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import datasets
import pandas as pd

from .builder import RadiographBuilder
from .choices import DEFAULTS
from .choices import MANIFEST_FILE
from .choices import MASKED
from .choices import MULTI_LABEL
from .choices import SMOOTH
from .choices import SMOOTH_TARGETS
from .choices import TASKS
from .collection import read_collection
from .csv_files import read_bytes
from .dicom import read_dicom
from .errors import DatasetError
from .gray_levels import equalize
from .image_lists import read_listing
from .jpeg_end import check_end
from .label_rule import LabelRule
from .label_rule import check_options
from .labels import DAMAGED_FILE
from .labels import MISSING_FILE
from .labels import REASONS
from .labels import format_exclusions
from .labels import index_images
from .labels import labels_of_collection
from .manifest import has_manifest
from .patients import read_patients
from .radiographs import Reading
from .radiographs import check_jpeg
from .radiographs import find_image
from .radiographs import is_jpeg
from .radiographs import shrink_radiograph
from .tables import SPLITS
from .tables import find_csv
from .tables import resolve_root

# A fixed name, because `datasets` imports this file under a name that contains a hash.
logger = logging.getLogger("mimic_cxr_dataset")


@dataclass
class MimicCxrConfig(datasets.BuilderConfig):
    """The config's name is the task; README.md explains the options."""

    labeler: str = DEFAULTS["labeler"]
    view: str = DEFAULTS["view"]
    uncertain: str = DEFAULTS["uncertain"]
    blank: str = DEFAULTS["blank"]
    findings: tuple[str, ...] | None = None
    image_size: int | None = None
    on_bad_image: str = DEFAULTS["on_bad_image"]

    @property
    def rule(self) -> LabelRule:
        """Returns the label rule; not made once, because `datasets` sets options after the config is made.

        Raises DatasetError, also for the task "finding" without a finding: each image would be normal.
        """
        findings = None if self.findings is None else tuple(self.findings)
        options = {name: getattr(self, name) for name in ("labeler", "view", "uncertain", "blank")}
        collection = labels_of_collection(self.data_dir) if self.data_dir else None
        rule = LabelRule(task=self.name, findings=findings, collection=collection, **options)
        if self.name == "finding" and not rule.all_findings:
            raise DatasetError(
                f"task={self.name!r}: found no column of a finding in manifest.csv, which has "
                f"{', '.join(rule.labels) or 'no labels'}; add one, or choose another task"
            )
        return rule

    @property
    def has_manifest(self) -> bool:
        return self.data_dir is not None and has_manifest(resolve_root(self.data_dir))

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Returns the cache folder's name, which depends on the options, the tables and this package's code.

        The default of `datasets` depends only on the text of data_dir and the options: it would not notice a
        changed table, nor changed code where the class is used directly.
        """
        size = self.image_size
        check_options(on_bad_image=self.on_bad_image)
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise DatasetError(f"image_size={size!r}: expected a whole number of pixels from 1, or None.")
        parts = [repr((self.rule, self.on_bad_image, size, custom_features)).encode("utf-8")]
        parts += [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
        if self.data_dir is not None:
            root = resolve_root(self.data_dir)
            tables = [root / MANIFEST_FILE]
            if not self.has_manifest:
                tables = [find_csv(root, table) for table in ("metadata", "split", self.labeler)]
            parts += [str(root).encode("utf-8"), *map(read_bytes, tables)]
            parts.append(repr(read_collection(root).equalized).encode("utf-8"))
        digests = b"".join(hashlib.blake2b(part).digest() for part in parts)
        return f"{self.name}-{hashlib.blake2b(digests, digest_size=8).hexdigest()}"


def to_numbers(codes: pd.DataFrame) -> list[dict[str, float | None]]:
    """Returns each image's labels by finding: None where masked, the mean of SMOOTH_TARGETS for SMOOTH."""
    numbers = codes.astype("object").replace({MASKED: None, SMOOTH: sum(SMOOTH_TARGETS) / 2})
    return numbers.to_dict("records")


class MimicCxr(RadiographBuilder):
    """Chest X-rays of MIMIC-CXR-JPG with the labels of their study: one that is 0 or 1, or several."""

    BUILDER_CONFIG_CLASS = MimicCxrConfig
    BUILDER_CONFIGS = [MimicCxrConfig(name=task, version=datasets.Version("1.0.0")) for task in TASKS]
    DEFAULT_CONFIG_NAME = DEFAULTS["task"]

    def _info(self) -> datasets.DatasetInfo:
        names = list(self.config.rule.label_names)
        if self.config.name == MULTI_LABEL:
            label = {"labels": {name: datasets.Value("float32") for name in names}}
        else:
            label = {"label": datasets.ClassLabel(names=names)}
        features = {
            "image": datasets.Image(mode="L"),
            **label,
            "dicom_id": datasets.Value("string"),
            "subject_id": datasets.Value("string" if self.config.has_manifest else "int64"),
            "study_id": datasets.Value("string" if self.config.has_manifest else "int64"),
            "view_position": datasets.Value("string"),
        }
        info = datasets.DatasetInfo(
            description=str(self.config.rule),
            features=datasets.Features(features),
            homepage="https://physionet.org/content/mimic-cxr-jpg/",
            license="PhysioNet Credentialed Health Data License 1.5.0",
        )
        if self.config.has_manifest:
            collection = read_collection(resolve_root(self.config.data_dir))
            info.homepage, info.license = "", collection.license or ""
            info.citation = collection.citation or ""
        return info

    def _split_generators(self, dl_manager) -> list[datasets.SplitGenerator]:
        config, streaming = self.config, dl_manager.is_streaming
        rows, self._exclusions = index_images(config.data_dir, **vars(config.rule))
        if not streaming:  # a stream starts at once and looks for each file when it reads it
            found = self.drop_missing(rows)
            for split, count in rows["split"].drop(found.index).value_counts().items():
                self._count_left_out(split, MISSING_FILE, count)
            rows = found
        self._describe()
        # A warning, so that it is shown by default: a result means little without knowing what was left out.
        logger.warning(self.info.description)
        if rows.empty:
            left_out = ", ".join(f"{self._exclusions[reason].sum():,} {reason}" for reason in REASONS)
            raise DatasetError(
                f"{config.data_dir}: no image is left ({self.config.rule}); left out: {left_out}."
            )
        generators = []
        for split in SPLITS.values():
            of_split = rows[rows["split"] == split]
            if of_split.empty:  # `datasets` cannot read back a split without rows
                continue
            gen_kwargs = {"chunks": self.split_rows(of_split), "split": split, "streaming": streaming}
            generators.append(datasets.SplitGenerator(name=split, gen_kwargs=gen_kwargs))
        return generators

    def _generate_examples(self, chunks: list[pd.DataFrame], split: str, streaming: bool):
        reading = read_collection(resolve_root(self.config.data_dir)).reading
        columns = ["label", "dicom_id", "subject_id", "study_id", "view_position"]
        if self.config.name == MULTI_LABEL:
            columns[0], names = "labels", [*self.config.rule.label_names]
            chunks = [rows.assign(labels=to_numbers(rows[names])) for rows in chunks]
        for row, image in self.read_rows(chunks, split, reading, streaming=streaming):
            yield row.dicom_id, {"image": image, **{column: getattr(row, column) for column in columns}}

    def _describe(self) -> None:
        """Writes the exclusion table into the dataset's info, which is stored in the cache."""
        name = "MIMIC-CXR-JPG"
        if self.config.has_manifest:
            root = resolve_root(self.config.data_dir)
            name = read_collection(root).name or root.name
        self.info.description = f"{name}, {self.config.rule}\n{format_exclusions(self._exclusions)}"

    def count_damaged(self, split: str, num_damaged: int) -> None:
        self._count_left_out(split, DAMAGED_FILE, num_damaged)
        self._describe()

    def _count_left_out(self, split: str, reason: str, count: int) -> None:
        self._exclusions.loc[split, reason] += count
        self._exclusions.loc[split, "kept"] -= count
