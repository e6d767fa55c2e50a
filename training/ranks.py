"""The processes that train together: gathering with gradients, sums, and what they agree on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process among `num`. Alone (num 1), nothing is asked of torch.distributed."""

    num: int = 1
    rank: int = 0

    @classmethod
    def here(cls) -> Ranks:
        """As torch.distributed was initialised; alone where it was not."""
        return cls(dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else cls()

    def gather(self, values: Tensor) -> Tensor:
        """(B, …) of this rank → (num * B, …) of all, in the order of ranks; B must be the same on all.

        In the backward pass each rank gets the sum, over ranks, of the gradients of its own rows: exact for any loss
        whose mean over ranks is wanted.
        """
        if self.num == 1:
            return values
        if not values.is_floating_point():
            return _all_gather(values, self.num)
        gathered: Tensor = _Gather.apply(values, self)
        return gathered

    def mean(self, value: Tensor) -> Tensor:
        """Mean over ranks, without gradient."""
        value = value.detach().clone()
        if self.num > 1:
            dist.all_reduce(value)
        return value / self.num


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor, ranks: Ranks) -> Tensor:
        context.ranks = ranks
        return _all_gather(values, ranks.num)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ranks = context.ranks
        gradient = gradient.contiguous()
        if dist.get_backend() == "gloo":  # which cannot reduce and scatter
            dist.all_reduce(gradient)
            return gradient.chunk(ranks.num)[ranks.rank], None
        own = torch.empty_like(gradient.chunk(ranks.num)[ranks.rank])
        dist.reduce_scatter_tensor(own, gradient)
        return own, None


def _all_gather(values: Tensor, num: int) -> Tensor:
    wide = values.to(torch.uint8) if values.dtype == torch.bool else values
    gathered = wide.new_empty((num * len(wide), *wide.shape[1:]))
    dist.all_gather_into_tensor(gathered, wide.contiguous())
    return gathered.to(values.dtype)
