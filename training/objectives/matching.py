"""Does a text match an image? A yes or no for each pair, of which the wrong ones are drawn to be hard.

Source: ALBEF, arXiv 2107.07651, section 3.2; BLIP, arXiv 2201.12086, section 3.2.
"""

# Shapes: B rows of this rank, G of all ranks, R pairs that this rank judges

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.objectives.contrastive import Ranks

FLOOR = 1e-4  # added to each probability, so that no negative is never drawn (BLIP's released code)


def matching_loss(logits: Tensor, is_match: Tensor, counts: Tensor, ranks: Ranks) -> Tensor:
    """Cross-entropy in nats per pair.

    logits: (R, 2), of no and yes. is_match: (R,) bool. counts: (R,) bool, false for pairs that are padding. Ranks may
    have different R. Returns (), whose mean over ranks is the mean over all pairs of all ranks that count.
    """
    each = F.cross_entropy(logits.float(), is_match.long(), reduction="none")
    num = ranks.gather(counts.sum()[None]).sum().clamp(min=1)
    return (each * counts).sum() * ranks.num / num


@torch.no_grad()
def draw_negatives(logits: Tensor, may: Tensor, uniform: Tensor, easy: float = 0.0) -> tuple[Tensor, Tensor]:
    """For each row one of those that it may be wrongly paired with, the more similar the more likely.

    logits: (B, G) similarities over temperature. may: (B, G) bool. uniform: (B,) in [0, 1), one random number a row.
    easy: share of draws that are even over all that may be drawn.
    Returns (B,) int64, and (B,) bool: had the row any to draw from?
    """
    weights = (F.softmax(logits.float(), 1) + FLOOR).double() * may
    weights += easy / (1 - easy) * weights.sum(1, keepdim=True) * may / may.sum(1, keepdim=True).clamp(min=1)
    heights = weights.cumsum(1)
    total = heights[:, -1:]
    # The first height above u x total: its step is not empty, so what may not be drawn never is.
    drawn = torch.searchsorted(heights, uniform.double()[:, None] * total, right=True)
    last = torch.searchsorted(heights, total.contiguous())  # rounding may take the product to the total itself
    return torch.minimum(drawn, last)[:, 0].clamp(max=logits.shape[1] - 1), may.any(1)
