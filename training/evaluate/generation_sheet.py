"""The page of drawn pictures: each caption's best of N beside the real picture, and curves as the paper draws them."""

# Shapes: H x W pixels

from __future__ import annotations

import base64
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jinja2 import Environment
from markupsafe import Markup
from torch import Tensor

from infra.page import templates_of
from training.evaluate.confidence import Share
from training.evaluate.contact import Strip
from training.evaluate.distances import DISTANCES
from training.evaluate.rerank import encoded
from training.evaluate.samples import Sample
from training.evaluate.sheet import thumbnail
from training.evaluate.task import Result
from training.report import axes
from training.report.curves import Line, chart
from training.report.kinds import EVALUATION, Kind
from training.report.thinned import Curve

PICTURES = "pictures.png"  # of reports
TITLES = {
    "clip_score": "CLIP score: does the picture fit its caption?",
    "r_precision": "R-precision: is its own caption the nearest?",
    "clip_frechet": "Fréchet distance of CLIP's features",
    "clip_kernel": "Kernel distance of CLIP's features",
    "fid": "FID",
    "inception_score": "Inception score",
}
DECADES_FROM = 10  # of candidates, from which on the axis counts decades


@dataclass(frozen=True)
class Row:
    """Of one caption, by the number of candidates: the picture that was chosen, (3, H, W) uint8, and how it fits."""

    pictures: dict[int, Tensor]
    scores: dict[int, float]


@dataclass(frozen=True)
class Card:
    """A caption of the sheet: the real picture, and of each number of candidates the chosen one and its score."""

    text: str
    real: str | None
    chosen: Sequence[tuple[int, str, float]]


def draw_sheet(shown: Sequence[tuple[Sample, Row]], result: Result, num: int, rng: random.Random) -> str:
    """The first captions of the data, good pictures and bad ones as they come."""
    cards = [
        Card(
            sample.captions[0],
            thumbnail(result.trial, sample),
            [(size, _inline(picture), row.scores[size]) for size, picture in row.pictures.items()],
        )
        for sample, row in shown
    ]
    sizes, radii = result.details["num_candidates"], result.details["blur"]
    against = [
        (
            "Against the number of candidates",
            charts(result.metrics, [(size, f"@{size}") for size in sizes], "candidates"),
        ),
        (
            f"Drawn and real pictures blurred, best of {sizes[-1]}",
            charts(
                result.metrics,
                [(radius, f"@{sizes[-1]}" + (f"/blur{radius:g}" if radius else "")) for radius in radii],
                "pixels of blur",
            ),
        ),
    ]
    settings = result.trial.settings
    page = _templates().get_template("generation.html.j2")
    return page.render(
        data=settings.data, result=result, cards=cards, against=against, distances=DISTANCES, titles=TITLES,
        is_own_judge=settings.features is None,
    )  # fmt: skip


def strips(shown: Sequence[tuple[Sample, Row]]) -> list[Strip]:
    """For reports: a row a caption, its first candidate, then what was chosen of more and more."""
    return [
        Strip(
            sample.captions[0],
            torch.stack([*row.pictures.values()]),
            [f"of {size}: {score:.2f}" for size, score in row.scores.items()],
        )
        for sample, row in shown
    ]


def charts(
    metrics: Mapping[str, Share], places: Sequence[tuple[float, str]], unit: str
) -> list[tuple[str, Markup]]:  # fmt: skip
    """(title, picture) of each metric that stands at two places or more. places: where, and the name's ending there."""
    found = []
    for name, title in TITLES.items():
        there = [(at, metrics[name + ending]) for at, ending in places if name + ending in metrics]
        if len(there) < 2:
            continue
        at = np.array([place for place, _ in there], np.float64)
        shares = [share for _, share in there]
        values, low, high = (
            np.array([np.nan if one is None else one for one in each], np.float64)
            for each in ([s.value for s in shares], [s.low for s in shares], [s.high for s in shares])
        )
        curve = Curve(at, at, values, low, high, (), has_band=bool(np.isfinite(low).any()))
        is_wide = at[0] > 0 and at[-1] >= DECADES_FROM * at[0]
        across = axes.logarithmic(at[0], at[-1]) if is_wide else axes.linear(at[0], at[-1])
        kind = Kind(title, EVALUATION, is_noisy=False, is_share=name not in DISTANCES, may_log=False)
        found.append((title, chart(kind, [Line("chosen", 0, curve, unit)], across)[0]))
    return found


def _inline(picture: Tensor) -> str:
    return "data:image/png;base64," + base64.b64encode(encoded(picture)).decode()


@cache
def _templates() -> Environment:
    return templates_of("training.evaluate", "training.report")
