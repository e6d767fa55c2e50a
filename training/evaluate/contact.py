"""A contact sheet: rows of pictures under a line of text each, as one PNG."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from training.evaluate.rerank import encoded

MARGIN, LINE, LETTER = 4, 14, 10  # pixels
LEAST = 96  # of a picture's side: smaller ones are shown larger
LETTERS = 120  # of a row's text
PATIENCE_S = 20


class Strip(NamedTuple):
    """A row: its text, K pictures (K, 3, H, W) uint8, and a note below each."""

    text: str
    pictures: Tensor
    notes: Sequence[str]


def contact(strips: Sequence[Strip]) -> bytes:
    """The sheet. All pictures are of one size; rows may differ in number. Letters that no font here has are boxes."""
    side = max(LEAST, strips[0].pictures.shape[-1])
    texts = [" ".join(strip.text.split())[:LETTERS] for strip in strips]
    fonts = [_font(text) for text in texts]
    longest = math.ceil(max(font.getlength(text) for font, text in zip(fonts, texts, strict=True)))
    step, height = side + MARGIN, side + 2 * LINE + 2 * MARGIN
    width = max(MARGIN + longest, *(len(strip.pictures) * step for strip in strips))
    page = Image.new("RGB", (MARGIN + width, height * len(strips) + MARGIN), "white")
    pen = ImageDraw.Draw(page)
    for row, strip in enumerate(strips):
        y = row * height + MARGIN
        pen.text((MARGIN, y), texts[row], fill="black", font=fonts[row])
        for column, (pixels, note) in enumerate(zip(strip.pictures, strip.notes, strict=True)):
            x, picture = MARGIN + column * step, Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
            page.paste(picture.resize((side, side), Image.Resampling.NEAREST), (x, y + LINE))
            pen.text((x, y + LINE + side), note, fill="black")
    return encoded(torch.from_numpy(np.asarray(page).copy()).permute(2, 0, 1))


def _font(text: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own for ASCII, which is all that it has; else what fontconfig finds nearest to these letters."""
    own, letters = ImageFont.load_default(), " ".join(f"{ord(letter):x}" for letter in sorted(set(text)))
    if text.isascii():
        return own
    try:
        asked = ["fc-match", "--format=%{file}\n%{index}", f":charset={letters}:scalable=true"]
        said = subprocess.run(asked, check=True, capture_output=True, text=True, timeout=PATIENCE_S).stdout
        file, index = said.split("\n")
        return ImageFont.truetype(file, LETTER, int(index))
    except (OSError, ValueError, subprocess.SubprocessError):  # no fontconfig, no font, or not one for Pillow
        return own
