"""Curves as inline SVG: faint points or spread, a line, bands of intervals; several runs over one axis of samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from training.report import axes
from training.report.kinds import EVALUATION, Kind
from training.report.runs import Floats
from training.report.thinned import Curve, smoothed, stretches

WIDTH, HEIGHT = 360, 200
RIGHT, TOP, BOTTOM = 16, 10, 24
NUM_COLOURS = 6
MAX_HINTS = 40  # points of a curve that answer to the mouse
LOG_FROM = 100.0  # the largest over the smallest value, from which on an axis counts decades
ZERO_BELOW = 0.4  # a least value below this part of the largest brings the axis down to zero
_LABEL_SIGN = 7.0  # width of a tick's sign at a phone's font size

# Shapes: K points of a curve


@dataclass(frozen=True, slots=True)
class Line:
    """The curve of one run. place: of the run among the page's runs, which gives the colour.

    unit: of what it runs over, where that is no training and a point has no step.
    """

    run: str
    place: int
    curve: Curve
    unit: str | None = None

    @property
    def colour(self) -> str:
        """Classes of the page's style."""
        return colour_of(self.place)


def colour_of(place: int) -> str:
    """Classes that tell a run from the page's others; colours come again, dashed."""
    return f"c{place % NUM_COLOURS}" + " again" * (place >= NUM_COLOURS)


def chart(kind: Kind, lines: Sequence[Line], across: axes.Axis) -> tuple[Markup, axes.Axis]:
    """The picture, and the vertical axis it was given. Every line has a finite value."""
    up = _axis_of(kind, lines)
    frame = _Frame(across, up, left=max(34.0, 12 + _LABEL_SIGN * max(len(label) for _, label in up.ticks)))
    body = [*frame.ticks()]
    for paint in (_marks, _band, _points, _line):  # from the back to the front: no run's line under another's band
        body += [mark for line in lines for mark in paint(frame, kind, line)]
    spoken = "; ".join(_spoken(line) for line in lines)
    picture = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>')
    return picture.format(WIDTH, HEIGHT, f"{kind.title}. {spoken}.", Markup("").join(body)), up


