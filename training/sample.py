"""Texts to pictures: many candidates of each prompt, ordered by how well a CLIP finds that they fit, and written.

OUT/sheet.png         a row a prompt, the best candidate first
OUT/0000/00017.png    candidate 17 of prompt 0, in the order of drawing
OUT/results.json      of each prompt its candidates in rank order, with scores
"""

# Shapes: C candidates, I tokens of a picture

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from infra.errors import UsageError
from infra.storage import Storage
from training.evaluate.contact import Strip, contact
from training.evaluate.embed import Encoder
from training.evaluate.rerank import encoded, fits, ranked
from training.models.painter import Painter
from training.models.token_maker import TokenMaker
from training.preprocess import Ops, UnreadableImage
from training.sample_settings import SampleSettings

SHOWN = 16  # candidates of a prompt on the sheet, unless told
SHEET_ROWS, SHEET_COLUMNS = 64, 64  # at most: it is one picture


@dataclass(frozen=True)
class Drawn:
    """Candidates of a prompt, in the order of drawing. codes: (C, I), pictures: (C, 3, H, W) uint8.

    scores: (C,), how well each fits; None: nobody was asked. order: places of the candidates, the best first.
    """

    prompt: str
    codes: Tensor
    pictures: Tensor
    scores: Tensor | None
    order: Sequence[int]


def sample(
    painter: Painter,
    prompts: Sequence[str],
    settings: SampleSettings,
    encoder: Encoder | None = None,
    given: Tensor | None = None,
    tell: Callable[[int], None] = lambda num: None,
) -> Iterator[Drawn]:
    """Of each prompt its candidates. given: (I',) tokens that all begin with. tell: is told of so many more drawn.

    Raises UsageError for a prompt that cannot be read, before anything is drawn.
    """
    for prompt, (codes, pictures) in zip(prompts, painter.paint(prompts, settings, given, tell), strict=True):
        scores = None if encoder is None else fits(encoder, pictures, prompt)
        order = range(len(pictures)) if scores is None else ranked(scores)
        yield Drawn(prompt, codes, pictures, scores, order)


def plan_text(
    painter: Painter, prompts: Sequence[str], settings: SampleSettings, judge: str | None, out: str
) -> list[str]:
    """What would be drawn, in lines. Raises UsageError for a prompt that cannot be read."""
    tokenizer = painter.sampler.tokenizer
    tokens = [int((tokenizer.asked(prompt) < len(tokenizer.words)).sum()) for prompt in prompts]
    num, side = settings.num_candidates, painter.maker.grid
    return [
        *(f"prompt: {prompt!r}, {each} tokens" for prompt, each in zip(prompts, tokens, strict=True)),
        f"pictures: {len(prompts) * num:,}, {num:,} of each prompt, of {side} x {side} tokens",
        "order: as drawn" if judge is None else f"order: as {judge} finds that they fit",
        f"written: {settings.top or num:,} of each prompt",
        f"out: {out}",
    ]


def first_rows(maker: TokenMaker, data: bytes, num_rows: int) -> Tensor:
    """(num_rows * side,) tokens of a picture's top rows. Raises UsageError where there is no picture or no such row."""
    if not 0 < num_rows < maker.grid:
        raise UsageError(f"--keep-rows {num_rows}: of {maker.grid} rows of tokens keep 1 to {maker.grid - 1}")
    try:
        image = Ops.parse(maker.ops)(data, np.random.default_rng(0))
    except UnreadableImage as error:
        raise UsageError(f"--image: {error}") from None
    return maker.encode(image[None])[0, : num_rows * maker.grid]


def write(out: str, found: Iterable[Drawn], top: int | None) -> dict[str, Any]:
    """Write pictures as they come, then sheet and results. Returns what results.json has."""
    storage, told, strips = Storage(out), [], []
    for number, drawn in enumerate(found):
        rows = []
        for rank, at in enumerate(drawn.order[:top], 1):
            name = f"{number:04d}/{at:05d}.png"
            storage.commit_bytes(name, encoded(drawn.pictures[at]))
            score = None if drawn.scores is None else round(drawn.scores[at].item(), 6)
            rows.append({"rank": rank, "candidate": at, "score": score, "file": name})
        told.append({"prompt": drawn.prompt, "num_candidates": len(drawn.pictures), "candidates": rows})
        if number < SHEET_ROWS:
            strips.append(_strip(drawn, min(top or SHOWN, SHEET_COLUMNS)))
    storage.commit_bytes("sheet.png", contact(strips))
    results = {"prompts": told}
    storage.commit_bytes("results.json", json.dumps(results, ensure_ascii=False, indent=1).encode("utf-8", "replace"))
    return results


def sheet(found: Sequence[Drawn], top: int) -> bytes:
    """A PNG: a row a prompt, its `top` best candidates from left to right, each above its number and score."""
    return contact([_strip(drawn, top) for drawn in found])


def _strip(drawn: Drawn, top: int) -> Strip:
    best = list(drawn.order[:top])
    scores = [""] * len(best) if drawn.scores is None else [f"  {drawn.scores[at].item():.3f}" for at in best]
    notes = [f"{at}{score}" for at, score in zip(best, scores, strict=True)]
    return Strip(drawn.prompt, drawn.pictures[best], notes)
