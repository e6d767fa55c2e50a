"""Numbers on disk, for the exact value at a place of their descending order: counting, not sorting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

CHUNK = 1 << 22  # values that are looked at together


class Spilled:
    """Numbers on disk, for the exact value at a place of their descending order: four passes, a bounded count each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self.num_values = 0

    def add(self, values: npt.NDArray[np.float64]) -> None:
        """Append values; none may be NaN."""
        bits = (values + 0.0).view(np.uint64)  # -0.0 and 0.0 are one value
        # Unsigned integers in the order of the numbers: negative ones turned over, positive ones above them.
        keys = np.where(bits >> np.uint64(63), ~bits, bits | np.uint64(1 << 63))
        self._file.write(keys.tobytes())
        self.num_values += len(values)

    def at(self, place: int) -> float:
        """The value at `place`, counted from 0 down from the highest."""
        self._file.flush()
        keys = np.memmap(self._path, np.uint64, "r")
        prefix, above = 0, place
        for shift in (48, 32, 16, 0):
            counts = np.zeros(1 << 16, np.int64)
            for start in range(0, len(keys), CHUNK):
                chunk = np.asarray(keys[start : start + CHUNK])
                if shift < 48:
                    chunk = chunk[chunk >> np.uint64(shift + 16) == prefix]
                counts += np.bincount((chunk >> np.uint64(shift)).astype(np.int64) & 0xFFFF, minlength=1 << 16)
            down = np.cumsum(counts[::-1])
            bucket = int(np.searchsorted(down, above, side="right"))
            above -= int(down[bucket - 1]) if bucket else 0
            prefix = prefix << 16 | (0xFFFF - bucket)
        bits = prefix & ~(1 << 63) if prefix >> 63 else ~prefix & 0xFFFF_FFFF_FFFF_FFFF
        return float(np.array([bits], np.uint64).view(np.float64)[0])
