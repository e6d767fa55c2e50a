"""What changes the pixels of a picture of the final size: flips, and the strength of light and colour.

Definitions: Pillow's ImageEnhance and torchvision's ColorJitter, to a grey level or two.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from infra.recipe import Config
from training.preprocess.decode import Pixels

_LEVELS = np.arange(256, dtype=np.float32)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601-2, Pillow's grey


class Flip(Config):
    """Left to right."""

    p: float = Field(0.5, ge=0, le=1, description="how often")

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        """(H, W, 3) → the same."""
        return as_pixels(cv2.flip(pixels, 1)) if rng.random() < self.p else pixels


class Grayscale(Config):
    """Its greys, in three equal channels."""

    p: float = Field(1.0, ge=0, le=1, description="how often")

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        """(H, W, 3) → the same."""
        if rng.random() >= self.p:
            return pixels
        return as_pixels(cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB))


class ColorJitter(Config):
    """Brightness, contrast, saturation and hue changed by random factors, in random order."""

    brightness: float = Field(
        0.0, ge=0, le=100, description="factors are drawn from 1 - brightness (or 0) to 1 + brightness"
    )
    contrast: float = Field(0.0, ge=0, le=100, description="the same of contrast")
    saturation: float = Field(0.0, ge=0, le=100, description="the same of saturation")
    hue: float = Field(0.0, ge=0, le=0.5, description="the shift is drawn from -hue to hue turns of the colour circle")
    p: float = Field(1.0, ge=0, le=1, description="how often")

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        """(H, W, 3) → the same."""
        if rng.random() >= self.p:
            return pixels
        changes = (
            (brightness, self.brightness, 1.0),
            (contrast, self.contrast, 1.0),
            (saturation, self.saturation, 1.0),
            (hue, self.hue, 0.0),
        )
        for index in rng.permutation(len(changes)):
            change, spread, neutral = changes[index]
            if spread:
                lowest = neutral - spread if neutral == 0 else max(0.0, neutral - spread)
                pixels = change(pixels, rng.uniform(lowest, neutral + spread))
        return pixels


def brightness(pixels: Pixels, factor: float) -> Pixels:
    """0 is black, 1 is unchanged."""
    return by_table(pixels, _LEVELS * np.float32(factor))


def contrast(pixels: Pixels, factor: float) -> Pixels:
    """0 is the mean of the greys everywhere, 1 is unchanged."""
    middle = np.floor(cv2.mean(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return by_table(pixels, middle + np.float32(factor) * (_LEVELS - np.float32(middle)))


def saturation(pixels: Pixels, factor: float) -> Pixels:
    """0 is grey, 1 is unchanged."""
    mix = np.eye(3, dtype=np.float32) * np.float32(factor) + np.float32(1 - factor) * _LUMA
    return as_pixels(cv2.transform(pixels, mix))


def hue(pixels: Pixels, shift: float) -> Pixels:
    """Shift by turns of the colour circle; 0 and 1 are unchanged."""
    circle = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
    circle[..., 0] += np.uint8(round(shift * 256) % 256)  # which wraps, as a circle does
    return as_pixels(cv2.cvtColor(circle, cv2.COLOR_HSV2RGB_FULL))


def by_table(pixels: Pixels, levels: npt.NDArray[np.number[Any]]) -> Pixels:
    """Each level replaced by that of a table, (256,) or (256, 3); fractions are dropped, as Pillow does."""
    table = levels.clip(0, 255).astype(np.uint8)
    return as_pixels(cv2.LUT(pixels, table.reshape(1, 256, -1) if table.ndim > 1 else table))


def as_pixels(array: Any) -> Pixels:
    """cv2 types its results as arrays of any number."""
    return array
