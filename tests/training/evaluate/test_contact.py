from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.evaluate.contact import LINE, MARGIN, Strip, contact

needs_fonts = pytest.mark.skipif(not shutil.which("fc-match"), reason="fontconfig, which finds fonts, is not installed")


def headline(text: str) -> np.ndarray:
    """The pixels of a row's text."""
    png = contact([Strip(text, torch.zeros(3, 3, 8, 8, dtype=torch.uint8), ["1", "2", "3"])])
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))[:LINE]


@needs_fonts
def test_letters_beyond_ascii_are_told_apart():
    assert not np.array_equal(headline("größe"), headline("grÄöe"))


def test_a_machine_without_fontconfig_still_gets_a_sheet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (headline("größe") < 128).any()


@pytest.mark.parametrize("text", ["", "\ud800 half a pair", "nul \0", "x\n" * 60, "x" * 10_000, "🍅 ‮‭"])
def test_no_text_breaks_a_sheet_or_reaches_the_row_below(text: str):
    pictures = torch.full((3, 3, 8, 8), 255, dtype=torch.uint8)
    png = contact([Strip(text, pictures, [""] * 3), Strip("", pictures, [""] * 3)])
    assert (np.asarray(Image.open(io.BytesIO(png)))[LINE + MARGIN :] == 255).all()


def test_rows_may_differ_in_number():
    strips = [Strip("one", torch.full((num, 3, 8, 8), 255, dtype=torch.uint8), [""] * num) for num in (1, 5)]
    assert Image.open(io.BytesIO(contact(strips))).width > 5 * 96
