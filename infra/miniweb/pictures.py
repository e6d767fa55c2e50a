"""Encodes a drawn scene as the web would hold it: formats, colour models, EXIF turns, near duplicates."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from infra.miniweb.paint import draw
from infra.miniweb.scenes import Scene

# A picture is stored turned by the first and has to be shown turned back: EXIF orientation.
_STORED_TURN = {
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True, slots=True)
class Picture:
    """What an image file holds. `width` and `height` are of the drawing, in pixels, before the edit."""

    scene: Scene
    width: int
    height: int
    format: str = "jpeg"  # one of ENCODERS
    quality: int = 88
    edit: str | None = None  # resized | recompressed | cropped: how a near duplicate was made
    orientation: int = 1  # EXIF

    def shown_size(self) -> tuple[int, int]:
        """Width and height as a viewer shows it: after the edit, upright."""
        if self.edit == "resized":
            return round(self.width * 0.7), round(self.height * 0.7)
        if self.edit == "cropped":
            left, top = round(self.width * 0.05), round(self.height * 0.05)
            return self.width - 2 * left, self.height - 2 * top
        return self.width, self.height


def encode(picture: Picture) -> bytes:
    """The file's bytes; the same picture gives the same bytes."""
    # Icons and pixels are shrunk drawings, as they are on the web.
    image = draw(picture.scene, max(picture.width, 64), max(picture.height, 64))
    width, height = picture.shown_size()
    if min(picture.width, picture.height) < 64:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    if picture.edit == "resized":
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    elif picture.edit == "cropped":
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    elif picture.edit == "recompressed":
        image = Image.open(io.BytesIO(_save(image, "JPEG", quality=40)))
    return ENCODERS[picture.format](image, picture)


def extension(format_name: str) -> str:
    """jpg, png, webp, gif or avif for a key of ENCODERS."""
    family = format_name.rsplit("_", 1)[-1]
    return {"jpeg": "jpg"}.get(family, family)


def _save(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _jpeg(image: Image.Image, picture: Picture) -> bytes:
    return _save(image, "JPEG", quality=picture.quality)


def _exif_jpeg(image: Image.Image, picture: Picture) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = picture.orientation
    exif[0x010F] = "Pairmill miniweb"  # the maker: what a downloader should drop unless asked to keep it
    turn = _STORED_TURN.get(picture.orientation)
    stored = image.transpose(turn) if turn is not None else image
    return _save(stored, "JPEG", quality=picture.quality, exif=exif)


def _alpha_png(image: Image.Image, picture: Picture) -> bytes:
    cover = Image.new("L", image.size)
    ImageDraw.Draw(cover).rounded_rectangle((0, 0, image.width - 1, image.height - 1), min(image.size) // 5, fill=255)
    image = image.convert("RGBA")
    image.putalpha(cover)
    return _save(image, "PNG", compress_level=3)


def _grey16_png(image: Image.Image, picture: Picture) -> bytes:
    grey = np.asarray(image.convert("L"), dtype=np.uint16) * 257
    return _save(Image.fromarray(grey), "PNG", compress_level=3)


ENCODERS: dict[str, Callable[[Image.Image, Picture], bytes]] = {
    "jpeg": _jpeg,
    "progressive_jpeg": lambda image, picture: _save(image, "JPEG", quality=picture.quality, progressive=True),
    "grey_jpeg": lambda image, picture: _jpeg(image.convert("L"), picture),
    "cmyk_jpeg": lambda image, picture: _jpeg(image.convert("CMYK"), picture),
    "exif_jpeg": _exif_jpeg,
    "png": lambda image, picture: _save(image, "PNG", compress_level=3),
    "palette_png": lambda image, picture: _save(image.quantize(64, Image.Quantize.FASTOCTREE), "PNG"),
    "alpha_png": _alpha_png,
    "grey16_png": _grey16_png,
    "webp": lambda image, picture: _save(image, "WEBP", quality=picture.quality, method=2),
    "gif": lambda image, picture: _save(image.quantize(128, Image.Quantize.FASTOCTREE), "GIF"),
    "avif": lambda image, picture: _save(image, "AVIF", quality=70, speed=10),
}
COLOURLESS = frozenset({"grey_jpeg", "grey16_png"})
