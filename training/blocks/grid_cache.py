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
        self._mask, self._num = mask, num_candidates
        self._text_keys, self._text_values = keys.transpose(2, 3).contiguous(), values  # (N, H, d, T), (N, H, T, d)
        self._seen = _seen(mask, keys.device)  # (I, S)
        num_places = mask.side**2 if mask.kind == "column" else self._seen.shape[1]
        num_texts, heads, _, size = keys.shape
        shape = (2, num_texts * num_candidates, heads, num_places, size)
        self._image = keys.new_zeros(shape)  # the same memory for the whole of the sampling: shapes never change

    @property
    def num_numbers(self) -> int:
        """Numbers held, for whoever asks what memory it takes."""
        return self._text_keys.numel() + self._text_values.numel() + self._image.numel()

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, at: Tensor) -> Tensor:
        """Of each stream's image token at (1,): (N * W, H, d) each → (N * W, H, d). It sees itself.

        Tokens come in order. Only tensors are asked, so that a CUDA graph of it serves every place.
        """
        held, is_seen = self._with(keys, values, at)
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

    def _with(self, keys: Tensor, values: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """What is held, the token's own among it, (2, N * W, H, S, d), and which of it the token sees, (1, S)."""
        side, num = self._mask.side, self._seen.shape[1]
        is_column = self._mask.kind == "column"
        place = at % side * side + at // side if is_column else at % num  # columns lie one behind the other
        own = torch.stack([keys, values]).unsqueeze(3)
        if torch.is_grad_enabled():  # a gradient wants what was held before, too
            self._image = self._image.index_copy(3, place, own)
        held = self._image if torch.is_grad_enabled() else self._image.index_copy_(3, place, own)
        if is_column:
            held = held.unflatten(3, (side, side)).index_select(3, at % side).squeeze(3)
        return held, self._seen.index_select(0, at)


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
