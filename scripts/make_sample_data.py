"""Draws a synthetic MIMIC-CXR-JPG tree, so that every script of this repository runs without credentials.

The images are chest radiographs drawn by code: air, soft tissue, bone and metal add up to attenuation, which
is then exposed like film. Nothing in them comes from a patient. Labels follow from what was drawn, and
`sample-findings.json.gz` tells where that is. The same arguments always write the same bytes.

    python scripts/make_sample_data.py /tmp/sample --num_images 60 --image_size 64  # a first try, in seconds
    python scripts/make_sample_data.py sample_data                                  # 600 images of 256 pixels
    python scripts/run_classification.py --data_dir sample_data
"""

import csv
import gzip
import io
import json
import math
import multiprocessing
import os
import shutil
import signal
import uuid
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from cxr.command_line import ArgumentParser
from cxr.command_line import positive_int
from cxr.command_line import seed_number
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFilter
from tqdm import tqdm

LABELS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture"),
    *("Lung Lesion", "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia"),
    *("Pneumothorax", "Support Devices"),
)
METADATA_COLUMNS = (
    *("dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition"),
    *("Rows", "Columns", "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning"),
    *("ViewCodeSequence_CodeMeaning", "PatientOrientationCodeSequence_CodeMeaning"),
)
OFTEN_NEGATED = ("Pleural Effusion", "Pneumothorax", "Consolidation", "Edema", "Pneumonia", "Cardiomegaly")
# Non-frontal views in the order in which they are dealt out: all once, then the first six again and again.
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
MIN_NUM_IMAGES, MIN_IMAGE_SIZE = 12, 32
MAX_DRAWN_SIDE = 768  # pixels; larger images are drawn at this size and enlarged: the shapes are soft anyway
README = """Synthetic chest radiographs, drawn by code: no image, identifier or label is from a patient.
Written by make_sample_data.py with num_images={num_images}, image_size={image_size}, seed={seed}.
The layout is that of MIMIC-CXR-JPG; sample-findings.json.gz tells where each finding was drawn.
"""

Point = tuple[float, float]
Points = list[Point]
Strokes = list[tuple[Points, float]]  # (points, width)
Masks = list[np.ndarray]


def random_generator(*key: int) -> np.random.Generator:
    """Random numbers that depend on the key alone, e.g. (seed, stream, image number)."""
    return np.random.default_rng(np.random.SeedSequence(key))


PLAN, PATIENT, STUDY, IMAGE = range(4)  # the streams of random numbers


# --- Planning: who has which studies, findings and views


@dataclass(frozen=True, kw_only=True)
class Study:
    number: int
    patient: int
    split: str
    subject_id: int
    study_id: int
    drawn: dict[str, float]  # finding -> strength; below 0.5: faint, and its label calls it uncertain
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


def choose_findings(kind: str, rng: np.random.Generator) -> dict[str, float]:
    """The findings of a study of one kind: finding -> strength."""
    if kind == "device":
        return {"Support Devices": 1.0}
    if kind == "uncertain":
        return {str(rng.choice(["Atelectasis", "Lung Opacity", "Pneumonia", "Edema"])): 0.2}
    if kind == "normal" or (kind == "unlabelled" and rng.random() < 0.4):
        return {}
    names, weights = list(FINDINGS), np.array([weight for weight, _ in FINDINGS.values()])
    main = "Pleural Effusion" if kind == "effusion" else str(rng.choice(names, p=weights / weights.sum()))
    # Hospital patients seldom have one finding, and a fracture alone is too small to see in a thumbnail.
    count = rng.choice([0, 1, 2], p=[0.35, 0.45, 0.2]) + (main in ("Fracture", "Pleural Other"))
    weights[names.index(main)] = 0
    others = rng.choice(names, size=count, replace=False, p=weights**0.5 / (weights**0.5).sum())
    return {str(name): rng.uniform(0.6, 1.0) for name in [main, *others]}


def label_study(kind: str, drawn: dict[str, float], rng: np.random.Generator) -> dict[str, str]:
    """Labels what was drawn and, as labelers find them in reports, some negated and uncertain findings."""
    labels = dict.fromkeys(LABELS, "")
    for finding, strength in drawn.items():
        labels[finding] = "1.0" if strength > 0.5 else "-1.0"
    for finding in OFTEN_NEGATED:
        if not labels[finding] and rng.random() < 0.25:
            labels[finding] = "0.0"
    unmentioned = [label for label in FINDINGS if not labels[label] and label != "Support Devices"]
    if kind == "abnormal" and rng.random() < 0.2:
        labels[str(rng.choice(unmentioned))] = "-1.0"  # mentioned as possible; nothing to be seen
    if kind in ("normal", "device"):
        labels["No Finding"] = "1.0"
    return labels


def relabel_study(labels: dict[str, str], rng: np.random.Generator) -> dict[str, str]:
    """What another labeller makes of the same report: now and then it hears a doubt, or misses a negation."""
    labels = dict(labels)
    mentioned = [label for label in FINDINGS if labels[label] and label != "Support Devices"]
    if mentioned and rng.random() < 0.15:
        changed = str(rng.choice(mentioned))
        labels[changed] = {"1.0": "-1.0", "0.0": "", "-1.0": "1.0"}[labels[changed]]
    return labels


def plan_images(num_images: int, *, image_size: int, seed: int) -> list[PlannedImage]:
    """Everything but the pixels. Every split has both labels of both tasks among its frontal images."""
    rng = random_generator(seed, PLAN)
    subject_ids = 10_000_000 + rng.choice(9_999_999, size=num_images, replace=False)
    study_ids = 50_000_000 + rng.choice(9_999_999, size=num_images, replace=False)
    num_validate, num_test = max(2, round(0.13 * num_images)), max(2, round(0.17 * num_images))
    quotas = {"train": num_images - num_validate - num_test, "validate": num_validate, "test": num_test}
    images: list[PlannedImage] = []
    num_studies = num_patients = num_others = 0
    for split, quota in quotas.items():
        end, num_frontal, num_positive = len(images) + quota, 0, 0
        # Every kind of study once, however small the sample; after that, kinds are drawn.
        first_kinds = ["normal", "effusion"] + ["device", "uncertain", "unlabelled"] * (split == "train")
        for position in range(quota):
            if len(images) == end:
                break
            # Leans towards what is missing, so that small samples have the published balance too.
            lean = 0.25 * (POSITIVE_FRACTION * num_frontal - num_positive)
            kind = draw_kind(rng, positive=POSITIVE_FRACTION + lean, train=split == "train")
            kind = first_kinds[position] if position < len(first_kinds) else kind
            same_patient = position > 1 and rng.random() < 0.4
            if split == "train" and position < 3:
                same_patient = position == 1  # so that some patient has two studies
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


