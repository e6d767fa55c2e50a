"""The limits an image must keep, asked of its declared size before a pixel is decoded."""

from __future__ import annotations

from pipeline.images.config import ImageConfig
from pipeline.images.errors import ImageError


def check_pixels(width: int, height: int, config: ImageConfig) -> None:
    """Raises ImageError `too_many_pixels`, or `decode_error` for an image without pixels."""
    if width < 1 or height < 1:
        raise ImageError("decode_error", f"{width}×{height} pixels")
    if width * height > config.max_pixels:
        raise ImageError("too_many_pixels", f"{width}×{height} exceeds {config.max_pixels}")


def check_limits(width: int, height: int, config: ImageConfig) -> None:
    """All limits on the original image; none depends on its orientation. Raises ImageError with the first reason."""
    check_pixels(width, height, config)
    shortest, longest = min(width, height), max(width, height)
    if shortest < config.min_image_size:
        raise ImageError("too_small", f"{width}×{height}; the shortest side must have {config.min_image_size}")
    if config.max_image_area is not None and width * height > config.max_image_area:
        raise ImageError("too_large_area", f"{width}×{height} exceeds {config.max_image_area}")
    if config.max_aspect_ratio is not None and longest > shortest * config.max_aspect_ratio:
        raise ImageError("too_elongated", f"{width}×{height} exceeds {config.max_aspect_ratio}:1")
