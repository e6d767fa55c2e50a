"""Blurring boxes, for faces: a soft-edged Gaussian per box, strong enough that no feature survives."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from pipeline.images.errors import ImageError
from pipeline.images.resize import Pixels

# Margin around the box and strength, both as parts of its longer side. Source: Yang et al., "A Study of Face
# Obfuscation in ImageNet", arXiv 2103.06191, section 4.
_MARGIN = 0.1
_SIGMA = 0.1
_MAX_SIGMA = 4.0  # above it the region is shrunk first: a Gaussian's price grows with its width


def blur_boxes(pixels: Pixels, boxes: Sequence[Sequence[float]]) -> Pixels:
    """pixels (H, W, 3) with each box (x_min, y_min, x_max, y_max) blurred; coordinates relative, in [0, 1].

    Raises ImageError `bad_boxes` for what cannot be a relative box.
    """
    pixels = pixels.copy()
    for box in boxes:
        _blur_box(pixels, *_checked(box))
    return pixels


def _checked(box: Sequence[float]) -> tuple[float, float, float, float]:
    try:
        left, top, right, bottom = (float(value) for value in box)
    except (TypeError, ValueError):
        raise ImageError("bad_boxes", f"{box!r} is no (x_min, y_min, x_max, y_max)") from None
    # Detectors overshoot the border a little; pixel coordinates overshoot it a lot.
    if not (-1 <= left <= right <= 2 and -1 <= top <= bottom <= 2):
        raise ImageError("bad_boxes", f"{box!r} is no box in relative coordinates, 0 to 1")
    return left, top, right, bottom


def _blur_box(pixels: Pixels, left: float, top: float, right: float, bottom: float) -> None:
    height, width = pixels.shape[:2]
    longer = max((right - left) * width, (bottom - top) * height)
    sigma, margin = max(1.0, _SIGMA * longer), _MARGIN * longer
    x = _clip(left * width - margin, width, math.floor), _clip(right * width + margin, width, math.ceil)
    y = _clip(top * height - margin, height, math.floor), _clip(bottom * height + margin, height, math.ceil)
    if x[0] == x[1] or y[0] == y[1]:
        return
    # The surroundings take part, so that the blurred box fades into them.
    reach = math.ceil(3 * sigma)
    x_view, y_view = (max(0, x[0] - reach), min(width, x[1] + reach)), (max(0, y[0] - reach), min(height, y[1] + reach))
    view = pixels[y_view[0] : y_view[1], x_view[0] : x_view[1]]
    mask = np.zeros(view.shape[:2], np.float32)
    mask[y[0] - y_view[0] : y[1] - y_view[0], x[0] - x_view[0] : x[1] - x_view[0]] = 1
    # Soft outside the box alone: its inside must be wholly blurred.
    weight = np.maximum(mask, _gaussian(mask, sigma / 2))[..., None]
    view[:] = np.rint(view + (_gaussian(view, sigma).astype(np.float32) - view) * weight)


def _clip(value: float, limit: int, rounding: object) -> int:
    return min(limit, max(0, int(rounding(value))))  # type: ignore[operator]


def _gaussian(values: np.ndarray, sigma: float) -> np.ndarray:
    height, width = values.shape[:2]
    shrink = max(1.0, sigma / _MAX_SIGMA)
    small = max(1, round(width / shrink)), max(1, round(height / shrink))
    blurred = cv2.GaussianBlur(cv2.resize(values, small, interpolation=cv2.INTER_AREA), (0, 0), sigma / shrink)
    return cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR)
