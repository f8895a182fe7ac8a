"""Plans a synthetic sample: patients with their studies, findings, views and labels."""

from dataclasses import dataclass

import numpy as np

from cxr.choices import LABELS

# How often a finding is the main one of an abnormal study; effusion is the most frequent, as it is a task.
# In drawing order: findings that replace air come before those that lie over it.
FINDING_WEIGHTS = {
    "Cardiomegaly": 0.10,
    "Enlarged Cardiomediastinum": 0.02,
    "Edema": 0.09,
    "Lung Opacity": 0.08,
    "Pneumonia": 0.08,
    "Consolidation": 0.06,
    "Lung Lesion": 0.04,
    "Atelectasis": 0.11,
    "Pneumothorax": 0.05,
    "Pleural Other": 0.01,
    "Pleural Effusion": 0.32,
    "Fracture": 0.01,
    "Support Devices": 0.03,
}
OFTEN_NEGATED = ("Pleural Effusion", "Pneumothorax", "Consolidation", "Edema", "Pneumonia", "Cardiomegaly")
# Non-frontal views in the order in which images get them: each once, then the first six repeatedly.
OTHER_VIEWS = ("LATERAL", "LL", "", "LATERAL", "LL", "LATERAL", "LPO", "XTABLE LATERAL", "SWIMMERS")
LATERAL_VIEWS = ("LATERAL", "LL", "XTABLE LATERAL", "SWIMMERS")
VIEW_MEANINGS = {
    "AP": "antero-posterior",
    "PA": "postero-anterior",
    "LATERAL": "lateral",
    "LL": "left lateral",
    "LPO": "left posterior oblique",
    "XTABLE LATERAL": "lateral",
    "SWIMMERS": "Swimmer's",
}
POSITIVE_FRACTION = 0.59  # of frontal images, as published: 141,268 of 237,962


def random_generator(*key: int) -> np.random.Generator:
    """Returns a generator that depends only on the key, for example (seed, stream, image number)."""
    return np.random.default_rng(np.random.SeedSequence(key))


PLAN, PATIENT, STUDY, IMAGE, RADIOLOGIST, HOSPITAL = range(6)  # the streams of random numbers


@dataclass(frozen=True, kw_only=True)
class Study:
    number: int
    patient: int
    split: str
    subject_id: int
    study_id: int
    drawn: dict[str, float]  # finding -> strength; below 0.5 it is faint, and its label is uncertain
    negbio: dict[str, str] | None  # label -> "1.0", "0.0", "-1.0" or ""; None: the study has no row
    chexpert: dict[str, str] | None


@dataclass(frozen=True, kw_only=True)
class PlannedImage:
    number: int
    study: Study
    dicom_id: str
    view: str
    height: int
    width: int

    @property
    def path(self) -> str:
        subject, study = str(self.study.subject_id), self.study.study_id
        return f"files/p{subject[:2]}/p{subject}/s{study}/{self.dicom_id}.jpg"


def date_and_time(study: Study, *, seed: int) -> tuple[str, str]:
    """Returns StudyDate (YYYYMMDD) and StudyTime of a study. As in MIMIC, the years are in the future."""
    rng = random_generator(seed, STUDY, study.number, 99)
    date = f"{rng.integers(2110, 2200)}{rng.integers(1, 13):02}{rng.integers(1, 29):02}"
    return date, f"{rng.integers(24):02}{rng.integers(60):02}{rng.integers(60):02}.{rng.integers(1, 999):03}"


def choose_findings(kind: str, rng: np.random.Generator) -> dict[str, float]:
    """Draws the findings of a study of this kind: finding -> strength."""
    if kind == "device":
        return {"Support Devices": 1.0}
    if kind == "uncertain":
        return {str(rng.choice(["Atelectasis", "Lung Opacity", "Pneumonia", "Edema"])): 0.2}
    if kind == "normal" or (kind == "unlabelled" and rng.random() < 0.4):
        return {}
    names, weights = list(FINDING_WEIGHTS), np.array(list(FINDING_WEIGHTS.values()))
    main = "Pleural Effusion" if kind == "effusion" else str(rng.choice(names, p=weights / weights.sum()))
    # Hospital patients rarely have one finding only, and a single fracture is too small for small images.
    count = rng.choice([0, 1, 2], p=[0.35, 0.45, 0.2]) + (main in ("Fracture", "Pleural Other"))
    weights[names.index(main)] = 0
    others = rng.choice(names, size=count, replace=False, p=weights**0.5 / (weights**0.5).sum())
    return {str(name): rng.uniform(0.6, 1.0) for name in [main, *others]}


