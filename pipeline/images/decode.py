"""Bytes of any format that is read → RGB pixels. Pillow for all but plain JPEG and WebP, checked first."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import AvifImagePlugin, Image

from pipeline.images.colour import to_rgb
from pipeline.images.config import ImageConfig
from pipeline.images.errors import ImageError, NeedsPillow
from pipeline.images.exif import orientation
from pipeline.images.jpeg import decode_jpeg
from pipeline.images.limits import check_limits, check_pixels
from pipeline.images.quiet import silence_decoders
from pipeline.images.resize import Pixels
from pipeline.images.sniff import sniff
from pipeline.images.webp import decode_webp

AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # a worker is one core
silence_decoders()

_TILE_WIDTH, _TILE_LENGTH = 322, 323


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
    try:
        try:
            return _decode_fast(data, format_name, config)
        except NeedsPillow:
            return _decode_by_pillow(data, format_name, config)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("too_many_pixels", str(error)) from None
    except Exception as error:  # noqa: BLE001 - hostile bytes reach every line of a decoder
        raise ImageError("decode_error", f"{type(error).__name__}: {error}") from None


def _decode_fast(data: bytes, format_name: str, config: ImageConfig) -> Decoded:
    if format_name == "JPEG":
        jpeg = decode_jpeg(data, config)
        return Decoded(jpeg.pixels, jpeg.width, jpeg.height, jpeg.scale, orientation(jpeg.exif))
    if format_name == "WEBP":
        pixels, exif = decode_webp(data, config)
        return Decoded(pixels, pixels.shape[1], pixels.shape[0], 1, orientation(exif))
    raise NeedsPillow(format_name)


def _decode_by_pillow(data: bytes, format_name: str, config: ImageConfig) -> Decoded:
    if format_name == "ICO":
        _check_ico(data, config)
    with Image.open(io.BytesIO(data), formats=[format_name]) as image:
        check_limits(*image.size, config)
        if format_name == "TIFF":
            _check_tile(image, config)
        image.load()
        width, height = image.size
        check_limits(width, height, config)  # some headers are only known to lie now
        # TIFF's orientation is applied by Pillow on loading.
        turn = 1 if format_name == "TIFF" else orientation(image.info.get("exif"))
        return Decoded(to_rgb(image), width, height, 1, turn)


def _check_tile(image: Image.Image, config: ImageConfig) -> None:
    """A TIFF of 16×16 pixels may lie in one tile of 60000×60000, which is decoded whole."""
    tags = getattr(image, "tag_v2", {})
    check_pixels(tags.get(_TILE_WIDTH, 1), tags.get(_TILE_LENGTH, 1), config)


def _check_ico(data: bytes, config: ImageConfig) -> None:
    """Sizes of all images inside: Pillow decodes as it opens, and a directory can say 16×16 of a PNG of 20000×20000."""
    for entry in range(6, 6 + 16 * int.from_bytes(data[4:6], "little"), 16):
        offset = int.from_bytes(data[entry + 12 : entry + 16], "little")
        inner = data[offset : offset + 24]
        if inner.startswith(b"\x89PNG"):
            check_pixels(int.from_bytes(inner[16:20], "big"), int.from_bytes(inner[20:24], "big"), config)
        elif len(inner) == 24:
            width = abs(int.from_bytes(inner[4:8], "little", signed=True))
            height = abs(int.from_bytes(inner[8:12], "little", signed=True)) // 2  # colours and mask, stacked
            check_pixels(width, height, config)