# --- Drawing: soft shapes in body coordinates


def smooth_curve(points: Points, *, closed: bool = False) -> np.ndarray:
    """Catmull-Rom curve through the points, eight steps between two of them. (N, 2)"""
    p = np.asarray(points, dtype=np.float64)
    p = np.concatenate([p[-1:], p, p[:2]] if closed else [2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    t = np.linspace(0, 1, 8, endpoint=False)[None, :, None]
    p0, p1, p2, p3 = (p[i : len(p) - 3 + i, None] for i in range(4))
    curve = p1 + 0.5 * t * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, p[-2:-1]])


class Canvas:
    """Masks, (height, width) in 0..1, of shapes given in body coordinates.

    In body coordinates x and y run from 0 to 1 over the shortest side and the midline of the body is x = 0.5.
    A small rotation, shift and zoom differs from image to image.
    """

    def __init__(self, height: int, width: int, rng: np.random.Generator, *, unrest: float):
        self.height, self.width = height, width
        self.unit = min(height, width)  # pixels for a length of 1
        self.oversampling = 4 if self.unit <= 128 else 2 if self.unit <= 512 else 1
        angle = math.radians(rng.normal(0, 2.2 * unrest))
        zoom = np.array([rng.uniform(1.03, 1.16), rng.uniform(1.0, 1.12)])
        zoom *= np.minimum(1.15, np.array([width, height]) / self.unit) ** 0.7
        cosine, sine = math.cos(angle), math.sin(angle)
        self.matrix = np.array([[cosine, -sine], [sine, cosine]]) * zoom * self.unit
        self.center = np.array([width, height]) / 2 + rng.normal(0, 0.014 * unrest, 2) * self.unit
        rows, columns = np.mgrid[:height, :width].astype(np.float32)
        body = self.to_body(np.stack([columns, rows], axis=-1) + 0.5).astype(np.float32)
        self.x, self.y = body[..., 0], body[..., 1]

    def to_pixels(self, points: Points | np.ndarray) -> np.ndarray:
        return (np.asarray(points) - 0.5) @ self.matrix.T + self.center

    def to_body(self, pixels: np.ndarray) -> np.ndarray:
        return (pixels - self.center) @ np.linalg.inv(self.matrix).T + 0.5

    def finish(self, image: Image.Image, blur: float) -> np.ndarray:
        image = image.reduce(self.oversampling) if self.oversampling > 1 else image
        image = image.filter(ImageFilter.GaussianBlur(max(blur * self.unit, 0.35)))
        return np.asarray(image, dtype=np.float32) / 255

    def blank(self) -> Image.Image:
        return Image.new("L", (self.width * self.oversampling, self.height * self.oversampling))

    def area(self, *outlines: Points, blur: float) -> np.ndarray:
        image = self.blank()
        for outline in outlines:
            pixels = self.to_pixels(smooth_curve(outline, closed=True)) * self.oversampling
            ImageDraw.Draw(image).polygon(list(map(tuple, pixels.tolist())), fill=255)
        return self.finish(image, blur)

    def lines(self, lines: Strokes, *, blur: float, curved: bool = True) -> np.ndarray:
        image = self.blank()
        draw = ImageDraw.Draw(image)
        for points, width in lines:
            pixels = self.to_pixels(smooth_curve(points) if curved else points) * self.oversampling
            width = max(1, round(width * self.unit * self.oversampling))
            joint = "curve" if width > 4 else None  # slow, and not to be seen on thin lines
            draw.line(list(map(tuple, pixels.tolist())), fill=255, width=width, joint=joint)
        return self.finish(image, blur)

    def blob(
        self, x: float, y: float, radius_x: float, radius_y: float, *, edge: float, ragged=0.0
    ) -> np.ndarray:
        """An ellipse whose edge is `edge` of its radius wide; `ragged` is noise added to the radius."""
        distance = np.hypot((self.x - x) / radius_x, (self.y - y) / radius_y) + ragged
        return np.clip((1 - distance) / edge + 0.5, 0, 1)

    def noise(self, rng: np.random.Generator, grain: float) -> np.ndarray:
        """Smooth noise, standard deviation about 0.7, whose grains are `grain` wide."""
        shape = [max(4, round(side / self.unit / grain)) for side in (self.height, self.width)]
        small = Image.fromarray(rng.standard_normal(shape, dtype=np.float32))
        return np.asarray(small.resize((self.width, self.height), Image.Resampling.BICUBIC))


@dataclass(frozen=True, kw_only=True)
class Lung:
    """One lung (seen from the side: both) between an inner and an outer wall; `side` points outwards."""

    side: int
    ys: tuple[float, ...]
    inner: np.ndarray  # x at each of the ys
    outer: np.ndarray
    diaphragm: Points  # from the outer wall to the inner
    hilum: Point

    @property
    def bottom(self) -> float:
        return self.diaphragm[0][1]

    def point(self, across: float, down: float) -> Point:
        """Position from 0 (inner wall, apex) to 1 (outer wall, costophrenic angle)."""
        y = self.ys[0] + down * (self.bottom - self.ys[0])
        inner, outer = np.interp(y, self.ys, self.inner), np.interp(y, self.ys, self.outer)
        return float(inner + across * (outer - inner)), y

    def outline(self, *, collapsed: float = 0.0) -> Points:
        """The outline, from the apex down the outer wall; `collapsed`: how far that wall has come inwards."""
        wall = zip(self.outer - self.side * collapsed, np.array(self.ys) + collapsed)
        wall = [(x, y) for x, y in wall if y < self.bottom - 0.02 - collapsed / 2]
        inner = [(x, y) for x, y in zip(self.inner, self.ys) if wall[0][1] <= y < self.diaphragm[-1][1]]
        return [*wall, *self.diaphragm, *inner[::-1]]


@dataclass(kw_only=True)
class Chest:
    """The layers of an image while it is drawn, all (height, width)."""

    canvas: Canvas
    lungs: list[Lung]
    ribs: list[Points]
    tissue: np.ndarray
    air: np.ndarray  # 1: a whole lung of air in the beam
    bone: np.ndarray
    vessels: np.ndarray
    heart: np.ndarray
    mediastinum: np.ndarray
    lateral: bool
    dense: np.ndarray | float = 0.0  # metal, calcium and fine lines, which findings add

    def fill(self, mask: np.ndarray, opacity: float) -> np.ndarray:
        """Replaces air by fluid; returns where it did."""
        where = mask * np.clip(self.air * 3, 0, 1)
        self.air = self.air * (1 - opacity * mask)
        self.bone = self.bone * (1 - 0.5 * opacity * mask)  # less to see before white than before black
        return where


# --- Anatomy


