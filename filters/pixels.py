"""Encoded image to pixels, for scorers: our own shards' JPEG, PNG and WebP, or None for what cannot be decoded."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image


def decode(data: bytes) -> npt.NDArray[np.uint8] | None:
    """Encoded bytes → (H, W, 3) uint8 RGB; None where they cannot be decoded."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
