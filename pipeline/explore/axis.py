"""How a numeric column is drawn and cut: nearly all of its values, in bins and in slider steps of round numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

NUM_BINS = 64
TAIL = 0.001  # of the values at either end may lie beyond the axis, where they are far away
FAR = 0.1  # of the rest's span
MIN_STEPS = 100  # of a slider over numbers that are not whole
MIN_SPAN = 1e-9  # of their size; below, floats run out of digits


@dataclass(frozen=True, slots=True)
class Axis:
    """From `low` to `high`, in `num_bins` bins of `width`; the outer bins hold what lies beyond.

    A bin holds its lower end. Of whole numbers, `high` is the highest value that has a place of its own.
    """

    low: float
    high: float
    width: float
    num_bins: int
    step: float


def make_axis(lowest: float, low: float, high: float, highest: float, is_whole: bool) -> Axis:
    """lowest, highest: of all values; low, high: of all but TAIL at either end. All finite."""
    if high <= low:
        low, high = lowest, highest
    far = FAR * (high - low)
    low = lowest if low - lowest <= far else low
    high = highest if highest - high <= far else high
    if is_whole:
        width = math.ceil((high - low + 1) / NUM_BINS)
        return Axis(low, high, width, math.ceil((high - low + 1) / width), 1)
    if high - low <= MIN_SPAN * max(abs(low), abs(high), MIN_SPAN):
        low, high = low - 0.5, high + 0.5
    step = 10.0 ** math.floor(math.log10((high - low) / MIN_STEPS))
    # Divided by the inverse of a power of ten, 0.3 comes out as itself and not as 0.30000000000000004.
    scale = round(1 / step) if step < 1 else 1 / step
    first, last = math.floor(low * scale), math.ceil(high * scale)
    low, high = first / scale, last / scale
    return Axis(low, high, (high - low) / NUM_BINS, NUM_BINS, step)
