"""The picture sheet: some images with the texts nearest to them, some texts with the images nearest to them.

One HTML file without script or network; texts come from strangers and are escaped by the template.
"""

# Shapes: Q queries, N images, T texts, E embedding

from __future__ import annotations

import base64
import io
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from jinja2 import Environment
from PIL import Image
from torch import Tensor

from infra.page import templates_of
from training.evaluate.retrieval import TIE
from training.evaluate.samples import Sample
from training.evaluate.task import Found, Result, Trial
from training.preprocess.decode import Decode, UnreadableImage

SHOWN = 5  # answers of a query
SIDE = 240  # pixels of a thumbnail's longer side: sharp at half of that
TITLES = {"retrieval": ("retrieval", "captions"), "zero_shot": ("zero-shot classification", "class names")}


@dataclass(frozen=True)
class Answer:
    """One of the nearest: its number, the cosine, and whether it belongs to what was asked."""

    number: int
    cosine: float
    is_right: bool


@dataclass(frozen=True)
class Query:
    """What was asked, by its number; the nearest first. place: of the first right one, from 1; right: all of them."""

    number: int
    answers: Sequence[Answer]
    place: int
    right: Sequence[int]


def draw_sheet(found: Found, result: Result, num_queries: int, rng: random.Random) -> str:
    """The page: `num_queries` images and as many texts that some image has, or all where there are fewer."""
    right, images, text_emb = found.right, found.images.emb, found.text_emb
    by_image = ask(_choose(right.image, num_queries, rng), images, text_emb, right.image, right.text)
    by_text = ask(_choose(right.text, num_queries, rng), text_emb, images, right.text, right.image)
    wanted = {query.number for query in by_image} | {each.number for query in by_text for each in query.answers}
    pictures = {number: thumbnail(found.trial, found.images.samples[number]) for number in sorted(wanted)}
    task = result.trial.settings.task
    title, texts = TITLES.get(task, (task, "texts"))
    return (
        _templates()
        .get_template("sheet.html.j2")
        .render(
            title=title, kind=texts, data=result.trial.settings.data, result=result, by_image=by_image, by_text=by_text,
            pictures=pictures, texts=right.texts, top=SHOWN,
        )
    )  # fmt: skip


def ask(numbers: Sequence[int], asked: Tensor, answers: Tensor, own: Tensor, right: Tensor) -> list[Query]:
    """The queries of these numbers. asked, answers: embeddings; pair p is asked[own[p]] with answers[right[p]]."""
    queries = []
    for number in numbers:
        near = (answers @ asked[number]).cpu()
        belong = right[own == number].unique()
        is_right = torch.zeros(len(near), dtype=torch.bool).index_fill(0, belong, True)
        place = 1 + int((near[~is_right] >= near[is_right].max() - TIE).sum())
        nearest = near.sort(descending=True, stable=True).indices[:SHOWN].tolist()
        shown = [Answer(each, near[each].item(), bool(is_right[each])) for each in nearest]
        queries.append(Query(number, shown, place, belong.tolist()))
    return queries


def _choose(numbers: Tensor, num_queries: int, rng: random.Random) -> list[int]:
    known: list[int] = numbers.unique().tolist()
    return sorted(rng.sample(known, min(num_queries, len(known))))


def thumbnail(trial: Trial, sample: Sample) -> str | None:
    """A data: url; None where the image cannot be read any more."""
    data = trial.encoded(sample)
    if isinstance(data, str):
        return None
    try:
        encoded = Decode.parse({}, "sheet").open(data)
        pixels, _ = encoded.pixels(max(encoded.width, encoded.height) / SIDE)
    except UnreadableImage:
        return None
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


@cache
def _templates() -> Environment:
    templates = templates_of("training.evaluate")
    templates.filters["label"] = _label
    return templates


def _label(metric: str) -> str:
    """A metric's name as people read it."""
    if found := re.fullmatch(r"(reranked_)?(\w+)_r(\d+)", metric):
        return f"{found[2].replace('_', ' ')}, recall@{found[3]}" + (", re-ranked" if found[1] else "")
    return {"top1": "accuracy", "top5": "right among five"}.get(metric, metric.replace("_", " "))
