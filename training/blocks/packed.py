"""Linear maps whose weights lie as oneDNN's kernels read them: for models that only answer, on a CPU.

torch asks MKL for float32 products; on AMD that leaves the wide registers unused. Measured there, 768 x 3072: half of
the time with 1,600 rows, a third with 16, as a step of writing has them. The operators are torch's, for its compiler.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Packed(nn.Module):
    """A linear map without a gradient: its weight is laid out once instead of in every call."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._weight, self._bias = torch.ops.mkldnn._reorder_linear_weight(weight.detach()), bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → (…, D')."""
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return found


def can_pack(weight: Tensor) -> bool:
    """Is there such a kernel for it here?"""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    has_bf16 = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 or bool(has_bf16)


def packed(module: M, spared: tuple[str, ...] = ()) -> M:
    """A twin whose linear maps are packed where they can be; it shares all other tensors, and the module stays whole.

    spared: beginnings of names of submodules that are left as they are.
    """
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    twin = copy.deepcopy(module, shared)
    for place, part in [*twin.named_modules()]:
        for name, child in [*part.named_children()]:
            is_spared = bool(spared) and f"{place}.{name}.".removeprefix(".").startswith(spared)
            if type(child) is nn.Linear and can_pack(child.weight) and not is_spared:
                setattr(part, name, Packed(child.weight, child.bias))
    return twin
