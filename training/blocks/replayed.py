"""A step of fixed shapes, recorded once as a CUDA graph and replayed: one call starts its hundreds of kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARM = 3  # calls before it is recorded, in which libraries choose their kernels


class Replayed:
    """A function of tensors on a GPU, which asks the CPU for nothing. The next call writes over what it returned.

    examples: tensors like those that will come; the function is called with them WARM + 1 times.
    """

    def __init__(self, function: Callable[..., Tensor], *examples: Tensor) -> None:
        self._inputs = [each.clone() for each in examples]
        self._device = self._inputs[0].device
        with torch.cuda.device(self._device):  # streams and graphs are those of the device that is current
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM):
                    function(*self._inputs)
            torch.cuda.current_stream().wait_stream(aside)
            self._graph = torch.cuda.CUDAGraph()
            # A loader's thread that pins memory meanwhile must not break what this thread records.
            with torch.cuda.graph(self._graph, stream=aside, capture_error_mode="thread_local"):
                self._found = function(*self._inputs)

    def __call__(self, *tensors: Tensor) -> Tensor:
        """The same on other numbers."""
        with torch.cuda.device(self._device):
            for own, each in zip(self._inputs, tensors, strict=True):
                own.copy_(each)
            self._graph.replay()
        return self._found
