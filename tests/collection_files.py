"""Writes small folders of collections in exactly the layout of their publishers, with made-up rows."""

from pathlib import Path

import numpy as np
from dicom_files import write_dicom
from mimic_tables import write_csv
from PIL import Image

from mimic_cxr_dataset.choices import LABELS

PIXELS = (np.add.outer(np.arange(40), np.arange(32)) * 3 % 256).astype("uint8")
VINDR = (  # the columns of image_labels_train.csv, after image_id and rad_id
    *("Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture"),
    *("Consolidation", "Edema", "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity"),
    *("Lung cavity", "Lung cyst", "Mediastinal shift", "Nodule/Mass", "Pleural effusion"),
    *("Pleural thickening", "Pneumothorax", "Pulmonary fibrosis", "Rib fracture", "Other lesion", "COPD"),
    *("Lung tumor", "Pneumonia", "Tuberculosis", "Other diseases", "No finding"),
)
CHEXPERT = (  # the labels of train.csv, in its order
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other"),
    *("Fracture", "Support Devices"),
)
assert {*CHEXPERT} == {*LABELS}


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".dcm", ".dicom"):
        write_dicom(path, PIXELS, ViewPosition="AP")
    else:
        Image.fromarray(PIXELS).save(path)


def write_nih(
    root: Path, findings: list[str], *, num_test: int, old: bool = False, draws: bool = True
) -> Path:
    """Writes two images of each patient; `findings` are those of the images, such as "Mass|Effusion"."""
    root.mkdir(parents=True, exist_ok=True)
    rows, names = [], []
    for number, labels in enumerate(findings):
        patient, follow_up = number // 2 + 1, number % 2
        names.append(f"{patient:08}_{follow_up:03}.png")
        view = ("PA", "AP")[number % 2]
        rows.append(
            [names[-1], labels, follow_up, patient, "058Y" if old else 58, "M", view, 2682, 2749, 0.143]
        )
        rows[-1] += [0.143, ""] if old else [0.143]
        if draws:
            draw(root / f"images_{1 + number // 4:03}" / "images" / names[-1])
    header = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender"]
    header += ["View Position", "OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]"]
    name = "Data_Entry_2017.csv" if old else "Data_Entry_2017_v2020.csv"
    write_csv(root / name, header + [""] * old, rows)
    cut = len(names) - num_test
    (root / "train_val_list.txt").write_text("\n".join(names[:cut]), encoding="utf-8")
    (root / "test_list.txt").write_text("\n".join(names[cut:]), encoding="utf-8")
    return root


def write_chexpert(root: Path, *, has_test: bool = True) -> Path:
    """Writes 12 studies of 12 patients, frontal and lateral; 2 valid ones and 2 tests."""
    header = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT]
    tables = {"train": range(1, 13), "valid": range(101, 103), **({"test": (201, 202)} if has_test else {})}
    for split, patients in tables.items():
        rows = []
        for patient in patients:
            for view, name in enumerate(("frontal", "lateral"), start=1):
                place = f"{split}/patient{patient:05}/study1/view{view}_{name}.jpg"
                draw(root / place)
                labels = dict.fromkeys(CHEXPERT, "" if split == "train" else "0.0")
                labels |= {"Edema": "-1.0", "Pneumonia": "1.0"} if split == "train" else {"Edema": "1.0"}
                code = "AP" if view == 1 else ""
                described = [f"CheXpert-v1.0-small/{place}", "Male", 40, name.title(), code]
                rows.append([*(described if split != "test" else [place]), *labels.values()])
        columns = header if split != "test" else ["Path", *CHEXPERT]
        write_csv(root / ("test_labels.csv" if split == "test" else f"{split}.csv"), columns, rows)
    return root


def medmnist_arrays(kind: str, counts: tuple[int, int, int], *, side: int = 28) -> dict[str, np.ndarray]:
    rng, arrays = np.random.default_rng(0), {}
    for split, count in zip(("train", "val", "test"), counts):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, side, side), dtype="uint8")
        width = 14 if kind == "chestmnist" else 1
        arrays[f"{split}_labels"] = (np.arange(count * width).reshape(count, width) % 3 == 0).astype("uint8")
    return arrays


