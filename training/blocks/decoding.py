"""A text stack that writes: rows of tokens that grow, and what was read of each. `training.generate` drives it."""

# Shapes: N contexts, W rows for each, T further tokens, V vocabulary

from __future__ import annotations

import torch
from torch import Tensor

from training.blocks.attention import Cache
from training.blocks.text import Context, TextStack, WordHead


class StackDecoding:
    """Rows of a causal role, `width` of them for each of N contexts."""

    def __init__(
        self, stack: TextStack, head: WordHead, role: str, context: Context, *, width: int, length: int
    ) -> None:  # fmt: skip
        self._stack, self._head, self._role, self._context, self._width = stack, head, role, context, width
        self._caches = [Cache(length) for _ in stack.layers]

    def read(self, tokens: Tensor) -> Tensor:
        """(N * W, T) further tokens → (N * W, V) logits of what follows the last of them."""
        states = self._stack(tokens, self._role, context=self._context, caches=self._caches)
        logits: Tensor = self._head(states[:, -1], self._stack.tokens.weight)
        return logits

    def reorder(self, rows: Tensor) -> None:
        """Row r goes on from what row rows[r] had read; both are of one context. (N * W,) int64."""
        for cache in self._caches:
            cache.take(rows)

    def keep(self, inputs: Tensor) -> None:
        """Only these contexts go on. (N',) int64, ascending."""
        self._context = [(keys[inputs], values[inputs]) for keys, values in self._context]
        of_each = torch.arange(self._width, device=inputs.device)
        self.reorder((inputs[:, None] * self._width + of_each).flatten())
