"""Contrast with the keys of a momentum encoder: those of the batch, and those of past steps; with soft targets.

Source: MoCo, arXiv 1911.05722; soft targets ALBEF, arXiv 2107.07651, section 3.2; as BLIP has them, arXiv 2201.12086.
"""

# Shapes: B rows of this rank, C keys, E embedding

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.objectives.contrastive import Ranks


def momentum_loss(
    queries: Tensor, keys: Tensor, momentum_queries: Tensor, *, is_positive: Tensor, is_key: Tensor,
    temperature: Tensor, alpha: Tensor, valid: Tensor, ranks: Ranks,
) -> Tensor:  # fmt: skip
    """Cross-entropy of one direction, in nats per row.

    queries: (B, E), keys: (C, E), momentum_queries: (B, E), all of unit length; the last two without gradient.
    is_positive: (B, C) bool, which keys are right for a row, its own among them. is_key: (C,) bool. temperature: ().
    alpha: (), the share of the target that is what the momentum encoder thinks; the rest is spread over the positives.
    valid: (B,) bool. Returns (), whose mean over ranks is the mean over all valid rows of all ranks.
    """
    logits = _logits(queries, keys, is_key, temperature)
    with torch.no_grad():
        right = (is_positive & is_key).float()
        hard = right / right.sum(1, keepdim=True).clamp(min=1)
        soft = F.softmax(_logits(momentum_queries, keys, is_key, temperature), 1)
        targets = alpha * soft + (1 - alpha) * hard
    # What is no key has no share of the target; its logarithm is minus infinity, and nothing times that is no number.
    each = -(F.log_softmax(logits, 1).masked_fill(~is_key, 0.0) * targets).sum(1)
    return (each * valid).sum() * ranks.num / ranks.gather(valid).sum().clamp(min=1)


def _logits(queries: Tensor, keys: Tensor, is_key: Tensor, temperature: Tensor) -> Tensor:
    """(B, C); where there is no key, the lowest number: of minus infinity alone a softmax would be no number."""
    return (queries.float() @ keys.float().T / temperature).masked_fill(~is_key, torch.finfo(torch.float32).min)
