"""Sizes and resampling: the five modes, and an area average at a fraction of its price."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.images.config import ImageConfig

# Shapes: pixels (H, W, 3) uint8; a size is (width, height), as cv2 and Pillow have it
Pixels = npt.NDArray[np.uint8]
Size = tuple[int, int]

# A worker is one core; cv2 would start a thread for each core in each worker.
cv2.setNumThreads(1)


@dataclass(frozen=True, slots=True)
class Plan:
    """`resized`: size after resampling; `framed`: size after the crop or the white border that follows."""

    resized: Size
    framed: Size


def plan(width: int, height: int, config: ImageConfig) -> Plan:
    """What `config` makes of an upright image of width × height pixels. Rounds as img2dataset does."""
    size, mode = config.image_size, config.resize_mode
    untouched = Plan((width, height), (width, height))
    if mode == "no":
        return untouched
    side = min(width, height) if mode in ("keep_ratio", "center_crop") else max(width, height)
    if side <= size and config.only_if_bigger:
        return untouched
    scale = size / side
    resized = max(1, round(width * scale)), max(1, round(height * scale))
    return Plan(resized, (size, size) if mode in ("center_crop", "border") else resized)


def resample(pixels: Pixels, size: Size, extent: tuple[float, float] | None = None) -> Pixels:
    """Shrink by an area average, enlarge by Lanczos.

    extent: (width, height) of the part of `pixels` that is picture: of 4100 columns decoded at 1/8, the last of the
    513 is half padding, and taking it for a whole one would shift what lies before it. Default: all of it.

    The exact area average at a fractional factor is cv2's slowest kernel. Linear sampling is several times faster
    and close to it as long as no source pixel is skipped, that is down to one half. So: linearly to the nearest
    whole multiple of the size that is at least half the source, then exact block means, which are fast as well.
    On photos that is within one grey level of the exact average (benchmarks/images.py).
    """
    height, width = pixels.shape[:2]
    extent = extent or (width, height)
    if (width, height) == extent == size:
        return pixels
    if size[0] > width or size[1] > height:
        return _cv2(cv2.resize(pixels, size, interpolation=cv2.INTER_LANCZOS4))
    blocks = math.ceil(extent[0] / (2 * size[0])), math.ceil(extent[1] / (2 * size[1]))
    multiple = size[0] * blocks[0], size[1] * blocks[1]
    if multiple != extent:
        # Given factors instead of a size, cv2 maps by them exactly and rounds the size, up by one at most.
        x, y = multiple[0] / extent[0], multiple[1] / extent[1]
        pixels = _cv2(cv2.resize(pixels, None, fx=x, fy=y, interpolation=cv2.INTER_LINEAR))
        pixels = pixels[: multiple[1], : multiple[0]]
    if blocks != (1, 1):
        pixels = _cv2(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
    return np.ascontiguousarray(pixels)


def frame(pixels: Pixels, size: Size) -> Pixels:
    """The middle of `pixels`, or `pixels` in the middle of white: whatever gives `size`."""
    height, width = pixels.shape[:2]
    if (width, height) == size:
        return pixels
    left, top = max(0, width - size[0]) // 2, max(0, height - size[1]) // 2
    pixels = pixels[top : top + size[1], left : left + size[0]]
    x, y = size[0] - pixels.shape[1], size[1] - pixels.shape[0]
    if not x and not y:
        return np.ascontiguousarray(pixels)
    white = (255, 255, 255)
    return _cv2(cv2.copyMakeBorder(pixels, y // 2, y - y // 2, x // 2, x - x // 2, cv2.BORDER_CONSTANT, value=white))


def _cv2(pixels: Any) -> Pixels:
    # cv2 types its results as arrays of any number.
    return pixels