def shape(text: str, *, at: Point = (0.0, 0.0), scale: Point = (1.0, 1.0)) -> Points:
    """Points "x,y x,y ..." in hundredths of body coordinates, scaled about the origin and moved to `at`."""
    pairs = (pair.split(",") for pair in text.split())
    return [(at[0] + scale[0] * float(x) / 100, at[1] + scale[1] * float(y) / 100) for x, y in pairs]


def both_sides(text: str, *, lift: float = 0.0, broad: float = 1.0) -> list[Points]:
    """A shape given by distances from the midline, on the image's left and on its right."""
    return [shape(text, at=(0.5, lift), scale=(side * broad, 1)) for side in (-1, 1)]


def branch_vessels(lung: Lung, angles: np.ndarray, rng: np.random.Generator) -> Strokes:
    """Pulmonary vessels that fork three times on their way out of the hilum."""
    strokes = []
    tips = [(lung.hilum, float(angle), 0.13, 0.0115) for angle in angles + rng.normal(0, 0.1, len(angles))]
    for _ in range(4):
        forks = []
        for (x, y), angle, length, width in tips:
            length *= rng.uniform(0.75, 1.2)
            bend, turn, spread = rng.normal(angle, 0.2), rng.normal(angle, 0.15), rng.uniform(0.2, 0.5)
            middle = (x + length / 2 * math.cos(bend), y + length / 2 * math.sin(bend))
            end = (x + length * math.cos(turn), y + length * math.sin(turn))
            strokes.append(([(x, y), middle, end], width))
            forks += [(end, turn + fork, length * 0.72, width * 0.66) for fork in (-spread, spread)]
        tips = forks
    return strokes


def draw_bones(canvas: Canvas, bones: list[Points], width: float, *, blur: float) -> np.ndarray:
    """Bones with a cortex: brighter along both edges than inside."""
    inside = canvas.lines([(bone, width * 0.55) for bone in bones], blur=blur)
    return canvas.lines([(bone, width) for bone in bones], blur=blur) - 0.55 * inside


def draw_gas(canvas: Canvas, rng: np.random.Generator, x: float, y: float) -> np.ndarray:
    """What the air in stomach and bowel takes from the tissue."""
    bubble = canvas.blob(
        x, y, rng.uniform(0.04, 0.075), 0.03, edge=0.4, ragged=0.12 * canvas.noise(rng, 0.05)
    )
    loops = np.clip(canvas.noise(rng, 0.07) - 0.5, 0, 1) * np.clip((canvas.y - y - 0.1) / 0.1, 0, 1)
    return 0.18 * (rng.random() < 0.6) * bubble + 0.08 * loops


def frontal_tissue(
    canvas: Canvas, traits: dict[str, float], base: float, rng: np.random.Generator
) -> np.ndarray:
    """Trunk, neck and arms: thicker in the middle and below the diaphragm."""
    broad, slope = traits["broad"], traits["slope"]
    flank, trunk = broad * traits["flank"], []
    for side in (1, -1):
        neck = shape("0,-20 10.5,-20 10,0 12.5,6 22,11 36,14 46,22", at=(0.5, slope), scale=(side, 1))
        half = neck + shape("6,36 0,50 0,75 1.5,130", at=(0.5 + side * flank, 0), scale=(side, 1))
        trunk += half[::side]  # down on one side, up on the other
    gap = 100 * (flank + rng.uniform(0.02, 0.07))
    arm = f"36,14 47,19 56,30 62,60 64,130 {gap + 3},130 {gap},60 37,38"
    body, arms = canvas.area(trunk, blur=0.004), canvas.area(*both_sides(arm, lift=slope), blur=0.004)
    tissue = body * (0.42 + 0.30 * canvas.area(trunk, blur=0.07)) + (1 - body) * arms * 0.5
    tissue += 0.16 * body * np.clip((canvas.y - base - 0.02) / 0.1, 0, 1)
    tissue += 0.10 * body * np.exp(-(((canvas.y - 0.17) / 0.09) ** 2))  # shoulder girdle
    for side in (-1, 1) if traits["breasts"] else ():
        y = 0.60 + traits["breasts"]
        breast = canvas.blob(0.5 + side * broad * 0.22, y, broad * 0.17, 0.14, edge=0.3)
        tissue += 0.08 * breast * body * np.clip((canvas.y - y + 0.12) / 0.14, 0, 1)
    gas = draw_gas(canvas, rng, 0.5 + rng.uniform(0.13, 0.2), base + 0.1)
    return tissue - body * gas


def frontal_ribs(lung: Lung, base: float) -> tuple[list[Points], list[Points]]:
    """A rib runs from the spine outwards and down behind the lung, then inwards and down before it."""
    behind, before = [], []
    for index in range(10):
        y, drop = 0.135 + index * (base - 0.10) / 8.3, 0.035 + 0.008 * index
        reach, low = np.interp([y + drop, y + 2.6 * drop], lung.ys, lung.outer) - 0.5
        path = [(0.5 + lung.side * 0.035, y + 0.01), (0.5 + 0.3 * reach, y - 0.012)]
        behind.append(path + shape("65,10 92,60 100,120", at=(0.5, y), scale=(reach, drop)))
        before.append(behind[-1][-1:] + shape("98,190 80,290 50,350", at=(0.5, y), scale=(low, drop)))
    return behind, before[1:7]


def frontal_shoulders_and_spine(
    canvas: Canvas, traits: dict[str, float], rng: np.random.Generator
) -> np.ndarray:
    slope = traits["slope"]
    clavicles = both_sides("3.5,20 10,18.7 20,16.5 29,15.5 37,17", lift=slope + rng.normal(0.0, 0.008))
    # Hands on the hips turn the shoulder blades out of the lungs, but not in bed.
    blades = both_sides(
        "40,16 36,20 30,28 33.5,40 37,30 41,22", lift=slope, broad=1 - 0.03 * traits["bedside"]
    )
    blade = canvas.area(*blades, blur=0.003)
    upper_arms = both_sides("43,20 47,30 52,60 55,120", lift=slope)
    heads = both_sides("42.5,18.5 43.5,20.5 44.5,22.5", lift=slope)
    vertebrae = [shape("-3,0 0,0 3,0", at=(0.5, 0.02 + index * 0.056)) for index in range(20)]
    bone = 0.19 * draw_bones(canvas, clavicles, 0.024, blur=0.0025)
    bone += 0.05 * blade + 0.08 * np.clip(blade - canvas.area(*blades, blur=0.014), 0, 1)
    bone += 0.14 * draw_bones(canvas, upper_arms, 0.05, blur=0.004)
    bone += 0.14 * draw_bones(canvas, heads, 0.08, blur=0.004)
    bone += 0.05 * draw_bones(canvas, vertebrae, 0.042, blur=0.004)
    return bone + 0.03 * canvas.lines([(shape("50,-10 50,50 50,120"), 0.085)], blur=0.006)


