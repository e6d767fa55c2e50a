"""Charts as inline SVG, drawn at a phone's width so that they can be read there; colours come from the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from infra.page.words import compact
from pipeline.report.gather import Histogram
from pipeline.report.scored import Cut

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 34, 16, 10, 24
MIN_OCTAVES = 3  # a lone bar needs an axis, too


@dataclass(frozen=True, slots=True)
class Series:
    """One histogram of a chart: the first is drawn as bars, a second as an outline over them."""

    label: str
    histogram: Histogram


def histogram(title: str, series: Sequence[Series], tick_label: Callable[[float], str]) -> Markup:
    """Histograms on one logarithmic axis. tick_label: value → text, asked for powers of two."""
    series = [one for one in series if one.histogram.bins]
    if not series:
        return Markup("")
    shape = series[0].histogram
    frame = _frame_of([one.histogram for one in series])
    body = [*_y_axis(frame), *_x_axis(frame, shape, tick_label)]
    for at, one in enumerate(series):
        body += _bars(frame, one, tick_label) if at == 0 else [_outline(frame, one.histogram.bins)]
    spoken = "; ".join(f"{one.label}: {one.histogram.total:,} images" for one in series)
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(WIDTH, HEIGHT, f"{title}. {spoken}.", Markup("").join(body))  # fmt: skip


def cut_histogram(
    title: str, bins: Sequence[tuple[float, float, int]], cuts: Sequence[Cut], label: Callable[[float], str]
) -> Markup:
    """Bars on a linear axis, (low edge, high edge, rows) each; every cut is a line, and what it drops is shaded."""
    low, high = bins[0][0], max(edge for _, edge, _ in bins)
    top = _nice_top(max(number for _, _, number in bins))
    frame = _Frame(0, 1, top)
    bar = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>')
    body = [*_y_axis(frame)]
    for start, end, number in bins:
        x, right = (frame.x((edge - low) / (high - low)) for edge in (start, end))
        y = min(frame.y(number), HEIGHT - BOTTOM - 1)
        kind = "bar dropped" if any(cut.drops(start, end) for cut in cuts) else "bar"
        hint = f"{label(start)} to {label(end)}: {number:,}"
        body.append(bar.format(kind, x, y, max(1.0, right - x - 0.6), HEIGHT - BOTTOM - y, hint))
    for part in range(5):
        x = round(frame.x(part / 4), 1)
        text = Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>')
        body.append(text.format(x, HEIGHT - BOTTOM + 16, label(low + (high - low) * part / 4)))
    for cut in cuts:
        x = round(frame.x(min(1.0, max(0.0, (cut.value - low) / (high - low)))), 1)
        line = Markup('<line class="cut" x1="{}" x2="{}" y1="{}" y2="{}"><title>{}</title></line>')
        body.append(line.format(x, x, TOP - 6, HEIGHT - BOTTOM, f"{cut.selection}: {cut.rule}"))
    spoken = "; ".join(f"{cut.selection} keeps {cut.op} {label(cut.value)}" for cut in cuts)
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(WIDTH, HEIGHT, f"{title}. {spoken}", Markup("").join(body))  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Frame:
    first: int  # bins
    last: int
    top: float  # count

    def x(self, at: float) -> float:
        return LEFT + (at - self.first) / (self.last - self.first) * (WIDTH - LEFT - RIGHT)

    def y(self, count: float) -> float:
        return HEIGHT - BOTTOM - count / self.top * (HEIGHT - TOP - BOTTOM)


def _frame_of(histograms: Sequence[Histogram]) -> _Frame:
    bins = [at for one in histograms for at in one.bins]
    first, last = min(bins) - 1, max(bins) + 2
    margin = max(0, MIN_OCTAVES * histograms[0].per_octave - (last - first)) // 2
    return _Frame(first - margin, last + margin, _nice_top(max(max(one.bins.values()) for one in histograms)))


def _y_axis(frame: _Frame) -> list[Markup]:
    lines = []
    for part in range(3):
        count = frame.top * part / 2
        y = round(frame.y(count), 1)
        lines.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH - RIGHT, y, y))
        label = Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>')
        lines.append(label.format(LEFT - 6, y + 4, compact(count)))
    return lines


def _x_axis(frame: _Frame, shape: Histogram, tick_label: Callable[[float], str]) -> list[Markup]:
    offset = 0.5 if shape.is_centred else 0.0
    octaves = [
        octave
        for octave in range(math.ceil(frame.first / shape.per_octave), math.floor(frame.last / shape.per_octave) + 1)
        if frame.first <= octave * shape.per_octave + offset <= frame.last
    ]
    thin = max(1, math.ceil(len(octaves) / 7))
    lines = []
    for octave in octaves:
        if octave % thin:
            continue
        x = round(frame.x(octave * shape.per_octave + offset), 1)
        y = HEIGHT - BOTTOM
        lines.append(Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(x, x, y, y + 4))
        text = tick_label(2.0**octave)
        lines.append(Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(x, y + 18, text))
    return lines


def _bars(frame: _Frame, one: Series, tick_label: Callable[[float], str]) -> list[Markup]:
    bar = Markup('<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}</title></rect>')
    bars = []
    for at, count in one.histogram.bins.items():
        x, y = frame.x(at), frame.y(count)
        width = max(1.0, frame.x(at + 1) - x - 1)
        # A few of millions must still be seen.
        y = min(y, HEIGHT - BOTTOM - 1)
        low, high = _edges(one.histogram, at)
        hint = f"{tick_label(low)} to {tick_label(high)}: {count:,}"
        bars.append(bar.format(x, y, width, HEIGHT - BOTTOM - y, hint))
    return bars


def _outline(frame: _Frame, bins: Mapping[int, int]) -> Markup:
    path = [f"M{frame.x(min(bins)):.1f} {frame.y(0):.1f}"]
    for at in range(min(bins), max(bins) + 1):
        path.append(f"V{frame.y(bins.get(at, 0)):.1f}H{frame.x(at + 1):.1f}")
    path.append(f"V{frame.y(0):.1f}")
    return Markup('<path class="outline" d="{}"/>').format(escape("".join(path)))


def _edges(shape: Histogram, at: int) -> tuple[float, float]:
    offset = -0.5 if shape.is_centred else 0.0
    return 2 ** ((at + offset) / shape.per_octave), 2 ** ((at + 1 + offset) / shape.per_octave)


def _nice_top(count: float) -> float:
    """The least of 2, 4, 6, 8, 10, 20, 40 … that is not below count: half of it is a round number, too."""
    for exponent in range(20):
        for factor in (2, 4, 6, 8):
            if count <= factor * 10**exponent:
                return float(factor * 10**exponent)
        if count <= 10 ** (exponent + 1):
            return float(10 ** (exponent + 1))
    return float(count)
