"""WebP: libwebp by way of cv2, which decodes a still image in one pass, at half the price of Pillow's animation reader.

Source: WebP container specification; RFC 6386, section 9.1; WebP lossless bitstream specification, section 3.
"""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

from pipeline.images.colour import to_rgb
from pipeline.images.config import ImageConfig
from pipeline.images.errors import NeedsPillow
from pipeline.images.limits import check_limits
from pipeline.images.resize import Pixels

_ANIMATED = 0x02  # flag of an extended file


def decode_webp(data: bytes, config: ImageConfig) -> tuple[Pixels, bytes | None]:
    """(pixels (H, W, 3) RGB as stored, EXIF block). Raises NeedsPillow, and ImageError for limits.

    The limits are asked of the header in any case: Pillow allocates the canvas of an animation as it opens it.
    """
    width, height = _declared_size(data)
    check_limits(width, height, config)
    is_extended = data[12:16] == b"VP8X"
    if is_extended and data[20] & _ANIMATED:
        raise NeedsPillow("animation")
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.shape[:2] != (height, width):
        raise NeedsPillow("broken")
    if pixels.shape[2] == 4:
        rgb = to_rgb(Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA)))
    else:
        rgb = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)  # type: ignore[assignment]
    return rgb, _chunk(data, b"EXIF") if is_extended else None


def _declared_size(data: bytes) -> tuple[int, int]:
    """(width, height) of the canvas, from the first chunk; (0, 0), (1, 1) or so where the header is cut short."""
    head = data[20:30]
    if data[12:16] == b"VP8X":
        return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF


def _chunk(data: bytes, name: bytes) -> bytes | None:
    at = 12
    while len(header := data[at : at + 8]) == 8:
        size = int.from_bytes(header[4:], "little")
        if header[:4] == name:
            return data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2
    return None