def draw_frontal(canvas: Canvas, traits: dict[str, float], rng: np.random.Generator) -> Chest:
    """The patient's right is at the left. At the bedside (AP) the heart looks wider, the diaphragm higher."""
    broad, bedside = traits["broad"], traits["bedside"]
    base = traits["base"] - 0.035 * bedside + rng.normal(0, 0.012)
    ys = (0.13, 0.15, 0.19, 0.27, 0.36, 0.46, 0.56, 0.66, 0.76, 0.90)
    cage = broad * np.array([0.125, 0.165, 0.215, 0.277, 0.318, 0.346, 0.364, 0.374, 0.378, 0.37])
    lungs = []
    for side, hilum in ((-1, (0.425, 0.41)), (1, (0.585, 0.395))):
        low = base + 0.028 * (side == 1)  # the liver lifts the other side
        wall = side * float(np.interp(low + 0.075, ys, cage))
        dome = shape("100,7.5 93,3.5 78,.4 57,0 34,2.2 20,5 12,6", at=(0.5, low), scale=(wall, 1))
        inner, outer = 0.5 + side * np.array([0.085, 0.055, *[0.045] * 8]), 0.5 + side * cage
        lungs.append(Lung(side=side, ys=ys, inner=inner, outer=outer, diaphragm=dome, hilum=hilum))

    # Heart and great vessels stand before the air; the aortic knob is on the image's right.
    size, wide = (traits[name] * (1 + 0.09 * bedside) for name in ("heart", "mediastinum"))
    outline = "-4.5,12 -7.6,30 -8.8,54 -8,88 -4,101 6,104 13.5,101 16.5,89 15.3,73 11.8,42 8.5,20 5,0"
    heart = canvas.area(shape(outline, at=(0.5, 0.36), scale=(size, base - 0.29)), blur=0.006)
    column = both_sides("7,0 5.5,12 5.2,25 6,36 6,42 0,50", broad=wide)
    knob = "-3,0 -2,-3 0,-4 2.5,-3 3.4,0 2.5,3 0,4 -2,3"
    knob = shape(knob, at=(0.5 + 0.05 * wide, 0.295), scale=(wide, 1))
    mediastinum = canvas.area(column[0] + column[1][::-1], knob, blur=0.006)
    middle = np.maximum(0.86 * heart, 0.93 * mediastinum)
    outlines = [lung.outline() for lung in lungs]
    air = (
        canvas.area(*outlines, blur=0.004) * (0.45 + 0.55 * canvas.area(*outlines, blur=0.035)) * (1 - middle)
    )
    airways = [(shape("50,-10 50,10 50.3,30"), 0.036), (shape("50,29 47,34.5 44,38"), 0.02)]
    air += 0.3 * canvas.lines([*airways, (shape("50.5,29 54,35 57.5,37"), 0.017)], blur=0.005)
    tissue = frontal_tissue(canvas, traits, base, rng)
    tissue += np.maximum(0.13 * heart, 0.10 * mediastinum * np.clip((canvas.y - 0.1) / 0.1, 0, 1))

    (left_ribs, left_front), (right_ribs, right_front) = (frontal_ribs(lung, base) for lung in lungs)
    bone = 0.15 * draw_bones(canvas, left_ribs + right_ribs, 0.023, blur=0.0022)
    bone += 0.07 * draw_bones(canvas, left_front + right_front, 0.023, blur=0.003)
    bone = bone * (1 - 0.7 * middle) + frontal_shoulders_and_spine(canvas, traits, rng)
    bone *= 1 - 0.6 * np.clip((canvas.y - base) / 0.07, 0, 1)  # the belly scatters the detail away

    directions = np.array([-0.05, 0.35, 0.8, 1.3, 1.8, 2.25, 2.7, 3.05])  # from upwards, turning outwards
    strokes = [branch_vessels(lung, lung.side * directions - np.pi / 2, rng) for lung in lungs]
    hila = [(shape(f"0,-5 {lung.side * 1.2},0 0,6", at=lung.hilum), 0.03) for lung in lungs]
    vessels = canvas.lines(strokes[0] + strokes[1], blur=0.002, curved=False) + canvas.lines(hila, blur=0.01)
    layers = {"tissue": tissue, "air": air, "bone": bone, "vessels": vessels, "heart": heart}
    layers["mediastinum"] = mediastinum * (canvas.y > 0.1) * (canvas.y < 0.48)
    return Chest(canvas=canvas, lateral=False, lungs=lungs, ribs=left_ribs + right_ribs, **layers)


