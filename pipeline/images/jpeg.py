"""JPEG, the common case: libjpeg-turbo by way of simplejpeg, which releases the GIL and decodes at a reduced scale."""

from __future__ import annotations

import re
from collections.abc import Iterator

import simplejpeg

from pipeline.images.config import ImageConfig
from pipeline.images.errors import ImageError
from pipeline.images.limits import check_limits
from pipeline.images.resize import Pixels, plan

# Each scan of a progressive file costs a pass over all coefficients: a small file could ask for hours. Real ones
# have about ten, and twice that with a thumbnail inside.
_MAX_SCANS = 48

_START_OF_SCAN, _END_OF_IMAGE, _APP1 = b"\xff\xda", b"\xff\xd9", b"\xff\xe1"
_MARKER = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)
_AFTER_SCAN = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)  # within a scan: stuffed bytes and restarts

# Harmless oddities (bytes between segments and the like) end in other messages, and Pillow may judge them.
_LOST_DATA = ("premature end", "bad huffman", "bad arithmetic")


class NeedsPillow(Exception):
    """Not for this decoder: CMYK, or an oddity that needs a second opinion."""


def _check_scans(data: bytes) -> None:
    """Raises ImageError for a file with an absurd number of scans."""
    # Quick and never too low. Too high where a film is appended to the photo, as phones do: then count properly.
    if data.count(_START_OF_SCAN) <= _MAX_SCANS:
        return
    scans = sum(marker == _START_OF_SCAN for marker, _ in _segments(data))
    if scans > _MAX_SCANS:
        raise ImageError("decode_error", f"{scans} scans")


def decode_jpeg(data: bytes, config: ImageConfig) -> tuple[Pixels, int, int]:
    """(pixels (h, w, 3) RGB at the full or a reduced scale, full width, full height), as stored, not upright.

    Raises NeedsPillow, and ImageError for limits and lost data.
    """
    _check_scans(data)
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise NeedsPillow(str(error)) from None
    if colour not in ("YCbCr", "Gray", "RGB"):
        raise NeedsPillow(colour)
    check_limits(width, height, config)
    scale = _scale(width, height, config)
    try:
        # Asking for this many pixels picks exactly 1/scale: powers of two are the scales with fast code.
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_width=-(-width // scale), min_height=-(-height // scale))
    except ValueError as error:
        if any(sign in str(error).lower() for sign in _LOST_DATA):
            raise ImageError("decode_error", str(error)) from None
        raise NeedsPillow(str(error)) from None
    return pixels, width, height


def _scale(width: int, height: int, config: ImageConfig) -> int:
    """The largest of 8, 4, 2 that leaves at least twice the pixels we want per side, else 1.

    Closer to the target the decoder's low-pass filter shows: two grey levels against the exact average, not one.
    """
    # The plan of the lying image is that of the upright one, lying.
    resized = plan(width, height, config).resized
    for scale in (8, 4, 2):
        if width >= 2 * scale * resized[0] and height >= 2 * scale * resized[1]:
            return scale
    return 1


def jpeg_exif(data: bytes) -> bytes | None:
    """The EXIF block among the segments before the first scan."""
    for marker, body in _segments(data):
        if marker == _APP1 and data.startswith(b"Exif\0\0", body.start):
            return data[body.start : body.stop]
        if marker == _START_OF_SCAN:
            return None
    return None


def _segments(data: bytes) -> Iterator[tuple[bytes, range]]:
    """(marker, where its body lies) up to the end of the image, or to what is no segment."""
    at = 2
    while found := _MARKER.match(data, at):
        at = found.end()
        marker = b"\xff" + found[1]
        if marker == _END_OF_IMAGE:
            return
        body = range(at + 2, at + int.from_bytes(data[at : at + 2], "big"))
        yield marker, body
        at = max(body.stop, at + 2)
        if marker == _START_OF_SCAN:
            following = _AFTER_SCAN.search(data, at)
            at = following.start() if following else len(data)
