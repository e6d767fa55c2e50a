"""Texts through a causal tower, less the positions that nobody asks for.

A causal tower is read where its text ends, and what it says there depends on nothing that follows. Most captions are
short and padded to the context: over all of it, most of the work is done on padding. Here texts of like length go
together, cut behind the longest of them; values and gradients are those of the whole context, but for rounding.
"""

# Shapes: B texts, L positions, W width, E embedding

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

STEP = 8  # positions: lengths are rounded up to it, so that few shapes occur
READ_AT_END = ("argmax", "eos")


def causal_tower(model: Any) -> Any | None:
    """open_clip's own text tower in a CLIP of its, where it may be cut; None where padding has a say."""
    from open_clip.model import CLIP
    from open_clip.transformer import TextTransformer

    tower = getattr(model, "text", model)
    is_built_in = type(tower) in (CLIP, TextTransformer)
    is_plain = is_built_in and getattr(tower, "cls_emb", None) is None and not getattr(tower, "output_tokens", False)
    return tower if is_plain and tower.attn_mask is not None and _pool_type(tower) in READ_AT_END else None


def encode_texts(tower: Any, tokens: Tensor, num_groups: int) -> Tensor:
    """(B, L) int64 → (B, E), as `tower` encodes them; its passes are `num_groups`, or fewer of very few texts.

    How many passes there are depends on B alone, so that ranks which share parameters out stay in step.
    """
    ends = _ends(tower, tokens)  # (B,)
    order = ends.argsort(stable=True)
    groups = order.chunk(num_groups)
    last = torch.stack([ends[rows[-1]] for rows in groups]).tolist()
    lengths = [min(-(-(end + 1) // STEP) * STEP, tokens.shape[1]) for end in last]
    cut = [tokens[rows, :length] for rows, length in zip(groups, lengths, strict=True)]
    # Looked up at once: the table's gradient is as large as the table, and one is made of each look-up.
    flat = tower.token_embedding(torch.cat([each.flatten() for each in cut]))  # (positions, W)
    parts = [
        _encode(tower, x.unflatten(0, each.shape), ends[rows])
        for x, each, rows in zip(flat.split([each.numel() for each in cut]), cut, groups, strict=True)
    ]
    return torch.cat(parts).index_select(0, order.argsort())


def _encode(tower: Any, x: Tensor, ends: Tensor) -> Tensor:
    """(B, L, W), of any L up to the context, and where each is read, (B,) → (B, E)."""
    length = x.shape[1]
    dtype = tower.transformer.get_cast_dtype()
    x = x.to(dtype) + tower.positional_embedding[:length].to(dtype)
    x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
    x = tower.ln_final(x[torch.arange(len(x), device=x.device), ends])  # (B, W)
    if tower.text_projection is None:
        return x
    return tower.text_projection(x) if isinstance(tower.text_projection, nn.Linear) else x @ tower.text_projection


def _ends(tower: Any, tokens: Tensor) -> Tensor:
    """Where each text is read, (B,): at the first end token, or at the highest number."""
    if _pool_type(tower) == "eos":
        return (tokens == (tower.eos_id if hasattr(tower, "eos_id") else tower.text_eos_id)).int().argmax(-1)
    return tokens.argmax(-1)


def _pool_type(tower: Any) -> str:
    return str(tower.pool_type if hasattr(tower, "pool_type") else tower.text_pool_type)
