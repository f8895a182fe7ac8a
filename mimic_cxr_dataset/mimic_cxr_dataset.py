"""MIMIC-CXR-JPG as a `datasets` loading script: chest X-rays with a binary label, shrunk once into the cache.

ROOT is the PhysioNet folder as downloaded: `files/` beside the metadata, split and label CSVs, packed or not.

    load_dataset("mimic_cxr_dataset", "finding", data_dir=ROOT, trust_remote_code=True)
    load_dataset("mimic_cxr_dataset", "pleural_effusion", data_dir=ROOT, trust_remote_code=True,
                 labeler="chexpert", view="lateral", uncertain="exclude", image_size=256, num_proc=8)

`datasets` 4 and later run no loading scripts, but the class itself works there too:

    builder = MimicCxr(config_name="finding", data_dir=ROOT, image_size=256)
    builder.download_and_prepare(num_proc=8)
    builder.as_dataset(split="train")

README.md beside this file gives the label rules, the options and the published counts.
"""

# One import per line: the loader of `datasets` 3 reads "import a, b" as one package of that name.
import csv
import gzip
import hashlib
import io
import logging
import os
import re
import reprlib
import shutil
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
from datasets.exceptions import DatasetGenerationError
from PIL import ExifTags
from PIL import Image
from PIL import ImageOps
from PIL import UnidentifiedImageError

# A fixed name: `datasets` imports this file under a name with a hash in it.
logger = logging.getLogger("mimic_cxr_dataset")

# The 13 findings of the paper (section "Data"): every label column but No Finding.
FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
TASKS = {"finding": ("No Finding", "Finding"), "pleural_effusion": ("No Finding", "Pleural Effusion")}
VIEWS = {"frontal": ("AP", "PA"), "lateral": ("LATERAL", "LL"), "all": None}  # None: any code, or none
CHOICES = {
    "task": tuple(TASKS),
    "labeler": ("negbio", "chexpert"),
    "view": tuple(VIEWS),
    "uncertain": ("negative", "positive", "exclude"),
    "on_bad_image": ("error", "skip"),
}
PATIENT_IDS = ("subject_id", "study_id")
MAX_UNPACKED_BYTES = 2**28  # of a table, four times the largest one: a .csv.gz of 1 MB may unpack to 1 GB
SPLITS = {"train": "train", "validate": "validation", "test": "test"}  # published name -> ours

# Why an image is left out, in the order of asking: an image counts under the first reason that holds.
TABLE_REASONS = ("view", "no label row", "uncertain", "other labels")
REASONS = (*TABLE_REASONS, "missing file", "corrupt file")
# A study's outcome is its label (0 or 1) or one of these.
NO_LABEL_ROW, UNCERTAIN, OTHER_LABELS = -1, -2, -3

# The JPEG decoder may halve a side only while it stays this much above the final one: 2544 pixels are decoded
# at an eighth for 256. On 120 radiographs of NIH ChestX-ray14 that agrees with full decoding and Lanczos to
# 46 to 49 dB in the mean, before compression; twice as much gains 6 dB, at 0.8 of the speed.
DRAFT_OVERSAMPLING = 1.2
# The start of a segment of a JPEG. Among the pixels, 0xff stands before a stuffed zero or a restart marker.
JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
END_OF_IMAGE = b"\xff\xd9"
# What Pillow raises for a file that is no JPEG, is cut off, or claims an absurd size.
IMAGE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


class BadImageError(DatasetGenerationError, ValueError):
    """An image file cannot be used; the message names it."""


# Tables: which image has which label ------------------------------------------------------------------------


