"""What changes over the steps of a training, as pure functions of the steps done: no state needs to be saved."""

from __future__ import annotations

import math


def cosine(step: int, first: float, last: float, num_steps: int) -> float:
    """From first to last along half a cosine over num_steps steps, last from then on."""
    part = min(1.0, step / num_steps) if num_steps else 1.0
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * part))