def draw_lateral(canvas: Canvas, traits: dict[str, float], rng: np.random.Generator) -> Chest:
    """The patient looks to the image's left: breastbone left, spine right."""
    base, size, wide, belly = (traits[name] for name in ("base", "heart", "mediastinum", "flank"))
    ys = (0.12, 0.16, 0.22, 0.32, 0.45, 0.58, 0.70, 0.80, 0.95)
    front = np.array([0.47, 0.42, 0.345, 0.27, 0.225, 0.215, 0.225, 0.24, 0.25])
    back = np.array([0.60, 0.665, 0.725, 0.785, 0.82, 0.83, 0.82, 0.80, 0.76])
    dome = "80,12 74,4.5 62,-2 47,-4.5 34,-3 25.5,1 22.2,3.5"
    domes = [shape(dome, at=(0, base - lift)) for lift in (0.0, 0.03)]  # the one over the liver stands higher
    lungs = [Lung(side=1, ys=ys, inner=front, outer=back, diaphragm=d, hilum=(0.53, 0.40)) for d in domes]
    chest_wall = f"36,-20 37,2 30,12 22,22 16.5,34 {14 - 60 * traits['breasts']},50 15.5,64"
    belly_wall = shape("15,80 13,130", at=(0.4 - belly, 0))
    trunk = shape(chest_wall) + belly_wall + shape("88,130 88.5,80 91,55 90,33 83,16 70,4 66,-20")
    body = canvas.area(trunk, blur=0.005)
    tissue = body * (0.36 + 0.34 * canvas.area(trunk, blur=0.06))
    tissue += 0.28 * body * np.exp(-((np.clip(canvas.y - 0.05, 0, 1) / 0.12) ** 2))  # shoulders, arms held up
    tissue += 0.15 * body * np.clip((canvas.y - base + 0.02 - 0.35 * (canvas.x - 0.5)) / 0.08, 0, 1)

    outline = shape("-13,-9 -2,-15 9,-12 16.5,-1 14,13", at=(0.405, base - 0.105), scale=(size, size))
    heart = canvas.area([*outline, *shape("40.5,8 27,6.5 24,-10", at=(0, base))], blur=0.01)
    arch = [(shape("43,46 43,33 50,26.5 60,29 65.5,42 67,80"), 0.062 * wide)]
    mediastinum = canvas.lines(arch, blur=0.012) * np.clip((0.66 - canvas.y) / 0.2, 0, 1)
    outlines = [lung.outline() for lung in lungs]
    air = sum(canvas.area(o, blur=0.005) * (0.3 + 0.2 * canvas.area(o, blur=0.04)) for o in outlines)
    air *= (1 - 0.6 * heart) * (1 - 0.4 * mediastinum) * (1 - 0.4 * np.exp(-(((canvas.y - 0.1) / 0.13) ** 2)))
    air += 0.2 * canvas.lines([(shape("53,-10 54.5,15 56.5,37"), 0.04)], blur=0.006)
    tissue += 0.10 * heart + 0.04 * mediastinum
    tissue -= body * draw_gas(canvas, rng, rng.normal(0.5, 0.03), base + 0.08)

    ribs = []
    for shift in (0.0, 0.018):  # the near and the far side do not quite cover each other
        for y in 0.15 + 0.068 * np.arange(10) + shift:
            far = float(np.interp(y, ys, back)) + shift
            ribs.append([(0.74 + shift, y - 0.02), *shape("0,2 -10,8.5 -28,17 -42,21.5", at=(far, y))])
    bone = 0.08 * draw_bones(canvas, ribs, 0.018, blur=0.003)
    bone *= 1 - 0.75 * np.clip((canvas.y - base + 0.02) / 0.08, 0, 1)
    column = shape("60,-10 66,10 73.5,30 76,50 74.5,75 70,110")
    heights = np.linspace(-0.02, 1.05, 20)
    centers = zip(np.interp(heights, [y for _, y in column], [x for x, _ in column]), heights)
    vertebrae = [shape("-3.5,.4 0,0 3.5,-.4", at=center) for center in centers]
    bone += 0.15 * draw_bones(canvas, vertebrae, 0.044, blur=0.004)
    bone += 0.05 * canvas.lines([(column, 0.085)], blur=0.008)
    breastbone = [shape("31.5,22 25.5,33 21.5,48 20.5,58")]
    bone += 0.14 * draw_bones(canvas, breastbone, 0.02, blur=0.004)
    bone += 0.06 * draw_bones(canvas, [shape("62,0 74,18 79,36")], 0.03, blur=0.005)  # shoulder blade
    strokes = branch_vessels(lungs[0], np.array([-2.3, -1.5, -0.7, 0.2, 0.9, 1.4, 2.0, 2.8]), rng)
    vessels = 0.7 * canvas.lines(strokes, blur=0.004, curved=False)
    vessels += canvas.blob(0.53, 0.41, 0.04, 0.05, edge=0.9)
    layers = {"tissue": tissue, "air": air, "bone": bone, "vessels": vessels, "heart": heart}
    layers["mediastinum"] = mediastinum
    return Chest(canvas=canvas, lateral=True, lungs=lungs[:1], ribs=ribs, **layers)


# --- Findings: each changes the chest and returns the masks of what it drew


def pick_lungs(chest: Chest, rng: np.random.Generator, *, both: float) -> list[Lung]:
    choice, first = rng.random(), int(rng.integers(2))  # always drawn, so that all views of a study agree
    return chest.lungs if choice < both else [chest.lungs[first % len(chest.lungs)]]


def draw_patch(chest: Chest, rng: np.random.Generator, at: Point, size: float, opacity: float) -> np.ndarray:
    """A cloudy opacity with ragged edges, as of pneumonia."""
    ragged = 0.28 * chest.canvas.noise(rng, 0.05) + 0.12 * chest.canvas.noise(rng, 0.02)
    return chest.fill(
        chest.canvas.blob(*at, size * rng.uniform(0.85, 1.2), size, edge=0.7, ragged=ragged), opacity
    )


def draw_effusion(chest: Chest, rng: np.random.Generator, strength: float) -> Masks:
    """Fluid over the diaphragm, whose surface climbs up the outer wall: the meniscus."""
    masks = []
    surface = "104,145 93,105 75,72 50,54 25,50 0,50"  # across the lung, height
    for lung in pick_lungs(chest, rng, both=0.3):
        height = rng.uniform(0.22, 0.42) * strength / (lung.bottom - lung.ys[0])
        fluid = [lung.point(across, 0.95 - rise * height) for across, rise in shape(surface)]
        fluid += [lung.point(0, 1.1), lung.point(1.04, 1.1)]
        masks.append(chest.fill(chest.canvas.area(fluid, blur=0.009), 0.94))
        chest.tissue = chest.tissue + 0.06 * masks[-1]
    return masks


def draw_opacity(chest: Chest, rng: np.random.Generator, strength: float) -> Masks:
    lung = pick_lungs(chest, rng, both=0.0)[0]
    at = lung.point(rng.uniform(0.45, 0.7), rng.uniform(0.3, 0.8))
    return [draw_patch(chest, rng, at, rng.uniform(0.10, 0.14), 0.75 * strength)]


def draw_consolidation(chest: Chest, rng: np.random.Generator, strength: float) -> Masks:
    """A lobe without air, but for the bronchi in it; its lower edge is the straight fissure."""
    lung = pick_lungs(chest, rng, both=0.0)[0]
    x, y = lung.point(rng.uniform(0.5, 0.65), rng.uniform(0.25, 0.75))
    lobe = chest.canvas.blob(x, y, 0.13, 0.12, edge=0.45, ragged=0.18 * chest.canvas.noise(rng, 0.05))
    lobe *= np.clip((y + rng.uniform(0.03, 0.07) - chest.canvas.y) / 0.012, 0, 1)
    bronchi = branch_vessels(lung, np.array([-1.2, -0.4, 0.4, 1.2, 2.0, 2.8]), rng)
    return [chest.fill(lobe * (1 - 0.35 * chest.canvas.lines(bronchi, blur=0.003)), 0.88 * strength)]


def draw_pneumonia(chest: Chest, rng: np.random.Generator, strength: float) -> Masks:
    lung = pick_lungs(chest, rng, both=0.0)[0]
    across, down, masks = rng.uniform(0.4, 0.65), rng.uniform(0.45, 0.75), []
    for _ in range(int(rng.integers(3, 5))):
        at = lung.point(rng.normal(across, 0.14), rng.normal(down, 0.09))
        masks.append(draw_patch(chest, rng, at, rng.uniform(0.06, 0.095), 0.72 * strength))
    return [np.maximum.reduce(masks)]


