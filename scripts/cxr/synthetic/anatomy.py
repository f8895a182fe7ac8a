"""Draws a chest without findings, in frontal and lateral view, as layers of tissue, air and bone."""

import math
from dataclasses import dataclass

import numpy as np

from cxr.synthetic.canvas import Canvas
from cxr.synthetic.canvas import Point
from cxr.synthetic.canvas import Points
from cxr.synthetic.canvas import Strokes
from cxr.synthetic.canvas import shape


@dataclass(frozen=True, kw_only=True)
class Lung:
    """One lung (in lateral view: both) between an inner and an outer wall; `side` points outwards."""

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
        """Returns the point at a position from 0 (inner wall, apex) to 1 (outer wall, costophrenic angle)."""
        y = self.ys[0] + down * (self.bottom - self.ys[0])
        inner, outer = np.interp(y, self.ys, self.inner), np.interp(y, self.ys, self.outer)
        return float(inner + across * (outer - inner)), y

    def outline(self, *, collapsed: float = 0.0) -> Points:
        """Returns the outline, from the apex down the outer wall, which is moved inwards by `collapsed`."""
        wall = zip(self.outer - self.side * collapsed, np.array(self.ys) + collapsed)
        wall = [(x, y) for x, y in wall if y < self.bottom - 0.02 - collapsed / 2]
        inner = [(x, y) for x, y in zip(self.inner, self.ys) if wall[0][1] <= y < self.diaphragm[-1][1]]
        return [*wall, *self.diaphragm, *inner[::-1]]


@dataclass(kw_only=True)
class Chest:
    """The layers of an image while it is drawn, each (height, width)."""

    canvas: Canvas
    lungs: list[Lung]
    ribs: list[Points]
    tissue: np.ndarray
    air: np.ndarray  # 1: the beam passes through a whole lung of air
    bone: np.ndarray
    vessels: np.ndarray
    heart: np.ndarray
    mediastinum: np.ndarray
    lateral: bool
    dense: np.ndarray | float = 0.0  # metal, calcium and fine lines, added by findings

    def fill(self, mask: np.ndarray, opacity: float) -> np.ndarray:
        """Replaces air by fluid; returns the mask of the changed region."""
        where = mask * np.clip(self.air * 3, 0, 1)
        self.air = self.air * (1 - opacity * mask)
        self.bone = self.bone * (1 - 0.5 * opacity * mask)  # bone has less contrast against white
        return where


def both_sides(text: str, *, lift: float = 0.0, broad: float = 1.0) -> list[Points]:
    """Returns a shape, given by distances from the midline, on the left and on the right of the image."""
    return [shape(text, at=(0.5, lift), scale=(side * broad, 1)) for side in (-1, 1)]


def branch_vessels(lung: Lung, angles: np.ndarray, rng: np.random.Generator) -> Strokes:
    """Draws pulmonary vessels, which fork three times on their way from the hilum."""
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
    """Draws bones with a cortex: brighter along both edges than inside."""
    inside = canvas.lines([(bone, width * 0.55) for bone in bones], blur=blur)
    return canvas.lines([(bone, width) for bone in bones], blur=blur) - 0.55 * inside


def draw_gas(canvas: Canvas, rng: np.random.Generator, x: float, y: float) -> np.ndarray:
    """Returns how much the air in stomach and bowel reduces the tissue."""
    radius = rng.uniform(0.04, 0.075)
    bubble = canvas.blob(x, y, radius, 0.03, edge=0.4, ragged=0.12 * canvas.noise(rng, 0.05))
    loops = np.clip(canvas.noise(rng, 0.07) - 0.5, 0, 1) * np.clip((canvas.y - y - 0.1) / 0.1, 0, 1)
    return 0.18 * (rng.random() < 0.6) * bubble + 0.08 * loops


