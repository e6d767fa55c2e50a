"""Encoded image to pixels, for scorers: JPEG, PNG and WebP as people see them, or None for what cannot be decoded.

Upright as EXIF says (our own shards hold no EXIF, foreign ones may), the first frame, alpha on white, 16 bits scaled.
A foreign shard is hostile until proven otherwise: sizes are asked of the header before a pixel is decoded.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import ExifTags, Image

from infra.pictures import rgb

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = 100_000_000  # 300 MB decoded; photos that people keep have fewer

_JPEG, _START_OF_SCAN = b"\xff\xd8", b"\xff\xda"
_SCAN, _APP1, _SEQUENTIAL = 0xDA, 0xE1, (0xC0, 0xC1)  # markers of segments
# Each further scan is a pass over all coefficients, so a small file could ask for hours. Progressive ones have ten.
_MAX_SCANS = 48
# Where simplejpeg finds other faults (stray bytes between segments and the like), Pillow may judge.
_LOST_DATA = ("premature end", "bad huffman", "bad arithmetic")

# EXIF orientation → what turns the stored picture upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow's definition of grey: ITU-R 601-2 in 16-bit fixed point. Every sum of these is exact in float32.
_LUMA = np.array([19595, 38470, 7471], np.float32) / 65536
_STRIP = 1 << 16  # pixels at a time: what a strip becomes on its way fits the cache

# What decoders think of broken files belongs in a table, as a null, not on a terminal.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode(data: bytes) -> Pixels | None:
    """Encoded bytes → (H, W, 3) uint8 RGB; None where they cannot be decoded, whatever they are. Releases the GIL."""
    try:
        if not data.startswith(_JPEG):
            return _decode_by_pillow(data)
        if _is_plain(data):
            return _decode_plain(data)
        return None if data.count(_START_OF_SCAN) > _MAX_SCANS else _decode_by_pillow(data)
    except Exception:  # noqa: BLE001 - hostile bytes reach every line of a decoder
        return None


def grey(pixels: Pixels) -> Pixels:
    """(H, W, 3) RGB → (H, W), bit for bit Pillow's `convert("L")`; grey pixels are returned as they are."""
    if pixels.ndim == 2:
        return pixels
    height, width = pixels.shape[:2]
    levels = np.empty((height, width), np.uint8)
    num_rows = max(1, _STRIP // max(1, width))
    for top in range(0, height, num_rows):
        strip = pixels[top : top + num_rows].astype(np.float32) @ _LUMA
        strip += np.float32(0.5)
        levels[top : top + num_rows] = strip
    return levels


def _is_plain(data: bytes) -> bool:
    """Is this JPEG decoded in one pass, and shown as it lies? What comes before the first scan tells."""
    at, num_components = 2, 0
    while data[at] == 0xFF:
        marker, body = data[at + 1], at + 4
        if marker == _SCAN:
            return data[body] == num_components
        if marker in _SEQUENTIAL:
            num_components = data[body + 5]
        if marker == _APP1 and data.startswith(b"Exif\0\0", body):
            return False
        at += 2 + int.from_bytes(data[at + 2 : body], "big")
    return False


def _decode_plain(data: bytes) -> Pixels | None:
    """By libjpeg-turbo without Pillow's detours: the same pixels at half the price."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if height * width > MAX_PIXELS:
            return None
        if colours in ("YCbCr", "Gray", "RGB"):
            return simplejpeg.decode_jpeg(data)
    except ValueError as error:
        if any(sign in str(error).lower() for sign in _LOST_DATA):
            return None
    return _decode_by_pillow(data)


def _decode_by_pillow(data: bytes) -> Pixels | None:
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
        if image.width * image.height > MAX_PIXELS:
            return None
        turn = _TURNS.get(_orientation(image.info.get("exif", b"")))
        upright = image if turn is None else image.transpose(turn)
        return np.asarray(rgb(upright))


def _orientation(exif: bytes) -> int:
    block = Image.Exif()
    try:
        block.load(exif)
        return int(block.get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - hostile bytes; an image with broken EXIF is still an image
        return 1