def draw_atelectasis(chest: Chest, rng: np.random.Generator, strength: float) -> Masks:
    """Plates across the base of a lung, over a base that has lost its air."""
    masks, canvas = [], chest.canvas
    for lung in pick_lungs(chest, rng, both=0.25):
        plates, tilt = [], rng.normal(-0.03, 0.05)
        for index in range(int(rng.integers(2, 4))):
            down, start, end = 0.85 - 0.08 * index, rng.uniform(0.1, 0.45), rng.uniform(0.7, 0.95)
            steps = ((start + f * (end - start), down + tilt * f + 0.08 * f * (1 - f)) for f in (0, 0.5, 1))
            plates.append(([lung.point(*step) for step in steps], rng.uniform(0.01, 0.026)))
        haze = np.clip((canvas.y - lung.point(0, 0.83)[1]) / 0.06 + 0.15 * canvas.noise(rng, 0.04), 0, 1)
        haze *= canvas.area(lung.outline(), blur=0.01)
        masks.append(chest.fill(np.maximum(canvas.lines(plates, blur=0.005), 0.85 * haze), 0.85 * strength))
    return masks


def draw_edema(chest: Chest, rng: np.random.Generator, strength: float) -> Masks:
    """Bat's wings: haze on both sides of the hila, full vessels, and short lines at the outer wall."""
    masks = []
    for lung in chest.lungs:
        x, y = lung.hilum
        distance = np.hypot((chest.canvas.x - x - lung.side * 0.06) / 0.17, (chest.canvas.y - y - 0.05) / 0.2)
        haze = np.exp(-(distance**2)) * (0.75 + 0.28 * chest.canvas.noise(rng, 0.03))
        masks.append(chest.fill(np.clip(haze, 0, 1), 0.8 * strength))
        lines = [([lung.point(0.88, y), lung.point(0.98, y)], 0.004) for y in np.linspace(0.7, 0.9, 5)]
        chest.dense += 0.1 * strength * chest.canvas.lines(lines, blur=0.001, curved=False)
    chest.vessels = chest.vessels * (1 + 0.5 * strength)
    return masks


def draw_pneumothorax(chest: Chest, rng: np.random.Generator, strength: float) -> Masks:
    """Black, vessel-free air between the wall and the fine line of the retracted lung."""
    lung, canvas = pick_lungs(chest, rng, both=0.0)[0], chest.canvas
    outline = lung.outline(collapsed=rng.uniform(0.07, 0.13) * strength)
    whole, left = canvas.area(lung.outline(), blur=0.003), canvas.area(outline, blur=0.003)
    whole = whole * (1 - np.maximum(chest.heart, chest.mediastinum))
    free = np.clip(whole - left, 0, 1)
    chest.air = chest.air * (1 - 0.22 * left * whole) * (1 - free) + 1.2 * free
    chest.vessels = chest.vessels * (1 - free)
    wall = outline[: outline.index(lung.diaphragm[0])]
    chest.dense += 0.12 * whole * canvas.lines([(wall, 0.006)], blur=0.0015)
    return [free]


def draw_lesion(chest: Chest, rng: np.random.Generator, strength: float) -> Masks:
    masks = []
    for down in np.linspace(0.28, 0.75, 3)[: int(rng.integers(1, 4))]:  # apart, lest two look like a snowman
        lung = pick_lungs(chest, rng, both=0.0)[0]
        at, size = lung.point(rng.uniform(0.5, 0.8), rng.normal(down, 0.03)), rng.uniform(0.03, 0.055)
        ragged = 0.06 * chest.canvas.noise(rng, 0.02)
        nodule = chest.canvas.blob(*at, size, size * rng.uniform(0.85, 1.1), edge=0.45, ragged=ragged)
        masks.append(chest.fill(nodule, 0.8 * strength))
        chest.dense += 0.05 * nodule
    return masks


def draw_devices(chest: Chest, rng: np.random.Generator, strength: float) -> Masks:
    """A pacemaker or monitoring electrodes, and tubes, a venous line or the wires of a closed breastbone."""
    canvas, lateral, wires, metal = chest.canvas, chest.lateral, [], np.zeros_like(chest.air)
    kind, extra, (shift_x, shift_y) = rng.random(), rng.random(), rng.normal(0, 0.012, 2)
    if kind < 0.5:
        at = (0.25 + shift_x, 0.27 + shift_y) if lateral else (0.76 + shift_x, 0.26 + shift_y)
        way = shape("36,20 45,22 47,35 45,50" if lateral else "66,19 54,20 46.5,30 45.5,50")
        # In the right atrium and the right ventricle.
        ends = ("44,56", "47,58 36,64") if lateral else ("47,58", "53,66 60,66.5")
        wires += [([at, *way, *shape(end)], 0.0065) for end in ends]
        box = shape("-5,-3.5 3,-4.5 5.5,0 2,4.5 -4.5,4", at=at, scale=(0.7 if lateral else 1, 1))
        metal = 0.55 * canvas.area(box, blur=0.002)
    if kind > 0.4:
        spots = shape("24,30 19,45 20,62" if lateral else "24,30 77,32 72,62 29,66", at=(shift_x, shift_y))
        for x, y in spots[: int(rng.integers(3, 5))]:
            metal = np.maximum(metal, 0.4 * canvas.blob(x, y, 0.02, 0.02, edge=0.2))
            wires.append(([*shape("0,0 6,7 2,20", at=(x, y)), (0.62, 1.02)], 0.0055))
    if lateral or extra < 0.35:
        loops = shape("28,27 26,33 24,39 22,45 20,51" if lateral else "50,27 50,34.5 50,42 50,49.5 50,57")
        wires += [(shape("-1.6,0 0,-1.2 1.6,0 0,1.2 -1.4,.2", at=loop), 0.005) for loop in loops]
    elif extra < 0.7:  # breathing tube and feeding tube
        wires.append((shape("50.5,-10 50,10 50.3,27"), 0.012))
        wires.append((shape("51.5,-10 51.5,30 52,60 56,78 63,85"), 0.007))
    else:  # central venous line
        wires.append((shape("36,-5 39,8 42,17 45.2,26 45.8,43"), 0.008))
    metal = np.maximum(metal, 0.30 * canvas.lines(wires, blur=0.001))
    chest.dense += metal
    return [metal]


def draw_fracture(chest: Chest, rng: np.random.Generator, strength: float) -> Masks:
    """Two or three neighbouring ribs broken in a row: a dark gap, and callus about it."""
    count, first, side = int(rng.integers(2, 4)), int(rng.integers(2, 5)), int(rng.integers(2))
    gaps, callus = [], np.zeros_like(chest.air)
    for index in range(first, first + count):
        x, y = smooth_curve(chest.ribs[10 * side + index])[rng.integers(19, 23)]
        gaps.append((shape("-.6,-2.2 .6,2.2", at=(x, y)), 0.007))
        callus = np.maximum(callus, chest.canvas.blob(x, y, 0.03, 0.024, edge=0.7))
    chest.dense += 0.17 * callus - 0.16 * chest.canvas.lines(gaps, blur=0.0015, curved=False)
    return [callus]


