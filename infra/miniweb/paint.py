"""Draws a scene: flat, antialiased, every attribute visible. The same scene and size give the same pixels."""

from __future__ import annotations

import math
import random

import numpy as np
from PIL import Image, ImageDraw

from infra.miniweb.backdrops import paint_backdrop
from infra.miniweb.scenes import Place, Scene, places
from infra.miniweb.shapes import LAYERS, Layer

Rgb = tuple[int, int, int]

OVERSAMPLE = 2  # drawn twice as large and averaged down: that is the antialiasing
PALETTE: dict[str, Rgb] = {
    "red": (217, 45, 43),
    "orange": (243, 132, 28),
    "yellow": (250, 209, 45),
    "green": (58, 155, 70),
    "blue": (45, 105, 212),
    "purple": (131, 68, 184),
    "pink": (246, 142, 182),
    "brown": (132, 84, 47),
    "white": (249, 248, 243),
    "black": (44, 44, 51),
}
# Light tone of a texture; where the colour itself is light, a tone that keeps its name.
SECOND_TONE: dict[str, Rgb] = {"yellow": (255, 248, 214), "white": (196, 203, 216), "black": (150, 152, 162)}
FIXED: dict[str, Rgb] = {
    "white": (255, 255, 255),
    "ink": (52, 48, 56),
    "wood": (150, 104, 66),
    "leaf": (92, 158, 78),
    "gold": (247, 190, 62),
    "flame": (250, 158, 50),
    "glass": (196, 228, 244),
    "metal": (206, 210, 218),
    "cream": (246, 233, 209),
    "coffee": (104, 68, 46),
    "nose": (232, 128, 140),
}
BARE = {"white", "ink", "coffee", "nose", "vein", "whisker", "shine"}  # drawn without an outline


def draw(scene: Scene, width: int, height: int) -> Image.Image:
    """The scene as an RGB picture of that size in pixels."""
    rng = random.Random(scene.variant)
    canvas = paint_backdrop(scene.background, OVERSAMPLE * width, OVERSAMPLE * height, rng)
    shift = [rng.randint(-5, 5) for _ in range(3)]
    for place in places(scene, OVERSAMPLE * width, OVERSAMPLE * height):
        colour = tuple(max(0, min(255, c + d)) for c, d in zip(PALETTE[place.thing.colour], shift, strict=True))
        _Brush(canvas, place, colour).paint(LAYERS[place.thing.shape])  # type: ignore[arg-type]
    return canvas.reduce(OVERSAMPLE)


