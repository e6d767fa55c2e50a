"""RGB pixels → the bytes that are stored. No metadata goes in, so none of the original's can come out."""

from __future__ import annotations

import cv2
import simplejpeg

from pipeline.images.config import ImageConfig
from pipeline.images.errors import ImageError
from pipeline.images.resize import Pixels

_PNG_LEVEL = 6  # zlib's own default


def encode(pixels: Pixels, config: ImageConfig) -> bytes:
    """pixels (H, W, 3) uint8 → bytes in `config.encode_format`. Raises ImageError `encode_error`."""
    try:
        if config.encode_format == "jpg":
            return bytes(simplejpeg.encode_jpeg(pixels, config.encode_quality, "RGB", config.subsampling))
        if config.encode_format == "png":
            parameters = [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL]
        else:
            parameters = [cv2.IMWRITE_WEBP_QUALITY, config.encode_quality]
        done, data = cv2.imencode(f".{config.encode_format}", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), parameters)
    except (ValueError, cv2.error) as error:
        raise ImageError("encode_error", str(error)) from None
    if not done:
        height, width = pixels.shape[:2]
        raise ImageError("encode_error", f"{width}×{height} as {config.encode_format}")
    return data.tobytes()
