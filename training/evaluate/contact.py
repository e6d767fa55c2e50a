"""A contact sheet: rows of pictures under a line of text each, as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from training.evaluate.rerank import encoded

MARGIN, LINE = 4, 14  # pixels
LEAST = 96  # of a picture's side: smaller ones are shown larger
LETTERS = 120  # of a row's text


class Strip(NamedTuple):
    """A row: its text, K pictures (K, 3, H, W) uint8, and a note below each."""

    text: str
    pictures: Tensor
    notes: Sequence[str]


def contact(strips: Sequence[Strip]) -> bytes:
    """The sheet. All pictures are of one size; rows may differ in number. Letters that its font lacks are boxes."""
    side = max(LEAST, strips[0].pictures.shape[-1])
    num = max(3, *(len(strip.pictures) for strip in strips))
    step, height = side + MARGIN, side + 2 * LINE + 2 * MARGIN
    page = Image.new("RGB", (MARGIN + num * step, height * len(strips) + MARGIN), "white")
    pen = ImageDraw.Draw(page)
    for row, strip in enumerate(strips):
        y = row * height + MARGIN
        pen.text((MARGIN, y), strip.text[:LETTERS], fill="black")
        for column, (pixels, note) in enumerate(zip(strip.pictures, strip.notes, strict=True)):
            x, picture = MARGIN + column * step, Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
            page.paste(picture.resize((side, side), Image.Resampling.NEAREST), (x, y + LINE))
            pen.text((x, y + LINE + side), note, fill="black")
    return encoded(torch.from_numpy(np.asarray(page).copy()).permute(2, 0, 1))