def frontal_tissue(
    canvas: Canvas, traits: dict[str, float], base: float, rng: np.random.Generator
) -> np.ndarray:
    """Draws trunk, neck and arms, thicker in the middle and below the diaphragm."""
    broad, slope = traits["broad"], traits["slope"]
    flank, trunk = broad * traits["flank"], []
    for side in (1, -1):
        neck = shape("0,-20 10.5,-20 10,0 12.5,6 22,11 36,14 46,22", at=(0.5, slope), scale=(side, 1))
        half = neck + shape("6,36 0,50 0,75 1.5,130", at=(0.5 + side * flank, 0), scale=(side, 1))
        trunk += half[::side]  # downwards on one side, upwards on the other
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
    """Returns the ribs behind the lung (from the spine, outwards) and before it (inwards); all slope down."""
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
    # With hands on the hips, the shoulder blades move off the lungs; in bed they do not.
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
    """Draws a frontal view, the patient's right on the left; bedside (AP): wider heart, higher diaphragm."""
    broad, bedside = traits["broad"], traits["bedside"]
    base = traits["base"] - 0.035 * bedside + rng.normal(0, 0.012)
    ys = (0.13, 0.15, 0.19, 0.27, 0.36, 0.46, 0.56, 0.66, 0.76, 0.90)
    cage = broad * np.array([0.125, 0.165, 0.215, 0.277, 0.318, 0.346, 0.364, 0.374, 0.378, 0.37])
    lungs = []
    for side, hilum in ((-1, (0.425, 0.41)), (1, (0.585, 0.395))):
        low = base + 0.028 * (side == 1)  # the liver raises the diaphragm on the other side
        wall = side * float(np.interp(low + 0.075, ys, cage))
        dome = shape("100,7.5 93,3.5 78,.4 57,0 34,2.2 20,5 12,6", at=(0.5, low), scale=(wall, 1))
        inner, outer = 0.5 + side * np.array([0.085, 0.055, *[0.045] * 8]), 0.5 + side * cage
        lungs.append(Lung(side=side, ys=ys, inner=inner, outer=outer, diaphragm=dome, hilum=hilum))

    # Heart and great vessels are in front of the air; the aortic knob is on the right of the image.
    size, wide = (traits[name] * (1 + 0.09 * bedside) for name in ("heart", "mediastinum"))
    outline = "-4.5,12 -7.6,30 -8.8,54 -8,88 -4,101 6,104 13.5,101 16.5,89 15.3,73 11.8,42 8.5,20 5,0"
    heart = canvas.area(shape(outline, at=(0.5, 0.36), scale=(size, base - 0.29)), blur=0.006)
    column = both_sides("7,0 5.5,12 5.2,25 6,36 6,42 0,50", broad=wide)
    knob = "-3,0 -2,-3 0,-4 2.5,-3 3.4,0 2.5,3 0,4 -2,3"
    knob = shape(knob, at=(0.5 + 0.05 * wide, 0.295), scale=(wide, 1))
    mediastinum = canvas.area(column[0] + column[1][::-1], knob, blur=0.006)
    middle = np.maximum(0.86 * heart, 0.93 * mediastinum)
    outlines = [lung.outline() for lung in lungs]
    air = canvas.area(*outlines, blur=0.004) * (0.45 + 0.55 * canvas.area(*outlines, blur=0.035))
    air *= 1 - middle
    airways = [(shape("50,-10 50,10 50.3,30"), 0.036), (shape("50,29 47,34.5 44,38"), 0.02)]
    air += 0.3 * canvas.lines([*airways, (shape("50.5,29 54,35 57.5,37"), 0.017)], blur=0.005)
    tissue = frontal_tissue(canvas, traits, base, rng)
    tissue += np.maximum(0.13 * heart, 0.10 * mediastinum * np.clip((canvas.y - 0.1) / 0.1, 0, 1))

    (left_ribs, left_front), (right_ribs, right_front) = (frontal_ribs(lung, base) for lung in lungs)
    bone = 0.15 * draw_bones(canvas, left_ribs + right_ribs, 0.023, blur=0.0022)
    bone += 0.07 * draw_bones(canvas, left_front + right_front, 0.023, blur=0.003)
    bone = bone * (1 - 0.7 * middle) + frontal_shoulders_and_spine(canvas, traits, rng)
    bone *= 1 - 0.6 * np.clip((canvas.y - base) / 0.07, 0, 1)  # scatter of the abdomen hides detail

    directions = np.array([-0.05, 0.35, 0.8, 1.3, 1.8, 2.25, 2.7, 3.05])  # 0 is upwards, then outwards
    strokes = [branch_vessels(lung, lung.side * directions - np.pi / 2, rng) for lung in lungs]
    hila = [(shape(f"0,-5 {lung.side * 1.2},0 0,6", at=lung.hilum), 0.03) for lung in lungs]
    vessels = canvas.lines(strokes[0] + strokes[1], blur=0.002, curved=False) + canvas.lines(hila, blur=0.01)
    layers = {"tissue": tissue, "air": air, "bone": bone, "vessels": vessels, "heart": heart}
    layers["mediastinum"] = mediastinum * (canvas.y > 0.1) * (canvas.y < 0.48)
    return Chest(canvas=canvas, lateral=False, lungs=lungs, ribs=left_ribs + right_ribs, **layers)


def draw_lateral(canvas: Canvas, traits: dict[str, float], rng: np.random.Generator) -> Chest:
    """Draws a lateral view; the patient faces left: breastbone on the left, spine on the right."""
    base, size, wide, belly = (traits[name] for name in ("base", "heart", "mediastinum", "flank"))
    ys = (0.12, 0.16, 0.22, 0.32, 0.45, 0.58, 0.70, 0.80, 0.95)
    front = np.array([0.47, 0.42, 0.345, 0.27, 0.225, 0.215, 0.225, 0.24, 0.25])
    back = np.array([0.60, 0.665, 0.725, 0.785, 0.82, 0.83, 0.82, 0.80, 0.76])
    dome = "80,12 74,4.5 62,-2 47,-4.5 34,-3 25.5,1 22.2,3.5"
    domes = [shape(dome, at=(0, base - lift)) for lift in (0.0, 0.03)]  # the dome over the liver is higher
    lungs = [Lung(side=1, ys=ys, inner=front, outer=back, diaphragm=d, hilum=(0.53, 0.40)) for d in domes]
    chest_wall = f"36,-20 37,2 30,12 22,22 16.5,34 {14 - 60 * traits['breasts']},50 15.5,64"
    belly_wall = shape("15,80 13,130", at=(0.4 - belly, 0))
    trunk = shape(chest_wall) + belly_wall + shape("88,130 88.5,80 91,55 90,33 83,16 70,4 66,-20")
    body = canvas.area(trunk, blur=0.005)
    tissue = body * (0.36 + 0.34 * canvas.area(trunk, blur=0.06))
    tissue += 0.28 * body * np.exp(-((np.clip(canvas.y - 0.05, 0, 1) / 0.12) ** 2))  # shoulders, raised arms
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
    for shift in (0.0, 0.018):  # ribs of the near and the far side do not overlap exactly
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