def write_vindr(root: Path) -> Path:
    """Writes 10 training images, of which image 0 has 2 votes for each fracture, image 1 one, and 4 tests."""
    rows = []
    for number in range(10):
        for radiologist in range(3):
            marks = dict.fromkeys(VINDR, 0)
            marks["Rib fracture"] = int(
                (number == 0 and radiologist < 2) or (number == 1 and radiologist < 1)
            )
            marks["No finding"] = 1 - marks["Rib fracture"]
            rows.append([f"{number:032x}", f"R{radiologist + number % 5 + 1}", *marks.values()])
        draw(root / "train" / f"{number:032x}.dicom")
    (root / "annotations").mkdir()
    write_csv(root / "annotations" / "image_labels_train.csv", ["image_id", "rad_id", *VINDR], rows)
    names = ["Other disease" if name == "Other diseases" else name for name in VINDR]
    tests = [[f"{100 + number:032x}", *(int(name == "COPD") for name in VINDR)] for number in range(4)]
    for image, *_ in tests:
        draw(root / "test" / f"{image}.dicom")
    write_csv(root / "annotations" / "image_labels_test.csv", ["image_id", *names], tests)
    return root


def write_vindr_of_kaggle(root: Path) -> Path:
    header = ["image_id", "class_name", "class_id", "rad_id", "x_min", "y_min", "x_max", "y_max"]
    rows = []
    for number in range(10):
        marks = ("Cardiomegaly", 3, 1, 1, 9, 9) if number < 2 else ("No finding", 14, "", "", "", "")
        rows += [[f"{number:032x}", *marks[:2], f"R{radiologist}", *marks[2:]] for radiologist in (8, 9, 10)]
        rows += [[f"{number:032x}", "Calcification", 2, "R8", 1, 1, 9, 9]] * 2  # of one radiologist
        draw(root / "train" / f"{number:032x}.dicom")
    write_csv(root / "train.csv", header, rows)
    return root


def write_rsna(root: Path) -> Path:
    boxes, classes = [], []
    for number in range(12):
        image, name = f"{number:08x}-0000-4000-8000-000000000000", ("Normal", "Lung Opacity")[number % 3 == 0]
        name = "No Lung Opacity / Not Normal" if number % 3 == 1 else name
        num_boxes = 2 if name == "Lung Opacity" else 1
        box = [264.0, 152.0, 213.0, 379.0, 1] if name == "Lung Opacity" else ["", "", "", "", 0]
        boxes += [[image, *box]] * num_boxes
        classes += [[image, name]] * num_boxes
        draw(root / "stage_2_train_images" / f"{image}.dcm")
    write_csv(root / "stage_2_train_labels.csv", ["patientId", "x", "y", "width", "height", "Target"], boxes)
    write_csv(root / "stage_2_detailed_class_info.csv", ["patientId", "class"], classes)
    return root


def write_padchest(root: Path, labels: list[str], projections: list[str], *, inverted: int = 0) -> Path:
    """Writes an image per list of labels, such as "['normal']", each of its own patient; some MONOCHROME1."""
    header = ["", "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth"]
    header += ["PatientSex_DICOM", "ViewPosition_DICOM", "Projection", "MethodProjection", "Pediatric"]
    header += ["Report", "MethodLabel", "Labels", "Localizations", "PhotometricInterpretation_DICOM"]
    rows = []
    for number, (found, projection) in enumerate(zip(labels, projections, strict=True)):
        name = f"2168401113669640{number:04}_00-007-001.png"
        rows.append([number, name, number % 2, 20140915, f"S{number}", f"P{number}", 1930, "F"])
        rows[-1] += ["POSTEROANTERIOR", projection, "Manual review of DICOM fields", "No", "sin hallazgos ."]
        rows[-1] += ["Physician", found, "[]", "MONOCHROME1" if number < inverted else "MONOCHROME2"]
        draw(root / str(number % 2) / name)
    write_csv(root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", header, rows)
    return root
