"""Makes the images for a measurement, drawn or repeated until there are enough, and runs the scripts."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
from cxr.errors import UserError

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
FULL_SIZE = 2544  # pixels: the shortest side of most originals
CACHED_SIZE, IMAGE_SIZE, BATCH_SIZE = 256, 224, 64
NUM_VALIDATION_IMAGES = 8


def draw_images(folder: Path, *, num_images: int, image_size: int) -> Path:
    """Draws synthetic radiographs into `folder`, in another process, and returns the folder."""
    flags = ["--num_images", str(num_images), "--image_size", str(image_size)]
    run([str(SCRIPTS / "make_sample_data.py"), str(folder), *flags])
    return folder


def repeat_images(source: Path, target: Path, *, num_train_images: int) -> Path:
    """Copies `num_train_images` frontal training images of `source` and a few validation images to `target`.

    If `source` has fewer, its images are repeated as new patients. Returns `target`.
    """
    tables = {
        name: pd.read_csv(next(source.glob(f"mimic-cxr-2.?.0-{name}.csv*")), dtype=str)
        for name in ("metadata", "split", "negbio")
    }
    metadata = tables["metadata"].merge(tables["split"][["dicom_id", "split"]], on="dicom_id")
    labelled = metadata["study_id"].isin(tables["negbio"]["study_id"])
    usable = metadata[metadata["ViewPosition"].isin(["AP", "PA"]) & labelled]
    validation = usable[usable["split"] == "validate"].head(NUM_VALIDATION_IMAGES)
    training = usable[usable["split"] == "train"].head(num_train_images)
    new_ids = itertools.count()
    parts = {name: [] for name in tables}
    for copy in range(-(-num_train_images // len(training))):
        images = training if copy else pd.concat([training, validation])
        subjects = {old: str(10_000_000 + next(new_ids)) for old in images["subject_id"].unique()}
        studies = {old: str(50_000_000 + next(new_ids)) for old in images["study_id"].unique()}
        for row in images.itertuples():
            folder = f"files/p{row.subject_id[:2]}/p{row.subject_id}/s{row.study_id}"
            subject, study = subjects[row.subject_id], studies[row.study_id]
            new_folder = target / f"files/p{subject[:2]}/p{subject}/s{study}"
            new_folder.mkdir(parents=True, exist_ok=True)
            new_name = f"{copy:08x}{row.dicom_id[8:]}.jpg"
            shutil.copyfile(source / folder / f"{row.dicom_id}.jpg", new_folder / new_name)
        for name, table in tables.items():
            key = "study_id" if name == "negbio" else "dicom_id"
            rows = table[table[key].isin(images[key])].copy()
            if "dicom_id" in rows:
                rows["dicom_id"] = f"{copy:08x}" + rows["dicom_id"].str[8:]
            rows["subject_id"] = rows["subject_id"].map(subjects)
            rows["study_id"] = rows["study_id"].map(studies)
            parts[name].append(rows)
    for name, rows in parts.items():
        pd.concat(rows).to_csv(target / f"mimic-cxr-2.0.0-{name}.csv.gz", index=False)
    return target


def run(command: list[str]) -> None:
    """Runs a script with this Python; shows its output only if it fails."""
    one_gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]  # Trainer would use all GPUs
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": one_gpu}
    command = [sys.executable, *command]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-4000:], sep="\n", file=sys.stderr)
        name = Path(command[0]).name
        raise UserError(f"{name} ended with exit status {done.returncode}; its messages are above")
