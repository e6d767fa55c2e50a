"""Perceptual hashes: 64 bits that survive resizing and recompression, coarse to find and fine to tell apart.

The coarse one is ImageHash's `phash` (hash_size 8, highfreq_factor 4), bit for bit, so that lists made with that
package can be used: grey, 32×32 by Lanczos, two-dimensional DCT-II, the 8×8 lowest frequencies, each above their median
or not; the first bit is the most significant. Source: Zauner, "Implementation and Benchmarking of Perceptual Image Hash
Functions", 2010, section 3.2; ImageHash leaves out its mean filter, and keeps the DC term that it drops.

The fine one is ours: the same picture and transform, 64 higher frequencies. Drawings with few forms on a large ground
share their low frequencies with many others, and these they do not; docs/scores.md has the figures.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from filters.pixels import Pixels, grey

# Shapes: N pictures, H height, W width, S = 32, K frequencies
SIDE = 32

_Floats = npt.NDArray[np.float64]

# (k, l): the 8×8 lowest, row by row; and 64 in a diagonal band that begins with k + l = 18.
_COARSE = np.array([divmod(at, 8) for at in range(64)])
_FINE: npt.NDArray[Any] = np.array(
    sorted(np.ndindex(SIDE, SIDE), key=lambda at: (sum(at), max(at), at))[171 : 171 + 64]
)

# Pillow's own Lanczos, as a matrix product: coefficients in its fixed point, of which float64 holds every sum exactly.
_REACH, _BITS = 3.0, 22
_BANDS = 4  # of output columns; each needs few of the input's, so that most zeros are never multiplied
_STRIP = 1 << 16  # pixels at a time: they fit the cache, and BLAS sees no reason to wake its threads


def perceptual_hash(pixels: Pixels) -> int:
    """pixels (H, W, 3) RGB or (H, W) grey, uint8, of any size → 64 bits, as an int in [0, 2**64)."""
    return int(coarse_hashes(miniature(grey(pixels))[None])[0])


def perceptual_hash_of_bytes(data: bytes) -> int:
    """The same of a stored image (jpg, png or webp). For our own shards: no guard against hostile bytes.

    Raises OSError where Pillow cannot decode it.
    """
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
        return perceptual_hash(np.asarray(image.convert("L")))


def hamming(a: npt.ArrayLike, b: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Number of differing bits, 0 to 64, elementwise with broadcasting. a, b: hashes, any shape."""
    return np.bitwise_count(_as_uint64(a) ^ _as_uint64(b))


def miniature(levels: Pixels) -> Pixels:
    """levels (H, W) grey → (S, S), bit for bit Pillow's `resize((32, 32), LANCZOS)`, at a third of the price."""
    height, width = levels.shape
    across = np.empty((height, SIDE))
    num_rows = max(1, _STRIP // width)
    for top in range(0, height, num_rows):
        across[top : top + num_rows] = _squeeze(levels[top : top + num_rows].astype(np.float64))
    return _squeeze(across.T).T.astype(np.uint8)


def coarse_hashes(miniatures: Pixels) -> npt.NDArray[np.uint64]:
    """(N, S, S) → (N,): ImageHash's phash."""
    return _hashes(miniatures, _COARSE)


def fine_hashes(miniatures: Pixels) -> npt.NDArray[np.uint64]:
    """(N, S, S) → (N,): the fine hash. Up to about 4 bits apart is the same picture."""
    return _hashes(miniatures, _FINE)


def _hashes(miniatures: Pixels, frequencies: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    k, l = frequencies.T
    # Row k of the DCT-II of length 32, without the scale that all frequencies share
    cosines = np.cos(np.pi / SIDE * np.outer(np.arange(1 + frequencies.max()), np.arange(SIDE) + 0.5))  # (K, S)
    transformed = cosines @ miniatures.astype(np.float64) @ cosines.T  # (N, K, K)
    # Symmetric pictures have coefficients that are zero but for what float sums leave; that noise must not be a bit.
    chosen = transformed[:, k, l].round(6)  # (N, 64)
    bits = np.packbits(chosen > np.median(chosen, axis=1, keepdims=True), axis=1)  # (N, 8)
    return np.frombuffer(bits.tobytes(), ">u8").astype(np.uint64)


def _squeeze(rows: _Floats) -> _Floats:
    """rows (N, L) of whole numbers 0 to 255 → (N, S), as whole."""
    bands = _bands(rows.shape[1])
    sums = np.concatenate([rows[:, columns] @ weights for columns, weights in bands], axis=1)
    return np.clip(np.floor(sums + 0.5), 0, 255)


@lru_cache(maxsize=128)
def _bands(length: int) -> list[tuple[slice, _Floats]]:
    """Which inputs each quarter of the outputs needs, and their weights (inputs, S / 4), of one row of `length`."""
    scale = length / SIDE
    stretch = max(scale, 1.0)
    centres = (np.arange(SIDE) + 0.5) * scale
    first = np.maximum((centres - _REACH * stretch + 0.5).astype(int), 0)
    last = np.minimum((centres + _REACH * stretch + 0.5).astype(int), length)
    inputs = np.arange(length)[:, None]
    x = (inputs - centres + 0.5) / stretch
    weights = np.sinc(x) * np.sinc(x / _REACH) * ((inputs >= first) & (inputs < last))  # (L, S)
    weights = np.rint(weights / weights.sum(axis=0) * 2**_BITS) / 2**_BITS
    parts = [slice(at, at + SIDE // _BANDS) for at in range(0, SIDE, SIDE // _BANDS)]
    needed = [slice(int(first[part].min()), int(last[part].max())) for part in parts]
    return [(rows, np.ascontiguousarray(weights[rows, part])) for part, rows in zip(parts, needed, strict=True)]


def _as_uint64(hashes: npt.ArrayLike) -> npt.NDArray[Any]:
    # numpy would make floats of a list that holds hashes on both sides of 2**63.
    return np.asarray(hashes, dtype=np.uint64)
