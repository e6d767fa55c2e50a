"""How well do codes tell a picture, and how much do they tell? Logit-Laplace likelihood, divergence from uniform codes.

Source: DALL-E, arXiv 2102.12092, section 2.1 and appendix A.3.
"""

# Shapes: B pictures, C channels, H x W pixels, V codes, h x w the grid

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from training.objectives.contrastive import Ranks

EPS = 0.1  # pixels are moved away from 0 and 1, where the logit is infinite


def mapped(pixels: Tensor) -> Tensor:
    """[0, 1] → [EPS, 1 - EPS], the likelihood's domain."""
    return (1 - 2 * EPS) * pixels + EPS


def unmapped(pixels: Tensor) -> Tensor:
    """Back to [0, 1]; what lies beyond is cut."""
    return ((pixels - EPS) / (1 - 2 * EPS)).clamp(0, 1)


def logit_laplace_nll(pixels: Tensor, stats: Tensor) -> Tensor:
    """Nats of each picture under a density on (0, 1): that of the sigmoid of a Laplace variable.

    pixels: (B, C, H, W) in (0, 1). stats: (B, 2 C, H, W), locations, then logarithms of scales. Returns (B,), sums.
    """
    location, log_scale = stats.float().chunk(2, 1)
    pixels = pixels.float()
    distance = (torch.logit(pixels) - location).abs() * (-log_scale).exp()
    each = math.log(2) + log_scale + torch.log(pixels) + torch.log1p(-pixels) + distance
    return each.flatten(1).sum(1)


def divergence_from_uniform(logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence of each picture's codes from the uniform prior: (B, V, h, w) → (B,) nats, sums."""
    log_probs = F.log_softmax(logits.float(), 1)
    each = (log_probs.exp() * log_probs).sum(1) + math.log(logits.shape[1])
    return each.flatten(1).sum(1)


def relaxed(logits: Tensor, temperature: float) -> Tensor:
    """A sample of Gumbel-softmax over codes, (B, V, h, w), by torch's generator (arXiv 1611.01144)."""
    return F.gumbel_softmax(logits.float(), tau=temperature, dim=1)


def mean_over_pictures(each: Tensor, valid: Tensor, ranks: Ranks) -> Tensor:
    """(B,) → (), whose mean over ranks is the mean over all valid pictures of all ranks."""
    num = ranks.gather(valid.sum()[None]).sum().clamp(min=1)
    return torch.where(valid, each, 0.0).sum() * ranks.num / num
