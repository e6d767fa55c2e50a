"""A transformer over a text and a grid of image tokens, one stream: pre-norm layers, each under a mask of its own.

It reads a whole stream at once, or the text first and then one image token after another, each layer keeping of the
image only what its mask will still see.
Source: DALL-E, arXiv 2102.12092, appendix B.1.
"""

# Shapes: B streams, L = text + side * side positions, D width, H heads, d = D / H; N texts, W candidates of each

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.blocks.attention import KeyValues
from training.blocks.grid_attention import grid_attention
from training.blocks.grid_cache import GridCache
from training.blocks.masks import GridMask


class GridStack(nn.Module):
    """(B, L, D) → (B, L, D), normed. masks: one a layer, of equal text and side."""

    def __init__(self, *, width: int, heads: int, masks: Sequence[GridMask], is_checkpointed: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(width, heads, mask) for mask in masks)
        self.norm = nn.LayerNorm(width)
        self.is_checkpointed = is_checkpointed
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                # Layers that write into the stream begin smaller, the more of them there are (GPT-2).
                is_last = name.endswith(("out.weight", "fc2.weight"))
                nn.init.normal_(parameter, std=width**-0.5 * ((2 * len(masks)) ** -0.5 if is_last else 1.0))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.is_checkpointed and self.training else layer(x)
        return self.norm(x)

    def begin(self, text: Tensor, num_candidates: int) -> tuple[Tensor, list[GridCache]]:
        """(N, text, D) → (N, D) of its last position, and caches that N x num_candidates streams go on from."""
        caches = []
        for layer in self.layers:
            text, (keys, values) = layer.begin(text)  # type: ignore[operator]
            caches.append(GridCache(layer.mask, keys, values, num_candidates))  # type: ignore[arg-type]
        found: Tensor = self.norm(text[:, -1])
        return found, caches

    def read(self, x: Tensor, at: Tensor, caches: Sequence[GridCache]) -> Tensor:
        """Image token `at`, (1,), of each stream: (N * W, D) → (N * W, D). Streams of a text stand together."""
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer.read(x, at, cache)  # type: ignore[operator]
        found: Tensor = self.norm(x)
        return found


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, mask: GridMask) -> None:
        super().__init__()
        self.heads, self.mask = heads, mask
        self.attention_norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        found = grid_attention(*self._heads(x), self.mask)
        return self._after(x, found.transpose(1, 2).flatten(2))

    def begin(self, text: Tensor) -> tuple[Tensor, KeyValues]:
        """The text alone, and its keys and values, (N, H, text, d) each."""
        queries, keys, values = self._heads(text)
        found = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return self._after(text, found.transpose(1, 2).flatten(2)), (keys, values)

    def read(self, x: Tensor, at: Tensor, cache: GridCache) -> Tensor:
        """(N * W, D) → (N * W, D)."""
        parts = self.qkv(self.attention_norm(x)).unflatten(1, (3, self.heads, -1))  # (N * W, 3, H, d)
        queries, keys, values = parts.unbind(1)
        return self._after(x, cache.attend(queries, keys, values, at).flatten(1))

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, H, L, d) each."""
        parts = self.qkv(self.attention_norm(x)).unflatten(2, (3, self.heads, -1))  # (B, L, 3, H, d)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4).unbind(0)
        return queries, keys, values

    def _after(self, x: Tensor, found: Tensor) -> Tensor:
        x = x + self.out(found)
        return x + self.fc2(F.gelu(self.fc1(self.feed_norm(x))))
