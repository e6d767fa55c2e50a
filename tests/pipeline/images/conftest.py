"""Pictures made on the spot."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

Encode = Callable[..., bytes]


@pytest.fixture(scope="session")
def scene() -> Callable[[int, int], np.ndarray]:
    """(width, height) → (height, width, 3): smooth colours, edges and a red top left corner, so that turns show."""

    def draw(width: int, height: int) -> np.ndarray:
        y, x = np.mgrid[0:height, 0:width].astype(np.float64)
        pixels = np.stack([120 + 90 * np.sin(x / 9), 120 + 90 * np.cos(y / 7), 255 * x / max(1, width - 1)], axis=-1)
        pixels[height // 2 :, width // 3 : width // 2] = (20, 60, 200)
        pixels[: max(1, height // 4), : max(1, width // 4)] = (250, 10, 10)
        return pixels.clip(0, 255).astype(np.uint8)

    return draw


@pytest.fixture(scope="session")
def encoded() -> Encode:
    """(pixels or Pillow image, format, save options) → file bytes."""

    def encode(picture: np.ndarray | Image.Image, format_name: str, **options: Any) -> bytes:
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        out = io.BytesIO()
        image.save(out, format_name, **options)
        return out.getvalue()

    return encode
