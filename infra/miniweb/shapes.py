"""How each shape looks: layers of polygons in a unit square, y downwards. Data for `infra.miniweb.paint`."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

Polygon = np.ndarray  # (points, 2) in the unit square


class Layer(NamedTuple):
    """Polygons filled as one, or, with a line's width (in units of the square's side), open lines.

    role: body (the thing's colour and texture), shade and tint (darker, lighter body), or a fixed colour.
    """

    role: str
    polygons: tuple[Polygon, ...]
    line: float = 0.0


def oval(x: float, y: float, rx: float, ry: float, turn: float = 0.0, start: float = 0, end: float = 360) -> Polygon:
    """An ellipse, or the part of it from `start` to `end` degrees (0 is right, 90 down), turned by `turn` degrees."""
    t = np.radians(np.linspace(start, end, 37))
    px, py = rx * np.cos(t), ry * np.sin(t)
    a = math.radians(turn)
    return np.stack([x + px * math.cos(a) - py * math.sin(a), y + px * math.sin(a) + py * math.cos(a)], axis=1)


def poly(*points: float) -> Polygon:
    """x, y, x, y, … as they are."""
    return np.array(points, dtype=float).reshape(-1, 2)


def box(x0: float, y0: float, x1: float, y1: float, r: float = 0.0) -> Polygon:
    """A rectangle with corners rounded by `r`."""
    corners = ((x1 - r, y1 - r, 0), (x0 + r, y1 - r, 90), (x0 + r, y0 + r, 180), (x1 - r, y0 + r, 270))
    return np.concatenate([oval(x, y, r, r, start=a, end=a + 90)[::6] for x, y, a in corners])


def blob(*points: float) -> Polygon:
    """A smooth closed curve through the points (Catmull-Rom, eight steps each)."""
    p1 = poly(*points)
    p0, p2, p3 = np.roll(p1, 1, 0), np.roll(p1, -1, 0), np.roll(p1, -2, 0)
    t = np.linspace(0, 1, 8, endpoint=False)[None, :, None]
    p0, p1, p2, p3 = (p[:, None, :] for p in (p0, p1, p2, p3))
    curve = 2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    return curve.reshape(-1, 2) / 2


def _star() -> Polygon:
    a = np.radians(np.arange(10) * 36 - 90)
    r = np.where(np.arange(10) % 2, 0.23, 0.52)
    return np.stack([0.5 + r * np.cos(a), 0.53 + r * np.sin(a)], axis=1)


def _heart() -> Polygon:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([0.5 + 0.48 * np.sin(t) ** 3, 0.46 - y / 33], axis=1)


def _moon() -> Polygon:
    outer, inner = oval(0.5, 0.5, 0.48, 0.48, start=50, end=310), oval(0.66, 0.5, 0.3966, 0.3966, start=292, end=68)
    return np.concatenate([outer, inner])


def _canopy() -> Polygon:
    dome = oval(0.5, 0.52, 0.49, 0.48, start=180, end=360)
    hem = [oval(x, 0.52, 0.49 / 4, 0.07, start=0, end=-180) for x in (0.8675, 0.6225, 0.3775, 0.1325)]
    return np.concatenate([dome, *hem])


def _layer(role: str, *polygons: Polygon, line: float = 0.0) -> Layer:
    return Layer(role, polygons, line)


def _eye(x: float, y: float, r: float) -> tuple[Layer, ...]:
    return _layer("white", oval(x, y, r, r)), _layer("ink", oval(x, y, 0.55 * r, 0.55 * r))


def _wheel(x: float, y: float) -> tuple[Layer, ...]:
    return _layer("ink", oval(x, y, 0.13, 0.13)), _layer("metal", oval(x, y, 0.06, 0.06))


# fmt: off
LAYERS: dict[str, tuple[Layer, ...]] = {
    "apple": (
        _layer("wood", poly(0.5, 0.28, 0.52, 0.14, 0.58, 0.04), line=0.05),
        _layer("body", blob(0.5, 0.25, 0.7, 0.19, 0.94, 0.36, 0.88, 0.74, 0.66, 0.97, 0.5, 0.93, 0.34, 0.97,
                            0.12, 0.74, 0.06, 0.36, 0.3, 0.19)),
        _layer("leaf", blob(0.54, 0.17, 0.68, 0.03, 0.86, 0.06, 0.72, 0.18)),
        _layer("shine", oval(0.27, 0.42, 0.05, 0.1, 20)),
    ),
    "ball": (_layer("body", oval(0.5, 0.5, 0.48, 0.48)), _layer("shine", oval(0.32, 0.28, 0.11, 0.07, -35))),
    "balloon": (
        _layer("ink", poly(0.5, 0.78, 0.54, 0.85, 0.47, 0.92, 0.51, 1.0), line=0.018),
        _layer("shade", poly(0.5, 0.7, 0.57, 0.8, 0.43, 0.8)),
        _layer("body", blob(0.5, 0.01, 0.76, 0.1, 0.85, 0.34, 0.72, 0.6, 0.5, 0.75, 0.28, 0.6, 0.15, 0.34, 0.24, 0.1)),
        _layer("shine", oval(0.33, 0.22, 0.05, 0.11, 25)),
    ),
    "bell": (
        _layer("ink", oval(0.5, 0.1, 0.07, 0.07), line=0.035),
        _layer("gold", oval(0.5, 0.88, 0.1, 0.1)),
        _layer("body", np.concatenate([oval(0.5, 0.46, 0.3, 0.32, start=180, end=360),
                                       poly(0.82, 0.62, 0.95, 0.8, 0.05, 0.8, 0.18, 0.62)])),
        _layer("shade", box(0.03, 0.76, 0.97, 0.86, 0.04)),
        _layer("shine", oval(0.34, 0.42, 0.04, 0.13, 10)),
    ),
    "bird": (
        _layer("gold", poly(0.45, 0.78, 0.43, 0.97), poly(0.57, 0.78, 0.57, 0.97), line=0.035),
        _layer("shade", poly(0.22, 0.5, 0.0, 0.36, 0.02, 0.58, 0.2, 0.66)),
        _layer("gold", poly(0.86, 0.26, 1.0, 0.34, 0.86, 0.4)),
        _layer("body", blob(0.12, 0.58, 0.34, 0.4, 0.54, 0.28, 0.66, 0.12, 0.82, 0.13, 0.92, 0.3, 0.85, 0.56,
                            0.68, 0.8, 0.42, 0.84, 0.2, 0.74)),
        _layer("shade", blob(0.24, 0.5, 0.46, 0.44, 0.64, 0.54, 0.5, 0.7, 0.34, 0.68)),
        *_eye(0.77, 0.29, 0.06),
    ),
    "boat": (
        _layer("wood", poly(0.5, 0.04, 0.5, 0.68), line=0.04),
        _layer("tint", poly(0.55, 0.06, 0.94, 0.58, 0.55, 0.58)),
        _layer("tint", poly(0.45, 0.16, 0.45, 0.58, 0.12, 0.58)),
        _layer("body", blob(0.0, 0.64, 0.25, 0.65, 0.5, 0.66, 0.75, 0.65, 1.0, 0.64, 0.88, 0.88, 0.7, 0.96,
                            0.3, 0.96, 0.12, 0.88)),
    ),
    "box": (
        _layer("body", box(0.08, 0.3, 0.92, 0.97, 0.03)),
        _layer("shade", box(0.02, 0.14, 0.98, 0.36, 0.03)),
        _layer("tint", box(0.43, 0.14, 0.57, 0.56)),
    ),
    "butterfly": (
        _layer("ink", poly(0.5, 0.3, 0.42, 0.14, 0.34, 0.08), poly(0.5, 0.3, 0.58, 0.14, 0.66, 0.08), line=0.02),
        _layer("body", oval(0.27, 0.38, 0.27, 0.2, 38), oval(0.73, 0.38, 0.27, 0.2, -38)),
        _layer("body", oval(0.32, 0.7, 0.2, 0.15, -38), oval(0.68, 0.7, 0.2, 0.15, 38)),
        _layer("ink", oval(0.5, 0.54, 0.045, 0.26)),
    ),
    "car": (
        _layer("body", blob(0.2, 0.5, 0.26, 0.36, 0.36, 0.26, 0.52, 0.24, 0.68, 0.27, 0.8, 0.48, 0.74, 0.56,
                            0.3, 0.56)),
        _layer("body", box(0.01, 0.46, 0.99, 0.75, 0.09)),
        _layer("glass", poly(0.28, 0.46, 0.36, 0.31, 0.49, 0.3, 0.49, 0.46),
               poly(0.53, 0.46, 0.53, 0.3, 0.65, 0.32, 0.73, 0.46)),
        _layer("gold", oval(0.93, 0.56, 0.035, 0.05)),
        *_wheel(0.25, 0.75), *_wheel(0.75, 0.75),
    ),
    "cat": (
        _layer("body", poly(0.68, 0.88, 0.88, 0.86, 0.95, 0.7, 0.88, 0.54), line=0.09),
        _layer("body", blob(0.5, 0.45, 0.7, 0.62, 0.77, 0.88, 0.66, 0.98, 0.34, 0.98, 0.23, 0.88, 0.3, 0.62)),
        _layer("body", oval(0.5, 0.33, 0.3, 0.25), poly(0.22, 0.3, 0.2, 0.0, 0.46, 0.14),
               poly(0.78, 0.3, 0.8, 0.0, 0.54, 0.14)),
        *_eye(0.39, 0.31, 0.065), *_eye(0.61, 0.31, 0.065),
        _layer("nose", poly(0.46, 0.4, 0.54, 0.4, 0.5, 0.45)),
        _layer("whisker", poly(0.36, 0.43, 0.12, 0.39), poly(0.36, 0.46, 0.13, 0.49), poly(0.64, 0.43, 0.88, 0.39),
               poly(0.64, 0.46, 0.87, 0.49), line=0.014),
    ),
    "cup": (
        _layer("shade", oval(0.8, 0.55, 0.16, 0.19, start=-100, end=100)[::3], line=0.075),
        _layer("body", np.concatenate([poly(0.06, 0.22), oval(0.44, 0.84, 0.26, 0.13, start=180, end=0),
                                       poly(0.82, 0.22)])),
        _layer("tint", oval(0.44, 0.22, 0.38, 0.085)),
        _layer("coffee", oval(0.44, 0.235, 0.31, 0.055)),
    ),
    "fish": (
        _layer("shade", blob(0.24, 0.5, 0.02, 0.24, 0.1, 0.5, 0.02, 0.76)),
        _layer("shade", blob(0.4, 0.3, 0.56, 0.1, 0.72, 0.3)),
        _layer("body", blob(0.16, 0.5, 0.36, 0.28, 0.62, 0.22, 0.86, 0.34, 0.98, 0.52, 0.86, 0.68, 0.62, 0.78,
                            0.36, 0.72)),
        _layer("shade", blob(0.46, 0.54, 0.6, 0.5, 0.58, 0.64, 0.44, 0.68)),
        *_eye(0.81, 0.43, 0.06),
        _layer("vein", poly(0.96, 0.58, 0.87, 0.58), line=0.02),
    ),
    "flower": (
        _layer("leaf", poly(0.5, 0.4, 0.52, 0.7, 0.49, 1.0), line=0.05),
        _layer("leaf", blob(0.5, 0.84, 0.66, 0.68, 0.86, 0.66, 0.72, 0.82)),
        *(_layer("body", oval(0.5 + 0.21 * math.cos(a), 0.34 + 0.21 * math.sin(a), 0.16, 0.115, math.degrees(a)))
          for a in np.radians(np.arange(6) * 60 + 30)),
        _layer("gold", oval(0.5, 0.34, 0.12, 0.12)),
    ),
    "hat": (
        _layer("body", blob(0.2, 0.78, 0.26, 0.3, 0.36, 0.16, 0.5, 0.2, 0.64, 0.16, 0.74, 0.3, 0.8, 0.78)),
        _layer("shade", poly(0.22, 0.58, 0.78, 0.58, 0.8, 0.74, 0.2, 0.74)),
        _layer("body", oval(0.5, 0.78, 0.5, 0.11)),
    ),
    "heart": (_layer("body", _heart()), _layer("shine", oval(0.27, 0.28, 0.05, 0.1, 35))),
    "house": (
        _layer("shade", box(0.7, 0.06, 0.82, 0.4)),
        _layer("body", box(0.12, 0.42, 0.88, 0.98)),
        _layer("shade", poly(0.5, 0.02, 1.0, 0.47, 0.0, 0.47)),
        _layer("wood", box(0.41, 0.66, 0.59, 0.98)),
        _layer("glass", box(0.19, 0.56, 0.34, 0.72), box(0.66, 0.56, 0.81, 0.72)),
        _layer("vein", poly(0.265, 0.56, 0.265, 0.72), poly(0.735, 0.56, 0.735, 0.72), line=0.014),
    ),
    "kite": (
        _layer("ink", poly(0.4, 0.72, 0.46, 0.8, 0.36, 0.88, 0.42, 0.98), line=0.018),
        _layer("body", poly(0.56, 0.0, 0.9, 0.32, 0.4, 0.74, 0.14, 0.24)),
        _layer("vein", poly(0.56, 0.0, 0.4, 0.74), poly(0.14, 0.24, 0.9, 0.32), line=0.016),
        _layer("shade", poly(0.43, 0.8, 0.55, 0.74, 0.55, 0.86), poly(0.43, 0.8, 0.31, 0.74, 0.31, 0.86)),
    ),
    "leaf": (
        _layer("shade", poly(0.26, 0.76, 0.1, 0.94), line=0.05),
        _layer("body", blob(0.22, 0.8, 0.14, 0.5, 0.34, 0.2, 0.66, 0.08, 0.96, 0.04, 0.92, 0.36, 0.78, 0.68,
                            0.5, 0.86)),
        _layer("vein", poly(0.22, 0.8, 0.52, 0.46, 0.84, 0.16), poly(0.44, 0.55, 0.4, 0.3), poly(0.44, 0.55, 0.7, 0.6),
               poly(0.62, 0.36, 0.6, 0.19), poly(0.62, 0.36, 0.82, 0.4), line=0.016),
    ),
    "moon": (_layer("body", _moon()),),
    "mushroom": (
        _layer("cream", blob(0.38, 0.5, 0.62, 0.5, 0.62, 0.74, 0.7, 0.95, 0.5, 0.99, 0.3, 0.95, 0.38, 0.74)),
        _layer("body", blob(0.03, 0.5, 0.14, 0.22, 0.34, 0.06, 0.5, 0.03, 0.66, 0.06, 0.86, 0.22, 0.97, 0.5, 0.74, 0.57,
                            0.5, 0.59, 0.26, 0.57)),
    ),
    "rocket": (
        _layer("flame", blob(0.38, 0.8, 0.62, 0.8, 0.56, 0.92, 0.5, 1.0, 0.44, 0.92)),
        _layer("shade", poly(0.32, 0.5, 0.1, 0.84, 0.36, 0.78), poly(0.68, 0.5, 0.9, 0.84, 0.64, 0.78)),
        _layer("body", blob(0.5, 0.0, 0.65, 0.16, 0.72, 0.42, 0.66, 0.8, 0.5, 0.82, 0.34, 0.8, 0.28, 0.42, 0.35, 0.16)),
        _layer("metal", oval(0.5, 0.36, 0.12, 0.12)),
        _layer("glass", oval(0.5, 0.36, 0.08, 0.08)),
    ),
    "star": (_layer("body", _star()),),
    "tree": (
        _layer("wood", poly(0.43, 0.6, 0.57, 0.6, 0.61, 1.0, 0.39, 1.0)),
        _layer("body", oval(0.5, 0.26, 0.27, 0.25), oval(0.26, 0.46, 0.23, 0.2), oval(0.74, 0.46, 0.23, 0.2),
               oval(0.5, 0.54, 0.3, 0.19)),
    ),
    "umbrella": (
        _layer("ink", np.concatenate([poly(0.5, 0.1, 0.5, 0.86), oval(0.59, 0.86, 0.09, 0.1, start=180, end=0)]),
               line=0.04),
        _layer("body", _canopy()),
        _layer("vein", oval(0.5, 0.5, 0.17, 0.44, start=180, end=360), poly(0.5, 0.06, 0.5, 0.49), line=0.014),
    ),
}
# fmt: on
