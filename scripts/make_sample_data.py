"""Draws synthetic chest radiographs in the layout of MIMIC-CXR-JPG, to run all scripts without access to it.

The images are drawn by code: the attenuation of air, soft tissue, bone and metal is summed and then exposed
like film. They contain no patient data. The labels follow from the findings that were drawn;
`sample-findings.json.gz` has their positions. In the test split, the labels of a radiologist differ from the
labelers' now and then (`mimic-cxr-2.1.0-test-set-labeled.csv`). Age, sex and race of most patients are in
`hosp/`, as in MIMIC-IV. The same arguments always write the same bytes.

    python scripts/make_sample_data.py /tmp/sample --num_images 60 --image_size 64  # takes seconds
    python scripts/make_sample_data.py sample_data                                  # 600 images of 256 pixels
    python scripts/run_classification.py --data_dir sample_data
"""

import gzip
import json
import multiprocessing
import shutil
import signal
import uuid
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pandas as pd
from cxr.choices import LABELERS
from cxr.cli import command_line
from cxr.data.images import num_cores
from cxr.data.sources import VERSION
from cxr.data.sources import VERSION_FILE
from cxr.errors import UserError
from cxr.errors import run_script
from cxr.synthetic.exposure import MAX_DRAWN_SIDE
from cxr.synthetic.exposure import draw_image
from cxr.synthetic.hospital import hospital_tables
from cxr.synthetic.plan import VIEW_MEANINGS
from cxr.synthetic.plan import PlannedImage
from cxr.synthetic.plan import date_and_time
from cxr.synthetic.plan import plan_images
from cxr.synthetic.radiologist import radiologist_table
from tqdm import tqdm

from mimic_cxr_dataset.errors import one_line

MIN_NUM_IMAGES, MIN_IMAGE_SIZE = 12, 32
README = """Synthetic chest radiographs, drawn by code: no image, identifier or label is from a patient.
Written by make_sample_data.py with num_images={num_images}, image_size={image_size}, seed={seed}.
The layout is that of MIMIC-CXR-JPG v2.1.0, and in hosp/ that of MIMIC-IV, for --patients_dir.
sample-findings.json.gz has the position of each finding.
"""


def write_image(planned: PlannedImage, *, root: Path, seed: int) -> tuple[str, list[dict]]:
    image, boxes = draw_image(planned, seed=seed)
    path = root / planned.path
    path.parent.mkdir(parents=True, exist_ok=True)
    full_size = min(image.size) > MAX_DRAWN_SIDE
    image.save(path, quality=95 if full_size else 92)  # 95 gives the size of the published files: 1.5 MB
    return planned.dicom_id, boxes


def write_plain(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def write_gzip(path: Path, text: str) -> None:
    """Writes a gzip file without name and time, so that equal texts give equal bytes."""
    with path.open("wb") as file, gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as compressed:
        compressed.write(text.encode("utf-8"))


def image_table(images: list[PlannedImage], *, seed: int) -> pd.DataFrame:
    """Returns the metadata of each image, and its split."""
    rows = []
    for image in images:
        study = image.study
        procedure = "CHEST (PORTABLE AP)" if image.view == "AP" else "CHEST (PA AND LAT)"
        date, time = date_and_time(study, seed=seed)
        row = {
            "dicom_id": image.dicom_id,
            "subject_id": study.subject_id,
            "study_id": study.study_id,
            "PerformedProcedureStepDescription": procedure,
            "ViewPosition": image.view,
            "Rows": image.height,
            "Columns": image.width,
            "StudyDate": date,
            "StudyTime": time,
            "ProcedureCodeSequence_CodeMeaning": procedure,
            "ViewCodeSequence_CodeMeaning": VIEW_MEANINGS.get(image.view, ""),
            "PatientOrientationCodeSequence_CodeMeaning": "Erect" if image.view else "",
            "split": study.split,
        }
        rows.append(row)
    return pd.DataFrame(rows)


def write_tables(root: Path, images: list[PlannedImage], *, seed: int) -> None:
    """Writes the five tables of MIMIC-CXR-JPG and two of MIMIC-IV, sorted as published."""
    images = sorted(images, key=lambda one: (one.study.subject_id, one.study.study_id, one.dicom_id))
    studies = list({image.study.study_id: image.study for image in images}.values())
    table = image_table(images, seed=seed)
    split = table[["dicom_id", "study_id", "subject_id", "split"]]
    tables = {"metadata": table.drop(columns="split"), "split": split}
    for labeler in LABELERS:
        rows = [
            {"subject_id": study.subject_id, "study_id": study.study_id, **labels}
            for study in studies
            if (labels := getattr(study, labeler))
        ]
        tables[labeler] = pd.DataFrame(rows)
    tables = {f"mimic-cxr-2.0.0-{name}.csv.gz": table for name, table in tables.items()}
    tables["mimic-cxr-2.1.0-test-set-labeled.csv"] = radiologist_table(studies, seed=seed)
    patients, admissions = hospital_tables(studies, seed=seed)
    tables |= {"hosp/patients.csv.gz": patients, "hosp/admissions.csv.gz": admissions}
    (root / "hosp").mkdir()
    for name, table in tables.items():
        write = write_gzip if name.endswith(".gz") else write_plain
        write(root / name, table.to_csv(index=False, lineterminator="\n"))


def ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles Ctrl-C


def write_images(
    root: Path, images: list[PlannedImage], *, seed: int, num_proc: int
) -> dict[str, list[dict]]:
    write = partial(write_image, root=root, seed=seed)
    progress = partial(tqdm, total=len(images), desc="Drawing", unit="image", disable=None)
    if num_proc <= 1:
        return dict(progress(map(write, images)))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_proc, mp_context=context, initializer=ignore_interrupts) as pool:
        try:
            return dict(progress(pool.map(write, images, chunksize=4)))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # otherwise Ctrl-C waits for all images
            raise