@dataclass(frozen=True, slots=True)
class _Frame:
    across: axes.Axis
    up: axes.Axis
    left: float

    def x(self, samples: float) -> float:
        return self.left + self.across.share(samples) * (WIDTH - self.left - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - self.up.share(value) * (HEIGHT - TOP - BOTTOM)

    def ticks(self) -> Iterator[Markup]:
        grid = Markup('<line class="grid" x1="{:.1f}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>')
        axis = Markup('<line class="axis" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>')
        text = Markup('<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
        for value, label in self.up.ticks:
            y = self.y(value)
            yield grid.format(self.left, WIDTH - RIGHT, y, y)
            yield text.format(self.left - 6, y + 3.5, "end", label)
        for value, label in self.across.ticks:
            x = self.x(value)
            yield axis.format(x, x, HEIGHT - BOTTOM, HEIGHT - BOTTOM + 4)
            yield text.format(x, HEIGHT - BOTTOM + 16, "middle", label)

    def path(self, samples: Floats, values: Floats) -> str:
        """Straight from point to point, broken where a value is nan; a lone one is a dot."""
        parts = []
        for start, end in stretches(np.isfinite(values)):
            lone = "h0" if end - start == 1 else ""
            parts.append("M" + self._places(samples[start:end], values[start:end]) + lone)
        return "".join(parts)

    def area(self, samples: Floats, low: Floats, high: Floats) -> str:
        """Between two lines, where both are there; a lone place is a bar of 3 units."""
        parts = []
        for start, end in stretches(np.isfinite(low + high)):
            there = slice(start, end)
            if end - start == 1:
                x, top, bottom = self.x(samples[start]), self.y(high[start]), self.y(low[start])
                parts.append(f"M{x - 1.5:.1f} {top:.1f}h3V{bottom:.1f}h-3Z")
            else:
                back = self._places(samples[there][::-1], low[there][::-1])
                parts.append(f"M{self._places(samples[there], high[there])}L{back}Z")
        return "".join(parts)

    def _places(self, samples: Floats, values: Floats) -> str:
        return " ".join(
            f"{self.x(at):.1f} {self.y(value):.1f}" for at, value in zip(samples.tolist(), values.tolist(), strict=True)
        )


def _axis_of(kind: Kind, lines: Sequence[Line]) -> axes.Axis:
    drawn = [each for line in lines for each in (line.curve.values, line.curve.low, line.curve.high)]
    found = np.concatenate(drawn)
    found = found[np.isfinite(found)]
    low, high = float(found.min()), float(found.max())
    if kind.may_log and low > 0 and high > LOG_FROM * low:
        return axes.logarithmic(low, high)
    if kind.is_share or 0 < low < ZERO_BELOW * high:
        low = min(low, 0.0)
    return axes.linear(low, high, axes.percent if kind.is_share else axes.number)


def _marks(frame: _Frame, kind: Kind, line: Line) -> Iterator[Markup]:
    mark = Markup('<path class="mark" d="M{:.1f} {}V{}"><title>{}</title></path>')
    for samples, sentence in line.curve.marks:
        yield mark.format(frame.x(samples), TOP - 6, HEIGHT - BOTTOM, f"{line.run}, {sentence}")


def _band(frame: _Frame, kind: Kind, line: Line) -> Iterator[Markup]:
    curve = line.curve
    if curve.has_band:
        area = frame.area(curve.samples, curve.low, curve.high)
        yield Markup('<path class="band {}" d="{}"/>').format(line.colour, area)


def _points(frame: _Frame, kind: Kind, line: Line) -> Iterator[Markup]:
    curve, is_measured = line.curve, kind.section == EVALUATION
    if not (kind.is_noisy or is_measured) or (curve.has_band and not is_measured):
        return
    there = np.flatnonzero(np.isfinite(curve.values))
    shape = "point" if is_measured else "faint point"
    if len(there) > MAX_HINTS:
        places = (f"M{frame.x(curve.samples[at]):.1f} {frame.y(curve.values[at]):.1f}h0" for at in there)
        yield Markup('<path class="{} {}" d="{}"/>').format(shape, line.colour, "".join(places))
        return
    point = Markup('<circle class="{} {}" cx="{:.1f}" cy="{:.1f}" r="2.2"><title>{}</title></circle>')
    for at in there.tolist():
        x, y = frame.x(curve.samples[at]), frame.y(curve.values[at])
        yield point.format(shape, line.colour, x, y, _hint(line, at))


def _line(frame: _Frame, kind: Kind, line: Line) -> Iterator[Markup]:
    values = smoothed(line.curve.values) if kind.is_noisy else line.curve.values
    yield Markup('<path class="line {}" d="{}"/>').format(line.colour, frame.path(line.curve.samples, values))


def _hint(line: Line, at: int) -> str:
    curve = line.curve
    steps, samples = (f"{numbers[at]:,.0f}" for numbers in (curve.steps, curve.samples))
    place = f"step {steps}, {samples} samples" if line.unit is None else f"{curve.samples[at]:g} {line.unit}"
    text = f"{line.run}, {place}: {curve.values[at]:.4g}"
    is_interval = curve.has_band and np.isfinite(curve.low[at] + curve.high[at])
    return f"{text} ({curve.low[at]:.4g} to {curve.high[at]:.4g})" if is_interval else text


def _spoken(line: Line) -> str:
    values = line.curve.values[np.isfinite(line.curve.values)]
    gaps = f", with {len(line.curve.marks)} gaps" if line.curve.marks else ""
    ends = f"from {values[0]:.4g} to {values[-1]:.4g}, between {values.min():.4g} and {values.max():.4g}"
    return f"{line.run}: {ends}{gaps}"
