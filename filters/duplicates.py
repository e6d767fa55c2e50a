"""Duplicates: what tells that two stored images are the same bytes, or the same picture."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

from filters.base import Batch, Scorer, column
from filters.phash import SIDE, coarse_hashes, fine_hashes, miniature

SHA256_BYTES = 32


class Duplicates(Scorer):
    """sha256, phash, phash_fine; hashes of the picture are null where an image cannot be decoded.

    Hashes of the picture are of it upright, alpha on white, so that a turned or transparent copy is the same.
    """

    name = "duplicates"
    per = "image"
    needs_image = True
    columns = pa.schema(
        [
            # As bytes: half of what 64 digits take, on disk and in a join. lower(hex(sha256)) is what people read.
            column("sha256", pa.binary(SHA256_BYTES), "SHA-256 of the stored bytes, 32 bytes."),
            column(
                "phash",
                pa.uint64(),
                "ImageHash's perceptual hash. Bits that differ: up to 4 a copy, up to 10 a copy or a look-alike.",
            ),
            column(
                "phash_fine",
                pa.uint64(),
                "The same of 64 finer frequencies. Bits that differ: up to 4 a copy and hardly ever another picture.",
            ),
        ]
    )

    def score(self, batch: Batch) -> pa.Table:
        """A row for each pair."""
        digests = [None if pair.image is None else hashlib.sha256(pair.image).digest() for pair in batch.pairs]
        pictures = np.zeros((len(digests), SIDE, SIDE), np.uint8)
        for picture, levels in zip(pictures, batch.greys, strict=True):
            if levels is not None:
                picture[:] = miniature(levels)
        unknown = np.array([levels is None for levels in batch.greys], bool)
        arrays = [pa.array(digests, pa.binary(SHA256_BYTES))]
        arrays += [pa.array(hashes(pictures), mask=unknown) for hashes in (coarse_hashes, fine_hashes)]
        return pa.Table.from_arrays(arrays, schema=self.columns)
