"""Runs to one self-contained HTML page: no script, no network; what users named is escaped."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jinja2 import Environment
from markupsafe import Markup

from infra.errors import UsageError
from infra.metric_names import is_lower_better
from infra.page import publish_page, templates_of
from training.report import axes
from training.report.curves import Line, chart, colour_of
from training.report.headline import best, differences, headline, state
from training.report.kinds import EVALUATION, KINDS, LOSS, SECTIONS, as_counted, kind_of
from training.report.runs import Run, read_runs
from training.report.thinned import thinned

REPORT = "report.html"
MAX_BINS = 400  # points of a curve, at most: more than a chart is wide
MIN_BINS = 40
MAX_POINTS = 16_000  # points of a page, which its curves share: it stays below 1 MB
MAX_CURVES = 300


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with what stands around it. told: of each line its colour, its run and its last value."""

    title: str
    picture: Markup
    is_log: bool
    told: Sequence[tuple[str, str, str]]
    num_not_finite: int


@dataclass(frozen=True, slots=True)
class Undrawn:
    """A series that no chart shows, and why."""

    name: str
    run: str
    reason: str


def write_page(run: str | Path | Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write the page of a run's folder, or of several over one axis of samples seen. The same files give the same page.

    out: of one run RUN/report.html, of several report.html beside the first, unless told. Returns where it lies.
    Raises UsageError where a folder is not there.
    """
    folders = _folders([run] if isinstance(run, str | os.PathLike) else run)
    home = folders[0] if len(folders) == 1 else folders[0].resolve().parent
    path = home / REPORT if out is None else Path(out)
    publish_page(path, render(read_runs(folders)))
    return path


def section(runs: Sequence[str | Path]) -> str:
    """Results and main curves of runs, as a part of another page with the same style sheet."""
    return _rendered("section.html.j2", read_runs(_folders(runs)))


def render(runs: Sequence[Run]) -> str:
    """The page's HTML."""
    return _rendered("page.html.j2", runs)


def _folders(runs: Sequence[str | Path]) -> list[Path]:
    folders = [Path(each) for each in runs]
    if not folders:
        raise UsageError("a report shows one run or several; give their folders")
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder; give the folder of a run, the recipe's `out`")
    return folders


def _rendered(template: str, runs: Sequence[Run]) -> str:
    sections, undrawn = _sections(runs)
    bests = [best(run) for run in runs]
    metrics = sorted({name for found in bests for name in found}, key=as_counted)
    return _templates().get_template(template).render(
        runs=runs,
        colours=[colour_of(place) for place in range(len(runs))],
        state=state(runs),
        headlines=[headline(run) for run in runs],
        metrics=[(name, is_lower_better(name), [found.get(name) for found in bests]) for name in metrics],
        sections=sections,
        undrawn=undrawn,
        differences=differences(runs) if len(runs) > 1 else {},
        drawn=[(run.name, name, _inline(data)) for run in runs for name, data in run.drawn.items()],
    )  # fmt: skip


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


@cache
def _templates() -> Environment:
    return templates_of("training.report")


def _sections(runs: Sequence[Run]) -> tuple[list[tuple[str, str, list[Figure]]], list[Undrawn]]:
    """(title, introduction, figures) of each section that has some, and the series that are in none."""
    names, undrawn = _drawable(runs)
    num_curves = sum(name in run.series for run in runs for name in names)
    num_bins = max(MIN_BINS, min(MAX_BINS, MAX_POINTS // max(1, num_curves)))
    across = axes.counted(max((run.num_samples for run in runs), default=0))
    by_section: dict[str, list[Figure]] = {title: [] for title in SECTIONS}
    for name in names:
        by_section[kind_of(name).section].append(_figure(name, runs, num_bins, across))
    return [(title, SECTIONS[title], figures) for title, figures in by_section.items() if figures], undrawn


def _drawable(runs: Sequence[Run]) -> tuple[list[str], list[Undrawn]]:
    """Names that get a chart: those that are known first, in the order of their table; and what is left out."""
    undrawn = [
        Undrawn(name, run.name, f"none of its {len(series.values):,} values is a finite number")
        for run in runs for name, series in run.series.items() if not len(series.finite)
    ]  # fmt: skip
    found = {name for run in runs for name, series in run.series.items() if len(series.finite)}
    same = {name for name in found if _is_whole_loss(name, runs)}
    undrawn += [Undrawn(name, "", "it is the whole loss, which is drawn") for name in sorted(same)]
    found -= same | {name for name in found if _is_measured_once(name, runs)}
    names = [name for name in KINDS if name in found] + sorted(found - KINDS.keys(), key=as_counted)
    room = max(1, MAX_CURVES // max(1, len(runs)))
    undrawn += [Undrawn(name, "", "the page is full") for name in names[room:]]
    return names[:room], undrawn


def _is_whole_loss(name: str, runs: Sequence[Run]) -> bool:
    """Is it a term that equals the loss, value for value, in each run that has it?"""
    having = [run.series for run in runs if name in run.series]
    return kind_of(name).section == LOSS and name != "loss" and all(
        "loss" in series and np.array_equal(series[name].values, series["loss"].values, equal_nan=True)
        for series in having
    )  # fmt: skip


def _is_measured_once(name: str, runs: Sequence[Run]) -> bool:
    """Is it a metric with one value in each run that has it? The table of the best tells it; a chart would be a dot."""
    having = [run.series[name] for run in runs if name in run.series]
    return kind_of(name).section == EVALUATION and all(len(series.values) == 1 for series in having)


def _figure(name: str, runs: Sequence[Run], num_bins: int, across: axes.Axis) -> Figure:
    kind = kind_of(name)
    there = [(place, run, run.series[name]) for place, run in enumerate(runs) if name in run.series]
    lines = [Line(run.name, place, thinned(one, num_bins)) for place, run, one in there if len(one.finite)]
    picture, up = chart(kind, lines, across)
    last = {run.name: one.finite[-1] for _, run, one in there if len(one.finite)}
    told = [
        (line.colour, line.run, f"{100 * last[line.run]:.3g} %" if kind.is_share else f"{last[line.run]:.4g}")
        for line in lines
    ]
    return Figure(kind.title, picture, up.is_log, told, sum(len(one.values) - len(one.finite) for _, _, one in there))