def resolve_root(data_dir: str | Path | None) -> Path:
    """The absolute path of data_dir, which must be a folder."""
    expected = (
        "expected the MIMIC-CXR-JPG folder, which holds files/ and the mimic-cxr-2.0.0-*.csv[.gz] tables"
    )
    if not data_dir:
        raise ValueError(f"No data_dir given: {expected}.")
    # Not Path.resolve(): image paths go into the cache, and a link outlives the disk that it points to.
    # Nor Path.expanduser(): where ~name is nobody's home, it raises a RuntimeError.
    path = os.path.abspath(os.path.expanduser(data_dir))  # noqa: PTH100, PTH111
    if "::" in path:  # `datasets` puts its own class in place of Path here
        raise ValueError(
            f"data_dir {path} has '::' in it, at which `datasets` cuts a path in two: rename the folder, or "
            "name a link to it."
        )
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(
            f"data_dir {root} is {'not a folder' if root.exists() else 'missing'}: {expected}."
        )
    return root


def find_csv(data_dir: str | Path, table: str) -> Path:
    """The path of one published table: "metadata", "split", "negbio" or "chexpert"."""
    root = resolve_root(data_dir)
    # v2.1.0 kept the names of v2.0.0. An unpacked table goes first: a user may have edited it.
    names = [f"mimic-cxr-{v}-{table}{ext}" for v in ("2.0.0", "2.1.0") for ext in (".csv", ".csv.gz")]
    for name in names:
        if (root / name).is_file():
            return root / name
    raise FileNotFoundError(
        f"{root / names[1]} is missing, and so is {names[0]}: data_dir must hold the tables of MIMIC-CXR-JPG "
        "(https://physionet.org/content/mimic-cxr-jpg/). Download it, or correct data_dir."
    )


