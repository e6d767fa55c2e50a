"""What one layer keeps while streams grow by image tokens: the text's keys and values once for all candidates of a
text, and of each stream's image those that its mask can still see, in places that are written over in turn.
"""

# Shapes: N texts, W candidates of each, H heads, T positions of the text, S places, d

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from training.blocks.masks import GridMask


class GridCache:
    """Of N x W streams, those of a text together. text keys, values: (N, H, T, d)."""

    def __init__(self, mask: GridMask, keys: Tensor, values: Tensor, num_candidates: int) -> None:
        self.num_read = 0
        self._mask, self._num = mask, num_candidates
        self._text_keys, self._text_values = keys.transpose(2, 3).contiguous(), values  # (N, H, d, T), (N, H, T, d)
        self._seen = _seen(mask, keys.device)  # (I, S)
        num_sets = mask.side if mask.kind == "column" else 1
        num_texts, heads, _, size = keys.shape
        shape = (2, num_sets, num_texts * num_candidates, heads, self._seen.shape[1], size)
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
        to_text, to_image = shares.split([num_text, shares.shape[2] - num_text], 2)
        found = (to_image.unsqueeze(2) @ held[1]).squeeze(2)  # (N * W, H, d)
        to_text = to_text.unflatten(0, (num_texts, self._num)).transpose(1, 2)  # (N, H, W, T)
        return found + (to_text @ self._text_values).transpose(1, 2).flatten(0, 1)

    def _slot(self) -> tuple[Tensor, int, Tensor]:
        """Where the next token's keys and values go, (2, N * W, H, S, d) and a place; which places it sees, (S,)."""
        at = self.num_read
        if self._mask.kind == "column":
            row, column = divmod(at, self._mask.side)
            return self._image[:, column], row, self._seen[at]
        return self._image[:, 0], at % self._seen.shape[1], self._seen[at]


@cache
def _seen(mask: GridMask, device: torch.device) -> Tensor:
    """(side * side, S) bool: which places each image token sees, once it stands in its own.

    Under a column mask the places are those of its column; else those of the last tokens, as far as the mask reaches.
    """
    at = torch.arange(mask.side**2)[:, None]
    if mask.kind == "column":
        return (torch.arange(mask.side) <= at // mask.side).to(device)
    num = mask.distances[-1] + 1
    behind = (at - torch.arange(num)) % num  # how far behind the token in each place is
    return (torch.isin(behind, torch.tensor(mask.distances)) & (behind <= at)).to(device)
