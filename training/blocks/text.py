"""A stack of text layers that is several models at once: roles share all weights but those of self-attention.

A role looks both ways or back only, alone or at a context (an image's tokens). MED of BLIP is two roles, an encoder and
a decoder; a plain encoder or language model is one. Post-norm layers, as BERT has them (arXiv 1810.04805).
"""

# Shapes: R rows, N contexts, T positions, D width, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.blocks.attention import Cache, CrossAttention, KeyValues, SelfAttention

Context = Sequence[KeyValues]  # of each layer
USUAL_WIDTH = 768  # at which weights begin with a deviation of .02; narrower layers begin wider, or they hardly act


class TextStack(nn.Module):
    """Token ids to states. roles: names of the sets of self-attention. context_width: of what is looked at; None: none.

    causal: those roles that look back only.
    """

    def __init__(
        self, *, vocab_size: int, positions: int, width: int, layers: int, heads: int, hidden: int,
        roles: Sequence[str], causal: Sequence[str] = (), context_width: int | None = None, norm_eps: float = 1e-12,
        dropout: float = 0.0, is_checkpointed: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.causal, self.is_checkpointed = frozenset(causal), is_checkpointed
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(positions, width)
        self.norm = nn.LayerNorm(width, norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            _Layer(width, heads, hidden, roles, context_width, norm_eps, dropout) for _ in range(layers)
        )
        self.apply(partial(_init, width=width))

    def look(self, context: Tensor) -> Context:
        """(N, S, context width) → each layer's keys and values of it: made once, for all rows and roles that ask."""
        return [layer.look(context) for layer in self.layers]  # type: ignore[operator]

    def forward(
        self, ids: Tensor, role: str, *, is_text: Tensor | None = None, context: Context | None = None,
        caches: Sequence[Cache] | None = None,
    ) -> Tensor:  # fmt: skip
        """ids: (R, T). is_text: (R, T) bool, false where it is padding, which is always behind the text.

        context: what `look` gave of N contexts, each asked by R / N rows that stand together; without it the layers'
        looking is left out. caches: one a layer; ids follow what they have read. Returns (R, T, D).
        """
        is_causal = role in self.causal
        # A position that looks back only sees no padding behind it.
        mask = None if is_text is None or is_causal else is_text[:, None, None, :]
        start = caches[0].num_read if caches else 0
        places = torch.arange(start, start + ids.shape[1], device=ids.device)
        x = self.dropout(self.norm(self.tokens(ids) + self.positions(places)))
        for number, layer in enumerate(self.layers):
            seen = context[number] if context is not None else None
            cache = caches[number] if caches else None
            if self.is_checkpointed and self.training:
                x = checkpoint(layer, x, role, mask, is_causal, seen, cache, use_reentrant=False)
            else:
                x = layer(x, role, mask, is_causal, seen, cache)
        return x


class WordHead(nn.Module):
    """States to logits over the vocabulary, through the token table itself. Source: BERT, arXiv 1810.04805."""

    def __init__(self, vocab_size: int, width: int, norm_eps: float = 1e-12) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.product: nn.Module | None = None  # with the table, where another way than F.linear is faster
        self.apply(partial(_init, width=width))

    def forward(self, states: Tensor, table: Tensor) -> Tensor:
        """states: (…, D), table: (V, D) → (…, V)."""
        found = self.norm(F.gelu(self.dense(states)))
        return F.linear(found, table, self.bias) if self.product is None else self.product(found)


class _Layer(nn.Module):
    def __init__(
        self, width: int, heads: int, hidden: int, roles: Sequence[str], context_width: int | None, norm_eps: float,
        dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.attention = nn.ModuleDict({role: SelfAttention(width, heads, dropout) for role in roles})
        self.attention_norm = nn.ModuleDict({role: nn.LayerNorm(width, norm_eps) for role in roles})
        if context_width is not None:
            self.cross = CrossAttention(width, heads, context_width, dropout)
            self.cross_norm = nn.LayerNorm(width, norm_eps)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width, norm_eps)
        self.dropout = nn.Dropout(dropout)

    def look(self, context: Tensor) -> KeyValues:
        """The context's keys and values in this layer."""
        return self.cross.read(context)

    def forward(
        self, x: Tensor, role: str, mask: Tensor | None, is_causal: bool, context: KeyValues | None,
        cache: Cache | None,
    ) -> Tensor:  # fmt: skip
        found = self.attention[role](x, mask, is_causal=is_causal, cache=cache)
        x = self.attention_norm[role](x + self.dropout(found))
        if context is not None:
            x = self.cross_norm(x + self.dropout(self.cross(x, context)))
        return self.norm(x + self.dropout(self.fc2(F.gelu(self.fc1(x)))))


def _init(module: nn.Module, width: int) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02 * (USUAL_WIDTH / width) ** 0.5)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