def draw_pleural_other(chest: Chest, rng: np.random.Generator, strength: float) -> Masks:
    """Thickened pleura along the outer wall, with plaques of calcium."""
    lung = pick_lungs(chest, rng, both=0.0)[0]
    downs, depth = np.linspace(0.2, 0.92, 9), rng.uniform(0.10, 0.16)
    inner = [lung.point(1 - depth * rng.uniform(0.7, 1.15), down) for down in downs]
    outer = [lung.point(1.04, down) for down in downs[::-1]]
    mask = chest.fill(chest.canvas.area(inner + outer, blur=0.004), 0.8)
    chest.dense += 0.12 * mask * np.clip(chest.canvas.noise(rng, 0.03), 0, 1)
    return [mask]


def outline_heart(chest: Chest, rng: np.random.Generator, strength: float) -> Masks:
    return [chest.heart]  # already drawn large


def outline_mediastinum(chest: Chest, rng: np.random.Generator, strength: float) -> Masks:
    return [chest.mediastinum]


# Finding -> how often it is the main one of an abnormal study (effusion leads: it is a task), and how to draw
# it. In drawing order: what replaces air comes before what lies over it.
FINDINGS: dict[str, tuple[float, Callable[[Chest, np.random.Generator, float], Masks]]] = {
    "Cardiomegaly": (0.10, outline_heart),
    "Enlarged Cardiomediastinum": (0.02, outline_mediastinum),
    "Edema": (0.09, draw_edema),
    "Lung Opacity": (0.08, draw_opacity),
    "Pneumonia": (0.08, draw_pneumonia),
    "Consolidation": (0.06, draw_consolidation),
    "Lung Lesion": (0.04, draw_lesion),
    "Atelectasis": (0.11, draw_atelectasis),
    "Pneumothorax": (0.05, draw_pneumothorax),
    "Pleural Other": (0.01, draw_pleural_other),
    "Pleural Effusion": (0.32, draw_effusion),
    "Fracture": (0.01, draw_fracture),
    "Support Devices": (0.03, draw_devices),
}


# --- Exposure and files


def bounding_box(mask: np.ndarray) -> list[float]:
    """[x0, y0, x1, y1] in fractions of the width and height."""
    rows, columns = (np.flatnonzero((mask > 0.35 * mask.max()).any(axis=axis)) for axis in (1, 0))
    height, width = mask.shape
    edges = columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height
    return [round(float(edge), 4) for edge in edges]


def draw_marker(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> np.ndarray:
    """The technologist's lead letter: L beside the patient's left, which is the image's right."""
    letters = {
        "L": [[(0, 0), (0, 1), (0.6, 1)]],
        "R": [[(0, 1), (0, 0), (0.45, 0.05), (0.55, 0.27), (0.4, 0.5), (0, 0.5)], [(0.3, 0.5), (0.6, 1)]],
    }
    letter = "L" if chest.lateral or rng.random() < 0.75 else "R"
    size, turn = rng.uniform(0.035, 0.05), rng.normal(0, 0.12)
    corner = rng.uniform(0.88, 0.93) if letter == "L" else rng.uniform(0.04, 0.09), rng.uniform(0.03, 0.08)
    x, y = canvas.to_body(np.array(corner) * (canvas.width, canvas.height))
    strokes = [
        ([(x + size * (a - turn * b), y + size * (b + turn * a)) for a, b in s], 0.009)
        for s in letters[letter]
    ]
    return canvas.lines(strokes, blur=0.0008, curved=False)


def expose(chest: Chest, rng: np.random.Generator, *, hard: bool) -> np.ndarray:
    """Film: attenuation to gray, partly equalised like the published JPEGs. (height, width) in 0..1"""
    canvas = chest.canvas
    scatter = rng.uniform(0.42, 0.5) if hard else rng.uniform(0.46, 0.56)  # how black the lungs come out
    beam = chest.tissue - scatter * chest.air + 0.9 * (chest.bone + chest.dense)
    beam += 0.085 * (chest.vessels + 0.3 * canvas.noise(rng, 0.012)) * np.clip(chest.air * 1.6, 0, 1)
    beam += 0.02 * canvas.noise(rng, 0.25)
    beam = (1 - np.exp(-1.8 * np.maximum(beam, 0))) * (1 + rng.normal(0, 0.04) * (canvas.x - 0.5))
    low, high = np.percentile(beam, [1, 99.5])
    histogram, edges = np.histogram(beam, bins=512, range=(float(low), float(high)))
    ranks = np.cumsum(histogram) / beam.size
    equalised = np.interp(beam, edges[1:], ranks)
    linear = np.clip((beam - low) / (high - low), 0, 1) ** rng.uniform(0.95, 1.25)
    weight = rng.uniform(0.3, 0.5)
    gray = (1 - weight) * linear + weight * equalised * np.clip(linear * 6, 0, 1)
    gray = np.maximum(gray, 0.97 * draw_marker(canvas, chest, rng))
    return gray * rng.uniform(0.9, 0.98) + rng.uniform(0.0, 0.03)


def patient_traits(study: Study, *, seed: int) -> dict[str, float]:
    """The patient's build, in body coordinates or as factors, with what the study's findings change in it."""
    rng, study_rng = (
        random_generator(seed, PATIENT, study.patient),
        random_generator(seed, STUDY, study.number, 1),
    )
    traits = {
        "broad": rng.uniform(0.93, 1.07),
        "base": rng.uniform(0.655, 0.735),  # y of the diaphragm
        "flank": rng.uniform(0.40, 0.46),
        "slope": rng.uniform(-0.02, 0.03),
        "breasts": float(rng.choice([0.0, rng.uniform(0.015, 0.05)])),
        "heart": rng.uniform(0.88, 1.04),
        "mediastinum": rng.uniform(0.9, 1.08),
    }
    if "Cardiomegaly" in study.drawn:
        traits["heart"] *= study_rng.uniform(1.4, 1.7)
    if "Enlarged Cardiomediastinum" in study.drawn:
        traits["mediastinum"] *= study_rng.uniform(1.7, 2.1)
    return traits


def draw_image(planned: PlannedImage, *, seed: int) -> tuple[Image.Image, list[dict]]:
    """The image, and where in it each finding is: [{"finding": ..., "box": [x0, y0, x1, y1]}, ...]."""
    study, view = planned.study, planned.view
    rng = random_generator(seed, IMAGE, planned.number)
    traits = patient_traits(study, seed=seed) | {"bedside": float(view != "PA")}
    shrink = max(1.0, min(planned.height, planned.width) / MAX_DRAWN_SIDE)
    size = round(planned.height / shrink), round(planned.width / shrink)
    lateral = view in LATERAL_VIEWS or (not view and planned.number % 2 == 0)
    canvas = Canvas(*size, rng, unrest=0.8 if view == "PA" else 1.3)
    chest = (draw_lateral if lateral else draw_frontal)(canvas, traits, rng)
    boxes = []
    for order, (finding, (_, draw)) in enumerate(FINDINGS.items()):
        strength = study.drawn.get(finding, 0.0)
        masks = (
            draw(chest, random_generator(seed, STUDY, study.number, 2 + order), strength) if strength else []
        )
        boxes += [{"finding": finding, "box": bounding_box(mask)} for mask in masks if strength > 0.5]
    gray = expose(chest, rng, hard=view == "AP") * 255
    if shrink > 1:
        small = Image.fromarray(gray.astype(np.float32))
        gray = np.asarray(small.resize((planned.width, planned.height), Image.Resampling.BICUBIC))
    gray = gray + rng.normal(0, 2.2 if view == "PA" else 3.0, gray.shape)
    return Image.fromarray(np.clip(gray, 0, 255).astype(np.uint8)), boxes


def write_image(planned: PlannedImage, *, root: Path, seed: int) -> tuple[str, list[dict]]:
    image, boxes = draw_image(planned, seed=seed)
    path = root / planned.path
    path.parent.mkdir(parents=True, exist_ok=True)
    full_size = min(image.size) > MAX_DRAWN_SIDE
    image.save(path, quality=95 if full_size else 92)  # at 95 as heavy as the published ones: 1.5 MB
    return planned.dicom_id, boxes


def write_gzip(path: Path, text: str) -> None:
    """Without name and time, so that equal text makes equal bytes."""
    with path.open("wb") as file, gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as compressed:
        compressed.write(text.encode("utf-8"))


def write_table(path: Path, columns: tuple[str, ...], rows: list[tuple]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *rows])
    write_gzip(path, text.getvalue())


