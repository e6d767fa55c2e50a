"""JPEG, the common case: libjpeg-turbo by way of simplejpeg, which releases the GIL and decodes at a reduced scale."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import simplejpeg

from pipeline.images.config import ImageConfig
from pipeline.images.errors import ImageError, NeedsPillow
from pipeline.images.limits import check_limits
from pipeline.images.resize import Pixels, plan

# Each scan of a progressive file costs a pass over all coefficients: a small file could ask for hours. Real ones
# have about ten, and twice that with a thumbnail inside.
_MAX_SCANS = 48

_START_OF_SCAN, _END_OF_IMAGE, _APP1 = b"\xff\xda", b"\xff\xd9", b"\xff\xe1"
_FRAMES = {bytes((0xFF, code)) for code in range(0xC0, 0xD0) if code not in (0xC4, 0xC8, 0xCC)}
_PROGRESSIVE_FRAMES = {b"\xff\xc2", b"\xff\xc6", b"\xff\xca", b"\xff\xce"}
_WITHOUT_BODY = {b"\xff\x01"} | {bytes((0xFF, code)) for code in range(0xD0, 0xD9)}
_MARKER = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)
_AFTER_SCAN = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)  # within a scan: stuffed bytes and restarts

# (scale, how many times the size we want must be left). A reduced decode is close to block means; the fewer blocks a
# pixel covers, the more their edges show: with these, one to two grey levels on the sharpest photos.
_SCALES = ((8, 3), (4, 2), (2, 2))

# Harmless oddities (bytes between segments and the like) end in other messages, and Pillow may judge them.
_LOST_DATA = ("premature end", "bad huffman", "bad arithmetic")


@dataclass(frozen=True, slots=True)
class Jpeg:
    """As stored, not upright. `pixels` (⌈height / scale⌉, ⌈width / scale⌉, 3) RGB; `width`, `height` at full scale."""

    pixels: Pixels
    width: int
    height: int
    scale: int
    exif: bytes | None


def decode_jpeg(data: bytes, config: ImageConfig) -> Jpeg:
    """Decode at the smallest scale that serves. Raises NeedsPillow, and ImageError for limits and lost data."""
    exif, many_scans = _read_head(data)
    if many_scans:
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
    return Jpeg(pixels, width, height, scale, exif)


def _scale(width: int, height: int, config: ImageConfig) -> int:
    """The largest scale that leaves enough pixels for the average to come out right, else 1."""
    # The plan of the lying image is that of the upright one, lying.
    resized = plan(width, height, config).resized
    for scale, spare in _SCALES:
        if width >= scale * spare * resized[0] and height >= scale * spare * resized[1]:
            return scale
    return 1


def _read_head(data: bytes) -> tuple[bytes | None, bool]:
    """(EXIF block, could there be many scans?): what comes before the first scan."""
    exif, num_components, is_progressive = None, 0, False
    for marker, body in _segments(data):
        if marker == _APP1 and exif is None and data.startswith(b"Exif\0\0", body.start):
            exif = data[body.start : body.stop]
        elif marker in _FRAMES:
            num_components, is_progressive = _byte(data, body.start + 5), marker in _PROGRESSIVE_FRAMES
        elif marker == _START_OF_SCAN:
            # A sequential file whose first scan holds all components is decoded in that one pass.
            return exif, is_progressive or _byte(data, body.start) != num_components
    return exif, True


def _check_scans(data: bytes) -> None:
    """Raises ImageError for a file with an absurd number of scans."""
    # Quick and never too low. Too high where a film is appended to the photo, as phones do: then count properly.
    if data.count(_START_OF_SCAN) <= _MAX_SCANS:
        return
    scans = sum(marker == _START_OF_SCAN for marker, _ in _segments(data))
    if scans > _MAX_SCANS:
        raise ImageError("decode_error", f"{scans} scans")


def _segments(data: bytes) -> Iterator[tuple[bytes, range]]:
    """(marker, where its body lies) up to the end of the image; skips stray bytes exactly where libjpeg does."""
    at = 2
    while found := _MARKER.search(data, at):
        at = found.end()
        marker = b"\xff" + found[1]
        if marker == _END_OF_IMAGE:
            return
        if marker in _WITHOUT_BODY:
            continue
        body = range(at + 2, at + int.from_bytes(data[at : at + 2], "big"))
        if not at + 2 <= body.stop <= len(data):
            return
        yield marker, body
        at = body.stop
        if marker == _START_OF_SCAN:
            following = _AFTER_SCAN.search(data, at)
            at = following.start() if following else len(data)


def _byte(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 1], "big")
