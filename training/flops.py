"""How much arithmetic a step is, and how much the device could do: their ratio tells how well it is used."""

from __future__ import annotations

import copy
import time
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from training.preprocess import Ops
from training.ranks import Ranks
from training.spec import Batch, Context, TrainSpec

# Dense peaks by the makers' data sheets, in floating-point operations a second: without sparsity, boost clocks.
PEAKS = {
    ("H200", torch.bfloat16): 989e12,
    ("H100", torch.bfloat16): 989e12,
    ("A100", torch.bfloat16): 312e12,
    ("L40S", torch.bfloat16): 362e12,
    ("V100", torch.float16): 125e12,
    ("H200", torch.float32): 67e12,
    ("H100", torch.float32): 67e12,
    ("A100", torch.float32): 19.5e12,
}
MEASURED_SIDE = 1024  # of the square matrices that a CPU's peak is measured with


def shadow(module: nn.Module) -> nn.Module:
    """A copy whose weights have shapes and no numbers, for `forward_flops`; taken before ZeRO-3 cuts the module."""
    state = (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(tensor): tensor.detach().to("meta") for tensor in state})


def forward_flops(shadow: nn.Module, batch: Batch) -> float:
    """Floating-point operations of a forward pass over a row of `batch`, on the average of its rows.

    Nothing is computed, only shapes are followed; but tokens keep their numbers, which tell how long a text is.
    """
    shapes = {name: each.to("meta") if each.is_floating_point() else each for name, each in batch.tensors.items()}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(Batch(batch.uids, shapes), Context(0, Ranks()))
    return counter.get_total_flops() / len(batch)


def made_up(spec: TrainSpec, settings: Any, num: int) -> Batch:
    """Rows as the model takes them, of noise and of captions that fill the context."""
    chance, tensors = torch.Generator().manual_seed(0), {"valid": torch.ones(num, dtype=torch.bool)}
    if (codes := spec.codes(settings)) is not None:
        tensors["codes"] = torch.randint(codes[1], (num, codes[0]), generator=chance)
    else:
        size = Ops.parse(spec.ops(settings)[0]).size
        tensors["image"] = torch.rand(num, 3, size, size, generator=chance)  # levels, where nothing is normalized, too
    if (tokenizer := spec.tokenizer_of(settings)) is not None:
        tensors["text"] = tokenizer(["a picture " * 200] * num)
    return Batch([bytes([row]) for row in range(num)], tensors)


def step_flops(forward: float, is_cached: bool) -> float:
    """Of forward and backward: the backward pass is twice the forward one; a cached step goes forward twice.

    What activation checkpointing computes again is not counted: it is a cost of memory, no work of the model.
    """
    return (4 if is_cached else 3) * forward


@lru_cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """A second's operations at the device's peak; None where it is not known. A CPU's is measured on large matrices."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if dtype == torch.float16 and "V100" not in name:
            dtype = torch.bfloat16  # the same units, at the same rate
        return next((peak for (word, kind), peak in PEAKS.items() if word in name and kind == dtype), None)
    left = torch.ones(MEASURED_SIDE, MEASURED_SIDE, dtype=torch.float32)
    took_s = []
    for _ in range(5):
        began = time.perf_counter()
        left @ left
        took_s.append(time.perf_counter() - began)
    return 2 * MEASURED_SIDE**3 / min(took_s)
