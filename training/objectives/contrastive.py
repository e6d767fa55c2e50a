"""Does a caption belong to an image? Softmax (CLIP) and sigmoid (SigLIP) losses over the global batch.

The gradients are those of one process that holds the whole batch, whatever the number of ranks: features are gathered
with their gradients, and each rank returns a loss whose mean over the ranks is the loss of the global batch, so that an
engine that averages gradients over ranks gets them exactly. Masked rows (`valid` false) are no pairs: they are neither
positives nor negatives.
"""

# Shapes: B rows of this rank, G of all ranks, C of a chunk, E embedding

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Rows = Literal["local", "global"]


class Ranks(Protocol):
    """The processes that share a global batch (training/ranks.py); alone, gather returns what it is given."""

    @property
    def num(self) -> int:
        """How many they are."""

    @property
    def rank(self) -> int:
        """Which of them this one is."""

    def gather(self, values: Tensor) -> Tensor:
        """(B, …) of this rank → (G, …) of all, in the order of ranks. Gradients flow back, summed over ranks."""


def softmax_loss(
    image_emb: Tensor, text_emb: Tensor, scale: Tensor, valid: Tensor, ranks: Ranks, *, rows: Rows = "local",
    chunk: int | None = None,
) -> Tensor:  # fmt: skip
    """Mean of the cross-entropies image to text and text to image, in nats per pair.

    image_emb, text_emb: (B, E), unit length. scale: (), 1 / temperature. valid: (B,) bool.
    rows: which rows of the G × G logits a rank reckons: its own, or all of them (W times the work, for comparison).
    chunk: rows of logits held at once, recomputed in the backward pass; None: all.
    Returns (), whose mean over ranks is the loss. Source: CLIP, arXiv 2103.00020, figure 3.
    """
    images, texts, is_pair = ranks.gather(image_emb), ranks.gather(text_emb), ranks.gather(valid)
    own = _own_rows(len(image_emb), ranks, rows)
    total = image_emb.new_zeros((), dtype=torch.float32)
    for part in _chunks(own, chunk):
        total = total + _recomputed(chunk, _cross_entropies, images[part], texts, scale, is_pair, part)
        total = total + _recomputed(chunk, _cross_entropies, texts[part], images, scale, is_pair, part)
    return 0.5 * total * _share(ranks, rows) / is_pair.sum().clamp(min=1)


def sigmoid_loss(
    image_emb: Tensor, text_emb: Tensor, scale: Tensor, bias: Tensor, valid: Tensor, ranks: Ranks, *,
    rows: Rows = "local", chunk: int | None = None,
) -> Tensor:  # fmt: skip
    """Every image with every text is a question of its own: do they belong together? Nats, summed, per pair.

    Arguments as of `softmax_loss`; bias: (), added to every logit. Source: SigLIP, arXiv 2303.15343, algorithm 1.
    """
    images, texts, is_pair = ranks.gather(image_emb), ranks.gather(text_emb), ranks.gather(valid)
    own = _own_rows(len(image_emb), ranks, rows)
    total = image_emb.new_zeros((), dtype=torch.float32)
    for part in _chunks(own, chunk):
        total = total + _recomputed(chunk, _sigmoid_terms, images[part], texts, scale, bias, is_pair, part)
    return total * _share(ranks, rows) / is_pair.sum().clamp(min=1)


def _cross_entropies(queries: Tensor, keys: Tensor, scale: Tensor, is_pair: Tensor, part: slice) -> Tensor:
    """Sum over the valid rows of a chunk. queries: (C, E), keys: (G, E)."""
    logits = (scale * queries @ keys.T).float()  # (C, G)
    logits = logits.masked_fill(~is_pair, float("-inf"))
    answers = torch.arange(part.start, part.stop, device=logits.device)
    rows = is_pair[part]
    return F.cross_entropy(logits[rows], answers[rows], reduction="sum")


def _sigmoid_terms(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, is_pair: Tensor, part: slice) -> Tensor:
    """Sum over the valid rows and columns of a chunk. images: (C, E), texts: (G, E)."""
    logits = (scale * images @ texts.T + bias).float()  # (C, G)
    signs = logits.new_full(logits.shape, -1.0)
    signs[:, part].fill_diagonal_(1.0)
    terms = F.logsigmoid(signs * logits)
    return -terms[is_pair[part]][:, is_pair].sum()


def _own_rows(num_rows: int, ranks: Ranks, rows: Rows) -> slice:
    return (
        slice(ranks.rank * num_rows, (ranks.rank + 1) * num_rows) if rows == "local" else slice(0, ranks.num * num_rows)
    )


def _share(ranks: Ranks, rows: Rows) -> int:
    """The mean over ranks of parts is the sum of all parts divided by W."""
    return ranks.num if rows == "local" else 1


def _chunks(rows: slice, size: int | None) -> Iterator[slice]:
    size = size or max(1, rows.stop - rows.start)
    for start in range(rows.start, rows.stop, size):
        yield slice(start, min(start + size, rows.stop))


def _recomputed(chunk: int | None, terms: Callable[..., Tensor], *arguments: object) -> Tensor:
    """A chunk's logits are made again in the backward pass; all at once need not be."""
    if chunk is None:
        return terms(*arguments)
    found: Tensor = checkpoint(terms, *arguments, use_reentrant=False)
    return found