def read_csv(path: Path, columns: list[str], *, optional: tuple[str, ...] = ()) -> pd.DataFrame:
    """The named columns as text, blank cells as "", by line of the file; `optional` ones may be absent.

    By Arrow: pandas fills a short line with blanks, which would be read as labels, and cuts a long one.
    """
    ragged = []

    def note_ragged(row: pa_csv.InvalidRow) -> str:
        ragged.append(row)
        return "skip"  # else the error would quote the line, which has ids

    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):  # by content: browsers unpack a .csv.gz and keep its name
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as unpacked:
                content = unpacked.read(MAX_UNPACKED_BYTES + 1)
            if len(content) > MAX_UNPACKED_BYTES:
                raise ValueError(f"it unpacks to more than {MAX_UNPACKED_BYTES:,} bytes")
        lines = [number for number, line in enumerate(content.splitlines(), start=1) if line]
        if len(lines) < 2:
            raise ValueError("it has no rows")
        content.decode("utf-8")  # Arrow checks the columns that are read only, and prints tracebacks
        text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="")
        header = next(filter(None, csv.reader(text)))
        columns = [*columns, *(column for column in optional if column in header)]
        wrong = [column for column in columns if header.count(column) != 1]
        if not wrong:
            table = pa_csv.read_csv(
                pa.BufferReader(content),
                read_options=pa_csv.ReadOptions(use_threads=False),  # else ragged lines have no number
                parse_options=pa_csv.ParseOptions(invalid_row_handler=note_ragged, newlines_in_values=True),
                convert_options=pa_csv.ConvertOptions(
                    include_columns=columns, column_types=dict.fromkeys(columns, pa.string())
                ),
            )
            if ragged:
                row = ragged[0]
                found = f"line {lines[row.number - 1]} has {row.actual_columns} fields"
                raise ValueError(f"{found}, the first line {row.expected_columns}")
            if len(table) + 1 != len(lines):
                raise ValueError("a value goes over several lines: a quote is not closed")
    except (OSError, EOFError, zlib.error, csv.Error, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is unreadable or cut off ({reason}): download it again.") from error
    if wrong:
        count = header.count(wrong[0])
        # A first line that is no header has ids.
        names = [name for name in header[:20] if not any(map(str.isdigit, name))]
        found = ", ".join(map(reprlib.repr, names)) or "no names of columns"
        raise ValueError(
            f"{path} has {f'{count} columns' if count else 'no column'} {wrong[0]!r}; found {found}."
        )
    return table.to_pandas().set_axis(lines[1:])


def reject(bad, path: Path, values: pd.Series, expected: str) -> None:
    """Raises a ValueError that names the first line where `bad` holds, and its value unless that is an id."""
    bad = np.asarray(bad, dtype=bool)
    if bad.any():
        row = int(np.argmax(bad))
        is_id = values.name in ("dicom_id", *PATIENT_IDS)
        found = f"wrong {values.name}" if is_id else f"{values.name} is {reprlib.repr(str(values.iloc[row]))}"
        raise ValueError(
            f"{path}, line {values.index[row]}: {found}; expected {expected} ({int(bad.sum()):,} such lines)."
        )


def differs_from_first(table: pd.DataFrame, column: str, *, within: str) -> np.ndarray:
    """Whether `column` is another than in the first row of the same `within`."""
    first = table.drop_duplicates(within).set_index(within)[column]
    return (table[column] != table[within].map(first)).to_numpy(dtype=bool)


def parse_numbers(values: pd.Series) -> np.ndarray:
    """Text as float64, NaN where it is blank or no number."""
    return pd.to_numeric(values, errors="coerce").to_numpy(dtype="float64", na_value=np.nan)


def parse_ids(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The table with subject_id and study_id, where it has them, as int64."""
    for column in table.columns.intersection(PATIENT_IDS):
        numbers = parse_numbers(table[column])
        is_id = (numbers > 0) & (numbers < 2**53) & (numbers == np.floor(numbers))
        reject(~is_id, path, table[column], "a whole number")
        table[column] = numbers.astype("int64")
    return table


def read_labels(
    data_dir: str | Path, labeler: str, columns: list[str], *, images: pd.DataFrame
) -> pd.DataFrame:
    """One row a study: subject_id, study_id and `columns` as 1, 0, -1 or NaN; `images` say whose it is."""
    path = find_csv(data_dir, labeler)
    table = parse_ids(path, read_csv(path, [*PATIENT_IDS, *columns]))
    reject(table["study_id"].duplicated(), path, table["study_id"], "one row a study")
    patient = table["study_id"].map(images.drop_duplicates("study_id").set_index("study_id")["subject_id"])
    is_other = patient.notna() & (patient != table["subject_id"])  # NaN where no image is of the study
    reject(is_other, path, table["subject_id"], "the patient of the study's images")
    for column in columns:
        codes, texts = pd.factorize(table[column])  # of a handful of texts: parsing each once saves seconds
        numbers = parse_numbers(pd.Series(texts))
        bad = ~np.isin(numbers, (1, 0, -1)) & (pd.Series(texts).str.strip() != "").to_numpy()
        reject(bad[codes], path, table[column], "1.0, 0.0, -1.0 or blank")
        table[column] = numbers[codes].astype("float32")
    return table


def decide_outcomes(labels: pd.DataFrame, *, task: str, uncertain: str) -> np.ndarray:
    """The outcome of each study: label 0 or 1, UNCERTAIN or OTHER_LABELS."""
    present, unsure = labels == 1, labels == -1
    if uncertain == "positive":
        present |= unsure
    elif uncertain == "negative":
        unsure[:] = False
    if task == "finding":
        return np.select([present.any(axis=1), unsure.any(axis=1)], [1, UNCERTAIN], default=0)
    rules = [present["Pleural Effusion"], unsure["Pleural Effusion"], labels["No Finding"] == 1]
    return np.select(rules, [1, UNCERTAIN, 0], default=OTHER_LABELS)


def read_images(data_dir: str | Path) -> pd.DataFrame:
    """Every image in the order of the metadata: dicom_id, subject_id, study_id, view_position, split."""
    path, split_path = find_csv(data_dir, "metadata"), find_csv(data_dir, "split")
    images = parse_ids(path, read_csv(path, ["dicom_id", "subject_id", "study_id", "ViewPosition"]))
    # Paths are built from ids, so no id may lead out of the folder.
    is_hex = images["dicom_id"].str.fullmatch("[0-9a-f-]{1,64}").astype(bool)
    reject(~is_hex, path, images["dicom_id"], "at most 64 hexadecimal digits and dashes")
    reject(images["dicom_id"].duplicated(), path, images["dicom_id"], "one row an image")
    is_other = differs_from_first(images, "subject_id", within="study_id")
    reject(is_other, path, images["subject_id"], "one patient a study")

    table = parse_ids(split_path, read_csv(split_path, ["dicom_id", "split"], optional=PATIENT_IDS))
    reject(~table["split"].isin(list(SPLITS)), split_path, table["split"], " or ".join(SPLITS))
    reject(table["dicom_id"].duplicated(), split_path, table["dicom_id"], "one row an image")
    position = pd.Index(table["dicom_id"]).get_indexer(images["dicom_id"])
    lost = images.index[position == -1]
    if len(lost):
        raise ValueError(
            f"{split_path} lacks {len(lost):,} images of {path.name}, first that of line {lost[0]}: "
            "download both tables again."
        )
    if len(table) > len(images):
        # No error, since a user may keep only some lines of the metadata; but it may have been cut off, too.
        logger.warning(f"{path} lacks {len(table) - len(images):,} images of {split_path.name}: left aside.")
    table = table.iloc[position]  # one row an image, in their order
    for column in table.columns.intersection(PATIENT_IDS):
        is_other = table[column].to_numpy() != images[column].to_numpy()
        reject(is_other, split_path, table[column], f"that of the image in {path.name}")
    images["split"] = table["split"].map(SPLITS).to_numpy()
    is_other = differs_from_first(images, "split", within="subject_id")
    reject(is_other, split_path, table["split"], "each patient in one split")
    images["view_position"] = images.pop("ViewPosition").str.strip()
    return images.reset_index(drop=True)


def index_images(
    data_dir: str | Path,
    *,
    task: str = "finding",
    labeler: str = "negbio",
    view: str = "frontal",
    uncertain: str = "negative",
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Labels every image from the tables alone; no image file is looked at.

    Returns the kept images in the order of the metadata table (dicom_id, subject_id, study_id, view_position,
    split, label, path) and the exclusion table: a row per split, columns "images", REASONS and "kept".
    """
    check_options(task=task, labeler=labeler, view=view, uncertain=uncertain)
    images = read_images(data_dir)
    columns = list(FINDINGS) if task == "finding" else ["Pleural Effusion", "No Finding"]
    labels = read_labels(data_dir, labeler, columns, images=images)
    labels["outcome"] = decide_outcomes(labels[columns], task=task, uncertain=uncertain)
    images = images.merge(labels[[*PATIENT_IDS, "outcome"]], how="left", on=list(PATIENT_IDS))
    outcome = images.pop("outcome").fillna(NO_LABEL_ROW).to_numpy(dtype="int64")
    in_view = np.full(len(images), True)
    if VIEWS[view] is not None:
        in_view = images["view_position"].isin(VIEWS[view]).to_numpy(dtype=bool)

    rules = [~in_view, outcome == NO_LABEL_ROW, outcome == UNCERTAIN, outcome == OTHER_LABELS]
    fate = np.select(rules, TABLE_REASONS, default="kept")
    exclusions = pd.crosstab(images["split"].to_numpy(), fate)
    exclusions = exclusions.reindex(index=list(SPLITS.values()), columns=[*REASONS, "kept"], fill_value=0)
    exclusions.insert(0, "images", exclusions.sum(axis=1))
    exclusions = exclusions.rename_axis(index=None, columns=None)

    kept = images[fate == "kept"].assign(label=outcome[fate == "kept"])
    subject, study = kept["subject_id"].astype(str), kept["study_id"].astype(str)
    folder = f"{resolve_root(data_dir)}/files/p" + subject.str[:2] + "/p" + subject + "/s" + study + "/"
    return kept.assign(path=folder + kept["dicom_id"] + ".jpg"), exclusions


def format_exclusions(exclusions: pd.DataFrame) -> str:
    """The exclusion table as aligned text, with a line of totals."""
    table = pd.concat([exclusions, exclusions.sum().rename("total").to_frame().T])
    return table.map("{:,}".format).to_string(col_space=8)


# Images -----------------------------------------------------------------------------------------------------


def find_missing(paths: pd.Series) -> np.ndarray:
    """Whether each file is absent. Threads: a network disk answers many questions at once, each slowly."""
    with ThreadPoolExecutor(max_workers=16) as pool:
        exists = pool.map(os.path.isfile, paths, chunksize=256)
        return ~np.fromiter(exists, dtype=bool, count=len(paths))


def open_jpeg(file: BinaryIO) -> Image.Image:
    try:
        return Image.open(file, formats=["JPEG"])
    except UnidentifiedImageError as error:
        raise OSError("no JPEG image of 8 bits a channel") from error


def check_jpeg(path: str) -> None:
    """Raises one of IMAGE_ERRORS if the file does not begin or end as a JPEG does."""
    with Path(path).open("rb") as file:
        with open_jpeg(file) as image:
            try:  # as datasets does where it decodes the file
                if ExifTags.Base.Orientation in image.getexif():
                    ImageOps.exif_transpose(image)
            except Exception as error:  # of any kind: Pillow takes the EXIF of a file as sound
                raise OSError(f"it cannot be turned as its EXIF says: {error}") from error
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        if not file.read().rstrip(b"\x00\xff\r\n ").endswith(END_OF_IMAGE):  # some writers pad the end
            raise OSError("no end-of-image marker: the file is cut off")


def read_orientation(image: Image.Image) -> int:
    """EXIF's Orientation, 1 (upright) where there is none or it is garbage."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, struct.error):
        return 1


def leads_to_end(content: bytes) -> bool:
    """Whether a JPEG leads from segment to segment to its end marker.

    Pillow does without, and so with a damaged segment that claims to go on behind it; torchvision does not.
    """
    position = 2
    while marker := JPEG_MARKER.search(content, position):
        if marker[0] == END_OF_IMAGE:
            return True
        length = int.from_bytes(content[marker.end() : marker.end() + 2], "big")
        position = marker.end() + length
    return False


def shrink_jpeg(path: str, image_size: int) -> bytes:
    """The file as a gray JPEG with shortest side `image_size`; one that is not larger keeps its size."""
    content = Path(path).read_bytes()
    with open_jpeg(io.BytesIO(content)) as image:
        scale = image_size / min(image.size)
        size = tuple(max(1, round(side * scale)) for side in image.size)
        drafted = None
        if scale < 1:
            # The decoder leaves out the frequencies that 1/2, 1/4 or 1/8 of the size does not need.
            drafted = image.draft("L", tuple(round(side * scale * DRAFT_OVERSAMPLING) for side in image.size))
        image.decodermaxblock = len(content)  # all at once; pieces of 64 KiB take 6 % longer
        image.load()
        orientation = read_orientation(image)
        if scale >= 1 and image.mode == "L" and orientation == 1 and leads_to_end(content):
            return content
        image = image.convert("L")
    if scale < 1:
        # 3,057 pixels at an eighth are 383, of which the last is an eighth full: the box ends where they do.
        box = None if drafted is None else drafted[1]
        image = image.resize(size, Image.Resampling.LANCZOS, box=box)
    # As datasets does where it reads the original. Of the EXIF, only this is kept: other tags may be garbage.
    image.info = {}
    image.getexif()[ExifTags.Base.Orientation] = orientation
    image = ImageOps.exif_transpose(image)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


# Builder ----------------------------------------------------------------------------------------------------


def check_options(**options) -> None:
    """Raises a ValueError for a value that is not among the CHOICES of its option."""
    for name, value in options.items():
        if value not in CHOICES[name]:
            raise ValueError(
                f"{name}={value!r} is unknown: expected {' or '.join(map(repr, CHOICES[name]))}."
            )


@dataclass
class MimicCxrConfig(datasets.BuilderConfig):
    """The config's name is the task; README.md explains the options."""

    labeler: str = "negbio"
    view: str = "frontal"
    uncertain: str = "negative"
    image_size: int | None = None
    on_bad_image: str = "error"

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Names the cache folder: equal options on equal tables share one, however they were given.

        `datasets` by itself looks at the text of data_dir only: a table that changed under the same path
        would go unnoticed, and so would a change of this file where the class is used directly.
        """
        size = self.image_size
        options = {name: getattr(self, name) for name in CHOICES if name != "task"}
        check_options(**options)  # not in __post_init__: `datasets` sets options after the config is made
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise ValueError(f"image_size={size!r} is not a size: expected whole pixels from 1, or None.")
        parts = [
            repr((self.name, options, size, custom_features)).encode("utf-8"),
            Path(__file__).read_bytes(),
        ]
        if self.data_dir is not None:
            parts.append(str(resolve_root(self.data_dir)).encode("utf-8"))
            parts += [find_csv(self.data_dir, t).read_bytes() for t in ("metadata", "split", self.labeler)]
        digests = b"".join(hashlib.blake2b(part).digest() for part in parts)
        return f"{self.name}-{hashlib.blake2b(digests, digest_size=8).hexdigest()}"


class MimicCxr(datasets.GeneratorBasedBuilder):
    """Chest X-rays of MIMIC-CXR-JPG with a binary label by study."""

    BUILDER_CONFIG_CLASS = MimicCxrConfig
    BUILDER_CONFIGS = [MimicCxrConfig(name=task, version=datasets.Version("1.0.0")) for task in TASKS]
    DEFAULT_CONFIG_NAME = "finding"

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
        if not streaming:  # a stream starts at once, and looks at each file in its turn
            rows = self._drop_missing(rows)
        self._describe()
        # A warning, so that it is seen by default: what was left out decides what a result means.
        logger.warning(self.info.description)
        if rows.empty:
            left_out = ", ".join(f"{self._exclusions[reason].sum():,} {reason}" for reason in REASONS)
            raise ValueError(f"{config.data_dir}: no image is left ({self._title()}); left out: {left_out}.")
        generators = []
        for split in SPLITS.values():
            of_split = rows[rows["split"] == split]
            if of_split.empty:  # `datasets` cannot read back a split without rows
                continue
            # The list is what num_proc and the workers of a stream share out: runs of rows, in order.
            num_chunks = min(256, -(-len(of_split) // 8))
            chunks = [of_split.iloc[part] for part in np.array_split(np.arange(len(of_split)), num_chunks)]
            gen_kwargs = {"chunks": chunks, "split": split, "streaming": streaming}
            generators.append(datasets.SplitGenerator(name=split, gen_kwargs=gen_kwargs))
        return generators

    def _generate_examples(self, chunks: list[pd.DataFrame], split: str, streaming: bool):
        for row in (row for chunk in chunks for row in chunk.itertuples()):
            try:
                image = self._load_image(row.path)
            except IMAGE_ERRORS as error:
                reason = f"{type(error).__name__}: {error}"
                if self.config.on_bad_image == "error":
                    advice = 'replace it, or leave such images out: on_bad_image="skip" (--on_bad_image skip)'
                    raise BadImageError(f"{row.path} is a bad image ({reason}): {advice}.") from error
                if streaming:
                    logger.warning(f"{row.path} is a bad image ({reason}): left out.")
                else:
                    self._note_bad_images(split, [(row.Index, row.dicom_id, row.path, reason)])
                continue
            columns = ("label", "dicom_id", "subject_id", "study_id", "view_position")
            yield row.dicom_id, {"image": image, **{column: getattr(row, column) for column in columns}}

    def _load_image(self, path: str) -> dict:
        if self.config.image_size is None:
            check_jpeg(path)
            return {"path": path, "bytes": None}
        # No path: `datasets` drops the bytes where the current folder has a file of that name.
        return {"path": None, "bytes": shrink_jpeg(path, self.config.image_size)}

    def _title(self) -> str:
        config = self.config
        return f"{config.name}, labels by {config.labeler}, view {config.view}, uncertain {config.uncertain}"

    def _describe(self) -> None:
        """Puts the exclusion table into the info, which the cache keeps."""
        self.info.description = f"MIMIC-CXR-JPG, {self._title()}\n{format_exclusions(self._exclusions)}"

    def _drop_missing(self, rows: pd.DataFrame) -> pd.DataFrame:
        missing = find_missing(rows["path"])
        lost = rows[missing]
        if len(lost) and self.config.on_bad_image == "error":
            raise FileNotFoundError(
                f"{len(lost):,} of {len(rows):,} images are missing, first {lost['path'].iloc[0]}: "
                'download them, or leave them out with on_bad_image="skip" (--on_bad_image skip).'
            )
        for split, of_split in lost.groupby("split"):
            notes = [(row.Index, row.dicom_id, row.path, "missing file") for row in of_split.itertuples()]
            self._note_bad_images(split, notes)
            self._count_left_out(split, "missing file", len(notes))
        return rows[~missing]

    def _count_left_out(self, split: str, reason: str, count: int) -> None:
        self._exclusions.loc[split, reason] += count
        self._exclusions.loc[split, "kept"] -= count

    def _note_bad_images(self, split: str, notes: list[tuple]) -> None:
        """Each process adds to a file of its own; `_list_bad_images` joins them."""
        path = Path(self._output_dir, f"bad_images_{split}.{os.getpid()}.part")
        with path.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(notes)

    def _list_bad_images(self, split: str) -> None:
        """Writes bad_images_SPLIT.csv beside the split, if there is anything to list."""
        parts = sorted(Path(self._output_dir).glob(f"bad_images_{split}.*.part"))
        if not parts:
            return
        names = ["row", "dicom_id", "path", "reason"]
        notes = pd.concat([pd.read_csv(part, names=names, dtype={"dicom_id": str}) for part in parts])
        # Not renamed into place by itself: the whole folder is when it is done.
        path = Path(self._output_dir, f"bad_images_{split}.csv")
        notes.sort_values("row").drop(columns="row").to_csv(path, index=False)
        for part in parts:
            part.unlink()
        num_corrupt = int((notes["reason"] != "missing file").sum())
        self._count_left_out(split, "corrupt file", num_corrupt)
        self._describe()
        final_path = Path(str(path.parent).removesuffix(".incomplete"), path.name)
        logger.warning(
            f"{split}: bad images left out: {len(notes):,} ({num_corrupt:,} corrupt), see {final_path}"
        )

    # What follows wraps methods of `datasets` (tried with 3.6 and 5.2) where there is no other way.

    def _download_and_prepare(self, *args, **kwargs):
        output_dir = Path(self._output_dir)
        if output_dir.suffix == ".incomplete":  # a killed run left files in it that are not ours
            shutil.rmtree(output_dir)
            output_dir.mkdir()
        # A forced rebuild would be compared with the old counts, and fail where images were repaired.
        self.info.splits = None
        super()._download_and_prepare(*args, **kwargs)

    def _prepare_split(self, split_generator, *args, **kwargs):
        try:
            super()._prepare_split(split_generator, *args, **kwargs)
        except BadImageError as error:
            raise error from None  # without the traceback of a worker process
        split = split_generator.name
        self._list_bad_images(split)
        if split_generator.split_info.num_examples == 0:
            raise BadImageError(f"{self.config.data_dir}: every image of the {split} split is corrupt.")

    def _prepare_split_single(self, *args, **kwargs):
        try:
            yield from super()._prepare_split_single(*args, **kwargs)
        except DatasetGenerationError as error:
            # `datasets` hides every error behind "An error occurred while generating the dataset".
            if isinstance(error.__cause__, BadImageError):
                raise error.__cause__ from None
            raise
