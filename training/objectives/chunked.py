"""Cross-entropy over a vocabulary whose logits never lie in memory all at once.

The gradient is reckoned beside the loss, chunk by chunk, while a chunk's logits are there: nothing is reckoned twice.
"""

# Shapes: T tokens, D width, V vocabulary, C tokens of a chunk

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_NUMBERS = 1 << 24  # logits of a chunk


def chunked_cross_entropy(states: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, shares: Tensor) -> Tensor:
    """The sum over tokens of share x nats, ().

    states: (T, D). weight: (V, D), bias: (V,): logits are states @ weight.T + bias. targets: (T,) int64. shares: (T,),
    what each token counts; it has no gradient. Differentiable once, in states, weight and bias.
    """
    asks = torch.is_grad_enabled() and any(each.requires_grad for each in (states, weight, bias))
    loss: Tensor = _Chunked.apply(states, weight, bias, targets, shares, asks)
    return loss


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, shares: Tensor, asks: bool
    ) -> Tensor:
        to_states = torch.empty_like(states) if asks else None
        to_weight = torch.zeros_like(weight, dtype=torch.float32) if asks else None
        to_bias = torch.zeros_like(bias, dtype=torch.float32) if asks else None
        total = torch.zeros((), dtype=torch.promote_types(states.dtype, torch.float32), device=states.device)
        size = max(1, CHUNK_NUMBERS // len(weight))
        # A token counts a millionth, which products in 16 bits would lose: gradients are multiplied by it last.
        most = shares.abs().max().clamp(min=torch.finfo(shares.dtype).tiny)
        relative = shares / most
        for at in range(0, len(states), size):
            here = slice(at, at + size)
            logits = F.linear(states[here], weight, bias).to(total.dtype)  # (C, V)
            log_probs = logits.log_softmax(1)
            total -= (log_probs.gather(1, targets[here, None])[:, 0] * shares[here]).sum()
            if to_states is not None and to_weight is not None and to_bias is not None:
                slope = log_probs.exp_()
                slope.scatter_add_(1, targets[here, None], slope.new_full((len(slope), 1), -1.0))
                slope *= relative[here, None]
                to_bias += slope.sum(0)
                slope = slope.to(states.dtype)
                to_states[here] = (slope @ weight.to(states.dtype)).to(states.dtype)
                to_weight += (slope.T @ states[here]).to(to_weight.dtype)
        if to_states is not None and to_weight is not None and to_bias is not None:
            ctx.save_for_backward(to_states, to_weight, to_bias, most)
            ctx.dtypes = weight.dtype, bias.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        to_states, to_weight, to_bias, most = ctx.saved_tensors
        slope = slopes[0] * most
        of_weight, of_bias = ctx.dtypes
        return (
            (to_states * slope).to(to_states.dtype), (to_weight * slope).to(of_weight), (to_bias * slope).to(of_bias),
            None, None, None,
        )  # fmt: skip
