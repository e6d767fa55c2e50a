"""A run as its page sees it: each number of metrics.jsonl as a series over the samples seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.watch import read_metrics

Floats = NDArray[np.float64]
RECIPE = "recipe.yaml"
DRAWN = "evaluate/*/pictures.png"
MAX_DRAWN = 4 << 20  # bytes of a picture that a page holds
BEYOND = 1e200  # a number of this size is no measurement, and its square no number
_PLACES = ("step", "samples")
_ENDS = ("low", "high")

# Shapes: N points


@dataclass(frozen=True, slots=True)
class Series:
    """One number of a run, in the order of samples seen. All (N,); what is not finite stands as nan or inf."""

    samples: Floats
    steps: Floats
    values: Floats
    low: Floats  # of the interval, nan where there is none
    high: Floats

    @property
    def finite(self) -> Floats:
        """The values that can be drawn."""
        return self.values[np.isfinite(self.values)]

    @property
    def has_interval(self) -> bool:
        """Does any point tell its interval?"""
        return bool(np.isfinite(self.low + self.high).any())


@dataclass(frozen=True, slots=True)
class Run:
    """What a run's folder tells. recipe: the text of its recipe file, if there is one. drawn: a PNG of each evaluation
    that drew pictures, the last one's, by its name.
    """

    name: str
    num_steps: int
    num_samples: int
    series: Mapping[str, Series]
    recipe: str | None
    drawn: Mapping[str, bytes] = field(default_factory=dict)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs, each under the shortest end of its path that no other has."""
    return [_read(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]


def series_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """Each number of the lines, by name. "x/low" and "x/high" beside an "x" are its interval, no series of their own.

    A line that does not tell its samples stands where the line before it stood.
    """
    points: dict[str, list[tuple[float, ...]]] = {}
    layouts: dict[tuple[str, ...], list[tuple[str, bool]]] = {}  # lines are many, their sets of names few
    samples = 0.0
    for line in lines:
        told = _number(line.get("samples"))
        samples = told if math.isfinite(told) else samples
        step = _number(line.get("step"))
        names = tuple(line)
        if names not in layouts:
            layouts[names] = _layout(names)
        for name, has_ends in layouts[names]:
            low, high = (_number(line[f"{name}/{end}"]) for end in _ENDS) if has_ends else (math.nan, math.nan)
            points.setdefault(name, []).append((samples, step, _number(line[name]), low, high))
    return {name: _series(np.array(found)) for name, found in points.items()}


def _read(folder: Path, name: str) -> Run:
    series = series_of(read_metrics(folder))
    last = [(one.steps[-1], one.samples[-1]) for one in series.values()]
    steps = [step for step, _ in last if math.isfinite(step)]
    recipe = folder / RECIPE
    return Run(
        name,
        int(max(steps, default=0)),
        int(max((samples for _, samples in last), default=0)),
        series,
        recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else None,
        {
            path.parent.name: path.read_bytes()
            for path in sorted(folder.glob(DRAWN))
            if path.stat().st_size <= MAX_DRAWN
        },
    )


def _series(points: Floats) -> Series:
    in_order = points[np.argsort(points[:, 0], kind="stable")]
    return Series(*in_order.T)


def _number(value: Any) -> float:
    """Anything as a number; nan where it is none, inf or 0 where it is beyond what can be drawn."""
    if not isinstance(value, int | float) or value != value:
        return math.nan
    if abs(value) >= BEYOND:  # compared as it is: an int may be larger than any float
        return math.inf if value > 0 else -math.inf
    return float(value) if abs(value) > 1 / BEYOND else 0.0


def _layout(names: Sequence[str]) -> list[tuple[str, bool]]:
    """The series of a line, and whether it tells the interval of each."""
    found: dict[str, bool] = {}
    for name in sorted(names, key=len):  # a metric before its ends
        base, _, end = name.rpartition("/")
        if name not in _PLACES and not (end in _ENDS and found.get(base)):
            found[name] = all(f"{name}/{end}" in names for end in _ENDS)
    return list(found.items())


def _names(folders: Sequence[Path]) -> list[str]:
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{place}: {'/'.join(part[-1:])}" for place, part in enumerate(parts, 1)]