def write_tables(root: Path, images: list[PlannedImage], *, seed: int) -> None:
    """The four tables that MIMIC-CXR-JPG comes with, sorted as they are."""
    metadata, splits, studies = [], [], {}
    order = sorted(images, key=lambda image: (image.study.subject_id, image.study.study_id, image.dicom_id))
    for image in order:
        study = image.study
        studies[study.study_id] = study
        procedure = "CHEST (PORTABLE AP)" if image.view == "AP" else "CHEST (PA AND LAT)"
        rng = random_generator(seed, STUDY, study.number, 99)
        date = f"{rng.integers(2110, 2200)}{rng.integers(1, 13):02}{rng.integers(1, 29):02}"
        time = f"{rng.integers(24):02}{rng.integers(60):02}{rng.integers(60):02}.{rng.integers(1, 999):03}"
        meaning, position = VIEW_MEANINGS.get(image.view, ""), "Erect" if image.view else ""
        key = (image.dicom_id, study.subject_id, study.study_id)
        shape = (image.height, image.width)
        metadata.append((*key, procedure, image.view, *shape, date, time, procedure, meaning, position))
        splits.append((image.dicom_id, study.study_id, study.subject_id, study.split))
    write_table(root / "mimic-cxr-2.0.0-metadata.csv.gz", METADATA_COLUMNS, metadata)
    columns = ("dicom_id", "study_id", "subject_id", "split")
    write_table(root / "mimic-cxr-2.0.0-split.csv.gz", columns, splits)
    for labeler in ("negbio", "chexpert"):
        rows = [
            (study.subject_id, study.study_id, *getattr(study, labeler).values())
            for study in studies.values()
            if getattr(study, labeler)
        ]
        write_table(root / f"mimic-cxr-2.0.0-{labeler}.csv.gz", ("subject_id", "study_id", *LABELS), rows)


def ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle


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
            pool.shutdown(cancel_futures=True)  # else Ctrl-C waits for all the images
            raise


def make_sample_data(
    output_dir: str | Path, *, num_images: int = 600, image_size: int = 256, seed: int = 0, num_proc: int = 1
) -> Path:
    """Writes the tree and returns its folder, which appears only once it is complete.

    `image_size` is the shortest side in pixels. Raises FileExistsError for a folder with something in it,
    unless another process puts the very same sample there while this one draws. With `num_proc` > 1,
    processes are spawned, so the calling script needs its `if __name__ == "__main__":`.
    """
    output_dir = Path(output_dir).absolute()
    if num_images < MIN_NUM_IMAGES or image_size < MIN_IMAGE_SIZE:
        found = f"num_images={num_images} and image_size={image_size}"
        raise ValueError(f"{found}: at least {MIN_NUM_IMAGES} images of {MIN_IMAGE_SIZE} pixels are needed")
    occupied = FileExistsError(f"{output_dir} is not an empty folder: name a new one, or remove it first")
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise occupied
    images = plan_images(num_images, image_size=image_size, seed=seed)
    readme = README.format(num_images=num_images, image_size=image_size, seed=seed)
    root = output_dir.parent / f".{output_dir.name}.incomplete-{uuid.uuid4().hex[:8]}"
    try:
        root.mkdir(parents=True)
        boxes = write_images(root, images, seed=seed, num_proc=num_proc)
        write_tables(root, images, seed=seed)
        write_gzip(root / "sample-findings.json.gz", json.dumps(boxes, indent=1, sort_keys=True) + "\n")
        (root / "README.txt").write_text(readme, encoding="utf-8")
        publish(root, output_dir, occupied=occupied)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return output_dir


def publish(root: Path, output_dir: Path, *, occupied: FileExistsError) -> None:
    """Gives a complete folder its final name, unless another process was quicker with the same sample."""
    try:
        if output_dir.exists():
            output_dir.rmdir()
        root.rename(output_dir)
    except OSError as error:
        theirs, ours = output_dir / "README.txt", root / "README.txt"
        if not theirs.is_file() or theirs.read_bytes() != ours.read_bytes():
            raise occupied from error


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(__doc__, usage="OUTPUT_DIR [flags]")
    parser.add_argument("output_dir", type=Path, help="a folder that is new or empty")
    parser.add_argument("--num_images", type=positive_int, default=600)
    parser.add_argument("--image_size", type=positive_int, default=256, help="shortest side in pixels")
    parser.add_argument("--seed", type=seed_number, default=0)
    parser.add_argument(
        "--num_proc", type=positive_int, default=os.cpu_count() or 1, help="all cores by default"
    )
    args = parser.parse_args(argv)
    try:
        root = make_sample_data(**vars(args))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"Wrote {args.num_images} synthetic chest radiographs to {root}. Now try:")
    print(f"python {Path(__file__).parent / 'run_classification.py'} --data_dir {root}")


if __name__ == "__main__":
    main()
