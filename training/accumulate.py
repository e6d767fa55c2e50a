"""A batch in parts: how a loss over micro-batches is reckoned and its gradient taken, part by part.

Plain: the loss is a mean over rows, so the mean of the parts' losses is the loss of the batch. Cached: the loss sees
all rows at once (contrastive), so features of all parts are made first without a graph, the loss is taken once over
them, and each part is made again, to carry its rows' share of the gradient on (GradCache, arXiv 2101.06983). Outputs
of no dimension (a scale, a bias) belong to no row: their gradient flows once, with the last part.
"""

# Shapes: B rows of this rank, in k parts of B / k

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from training.spec import Batch, Outputs

Terms = Mapping[str, Tensor]  # weighted terms of a loss; their sum is the loss
Losses = Callable[[Outputs, Batch], Terms]
Forward = Callable[[int], Outputs]  # of a part, by its number; the same chance each time
Backward = Callable[[Tensor], None]  # of a scalar


def plain(parts: Sequence[Batch], forward: Forward, losses: Losses, backward: Backward) -> Terms:
    """Forward and backward, part by part. Returns the mean of the parts' terms, without gradient."""
    found: dict[str, Tensor] = {}
    for number, part in enumerate(parts):
        terms = losses(forward(number), part)
        backward(total(terms) / len(parts))
        for name, term in terms.items():
            found[name] = found.get(name, 0.0) + term.detach() / len(parts)
    return found


def cached(
    parts: Sequence[Batch], whole: Batch, peek: Forward, forward: Forward, losses: Losses, backward: Backward
) -> Terms:
    """Every part forward without a graph, the loss over the whole, every part again. Returns the loss's terms.

    peek: as forward, but without a graph, and the module is afterwards as before.
    """
    made = [peek(number) for number in range(len(parts))]
    leaves = {name: _leaf([outputs[name] for outputs in made]) for name in made[0]}
    del made
    terms = losses(leaves, whole)
    total(terms).backward()
    gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    start = 0
    for number, part in enumerate(parts):
        outputs = forward(number)
        rows = slice(start, start + len(part))
        is_last = number == len(parts) - 1
        # Zero, not nothing, before the last part: ZeRO 3 and offloading mix up what has no gradient in some pass.
        own = {
            name: gradient[rows] if gradient.ndim else gradient * float(is_last) for name, gradient in gradients.items()
        }
        carried = [(outputs[name].float() * own[name]).sum() for name in own if outputs[name].requires_grad]
        backward(torch.stack(carried).sum())
        start += len(part)
    return {name: term.detach() for name, term in terms.items()}


def total(terms: Terms) -> Tensor:
    """The loss."""
    return torch.stack([term.float() for term in terms.values()]).sum()


def _leaf(values: Sequence[Tensor]) -> Tensor:
    """One output of all parts, as the loss's starting point: (B, …), or () as it is.

    In fp32, or a row's small share of the gradient would vanish in fp16 before the loss's scale can save it.
    """
    whole = torch.cat(list(values)) if values[0].ndim else values[0].clone()
    return whole.float().requires_grad_() if whole.is_floating_point() else whole
