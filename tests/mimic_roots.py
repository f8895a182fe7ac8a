"""Writes small data folders in the layout of MIMIC-CXR-JPG, and builds datasets from them."""

import numpy as np
from mimic_tables import write_csv
from PIL import Image

from mimic_cxr_dataset import choices
from mimic_cxr_dataset import mimic_cxr_dataset as mimic

LABELS = [*choices.FINDINGS, "No Finding"]
NO_ROW = None  # a study without a row in the label table


def write_root(
    root, images, *, labels=None, size=(40, 48), ext=".csv.gz", version="2.0.0", draw=True, dates=None
):
    """Writes a data folder of images {subject, study, view, split}; `labels` by study, or "No Finding"."""
    root.mkdir(parents=True, exist_ok=True)
    metadata, split, studies = [], [], {}
    for number, image in enumerate(images):
        image = {"subject": 10000001, "study": 50000001, "view": "PA", "split": "train", **image}
        dicom_id = f"{number:08x}-00000000-00000000-00000000-0000abcd"
        # Like the real table, with more columns than are read and in another order.
        ids = [dicom_id, image["subject"], image["study"]]
        metadata.append([*ids, "CHEST (PA AND LAT)", image["view"], 9, 9])
        split.append([dicom_id, image["study"], image["subject"], image["split"]])
        studies[image["study"]] = image["subject"]
        if draw:
            patient = f"p{image['subject']}"
            path = root / f"files/{patient[:3]}/{patient}/s{image['study']}/{dicom_id}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.add.outer(np.arange(size[1]), np.arange(size[0])) * 2 + number
            Image.fromarray((pixels % 256).astype("uint8")).save(path, quality=95)
    label_rows = []
    for study, subject in studies.items():
        values = (labels or {}).get(study, {"No Finding": 1.0})
        if values is not NO_ROW:
            label_rows.append([subject, study, *(values.get(name, "") for name in LABELS)])
    name = f"mimic-cxr-{version}-"
    columns = ["dicom_id", "subject_id", "study_id", "Procedure", "ViewPosition", "Rows", "Columns"]
    if dates:
        columns, metadata = [*columns, "StudyDate"], [[*row, date] for row, date in zip(metadata, dates)]
    write_csv(root / f"{name}metadata{ext}", columns, metadata)
    write_csv(root / f"{name}split{ext}", ["dicom_id", "study_id", "subject_id", "split"], split)
    for labeler in ("negbio", "chexpert"):
        write_csv(root / f"{name}{labeler}{ext}", ["subject_id", "study_id", *LABELS], label_rows)
    return root


def patients(count, *, split="train", start=0, **image):
    """Returns `count` images, each with its own study and patient."""
    numbers = range(start, start + count)
    return [{"subject": 10000001 + n, "study": 50000001 + n, "split": split, **image} for n in numbers]


def new_builder(root, tmp_path, name="finding", **options):
    cache_dir = str(tmp_path / "cache")
    return mimic.MimicCxr(config_name=name, data_dir=str(root), cache_dir=cache_dir, **options)


def build(root, tmp_path, name="finding", *, num_proc=None, **options):
    """Returns a prepared builder, made from the class, which works with every release of `datasets`."""
    builder = new_builder(root, tmp_path, name, **options)
    builder.download_and_prepare(num_proc=num_proc)
    return builder


def image_paths(root):
    return sorted(root.glob("files/*/*/*/*.jpg"))
