"""How DALL-E reads a caption: lower-cased byte pairs, some merges left out in training, and a pad for each place."""

# Shapes: B texts, T tokens of a text

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from infra.errors import UsageError
from training.byte_pairs import BytePairs
from training.models.dalle_settings import DalleSettings


class DalleTokenizer:
    """Captions to ids: those of the words, and behind them a padding token of each place. Cheap to send to a worker."""

    def __init__(self, settings: DalleSettings) -> None:
        self.words, self.length = BytePairs(settings.vocab), settings.text_length
        self._dropout, self._no_text = settings.dropout, settings.no_text

    def __len__(self) -> int:
        return len(self.words) + self.length

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(B, T) int64; a text that is too long is cut."""
        return self._padded(self.words.pieces(texts))

    def drawn(self, texts: Sequence[str], chance: Callable[[int], np.random.Generator]) -> Tensor:
        """The same for training: row r's merges, and now and then its whole text, are left out as chance(r) draws."""
        return self._padded([self._drawn(text, chance(row)) for row, text in enumerate(texts)])

    def _drawn(self, text: str, chance: np.random.Generator) -> list[int]:
        if self._no_text and chance.random() < self._no_text:
            return []
        return self.words.drawn(text, self._dropout, chance)

    def asked(self, prompt: str) -> Tensor:
        """(T,) int64 of what shall be drawn. Raises UsageError where it would have to be cut, or says nothing."""
        (ids,) = self.words.pieces([prompt])
        if not prompt.strip():
            raise UsageError("an empty prompt: say what the picture shall show")
        if len(ids) > self.length:
            raise UsageError(f"a prompt of {len(ids)} tokens, of which the model reads {self.length}: say it shorter")
        return self._padded([ids])[0]

    def text(self, ids: Sequence[int]) -> str:
        """Ids back to words, less the padding."""
        return self.words.text([one for one in ids if one < len(self.words)])

    def _padded(self, found: Sequence[Sequence[int]]) -> Tensor:
        rows = (torch.arange(self.length) + len(self.words)).repeat(len(found), 1)
        for row, ids in zip(rows, found, strict=True):
            kept = ids[: self.length]
            row[: len(kept)] = torch.tensor(kept, dtype=torch.int64)
        return rows
