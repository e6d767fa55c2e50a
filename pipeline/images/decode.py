"""Bytes of any format that is read → RGB pixels. Pillow for all but plain JPEG, one plugin at a time, checked first."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import AvifImagePlugin, Image

from pipeline.images.colour import to_rgb
from pipeline.images.config import ImageConfig
from pipeline.images.errors import ImageError
from pipeline.images.exif import orientation
from pipeline.images.jpeg import NeedsPillow, decode_jpeg
from pipeline.images.limits import check_limits, check_pixels
from pipeline.images.quiet import silence_decoders
from pipeline.images.resize import Pixels
from pipeline.images.sniff import sniff

AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # a worker is one core
silence_decoders()


@dataclass(frozen=True, slots=True)
class Decoded:
    """As stored: `pixels` (⌈height / scale⌉, ⌈width / scale⌉, 3) RGB; `width`, `height` at full scale.

    `orientation`: EXIF's 1 to 8, still to be applied.
    """

    pixels: Pixels
    width: int
    height: int
    scale: int
    orientation: int


def decode(data: bytes, config: ImageConfig) -> Decoded:
    """First frame only. Raises ImageError, and nothing else, whatever the bytes are."""
    format_name = sniff(data)
    if format_name == "JPEG":
        try:
            jpeg = decode_jpeg(data, config)
            return Decoded(jpeg.pixels, jpeg.width, jpeg.height, jpeg.scale, orientation(jpeg.exif))
        except NeedsPillow:
            pass
    try:
        return _decode_by_pillow(data, format_name, config)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("too_many_pixels", str(error)) from None
    except Exception as error:  # noqa: BLE001 - hostile bytes reach every line of a decoder
        raise ImageError("decode_error", f"{type(error).__name__}: {error}") from None


def _decode_by_pillow(data: bytes, format_name: str, config: ImageConfig) -> Decoded:
    # These two plugins allocate, ICO even decodes, while they open: too late for a check.
    if format_name == "WEBP":
        _check_webp(data, config)
    elif format_name == "ICO":
        _check_ico(data, config)
    with Image.open(io.BytesIO(data), formats=[format_name]) as image:
        width, height = image.size
        check_limits(width, height, config)
        image.load()
        if image.size != (width, height) and format_name != "TIFF":
            check_limits(*image.size, config)
        width, height = image.size
        # TIFF's orientation is applied by Pillow on loading.
        turn = 1 if format_name == "TIFF" else orientation(image.info.get("exif"))
        return Decoded(to_rgb(image), width, height, 1, turn)


def _check_webp(data: bytes, config: ImageConfig) -> None:
    """Canvas size from the first chunk. Source: WebP container specification; RFC 6386, 9.1; lossless bitstream, 3."""
    chunk, head = data[12:16], data[20:30]
    if chunk == b"VP8X":
        width, height = int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    elif chunk == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width = int.from_bytes(head[6:8], "little") & 0x3FFF
        height = int.from_bytes(head[8:10], "little") & 0x3FFF
    check_pixels(width, height, config)


def _check_ico(data: bytes, config: ImageConfig) -> None:
    """Sizes of all images inside: the directory's bytes can say 16×16 of a PNG that is 20000×20000."""
    for entry in range(6, 6 + 16 * int.from_bytes(data[4:6], "little"), 16):
        offset = int.from_bytes(data[entry + 12 : entry + 16], "little")
        inner = data[offset : offset + 24]
        if inner.startswith(b"\x89PNG"):
            check_pixels(int.from_bytes(inner[16:20], "big"), int.from_bytes(inner[20:24], "big"), config)
        elif len(inner) == 24:
            width = abs(int.from_bytes(inner[4:8], "little", signed=True))
            height = abs(int.from_bytes(inner[8:12], "little", signed=True)) // 2  # colours and mask, stacked
            check_pixels(width, height, config)