def make_sample_data(
    output_dir: str | Path, *, num_images: int = 600, image_size: int = 256, seed: int = 0, num_proc: int = 1
) -> Path:
    """Writes the sample and returns its folder, which appears only when it is complete.

    `image_size` is the shortest side in pixels. Raises UserError if the folder is not empty. `num_proc` > 1
    spawns processes, so the calling script needs `if __name__ == "__main__":`.
    """
    output_dir = Path(output_dir).absolute()
    if num_images < MIN_NUM_IMAGES or image_size < MIN_IMAGE_SIZE:
        found = f"num_images={num_images} and image_size={image_size}"
        raise UserError(f"{found}: expected at least {MIN_NUM_IMAGES} images of {MIN_IMAGE_SIZE} pixels")
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise UserError(f"{output_dir} is not an empty folder: name a new one, or remove it first")
    images = plan_images(num_images, image_size=image_size, seed=seed)
    readme = README.format(num_images=num_images, image_size=image_size, seed=seed)
    root = output_dir.parent / f".{output_dir.name}.incomplete-{uuid.uuid4().hex[:8]}"
    try:
        root.mkdir(parents=True)
        boxes = write_images(root, images, seed=seed, num_proc=num_proc)
        write_tables(root, images, seed=seed)
        write_gzip(root / "sample-findings.json.gz", json.dumps(boxes, indent=1, sort_keys=True) + "\n")
        write_plain(root / "README.txt", readme)
        write_plain(root / VERSION_FILE, VERSION)
        if output_dir.exists():
            output_dir.rmdir()
        root.rename(output_dir)
    except OSError as error:
        raise UserError(f"{output_dir} cannot be written ({one_line(error)}): name another") from error
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return output_dir


def main(argv: list[str] | None = None) -> None:
    parser = command_line.ArgumentParser(__doc__, usage="OUTPUT_DIR [flags]")
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", type=Path, help="a new or empty folder")
    add_number, positive = command_line.add_number, command_line.positive_int
    add_number(parser, "--num_images", positive, "images to draw", default=600)
    add_number(parser, "--image_size", positive, "shortest side in pixels", default=256)
    add_number(parser, "--seed", command_line.seed_number, "random seed of patients and images", default=0)
    add_number(parser, "--num_proc", positive, "processes that draw (default: one per core)")
    args = parser.parse_args(argv)
    root = make_sample_data(**vars(args) | {"num_proc": args.num_proc or num_cores()})
    print(f"Wrote {args.num_images} synthetic chest radiographs to {root}. To train on them, run:")
    print(f"python {Path(__file__).parent / 'run_classification.py'} --data_dir {root}")


if __name__ == "__main__":
    run_script(main)
