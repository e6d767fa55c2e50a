"""Pictures that tests of preprocessing draw on the spot, and how they are stored and compared."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def picture(width: int = 96, height: int = 64, grain: int = 12) -> Image.Image:
    """Soft blobs of colour, with grain."""
    chance = rng(7)
    coarse = Image.fromarray(chance.integers(0, 256, (4, 6, 3), np.uint8)).resize((width, height))
    noise = chance.integers(-grain, grain + 1, (height, width, 3))
    return Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8))


def stored(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def apart(one: np.ndarray | Image.Image, two: np.ndarray | Image.Image) -> tuple[float, float]:
    """(mean, max) absolute difference."""
    difference = np.abs(np.asarray(one, np.float64) - np.asarray(two, np.float64))
    return float(difference.mean()), float(difference.max())
