"""What lies behind a scene: skies, ground, walls. Holds nothing that a caption could count or name as a thing."""

from __future__ import annotations

import math
import random

from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]


def paint_backdrop(name: str, width: int, height: int, rng: random.Random) -> Image.Image:
    """An RGB canvas of that size with the background called `name` (one of `scenes.BACKGROUNDS`)."""
    return _PAINTERS[name](width, height, rng)


def _gradient(width: int, height: int, top: Rgb, bottom: Rgb) -> Image.Image:
    strip = Image.new("RGB", (1, 2))
    strip.putpixel((0, 0), top)
    strip.putpixel((0, 1), bottom)
    column = strip.resize((1, height), Image.Resampling.BILINEAR, box=(0, 0.25, 1, 1.75))
    return column.resize((width, height), Image.Resampling.NEAREST)


def _hills(
    pen: ImageDraw.ImageDraw, size: tuple[int, int], level: float, tone: Rgb, rng: random.Random, swell: float = 0.03
) -> None:
    """Fill everything below a rolling line at `level` (a share of the height)."""
    width, height = size
    phase, waves = rng.uniform(0, 6.3), rng.uniform(0.8, 1.8)
    line = []
    for n in range(25):
        x = n / 24
        y = level + swell * (math.sin(phase + 6.3 * waves * x) + math.sin(2.3 * phase + 9 * x) / 2)
        line.append((width * x, height * y))
    pen.polygon([*line, (width, height), (0, height)], fill=tone)


def _clouds(pen: ImageDraw.ImageDraw, size: tuple[int, int], tone: Rgb, rng: random.Random) -> None:
    width, height = size
    for _ in range(rng.randint(1, 3)):
        x, y, r = rng.uniform(0, width), rng.uniform(0.03, 0.22) * height, rng.uniform(0.03, 0.06) * min(size)
        for dx, dy, scale in ((-1.5, 0.25, 0.75), (0, -0.2, 1.1), (1.5, 0.2, 0.85)):
            s = r * scale
            pen.ellipse((x + dx * r - 1.5 * s, y + dy * r - s, x + dx * r + 1.5 * s, y + dy * r + s), fill=tone)


def _dots(
    pen: ImageDraw.ImageDraw,
    box: tuple[float, float, float, float],
    tone: Rgb,
    count: int,
    radius: float,
    rng: random.Random,
) -> None:
    for _ in range(count):
        x, y, r = rng.uniform(box[0], box[2]), rng.uniform(box[1], box[3]), radius * rng.uniform(0.5, 1.2)
        pen.ellipse((x - r, y - r, x + r, y + r), fill=tone)


