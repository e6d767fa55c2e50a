"""RandAugment as BLIP uses it: a few of ten changes in a row, each at one magnitude of ten.

Source: RandAugment, arXiv 1909.13719, in ALBEF's and BLIP's form (salesforce/BLIP, transform/randaugment.py): each of
the n changes is drawn with replacement and then left out half the time; what moves pixels does so in either sense and
shows grey where nothing was. Of that form, too: at magnitude 5, BLIP's own, the factor of brightness and of sharpness
is 1, so they change nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from pydantic import Field

from infra.recipe import Config
from training.preprocess.colour import as_pixels, brightness, by_table
from training.preprocess.decode import Pixels

_MAX_MAGNITUDE = 10
_MAX_SHEAR, _MAX_SHIFT_PX, _MAX_TURN_DEGREES = 0.3, 10.0, 30.0
_LEAST_FACTOR, _FACTORS = 0.1, 1.8  # of brightness and sharpness: 0.1 to 1.9
_P = 0.5
_GREY = (128, 128, 128)

_BLUR = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # Pillow's SMOOTH
_LEVELS = np.arange(256)


class RandAugment(Config):
    """A few changes in a row, drawn anew for each picture."""

    n: int = Field(ge=0, description="how many changes are drawn")
    m: float = Field(ge=0, le=_MAX_MAGNITUDE, description="how strong they are, of 10")

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        """(H, W, 3) → the same."""
        for change in rng.integers(len(CHANGES), size=self.n):
            if rng.random() < _P:
                strength = self.m / _MAX_MAGNITUDE
                pixels = CHANGES[change](pixels, strength, -1.0 if rng.random() < 0.5 else 1.0)
        return pixels


def autocontrast(pixels: Pixels) -> Pixels:
    """Each channel stretched to 0 … 255; a channel of one level stays."""
    # One axis after the other: numpy takes seventy times as long for both at once.
    low, high = pixels.min(axis=0).min(axis=0).astype(float), pixels.max(axis=0).max(axis=0).astype(float)
    is_flat = high <= low
    scale = np.where(is_flat, 1.0, 255 / np.where(is_flat, 1.0, high - low))
    return by_table(pixels, _LEVELS[:, None] * scale - np.where(is_flat, 0.0, low * scale))


def equalize(pixels: Pixels) -> Pixels:
    """Each channel's levels spread so that each is about as frequent as any other."""
    table = np.tile(_LEVELS[:, None], 3).astype(float)
    for channel in range(3):
        counts = cv2.calcHist([pixels], [channel], None, [256], [0, 256])[:, 0].astype(np.int64)
        present = np.flatnonzero(counts)
        step = (counts.sum() - counts[present[-1]]) // 255
        if step:
            table[:, channel] = (step // 2 + np.cumsum(counts) - counts) // step
    return by_table(pixels, table)


def sharpness(pixels: Pixels, factor: float) -> Pixels:
    """0 is blurred, 1 is unchanged; the outermost pixels always are."""
    blurred = cv2.filter2D(pixels, -1, _BLUR)
    changed = pixels.copy()
    changed[1:-1, 1:-1] = cv2.addWeighted(pixels, factor, blurred, 1 - factor, 0)[1:-1, 1:-1]
    return changed


def move(pixels: Pixels, x: tuple[float, float, float], y: tuple[float, float, float]) -> Pixels:
    """Each pixel comes from (x[0] * column + x[1] * row + x[2], y[0] * … ); coordinates are those of its middle."""
    matrix = np.array([x, y])
    matrix[:, 2] += matrix[:, :2].sum(axis=1) / 2 - 0.5  # cv2 counts from the middle of the first pixel
    height, width = pixels.shape[:2]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return as_pixels(cv2.warpAffine(pixels, matrix, (width, height), flags=flags, borderValue=_GREY))


def rotate(pixels: Pixels, degrees: float) -> Pixels:
    """Around the middle, counter-clockwise."""
    middle_x, middle_y = pixels.shape[1] / 2, pixels.shape[0] / 2
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    return move(
        pixels,
        (cosine, -sine, middle_x - cosine * middle_x + sine * middle_y),
        (sine, cosine, middle_y - sine * middle_x - cosine * middle_y),
    )


def _factor(strength: float) -> float:
    return _LEAST_FACTOR + _FACTORS * strength


# Each takes the pixels, how strong the change is, in [0, 1], and its sense, -1 or 1.
CHANGES: tuple[Callable[[Pixels, float, float], Pixels], ...] = (
    lambda pixels, strength, sense: pixels,
    lambda pixels, strength, sense: autocontrast(pixels),
    lambda pixels, strength, sense: equalize(pixels),
    lambda pixels, strength, sense: brightness(pixels, _factor(strength)),
    lambda pixels, strength, sense: sharpness(pixels, _factor(strength)),
    lambda pixels, strength, sense: move(pixels, (1, sense * strength * _MAX_SHEAR, 0), (0, 1, 0)),
    lambda pixels, strength, sense: move(pixels, (1, 0, 0), (sense * strength * _MAX_SHEAR, 1, 0)),
    lambda pixels, strength, sense: move(pixels, (1, 0, sense * strength * _MAX_SHIFT_PX), (0, 1, 0)),
    lambda pixels, strength, sense: move(pixels, (1, 0, 0), (0, 1, sense * strength * _MAX_SHIFT_PX)),
    lambda pixels, strength, sense: rotate(pixels, sense * strength * _MAX_TURN_DEGREES),
)
