"""Encoded bytes to pixels: the header first, then no more of a JPEG than the size that is wanted needs.

Upright as EXIF says, the first frame, alpha on white, 16 bits scaled, CMYK and palettes as RGB. Bytes are hostile until
proven otherwise: sizes are asked of the header before a pixel is decoded.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError
from pydantic import Field

from infra.pictures import rgb
from infra.recipe import Config

Pixels = npt.NDArray[np.uint8]  # (H, W, 3) RGB

# What resizing needs of a side: the other side may become as short as one pixel on its way. No JPEG has longer ones.
_LONGEST_SIDE = 65_535

_JPEG, _START_OF_SCAN = b"\xff\xd8", b"\xff\xda"
_SCAN, _APP1, _SEQUENTIAL = 0xDA, 0xE1, (0xC0, 0xC1)  # markers of segments
# Each further scan is a pass over all coefficients, so a small file could ask for hours. Progressive ones have ten.
_MAX_SCANS = 48

# libjpeg decodes at these fractions of the size from fewer coefficients. That is not the mean of the pixels it stands
# for; the more of them a wanted pixel covers, the less it shows. With this many times the wanted pixels left, photos
# differ from a full decode, resized, by 0.9 grey levels at 1/2, 1.3 at 1/4 and 1.9 at 1/8 (mean absolute difference).
_FRACTIONS, _SPARE = (8, 4, 2), 1.5

# Where simplejpeg finds other faults, the picture is whole.
_LOST_DATA = re.compile("premature end|bad huffman|bad arithmetic", re.IGNORECASE)
_TRUNCATED = re.compile(r"truncated|premature end|unexpected end|ended", re.IGNORECASE)

# EXIF orientation → what turns the stored picture upright.
_TURNS: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: stored.transpose(1, 0, 2)[:, ::-1],
    7: lambda stored: stored.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda stored: stored.transpose(1, 0, 2)[::-1],
}
_LAID_DOWN = (5, 6, 7, 8)  # orientations that exchange width and height

# What decoders think of broken files is said once, by UnreadableImage.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class UnreadableImage(Exception):
    """Bytes that give no picture. reason: not_an_image, truncated, broken or too_large; detail is for people."""

    def __init__(self, reason: Literal["not_an_image", "truncated", "broken", "too_large"], detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail[:200]  # decoders quote the bytes that they choke on

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True, slots=True)
class Encoded:
    """An image whose header was read. width, height: in pixels, upright."""

    width: int
    height: int
    decode: Callable[[float], tuple[Pixels, int]]

    def pixels(self, spare: float) -> tuple[Pixels, int]:
        """Decode. spare: how many source pixels there are to a wanted one; of many, libjpeg makes fewer at once.

        Returns pixels, (H, W, 3) RGB, upright, and 1, 2, 4 or 8; their height and width are those of the header divided
        by that and rounded up. Raises UnreadableImage, and no other error.
        """
        try:
            pixels, fraction = self.decode(spare)
        except Exception as error:  # noqa: BLE001 - hostile bytes reach every line of a decoder
            raise _unreadable(error) from None
        if pixels.shape != (-(-self.height // fraction), -(-self.width // fraction), 3):
            raise UnreadableImage("broken", "not of the size that its header says")
        return pixels, fraction


class Decode(Config):
    """The bytes to pixels."""

    max_pixels: int = Field(100_000_000, gt=0, description="images that claim more are refused before decoding")

    def open(self, data: bytes) -> Encoded:
        """Read the header. Raises UnreadableImage, and no other error, whatever the bytes."""
        try:
            encoded = self._jpeg(data) if data.startswith(_JPEG) else None
            return encoded or self._by_pillow(data)
        except Exception as error:  # noqa: BLE001 - hostile bytes reach every line of a decoder
            raise _unreadable(error) from None

    def _jpeg(self, data: bytes) -> Encoded | None:
        """By libjpeg-turbo without Pillow's detours; None where those are needed."""
        exif, may_have_many_scans = _head(data)
        if may_have_many_scans and data.count(_START_OF_SCAN) > _MAX_SCANS:
            raise UnreadableImage("broken", "too many scans")
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return None
        if colours not in ("YCbCr", "Gray", "RGB"):
            return None
        self._check(width, height)
        orientation = _orientation(exif)

        def decode(spare: float) -> tuple[Pixels, int]:
            # The last pixel may be half padding; turned, it would come first.
            usable = [one for one in _FRACTIONS if orientation == 1 or not (width % one or height % one)]
            fraction = next((one for one in usable if spare >= one * _SPARE), 1)
            # Asking for this many pixels picks exactly this fraction.
            least_wide, least_high = -(-width // fraction), -(-height // fraction)
            try:
                stored = simplejpeg.decode_jpeg(data, min_width=least_wide, min_height=least_high)
            except ValueError as error:
                if _LOST_DATA.search(str(error)):
                    raise
                # Stray bytes between segments and the like: Pillow may judge.
                return self._by_pillow(data).decode(spare)
            return _upright(stored, orientation), fraction

        return Encoded(*_laid(width, height, orientation), decode)

    def _by_pillow(self, data: bytes) -> Encoded:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "GIF", "BMP"))
        width, height = image.size
        self._check(width, height)
        orientation = _orientation(image.info.get("exif", b""))
        return Encoded(
            *_laid(width, height, orientation), lambda spare: (_upright(np.array(rgb(image)), orientation), 1)
        )

    def _check(self, width: int, height: int) -> None:
        if width * height > self.max_pixels or max(width, height) > _LONGEST_SIDE:
            raise UnreadableImage("too_large", f"{width}×{height}")
        if not width * height:
            raise UnreadableImage("broken", f"{width}×{height}")


def _unreadable(error: Exception) -> UnreadableImage:
    detail = f"{type(error).__name__}: {error}"
    if isinstance(error, UnreadableImage):
        return error
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return UnreadableImage("too_large", detail)
    if isinstance(error, UnidentifiedImageError):
        return UnreadableImage("not_an_image", detail)
    return UnreadableImage(
        "truncated" if isinstance(error, EOFError) or _TRUNCATED.search(detail) else "broken", detail
    )


def _head(data: bytes) -> tuple[bytes, bool]:
    """(EXIF block or none, may there be many scans?): what comes before a JPEG's first scan tells."""
    at, num_components, exif = 2, 0, b""
    while at + 9 < len(data) and data[at] == 0xFF:
        marker, body = data[at + 1], at + 4
        if marker == _SCAN:  # a sequential file whose first scan has all components is decoded in that one pass
            return exif, data[body] != num_components
        if marker in _SEQUENTIAL:
            num_components = data[body + 5]
        end = at + 2 + int.from_bytes(data[at + 2 : body], "big")
        if marker == _APP1 and data.startswith(b"Exif\0\0", body):
            exif = data[body:end]
        at = end
    return exif, True


def _orientation(exif: bytes) -> int:
    if not exif:
        return 1
    block = Image.Exif()
    try:
        block.load(exif)
        return int(block.get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - hostile bytes; an image with broken EXIF is still an image
        return 1


def _laid(width: int, height: int, orientation: int) -> tuple[int, int]:
    return (height, width) if orientation in _LAID_DOWN else (width, height)


def _upright(stored: Pixels, orientation: int) -> Pixels:
    turn = _TURNS.get(orientation)
    return stored if turn is None else np.ascontiguousarray(turn(stored))
