"""One downloaded image → one stored image, or one reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.images.blur import blur_boxes
from pipeline.images.config import ImageConfig
from pipeline.images.decode import decode
from pipeline.images.encode import encode
from pipeline.images.exif import exif_json, swaps_sides, turn_upright
from pipeline.images.limits import check_pixels
from pipeline.images.resize import Pixels, frame, plan, resample


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is encoded. `pixels` (height, width, 3) uint8 RGB; the original's size is that of the upright image."""

    pixels: Pixels
    original_width: int
    original_height: int


@dataclass(frozen=True, slots=True)
class Converted:
    """A stored image: `data` in the configured format, sizes in pixels, `exif` as JSON text where asked for."""

    data: bytes
    width: int
    height: int
    original_width: int
    original_height: int
    exif: str | None


def prepare(data: bytes, config: ImageConfig, boxes: Sequence[Sequence[float]] | None = None) -> Prepared:
    """Everything up to the encoder. `boxes`: (x_min, y_min, x_max, y_max) of the upright image, relative, in [0, 1].

    Raises ImageError and nothing else. Thread-safe; the decoders release the GIL.
    """
    decoded = decode(data, config)
    width, height = decoded.width, decoded.height
    if swaps_sides(decoded.orientation):
        width, height = height, width
    target = plan(width, height, config)
    check_pixels(*target.resized, config)  # enlarging a thread-thin image can ask for more than the original had
    lying = target.resized[::-1] if swaps_sides(decoded.orientation) else target.resized
    # Small pixels are cheaper to turn and to blur.
    extent = decoded.width / decoded.scale, decoded.height / decoded.scale
    pixels = turn_upright(resample(decoded.pixels, lying, extent), decoded.orientation)
    if boxes is not None and len(boxes) > 0:
        pixels = blur_boxes(pixels, boxes)
    return Prepared(frame(pixels, target.framed), width, height)


def convert(data: bytes, config: ImageConfig, boxes: Sequence[Sequence[float]] | None = None) -> Converted:
    """As `prepare`, then encoded; the same bytes for the same input. Raises ImageError and nothing else."""
    prepared = prepare(data, config, boxes)
    height, width = prepared.pixels.shape[:2]
    return Converted(
        data=encode(prepared.pixels, config),
        width=width,
        height=height,
        original_width=prepared.original_width,
        original_height=prepared.original_height,
        exif=exif_json(data) if config.keep_exif else None,
    )