def _meadow(width: int, height: int, rng: random.Random) -> Image.Image:
    canvas = _gradient(width, height, (152, 208, 246), (226, 243, 252))
    pen, size = ImageDraw.Draw(canvas), (width, height)
    _clouds(pen, size, (250, 253, 255), rng)
    level = rng.uniform(0.5, 0.6)
    _hills(pen, size, level, (176, 216, 138), rng)
    _hills(pen, size, level + 0.13, (152, 202, 112), rng)
    unit = min(size)
    for _ in range(26):
        x, y, s = rng.uniform(0, width), rng.uniform(level + 0.2, 1) * height, rng.uniform(0.01, 0.02) * unit
        pen.line([(x - s, y - s), (x, y), (x + s / 2, y - 1.4 * s)], fill=(122, 178, 88), width=max(2, unit // 200))
    return canvas


def _beach(width: int, height: int, rng: random.Random) -> Image.Image:
    canvas = _gradient(width, height, (140, 205, 244), (222, 243, 250))
    pen, size = ImageDraw.Draw(canvas), (width, height)
    _clouds(pen, size, (250, 253, 255), rng)
    level = rng.uniform(0.4, 0.5)
    pen.rectangle((0, level * height, width, height), fill=(88, 178, 204))
    for row in range(4):
        y = (level + 0.03 + 0.04 * row) * height
        for x in range(int(-rng.random() * width / 5), width, max(1, width // 5)):
            pen.line([(x, y), (x + width / 14, y)], fill=(150, 212, 226), width=max(2, height // 150))
    _hills(pen, size, level + 0.2, (255, 255, 255), rng, 0.015)
    _hills(pen, size, level + 0.23, (243, 222, 172), rng, 0.015)
    _dots(pen, (0, (level + 0.28) * height, width, height), (226, 198, 140), 40, 0.005 * min(size), rng)
    return canvas


def _night(width: int, height: int, rng: random.Random) -> Image.Image:
    canvas = _gradient(width, height, (18, 24, 62), (62, 66, 124))
    pen, size = ImageDraw.Draw(canvas), (width, height)
    _dots(pen, (0, 0, width, 0.75 * height), (214, 218, 246), 46, 0.0045 * min(size), rng)
    level = rng.uniform(0.7, 0.8)
    _hills(pen, size, level, (38, 46, 92), rng)
    _hills(pen, size, level + 0.1, (28, 35, 74), rng)
    return canvas


def _snow(width: int, height: int, rng: random.Random) -> Image.Image:
    canvas = _gradient(width, height, (168, 190, 216), (216, 226, 238))
    pen, size = ImageDraw.Draw(canvas), (width, height)
    level = rng.uniform(0.5, 0.62)
    _hills(pen, size, level, (228, 236, 246), rng)
    _hills(pen, size, level + 0.14, (246, 249, 253), rng)
    _dots(pen, (0, 0, width, height), (255, 255, 255), 60, 0.008 * min(size), rng)
    return canvas


def _desert(width: int, height: int, rng: random.Random) -> Image.Image:
    canvas = _gradient(width, height, (248, 226, 178), (253, 241, 214))
    pen, size = ImageDraw.Draw(canvas), (width, height)
    level = rng.uniform(0.46, 0.56)
    _hills(pen, size, level, (232, 190, 128), rng, 0.05)
    _hills(pen, size, level + 0.16, (222, 172, 106), rng, 0.045)
    _hills(pen, size, level + 0.34, (211, 157, 90), rng, 0.03)
    return canvas


def _room(width: int, height: int, rng: random.Random) -> Image.Image:
    wall, paper = rng.choice(
        [((236, 226, 212), (229, 217, 200)), ((214, 226, 226), (204, 218, 219)), ((230, 220, 232), (221, 209, 224))]
    )
    canvas = Image.new("RGB", (width, height), wall)
    pen = ImageDraw.Draw(canvas)
    pitch = max(8, min(width, height) // 9)
    for x in range(rng.randrange(pitch), width, pitch):
        pen.rectangle((x, 0, x + pitch // 3, height), fill=paper)
    level = round(rng.uniform(0.68, 0.78) * height)
    pen.rectangle((0, level, width, height), fill=(198, 164, 124))
    for row, y in enumerate(range(level, height, max(6, height // 14))):
        pen.line([(0, y), (width, y)], fill=(176, 141, 102), width=max(2, height // 240))
        for x in range(-(row % 2) * width // 6, width, max(1, width // 3)):
            pen.line([(x, y), (x, y + height // 14)], fill=(176, 141, 102), width=max(2, height // 240))
    pen.rectangle((0, level - height // 36, width, level), fill=(250, 247, 240))
    return canvas


def _sunset(width: int, height: int, rng: random.Random) -> Image.Image:
    canvas = _gradient(width, height, (116, 88, 158), (255, 186, 116))
    pen, size = ImageDraw.Draw(canvas), (width, height)
    for _ in range(5):
        x, y, w = rng.uniform(0, width), rng.uniform(0.1, 0.5) * height, rng.uniform(0.15, 0.3) * width
        pen.ellipse((x - w, y - height / 90, x + w, y + height / 90), fill=(236, 150, 142))
    level = rng.uniform(0.62, 0.72)
    _hills(pen, size, level, (146, 92, 124), rng)
    _hills(pen, size, level + 0.12, (108, 68, 106), rng)
    return canvas


def _paper(width: int, height: int, rng: random.Random) -> Image.Image:
    tone = rng.choice([(238, 240, 244), (244, 240, 230), (230, 240, 238), (243, 233, 236), (226, 230, 242)])
    darker: Rgb = (tone[0] - 10, tone[1] - 10, tone[2] - 10)
    return _gradient(width, height, tone, darker)


_PAINTERS = {
    "meadow": _meadow,
    "beach": _beach,
    "night": _night,
    "snow": _snow,
    "desert": _desert,
    "room": _room,
    "sunset": _sunset,
    "paper": _paper,
}
