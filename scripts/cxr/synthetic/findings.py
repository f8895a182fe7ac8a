"""Draws findings: each function changes the chest and returns the masks of what it drew."""

from collections.abc import Callable

import numpy as np

from cxr.synthetic.anatomy import Chest
from cxr.synthetic.anatomy import Lung
from cxr.synthetic.anatomy import branch_vessels
from cxr.synthetic.canvas import Masks
from cxr.synthetic.canvas import Point
from cxr.synthetic.canvas import shape
from cxr.synthetic.canvas import smooth_curve


def pick_lungs(chest: Chest, rng: np.random.Generator, *, both: float) -> list[Lung]:
    choice, first = rng.random(), int(rng.integers(2))  # always drawn, so that all views of a study agree
    return chest.lungs if choice < both else [chest.lungs[first % len(chest.lungs)]]


def draw_patch(chest: Chest, rng: np.random.Generator, at: Point, size: float, opacity: float) -> np.ndarray:
    """Draws a cloudy opacity with ragged edges, as in pneumonia."""
    ragged = 0.28 * chest.canvas.noise(rng, 0.05) + 0.12 * chest.canvas.noise(rng, 0.02)
    patch = chest.canvas.blob(*at, size * rng.uniform(0.85, 1.2), size, edge=0.7, ragged=ragged)
    return chest.fill(patch, opacity)


def draw_effusion(chest: Chest, rng: np.random.Generator, strength: float) -> Masks:
    """Draws fluid above the diaphragm whose surface rises along the outer wall: the meniscus."""
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
    """Draws a lobe without air except in its bronchi; its lower edge is the straight fissure."""
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
    """Draws plates across the base of a lung, which has lost air."""
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
    """Draws perihilar haze (bat wings), wide vessels, and short lines at the outer wall (Kerley B)."""
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
    """Draws black air without vessels between the wall and the fine line of the collapsed lung."""
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
    for down in np.linspace(0.28, 0.75, 3)[: int(rng.integers(1, 4))]:  # apart, so that none overlap
        lung = pick_lungs(chest, rng, both=0.0)[0]
        at, size = lung.point(rng.uniform(0.5, 0.8), rng.normal(down, 0.03)), rng.uniform(0.03, 0.055)
        ragged = 0.06 * chest.canvas.noise(rng, 0.02)
        nodule = chest.canvas.blob(*at, size, size * rng.uniform(0.85, 1.1), edge=0.45, ragged=ragged)
        masks.append(chest.fill(nodule, 0.8 * strength))
        chest.dense += 0.05 * nodule
    return masks


def draw_devices(chest: Chest, rng: np.random.Generator, strength: float) -> Masks:
    """Draws a pacemaker or ECG electrodes, and tubes, a central venous line or sternal wires."""
    canvas, lateral, wires, metal = chest.canvas, chest.lateral, [], np.zeros_like(chest.air)
    kind, extra, (shift_x, shift_y) = rng.random(), rng.random(), rng.normal(0, 0.012, 2)
    if kind < 0.5:
        at = (0.25 + shift_x, 0.27 + shift_y) if lateral else (0.76 + shift_x, 0.26 + shift_y)
        way = shape("36,20 45,22 47,35 45,50" if lateral else "66,19 54,20 46.5,30 45.5,50")
        # The leads end in the right atrium and the right ventricle.
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
    elif extra < 0.7:  # endotracheal tube and feeding tube
        wires.append((shape("50.5,-10 50,10 50.3,27"), 0.012))
        wires.append((shape("51.5,-10 51.5,30 52,60 56,78 63,85"), 0.007))
    else:  # central venous line
        wires.append((shape("36,-5 39,8 42,17 45.2,26 45.8,43"), 0.008))
    metal = np.maximum(metal, 0.30 * canvas.lines(wires, blur=0.001))
    chest.dense += metal
    return [metal]


def draw_fracture(chest: Chest, rng: np.random.Generator, strength: float) -> Masks:
    """Draws fractures of two or three neighbouring ribs: a dark gap with callus around it."""
    count, first, side = int(rng.integers(2, 4)), int(rng.integers(2, 5)), int(rng.integers(2))
    gaps, callus = [], np.zeros_like(chest.air)
    for index in range(first, first + count):
        x, y = smooth_curve(chest.ribs[10 * side + index])[rng.integers(19, 23)]
        gaps.append((shape("-.6,-2.2 .6,2.2", at=(x, y)), 0.007))
        callus = np.maximum(callus, chest.canvas.blob(x, y, 0.03, 0.024, edge=0.7))
    chest.dense += 0.17 * callus - 0.16 * chest.canvas.lines(gaps, blur=0.0015, curved=False)
    return [callus]


def draw_pleural_other(chest: Chest, rng: np.random.Generator, strength: float) -> Masks:
    """Draws thickened pleura along the outer wall, with calcified plaques."""
    lung = pick_lungs(chest, rng, both=0.0)[0]
    downs, depth = np.linspace(0.2, 0.92, 9), rng.uniform(0.10, 0.16)
    inner = [lung.point(1 - depth * rng.uniform(0.7, 1.15), down) for down in downs]
    outer = [lung.point(1.04, down) for down in downs[::-1]]
    mask = chest.fill(chest.canvas.area(inner + outer, blur=0.004), 0.8)
    chest.dense += 0.12 * mask * np.clip(chest.canvas.noise(rng, 0.03), 0, 1)
    return [mask]


def outline_heart(chest: Chest, rng: np.random.Generator, strength: float) -> Masks:
    return [chest.heart]  # `patient_traits` has already enlarged it


def outline_mediastinum(chest: Chest, rng: np.random.Generator, strength: float) -> Masks:
    return [chest.mediastinum]


DRAW: dict[str, Callable[[Chest, np.random.Generator, float], Masks]] = {
    "Cardiomegaly": outline_heart,
    "Enlarged Cardiomediastinum": outline_mediastinum,
    "Edema": draw_edema,
    "Lung Opacity": draw_opacity,
    "Pneumonia": draw_pneumonia,
    "Consolidation": draw_consolidation,
    "Lung Lesion": draw_lesion,
    "Atelectasis": draw_atelectasis,
    "Pneumothorax": draw_pneumothorax,
    "Pleural Other": draw_pleural_other,
    "Pleural Effusion": draw_effusion,
    "Fracture": draw_fracture,
    "Support Devices": draw_devices,
}
