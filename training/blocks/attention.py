"""Multi-head attention: within a sequence, or from one to another; with what was read before kept, if asked."""

# Shapes: R rows of text, N contexts, T positions, S positions of a context, H heads, D width, d = D / H

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KeyValues = tuple[Tensor, Tensor]  # (N, H, S, d) each


class Cache:
    """Keys and values of up to `length` positions of R rows, held in one place from the first to the last."""

    def __init__(self, length: int) -> None:
        self.length, self.num_read = length, 0
        self._held: Tensor | None = None  # (2, R, H, length, d)

    def extended(self, keys: Tensor, values: Tensor) -> KeyValues:
        """Those of all positions so far, (R, H, read, d), after further ones, (R, H, T, d), were added."""
        if self._held is None:
            rows, heads, _, width = keys.shape
            self._held = keys.new_empty(2, rows, heads, self.length, width)
        start, self.num_read = self.num_read, self.num_read + keys.shape[2]
        self._held[0, :, :, start : self.num_read] = keys
        self._held[1, :, :, start : self.num_read] = values
        return self._held[0, :, :, : self.num_read], self._held[1, :, :, : self.num_read]

    def take(self, rows: Tensor) -> None:
        """Row r goes on from what row rows[r] has read; there may be fewer rows from now on."""
        if self._held is None:
            return
        if len(rows) < self._held.shape[1]:
            self._held = self._held.index_select(1, rows)
        else:
            read = self._held[:, :, :, : self.num_read]
            read.copy_(read.index_select(1, rows))


class SelfAttention(nn.Module):
    """Every position of a row asks those of the same row that the mask lets it see."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(width, 3 * width)  # one product instead of three
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, is_causal: bool = False, cache: Cache | None = None
    ) -> Tensor:  # fmt: skip
        """x: (R, T, D). mask: bool, broadcast to (R, H, T, positions), true where one may look. Returns (R, T, D).

        is_causal: no position sees a later one. With a cache, x follows what it has, and sees that, too.
        """
        queries, keys, values = _heads(self.qkv(x), self.heads, 3)  # (R, H, T, d) each
        if cache is not None:
            keys, values = cache.extended(keys, values)
            num_new, num_all = queries.shape[2], keys.shape[2]
            if is_causal and num_new < num_all:  # torch aligns its causal mask with the first key, not with the last
                mask, is_causal = causal(num_new, num_all, x.device) if num_new > 1 else None, False
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(queries, keys, values, mask, dropout, is_causal)
        return self.out(_joined(found))


class CrossAttention(nn.Module):
    """Every position of a row asks another sequence. Several rows may ask the same one."""

    def __init__(self, width: int, heads: int, context_width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(context_width, 2 * width)
        self.out = nn.Linear(width, width)

    def read(self, context: Tensor) -> KeyValues:
        """(N, S, context width) → its keys and values, once for all rows that will ask it."""
        keys, values = _heads(self.key_value(context), self.heads, 2)
        return keys, values

    def forward(self, x: Tensor, context: KeyValues) -> Tensor:
        """x: (R, T, D), where R / N rows that stand together ask the same of N contexts. Returns (R, T, D)."""
        keys, values = context
        rows, length, width = x.shape
        # Rows that ask the same context are as one longer row to it, so that nothing is copied for them.
        together = rows // max(1, len(keys)) * length  # of no rows, too
        (queries,) = _heads(self.query(x).reshape(len(keys), together, width), self.heads, 1)
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout)
        return self.out(_joined(found).reshape(rows, length, width))


def causal(num_new: int, num_all: int, device: torch.device) -> Tensor:
    """(num_new, num_all) bool: the new positions are the last ones, and each sees itself and all before it."""
    return torch.ones(num_new, num_all, dtype=torch.bool, device=device).tril(num_all - num_new)


def _heads(joined: Tensor, heads: int, num: int) -> tuple[Tensor, ...]:
    """(R, T, num * D) → num of (R, H, T, d)."""
    rows, length, width = joined.shape
    parts = joined.reshape(rows, length, num, heads, width // (num * heads))
    return parts.permute(2, 0, 3, 1, 4).unbind(0)


def _joined(found: Tensor) -> Tensor:
    """(R, H, T, d) → (R, T, D)."""
    return found.transpose(1, 2).flatten(2)