class _Brush:
    """Paints one object: layer by layer, each with an outline around the union of its polygons."""

    def __init__(self, canvas: Image.Image, place: Place, colour: Rgb) -> None:
        self.canvas = canvas
        self.pen = ImageDraw.Draw(canvas)
        self.place = place
        self.edge = max(2.0, 0.022 * place.side)
        second = SECOND_TONE.get(place.thing.colour) or _mix(colour, (255, 255, 255), 0.66)
        outline = _mix(colour, (20, 16, 24), 0.62)
        self.tones: dict[str, Rgb] = FIXED | {
            "body": colour,
            "second": second,
            "shade": _mix(colour, (20, 16, 34), 0.26) if place.thing.colour != "black" else (78, 78, 90),
            "tint": _mix(colour, (255, 255, 255), 0.42),
            "outline": outline,
            "vein": _mix(outline, colour, 0.25),
            "whisker": (240, 240, 240) if place.thing.colour == "black" else FIXED["ink"],
            "shine": _mix(colour, (255, 255, 255), 0.7),
        }

    def paint(self, layers: tuple[Layer, ...]) -> None:
        for layer in layers:
            polygons = [self._onto_canvas(polygon) for polygon in layer.polygons]
            if layer.line:
                self._lines(polygons, layer.role, layer.line * self.place.side)
            else:
                self._areas(polygons, layer.role)

    def _onto_canvas(self, polygon: np.ndarray) -> np.ndarray:
        """Unit square to canvas pixels: mirrored, tilted, scaled to stay inside the place's square."""
        place = self.place
        centred = (polygon - 0.5) * (-1 if place.mirrored else 1, 1)
        cos, sin = math.cos(math.radians(place.tilt)), math.sin(math.radians(place.tilt))
        scale = 0.9 * place.side  # a square tilted by 8 degrees is 1.12 times as wide
        turned = centred @ np.array([[cos, sin], [-sin, cos]])
        return turned * scale + (place.x, place.y)

    def _lines(self, polygons: list[np.ndarray], role: str, width: float) -> None:
        if role not in BARE:
            for points in polygons:
                self._line(points, self.tones["outline"], width + 2 * self.edge)
        for points in polygons:
            self._line(points, self.tones[role], width)

    def _line(self, points: np.ndarray, tone: Rgb, width: float) -> None:
        self.pen.line([tuple(p) for p in points.tolist()], fill=tone, width=max(2, round(width)), joint="curve")
        r = width / 2
        for x, y in (points[0], points[-1]):
            self.pen.ellipse((x - r, y - r, x + r, y + r), fill=tone)

    def _areas(self, polygons: list[np.ndarray], role: str) -> None:
        if role not in BARE:
            for points in polygons:
                closed = np.concatenate([points, points[:2]])
                self.pen.line([tuple(p) for p in closed.tolist()], self.tones["outline"], round(2 * self.edge), "curve")
        if role == "body" and self.place.thing.texture != "plain":
            self._textured(polygons)
            return
        for points in polygons:
            self.pen.polygon([tuple(p) for p in points.tolist()], fill=self.tones[role])

    def _textured(self, polygons: list[np.ndarray]) -> None:
        corner = np.floor(np.min([points.min(axis=0) for points in polygons], axis=0)).astype(int)
        far = np.ceil(np.max([points.max(axis=0) for points in polygons], axis=0)).astype(int) + 1
        size = (int(far[0] - corner[0]), int(far[1] - corner[1]))
        mask = Image.new("L", size)
        for points in polygons:
            ImageDraw.Draw(mask).polygon([tuple(p) for p in (points - corner).tolist()], fill=255)
        # The pattern starts at the object's own square, so that two layers of one object share it.
        origin = (self.place.x - self.place.side / 2 - corner[0], self.place.y - self.place.side / 2 - corner[1])
        self.canvas.paste(self._pattern(size, origin), (int(corner[0]), int(corner[1])), mask)

    def _pattern(self, size: tuple[int, int], origin: tuple[float, float]) -> Image.Image:
        tile = Image.new("RGB", size, self.tones["body"])
        pen, second, pitch = ImageDraw.Draw(tile), self.tones["second"], 0.15 * self.place.side
        reach = range(-1, int(self.place.side / pitch) + 2)
        ox, oy = origin
        if self.place.thing.texture == "striped":
            lean = 0.35 * self.place.side
            for n in range(-4, int(self.place.side / pitch) + 2):
                x = ox + n * pitch
                foot = oy + self.place.side
                pen.polygon([(x, oy), (x + pitch / 2, oy), (x + pitch / 2 + lean, foot), (x + lean, foot)], fill=second)
        elif self.place.thing.texture == "spotted":
            r = 0.3 * pitch
            for row in reach:
                for column in reach:
                    x, y = ox + (column + 0.5 * (row % 2)) * pitch, oy + row * 0.87 * pitch
                    pen.ellipse((x - r, y - r, x + r, y + r), fill=second)
        else:
            half = pitch / 1.6
            for row in range(-1, int(self.place.side / half) + 2):
                for column in range(-1 - row % 2, int(self.place.side / half) + 2, 2):
                    x, y = ox + column * half, oy + row * half
                    pen.rectangle((x, y, x + half, y + half), fill=second)
        return tile


def _mix(tone: Rgb, other: Rgb, share: float) -> Rgb:
    r, g, b = (round(c + (d - c) * share) for c, d in zip(tone, other, strict=True))
    return r, g, b
