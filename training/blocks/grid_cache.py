"""What one layer keeps while streams grow by image tokens: the text's keys and values once for all candidates of a
text, and of each stream's image those that its mask can still see, in places that are written over in turn.
"""

# Shapes: N texts, W candidates of each, H heads, T positions of the text, S places, d

from __future__ import annotations

import torch
from torch import Tensor

from training.blocks.masks import GridMask


class GridCache:
    """Of N x W streams, those of a text together. text keys, values: (N, H, T, d)."""

    def __init__(self, mask: GridMask, keys: Tensor, values: Tensor, num_candidates: int) -> None:
        self.num_read = 0
        self._mask, self._num = mask, num_candidates
        self._text_keys, self._text_values = keys.transpose(2, 3).contiguous(), values  # (N, H, d, T), (N, H, T, d)
        self._distances = torch.tensor(mask.distances)
        # Under a column mask a token sees its own column alone; else the last tokens, as far back as the mask reaches.
        self._places = mask.side if mask.kind == "column" else mask.distances[-1] + 1
        num_sets = mask.side if mask.kind == "column" else 1
        num_texts, heads, _, size = keys.shape
        shape = (2, num_sets, num_texts * num_candidates, heads, self._places, size)
        self._image = keys.new_zeros(shape)  # the same place for the whole of the sampling: shapes never change

    @property
    def num_numbers(self) -> int:
        """Numbers held, for whoever asks what memory it takes."""
        return self._text_keys.numel() + self._text_values.numel() + self._image.numel()

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Of each stream's next image token: (N * W, H, d) each → (N * W, H, d). It sees itself."""
        held, place, is_seen = self._slot()
        held[0, :, :, place], held[1, :, :, place] = keys, values
        self.num_read += 1
        num_texts, _, size, num_text = self._text_keys.shape
        queries = queries * size**-0.5
        # Candidates of a text are the rows of one product with its keys.
        together = queries.unflatten(0, (num_texts, self._num)).transpose(1, 2)  # (N, H, W, d)
        of_text = (together @ self._text_keys).transpose(1, 2).flatten(0, 1)  # (N * W, H, T)
        of_image = (held[0] @ queries.unsqueeze(3)).squeeze(3)  # (N * W, H, S)
        of_image = of_image.masked_fill(~is_seen, float("-inf"))
        shares = torch.cat([of_text, of_image], 2).softmax(2)
        to_text, to_image = shares.split([num_text, self._places], 2)
        found = (to_image.unsqueeze(2) @ held[1]).squeeze(2)  # (N * W, H, d)
        to_text = to_text.unflatten(0, (num_texts, self._num)).transpose(1, 2)  # (N, H, W, T)
        return found + (to_text @ self._text_values).transpose(1, 2).flatten(0, 1)

    def _slot(self) -> tuple[Tensor, int, Tensor]:
        """Where the next token's keys and values go, (2, N * W, H, S, d) and a place; which places it sees, (S,)."""
        at, places = self.num_read, torch.arange(self._places)
        if self._mask.kind == "column":
            row, column = divmod(at, self._mask.side)
            return self._image[:, column], row, (places <= row).to(self._image.device)
        place = at % self._places
        behind = (place - places) % self._places  # how far behind the token in each place is
        is_seen = torch.isin(behind, self._distances) & (behind <= at)
        return self._image[:, 0], place, is_seen.to(self._image.device)
