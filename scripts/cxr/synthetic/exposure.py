"""Draws a planned image: chest, findings and exposure on film."""

import numpy as np
from PIL import Image

from cxr.synthetic.anatomy import Chest
from cxr.synthetic.anatomy import draw_frontal
from cxr.synthetic.anatomy import draw_lateral
from cxr.synthetic.canvas import Canvas
from cxr.synthetic.findings import DRAW
from cxr.synthetic.plan import FINDING_WEIGHTS
from cxr.synthetic.plan import IMAGE
from cxr.synthetic.plan import LATERAL_VIEWS
from cxr.synthetic.plan import PATIENT
from cxr.synthetic.plan import STUDY
from cxr.synthetic.plan import PlannedImage
from cxr.synthetic.plan import Study
from cxr.synthetic.plan import random_generator

MAX_DRAWN_SIDE = 768  # pixels; larger images are drawn at this size and enlarged, as the shapes are soft


def bounding_box(mask: np.ndarray) -> list[float]:
    """Returns [x0, y0, x1, y1] as fractions of the width and height."""
    rows, columns = (np.flatnonzero((mask > 0.35 * mask.max()).any(axis=axis)) for axis in (1, 0))
    height, width = mask.shape
    edges = columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height
    return [round(float(edge), 4) for edge in edges]


def draw_marker(canvas: Canvas, chest: Chest, rng: np.random.Generator) -> np.ndarray:
    """Draws the side marker: L at the patient's left, which is the right of the image, or R opposite."""
    letters = {
        "L": [[(0, 0), (0, 1), (0.6, 1)]],
        "R": [[(0, 1), (0, 0), (0.45, 0.05), (0.55, 0.27), (0.4, 0.5), (0, 0.5)], [(0.3, 0.5), (0.6, 1)]],
    }
    letter = "L" if chest.lateral or rng.random() < 0.75 else "R"
    size, turn = rng.uniform(0.035, 0.05), rng.normal(0, 0.12)
    corner = rng.uniform(0.88, 0.93) if letter == "L" else rng.uniform(0.04, 0.09), rng.uniform(0.03, 0.08)
    x, y = canvas.to_body(np.array(corner) * (canvas.width, canvas.height))
    strokes = []
    for points in letters[letter]:
        turned = [(x + size * (a - turn * b), y + size * (b + turn * a)) for a, b in points]
        strokes.append((turned, 0.009))
    return canvas.lines(strokes, blur=0.0008, curved=False)


def expose(chest: Chest, rng: np.random.Generator, *, hard: bool) -> np.ndarray:
    """Turns attenuation into gray (height, width) in 0..1, partly equalised like the published JPEGs."""
    canvas = chest.canvas
    scatter = rng.uniform(0.42, 0.5) if hard else rng.uniform(0.46, 0.56)  # sets how black the lungs are
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
    """Returns the patient's build, in body coordinates or as factors, changed by the study's findings."""
    rng = random_generator(seed, PATIENT, study.patient)
    study_rng = random_generator(seed, STUDY, study.number, 1)
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
    """Returns the image and the box of each finding: [{"finding": ..., "box": [x0, y0, x1, y1]}, ...]."""
    study, view = planned.study, planned.view
    rng = random_generator(seed, IMAGE, planned.number)
    traits = patient_traits(study, seed=seed) | {"bedside": float(view != "PA")}
    shrink = max(1.0, min(planned.height, planned.width) / MAX_DRAWN_SIDE)
    size = round(planned.height / shrink), round(planned.width / shrink)
    lateral = view in LATERAL_VIEWS or (not view and planned.number % 2 == 0)
    canvas = Canvas(*size, rng, unrest=0.8 if view == "PA" else 1.3)
    chest = (draw_lateral if lateral else draw_frontal)(canvas, traits, rng)
    boxes = []
    for order, finding in enumerate(FINDING_WEIGHTS):
        if strength := study.drawn.get(finding, 0.0):
            masks = DRAW[finding](chest, random_generator(seed, STUDY, study.number, 2 + order), strength)
            boxes += [{"finding": finding, "box": bounding_box(mask)} for mask in masks if strength > 0.5]
    gray = expose(chest, rng, hard=view == "AP") * 255
    if shrink > 1:
        small = Image.fromarray(gray.astype(np.float32))
        gray = np.asarray(small.resize((planned.width, planned.height), Image.Resampling.BICUBIC))
    gray = gray + rng.normal(0, 2.2 if view == "PA" else 3.0, gray.shape)
    return Image.fromarray(np.clip(gray, 0, 255).astype(np.uint8)), boxes
