"""Which token comes next? Cross-entropy over the vocabulary, smoothed; a mean over tokens, not over texts."""

# Shapes: T tokens that are asked for on this rank, V vocabulary

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from training.objectives.contrastive import Ranks


def language_loss(logits: Tensor, targets: Tensor, counts: Tensor, ranks: Ranks, *, smoothing: float = 0.0) -> Tensor:
    """Nats per token.

    logits: (T, V). targets: (T,) int64. counts: (T,) bool, false for tokens that nobody asks for; T may differ between
    ranks. smoothing: share of the target that is spread over the vocabulary (arXiv 1512.00567, section 7).
    Returns (), whose mean over ranks is the mean over all tokens of all ranks that count.
    """
    each = F.cross_entropy(logits.float(), targets, reduction="none", label_smoothing=smoothing)
    num = ranks.gather(counts.sum()[None]).sum().clamp(min=1)
    return (each * counts).sum() * ranks.num / num
