"""Axes: a range of numbers with round ticks, linear or logarithmic, and labels as short as they can be told apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

NUM_STEPS = 5  # between ticks, about
NARROW = 1e-3  # a range below this share of its numbers is widened: their labels would be all digits
_NOTHING = 1e-200
_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, slots=True)
class Axis:
    """A range, and its ticks as (value, label)."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    is_log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high one."""
        low, high, at = map(math.log, (self.low, self.high, value)) if self.is_log else (self.low, self.high, value)
        return min(1.0, max(0.0, (at - low) / (high - low)))


def percent(value: float, step: float, top: float) -> str:
    """A tick of shares: 20 %; as a plain number where no share is so small or large."""
    if not 1e-5 <= step <= 1:
        return number(value, step, top)
    return f"{100 * value:.{_decimals(100 * step)}f} %"


def number(value: float, step: float, top: float) -> str:
    """A tick that can be told from its neighbours, a step away, on an axis up to top: 0.25, 12.5k, 2e−4."""
    if value == 0:
        text = "0"
    elif top >= 1e12 or (top < 1e-2 and step < 1e-3):
        digits = max(0, math.floor(math.log10(abs(value)) + 1e-9) - math.floor(math.log10(step) + 1e-9))
        mantissa, _, exponent = f"{value:.{digits}e}".partition("e")
        text = f"{_stripped(mantissa)}e{int(exponent)}"
    else:
        unit, letter = next((unit for unit in _UNITS if abs(value) >= unit[0]), (1.0, ""))
        text = f"{value / unit:.{_decimals(step / unit)}f}"
        text = f"{_stripped(text)}{letter}" if letter else text
    return text.replace("-", "−")


def linear(low: float, high: float, label: Callable[[float, float, float], str] = number) -> Axis:
    """An axis whose ends are ticks. label: (value, step between ticks, largest tick) → text."""
    low, high = _widened(low, high)
    step = _round_step((high - low) / NUM_STEPS)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    top = max(abs(first), abs(last)) * step
    ticks = tuple((at * step, label(at * step, step, top)) for at in range(first, last + 1))
    return Axis(ticks[0][0], ticks[-1][0], ticks)


def counted(high: float) -> Axis:
    """An axis of whole numbers from 0 to `high` itself: samples."""
    high = max(high, 1.0)
    step = max(1.0, _round_step(high / NUM_STEPS))
    ticks = tuple((at * step, number(at * step, step, high)) for at in range(math.floor(high / step) + 1))
    return Axis(0.0, high, ticks)


def logarithmic(low: float, high: float) -> Axis:
    """An axis over decades, from and to 1, 2 or 5 of one; low is positive, and high more than ten times of it."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    thin = math.ceil((last - first + 1) / (NUM_STEPS + 2))
    factors = (1, 2, 5) if last - first < 2 else (1,)
    places = [factor * 10.0**at for at in range(first - 1, last + 1, thin) for factor in factors]
    ticks = tuple((at, number(at, at, at)) for at in places if low <= at * (1 + 1e-9) and at <= high * (1 + 1e-9))
    below = [factor * 10.0 ** (first - 1) for factor in (1, 2, 5, 10)]
    above = [factor * 10.0**last for factor in (1, 2, 5, 10)]
    start = max((end for end in below if end <= low), default=low)
    return Axis(start, min((end for end in above if end >= high), default=high), ticks, is_log=True)


def _widened(low: float, high: float) -> tuple[float, float]:
    size = max(abs(low), abs(high))
    if size < _NOTHING:
        return 0.0, 1.0
    missing = size * NARROW - (high - low)
    return (low - missing / 2, high + missing / 2) if missing > 0 else (low, high)


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _decimals(step: float) -> int:
    return max(0, math.ceil(-math.log10(step) - 1e-9))


def _stripped(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text
