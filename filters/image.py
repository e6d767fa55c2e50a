"""Image scores: size, shape, and what light alone tells: how much it varies, how sharp it is, whether it is blank.

All but the size are taken from a copy in grey of 128 pixels on its longer side, so that they do not depend on the size
that a dataset stores.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from filters.base import Batch, Scorer, column
from filters.pixels import Pixels

COPY_SIDE = 128
LEVELS = 256
NEAR = 8  # grey levels: JPEG's noise around a plain ground is smaller, what people see is not


class Image(Scorer):
    """Width, height, aspect, entropy, sharpness, uniform; null where an image cannot be decoded."""

    name = "image"
    per = "image"
    needs_image = True
    columns = pa.schema(
        [
            column("width", pa.int32(), "Width of the stored image, upright, in pixels."),
            column("height", pa.int32(), "Height of the stored image, upright, in pixels."),
            column("aspect", pa.float32(), "Longer side over shorter; 1 is square."),
            column("entropy", pa.float32(), "Bits of the grey histogram, 0 (one grey) to 8 (all equally often)."),
            column(
                "sharpness",
                pa.float32(),
                "Variance of the Laplacian of grey at 128 pixels; below about 100 blurred, 0 blank.",
            ),
            column(
                "uniform",
                pa.float32(),
                "Largest share of pixels within 8 grey levels of one grey, 0 to 1; above about .98 nearly blank.",
            ),
        ]
    )

    def score(self, batch: Batch) -> pa.Table:
        """A row for each pair."""
        rows = [{} if levels is None else _measure(levels) for levels in batch.greys]
        return pa.Table.from_pylist(rows, schema=self.columns)


def _measure(levels: Pixels) -> dict[str, float]:
    """The columns' values, from (H, W) grey."""
    height, width = levels.shape
    copy = reduced(levels)
    counts = cv2.calcHist([copy], [0], None, [LEVELS], [0, LEVELS])[:, 0]
    _, deviation = cv2.meanStdDev(cv2.Laplacian(copy, cv2.CV_16S))
    return {
        "width": width,
        "height": height,
        "aspect": max(width, height) / min(width, height),
        "entropy": _entropy(counts),
        "sharpness": float(deviation[0, 0]) ** 2,
        "uniform": _uniform(counts),
    }


def reduced(levels: Pixels) -> Pixels:
    """(H, W) → the same picture with a longer side of COPY_SIDE, by area means; smaller ones are enlarged smoothly."""
    # Halving is many times faster than any other factor; the last step stays a large one, since small ones blur.
    while max(levels.shape) >= 4 * COPY_SIDE and min(levels.shape) >= 2:
        height, width = levels.shape[0] // 2, levels.shape[1] // 2
        levels = _resized(levels[: 2 * height, : 2 * width], width, height)
    scale = COPY_SIDE / max(levels.shape)
    height, width = (max(1, round(side * scale)) for side in levels.shape)
    return _resized(levels, width, height)


def _resized(levels: Pixels, width: int, height: int) -> Pixels:
    is_larger = width * height > levels.size
    resized = cv2.resize(levels, (width, height), interpolation=cv2.INTER_LINEAR if is_larger else cv2.INTER_AREA)
    return np.asarray(resized, np.uint8)


def _entropy(counts: npt.NDArray[Any]) -> float:
    """Bits, of counts (LEVELS,)."""
    shares = counts[counts > 0] / counts.sum()
    return float(shares @ np.log2(1 / shares))


def _uniform(counts: npt.NDArray[Any]) -> float:
    """The largest share that lies within NEAR of one level, of counts (LEVELS,)."""
    return float(np.convolve(counts, np.ones(2 * NEAR + 1), "same").max() / counts.sum())
