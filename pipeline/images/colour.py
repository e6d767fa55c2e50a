"""Any Pillow mode → 8-bit RGB: alpha on white, 16 bits scaled, CMYK by its own profile, the rest refused."""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image, ImageCms

from pipeline.images.errors import ImageError
from pipeline.images.resize import Pixels

_DIRECT = {"1", "L", "P", "RGB", "RGBX", "YCbCr"}
_WITH_ALPHA = {"RGBA", "RGBa", "LA", "La", "PA"}
_TIFF_BITS, _TIFF_SAMPLE_FORMAT, _SIGNED = 258, 339, 2


def to_rgb(image: Image.Image) -> Pixels:
    """A loaded image → (H, W, 3) uint8. Raises ImageError `unsupported_format` for 32-bit, float and Lab pixels."""
    mode = image.mode
    if mode.startswith("I;16"):
        return _grey16_to_rgb(np.asarray(image), image.info.get("transparency"))
    if mode == "I" and _is_signed_16(image):
        # Black is 0 here: what little signed data there is comes from microscopes and elevation, with water below.
        return _grey16_to_rgb(np.asarray(image).clip(0, 32767).astype(np.uint16) * np.uint16(2), None)
    if mode == "CMYK":
        return np.asarray(_cmyk_to_rgb(image))
    if mode in _WITH_ALPHA or (mode in _DIRECT and "transparency" in image.info):
        rgba = image if mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(rgba, mask=rgba)
        return np.asarray(white)
    if mode in _DIRECT:
        return np.asarray(image if mode == "RGB" else image.convert("RGB"))
    raise ImageError("unsupported_format", f"{image.format} with pixels of type {mode}")


def _grey16_to_rgb(grey: np.ndarray, transparent: object) -> Pixels:
    """(H, W) uint16 → (H, W, 3) uint8; the one transparent value, if any, becomes white."""
    native = grey.astype(np.uint16, copy=False)
    scaled = cv2.convertScaleAbs(native, alpha=1 / 257)  # rounds, 65535 → 255
    if isinstance(transparent, int):
        scaled[native == transparent] = 255
    return cv2.cvtColor(scaled, cv2.COLOR_GRAY2RGB)  # type: ignore[return-value]


def _is_signed_16(image: Image.Image) -> bool:
    tags = getattr(image, "tag_v2", {})
    return tags.get(_TIFF_BITS) == (16,) and tags.get(_TIFF_SAMPLE_FORMAT) == (_SIGNED,)


def _cmyk_to_rgb(image: Image.Image) -> Image.Image:
    """By the embedded profile where it is a usable one, else by plain subtraction. Pillow undid Adobe's inversion."""
    if profile := image.info.get("icc_profile"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if source.profile.xcolor_space.strip() == "CMYK":
                srgb = ImageCms.createProfile("sRGB")
                converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
                assert converted is not None  # None is for inPlace alone
                return converted
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass  # a broken profile: the picture is still there
    return image.convert("RGB")
