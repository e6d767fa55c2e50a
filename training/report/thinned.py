"""A series as a chart can show it: means of bins with their spread, a smoothed line, marks where nothing is finite."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from training.report.runs import Floats, Series

SMOOTHED_OVER = 40  # a smoothed value is a mean over this part of the curve, a fortieth, to either side

# Shapes: N points of a series, K bins of a curve


@dataclass(frozen=True, slots=True)
class Curve:
    """All (K,); nan where a bin has no finite value. low, high: of the interval, or else of the values in the bin.

    marks: (samples, sentence) of each bin with values that are not finite.
    """

    samples: Floats
    steps: Floats
    values: Floats
    low: Floats
    high: Floats
    marks: tuple[tuple[float, str], ...]
    has_band: bool


def thinned(series: Series, num_bins: int) -> Curve:
    """At most num_bins points; a series of no more is left as it is."""
    bins = _bins(series.samples, num_bins)
    starts = np.flatnonzero(np.diff(bins, prepend=-1))
    lowest, highest = (
        ends.reduceat(np.where(np.isfinite(series.values), series.values, beyond), starts)
        for ends, beyond in ((np.minimum, np.inf), (np.maximum, -np.inf))
    )
    # Sums round: the mean of equal values may lie a hair beyond them.
    values = np.clip(_mean(series.values, starts), lowest, np.maximum(lowest, highest))
    is_each = len(starts) == len(bins)
    return Curve(
        _mean(series.samples, starts),
        _mean(series.steps, starts),
        values,
        _mean(series.low, starts) if series.has_interval else np.where(np.isfinite(lowest), lowest, np.nan),
        _mean(series.high, starts) if series.has_interval else np.where(np.isfinite(highest), highest, np.nan),
        tuple(_marks(series, starts)),
        has_band=series.has_interval or not is_each,
    )


def smoothed(values: Floats) -> Floats:
    """Centred means; towards an end or a gap the window narrows evenly, so that no end is drawn to one side. (K,)"""
    half = len(values) // SMOOTHED_OVER
    means = values.copy()
    for start, end in stretches(np.isfinite(values)):
        for at in range(start, end):
            reach = min(half, at - start, end - 1 - at)
            means[at] = values[at - reach : at + reach + 1].mean()
    return means


def stretches(is_there: np.ndarray) -> Iterator[tuple[int, int]]:
    """(start, end) of each unbroken row of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], is_there, [False]))))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _bins(samples: Floats, num_bins: int) -> np.ndarray:
    """Of each point its bin, ascending: bins are equal parts of the samples seen. (N,)"""
    if len(samples) <= num_bins:
        return np.arange(len(samples))
    span = samples[-1] - samples[0] or 1.0
    return np.minimum((samples - samples[0]) / span * num_bins, num_bins - 1).astype(int)


def _mean(values: Floats, starts: np.ndarray) -> Floats:
    """Of the finite values of each bin; nan where there are none. (K,)"""
    is_finite = np.isfinite(values)
    counts = np.add.reduceat(is_finite.astype(int), starts)
    sums = np.add.reduceat(np.where(is_finite, values, 0.0), starts)
    return np.divide(sums, counts, out=np.full(len(starts), np.nan), where=counts > 0)


def _marks(series: Series, starts: np.ndarray) -> Iterator[tuple[float, str]]:
    ends = [*starts[1:].tolist(), len(series.values)]
    is_finite = np.isfinite(series.values)
    for start, end in zip(starts.tolist(), ends, strict=True):
        found = start + np.flatnonzero(~is_finite[start:end])
        if len(found):
            first, last = (f"{series.steps[at]:,.0f}" for at in (found[0], found[-1]))
            where = f"step {first}" if len(found) == 1 else f"{len(found):,} values of steps {first} to {last}"
            yield float(series.samples[found].mean()), f"{where}: not finite"
