"""Perceptual hash: 64 bits that survive resizing and recompression. Up to about 10 bits apart is the same picture.

The definition is ImageHash's `phash` (hash_size 8, highfreq_factor 4), bit for bit, so that lists made with that
package can be used: grey, 32×32 by Lanczos, two-dimensional DCT-II, the 8×8 lowest frequencies, each above their
median or not; the first bit is the most significant. Source: Zauner, "Implementation and Benchmarking of Perceptual
Image Hash Functions", 2010, section 3.2; ImageHash leaves out its mean filter, and keeps the DC term that it drops.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

_SIDE, _LOW = 32, 8

# Row k of the DCT-II of length 32, without the scale that all frequencies share: (8, 32)
_COSINES = np.cos(np.pi / _SIDE * np.outer(np.arange(_LOW), np.arange(_SIDE) + 0.5))


def perceptual_hash(pixels: npt.NDArray[np.uint8]) -> int:
    """pixels (H, W, 3) RGB or (H, W) grey, uint8, of any size → 64 bits, as an int in [0, 2**64)."""
    return _hash_image(Image.fromarray(pixels))


def perceptual_hash_of_bytes(data: bytes) -> int:
    """The same of a stored image (jpg, png or webp). For our own shards: no guard against hostile bytes.

    Raises OSError where Pillow cannot decode it.
    """
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
        return _hash_image(image)


def hamming(a: npt.ArrayLike, b: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Number of differing bits, 0 to 64, elementwise with broadcasting. a, b: hashes, any shape."""
    return np.bitwise_count(_as_uint64(a) ^ _as_uint64(b))


def _hash_image(image: Image.Image) -> int:
    grey = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    low = _COSINES @ np.asarray(grey, np.float64) @ _COSINES.T  # (8, 8)
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def _as_uint64(hashes: npt.ArrayLike) -> npt.NDArray[Any]:
    # numpy would make floats of a list that holds hashes on both sides of 2**63.
    return np.asarray(hashes, dtype=np.uint64)