def label_study(kind: str, drawn: dict[str, float], rng: np.random.Generator) -> dict[str, str]:
    """Labels what was drawn; adds some negated and uncertain findings, as labelers find them in reports."""
    labels = dict.fromkeys(LABELS, "")
    for finding, strength in drawn.items():
        labels[finding] = "1.0" if strength > 0.5 else "-1.0"
    for finding in OFTEN_NEGATED:
        if not labels[finding] and rng.random() < 0.25:
            labels[finding] = "0.0"
    unmentioned = [label for label in FINDING_WEIGHTS if not labels[label] and label != "Support Devices"]
    if kind == "abnormal" and rng.random() < 0.2:
        labels[str(rng.choice(unmentioned))] = "-1.0"  # mentioned as possible, but not drawn
    if kind in ("normal", "device"):
        labels["No Finding"] = "1.0"
    return labels


def relabel_study(labels: dict[str, str], rng: np.random.Generator) -> dict[str, str]:
    """Returns another labeler's labels of the same report: a few differ in certainty or miss a negation."""
    labels = dict(labels)
    mentioned = [label for label in FINDING_WEIGHTS if labels[label] and label != "Support Devices"]
    if mentioned and rng.random() < 0.15:
        changed = str(rng.choice(mentioned))
        labels[changed] = {"1.0": "-1.0", "0.0": "", "-1.0": "1.0"}[labels[changed]]
    return labels


def plan_images(num_images: int, *, image_size: int, seed: int) -> list[PlannedImage]:
    """Plans all but the pixels. The frontal images of each split have both labels of both tasks."""
    rng = random_generator(seed, PLAN)
    subject_ids = 10_000_000 + rng.choice(9_999_999, size=num_images, replace=False)
    study_ids = 50_000_000 + rng.choice(9_999_999, size=num_images, replace=False)
    num_validate, num_test = max(2, round(0.13 * num_images)), max(2, round(0.17 * num_images))
    quotas = {"train": num_images - num_validate - num_test, "validate": num_validate, "test": num_test}
    images: list[PlannedImage] = []
    num_studies = num_patients = num_others = 0
    for split, quota in quotas.items():
        end, num_frontal, num_positive = len(images) + quota, 0, 0
        # Each kind of study occurs once even in the smallest sample; after that, kinds are random.
        first_kinds = ["normal", "effusion"] + ["device", "uncertain", "unlabelled"] * (split == "train")
        for position in range(quota):
            if len(images) == end:
                break
            # Corrects towards the label that is too rare, so that small samples have the published balance.
            lean = 0.25 * (POSITIVE_FRACTION * num_frontal - num_positive)
            kind = draw_kind(rng, positive=POSITIVE_FRACTION + lean, train=split == "train")
            kind = first_kinds[position] if position < len(first_kinds) else kind
            same_patient = position > 1 and rng.random() < 0.4
            if split == "train" and position < 3:
                same_patient = position == 1  # so that one patient has two studies
            num_patients += not same_patient
            study_rng = random_generator(seed, STUDY, num_studies)
            drawn = choose_findings(kind, study_rng)
            negbio = None if kind == "unlabelled" else label_study(kind, drawn, study_rng)
            ids = {"subject_id": int(subject_ids[num_patients - 1]), "study_id": int(study_ids[num_studies])}
            labels = {"negbio": negbio, "chexpert": negbio and relabel_study(negbio, study_rng)}
            study = Study(number=num_studies, patient=num_patients, split=split, drawn=drawn, **ids, **labels)
            num_studies += 1
            usual_view = "AP" if rng.random() < (0.52 if kind == "normal" else 0.65) else "PA"
            count = 1 if position < 2 and quota < 20 else int(rng.choice([1, 2, 3], p=[0.55, 0.3, 0.15]))
            for index in range(min(count, end - len(images))):
                frontal = rng.random() < (0.95 if index == 0 else 0.5) or (position < 2 and index == 0)
                others = OTHER_VIEWS if num_others < len(OTHER_VIEWS) else OTHER_VIEWS[:6]
                view = usual_view if frontal else others[num_others % len(others)]
                num_others += not frontal
                num_frontal += bool(frontal and negbio)
                num_positive += bool(frontal and negbio) and max(drawn.values(), default=0) > 0.5
                longest = round(image_size * float(rng.choice([1.0, rng.uniform(1, 1.25), 1.2])))
                portrait = rng.random() < (0.4 if frontal else 0.9)
                height, width = (longest, image_size) if portrait else (image_size, longest)
                name = "-".join(rng.bytes(4).hex() for _ in range(5))
                image = {"dicom_id": name, "view": view, "height": height, "width": width}
                images.append(PlannedImage(number=len(images), study=study, **image))
    return images


def draw_kind(rng: np.random.Generator, *, positive: float, train: bool) -> str:
    chance, detail = rng.random(2)
    if train and detail > 0.99:
        return "unlabelled"
    if chance < positive:
        return "device" if detail < 0.04 else "abnormal"
    return "uncertain" if detail < 0.1 else "normal"
