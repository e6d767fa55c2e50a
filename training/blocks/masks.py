"""Which position may look at which: a text, then a square grid of image tokens, row by row. Nothing sees its future.

Every image token sees the whole text, and of the image itself and what lies certain distances behind in raster order.
Distances go on from one row into that above it, as the paper draws them.
Source: DALL-E, arXiv 2102.12092, appendix B.1 and figure 11.
"""

# Shapes: L = text + side * side positions

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["row", "column", "convolution", "causal"]


@dataclass(frozen=True)
class GridMask:
    """kernel: side of the causal convolution, odd; others have none."""

    kind: Kind
    text: int
    side: int
    kernel: int = 11

    @property
    def length(self) -> int:
        """Positions in all."""
        return self.text + self.side**2

    @property
    def distances(self) -> tuple[int, ...]:
        """How far behind in raster order an image token sees other ones; 0 is itself."""
        side, num, half = self.side, self.side**2, self.kernel // 2
        around = range(-half, half + 1)
        found: Iterable[int] = {
            "row": range(side + 1),
            "column": range(0, num, side),
            "convolution": {rows * side + columns for rows in range(half + 1) for columns in around},
            "causal": range(num),
        }[self.kind]
        return tuple(sorted(each for each in found if 0 <= each < num))

    def rule(self, device: torch.device | str = "cpu") -> Callable[[Tensor, Tensor], Tensor]:
        """(asking, asked) → bool, elementwise over positions 0 … L - 1."""
        seen, text, last = torch.zeros(self.side**2, dtype=torch.bool), self.text, self.side**2 - 1
        seen[list(self.distances)] = True
        seen = seen.to(device)

        def sees(asking: Tensor, asked: Tensor) -> Tensor:
            behind = asking - asked
            return (behind >= 0) & ((asked < text) | seen[behind.clamp(0, last)])

        return sees

    def dense(self, device: torch.device | str = "cpu") -> Tensor:
        """(L, L) bool, true where the row's position may look at the column's."""
        places = torch.arange(self.length, device=device)
        return self.rule(device)(places[:, None], places[None])
