"""Draws soft shapes in body coordinates, the parts of synthetic radiographs."""

import math

import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFilter

Point = tuple[float, float]
Points = list[Point]
Strokes = list[tuple[Points, float]]  # (points, width)
Masks = list[np.ndarray]


def smooth_curve(points: Points, *, closed: bool = False) -> np.ndarray:
    """Returns a Catmull-Rom curve (N, 2) through the points, with eight steps from one to the next."""
    p = np.asarray(points, dtype=np.float64)
    p = np.concatenate([p[-1:], p, p[:2]] if closed else [2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    t = np.linspace(0, 1, 8, endpoint=False)[None, :, None]
    p0, p1, p2, p3 = (p[i : len(p) - 3 + i, None] for i in range(4))
    curve = p1 + 0.5 * t * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, p[-2:-1]])


class Canvas:
    """Draws masks, (height, width) in 0..1, of shapes in body coordinates.

    In body coordinates, x and y go from 0 to 1 over the shortest side; the midline of the body is x = 0.5.
    Each image has its own small rotation, shift and zoom.
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
            joint = "curve" if width > 4 else None  # slow, and invisible on thin lines
            draw.line(list(map(tuple, pixels.tolist())), fill=255, width=width, joint=joint)
        return self.finish(image, blur)

    def blob(
        self, x: float, y: float, radius_x: float, radius_y: float, *, edge: float, ragged=0.0
    ) -> np.ndarray:
        """Draws an ellipse with an edge of width `edge` times its radius; `ragged` is added to the radius."""
        distance = np.hypot((self.x - x) / radius_x, (self.y - y) / radius_y) + ragged
        return np.clip((1 - distance) / edge + 0.5, 0, 1)

    def noise(self, rng: np.random.Generator, grain: float) -> np.ndarray:
        """Returns smooth noise with a standard deviation of about 0.7 and grains of width `grain`."""
        shape = [max(4, round(side / self.unit / grain)) for side in (self.height, self.width)]
        small = Image.fromarray(rng.standard_normal(shape, dtype=np.float32))
        return np.asarray(small.resize((self.width, self.height), Image.Resampling.BICUBIC))


def shape(text: str, *, at: Point = (0.0, 0.0), scale: Point = (1.0, 1.0)) -> Points:
    """Parses points "x,y x,y ..." in hundredths of body coordinates; scales them and moves them to `at`."""
    pairs = (pair.split(",") for pair in text.split())
    return [(at[0] + scale[0] * float(x) / 100, at[1] + scale[1] * float(y) / 100) for x, y in pairs]
