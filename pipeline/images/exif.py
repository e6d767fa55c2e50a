"""EXIF: which way is up, and the metadata column for those who ask for it."""

from __future__ import annotations

import io
import json
from typing import Any

import cv2
import numpy as np
from PIL import ExifTags, Image

# EXIF orientation → what turns the stored pixels upright.
_UPRIGHT: dict[int, Any] = {
    2: lambda pixels: cv2.flip(pixels, 1),
    3: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_180),
    4: lambda pixels: cv2.flip(pixels, 0),
    5: cv2.transpose,
    6: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: cv2.rotate(cv2.transpose(pixels), cv2.ROTATE_180),
    8: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
_MAX_JSON = 65536  # a table's cell, not a place to hide a file in


def orientation(exif: bytes | None) -> int:
    """1 to 8 from an EXIF block (with or without its `Exif` prefix); 1 where there is none or it is broken."""
    if not exif:
        return 1
    block = Image.Exif()
    try:
        block.load(exif)
        value = block.get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 - hostile bytes; an image with broken EXIF is still an image
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def swaps_sides(orientation: int) -> bool:
    """Do the upright image's width and height lie in the stored one's height and width?"""
    return orientation >= 5


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """pixels (H, W, 3) as stored → upright, (W, H, 3) where the sides swap."""
    turn = _UPRIGHT.get(orientation)
    return pixels if turn is None else turn(pixels)


def exif_json(data: bytes) -> str | None:
    """The tags of an image file as JSON text, named as in img2dataset's `exif` column; None where unreadable."""
    import exifread

    try:
        tags = exifread.process_file(io.BytesIO(data), details=False)
        text = json.dumps({name: str(value).strip() for name, value in tags.items() if value is not None})
    except Exception:  # noqa: BLE001 - hostile bytes; metadata is not worth an image
        return None
    return text if len(text) <= _MAX_JSON else None
