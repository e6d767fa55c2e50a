"""Pictures to logits over a grid of codes, and codes back to pictures: residual convolutions between pool and repeat.

Parameters have the names of the released dVAE, so its weights load as they are.
Source: DALL-E, arXiv 2102.12092, appendix A.1.
"""

# Shapes: B pictures, C channels, H x W pixels, V codes, h x w the grid, 2 ** (groups - 1) times smaller

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SPREAD = 8.0  # of logits at the beginning: their deviation over places is then about 1


class CodeEncoder(nn.Module):
    """(B, C, H, W) → (B, V, h, w) logits. Widths are 1, 1, 2, 4 … times `hidden`; the last group is not pooled."""

    def __init__(self, *, vocab: int, hidden: int, groups: int, blocks: int, channels: int = 3) -> None:
        super().__init__()
        widths = [hidden, *(hidden << number for number in range(groups))]
        gain = 1 / (groups * blocks) ** 2
        first, last = Convolution(channels, hidden, 7), Convolution(widths[-1], vocab, 1)
        between = [_group(widths[at : at + 2], blocks, (3, 3, 3, 1), gain) for at in range(groups)]
        self.blocks = _stages(first, between, ("pool", nn.MaxPool2d(2)), last)
        # Not in the paper, which says nothing of it: pixels begin about their middle, and logits about as far apart as
        # the noise that codes are drawn with. Then codes tell something from the first step on.
        with torch.no_grad():
            first.b.copy_(-0.5 * first.w.sum((1, 2, 3)))
            last.w.mul_(SPREAD)

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.blocks(pixels.contiguous(memory_format=torch.channels_last))  # convolutions' fastest
        return logits


class CodeDecoder(nn.Module):
    """(B, V, h, w), one-hot or soft → (B, C, H, W). Widths are 8, 4, 2, 1 times `hidden`, behind `first`."""

    def __init__(self, *, vocab: int, first: int, hidden: int, groups: int, blocks: int, channels: int) -> None:
        super().__init__()
        widths = [first, *(hidden << number for number in reversed(range(groups)))]
        gain = 1 / (groups * blocks) ** 2
        self.blocks = _stages(
            Convolution(vocab, first, 1),
            [_group(widths[at : at + 2], blocks, (1, 3, 3, 3), gain) for at in range(groups)],
            ("upsample", nn.Upsample(scale_factor=2, mode="nearest")),
            Convolution(widths[-1], channels, 1),
        )

    def forward(self, codes: Tensor) -> Tensor:
        pixels: Tensor = self.blocks(codes.contiguous(memory_format=torch.channels_last))
        return pixels


class Convolution(nn.Module):
    """A convolution that keeps the size; its parameters are w and b."""

    def __init__(self, width_in: int, width_out: int, kernel: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(width_out, width_in, kernel, kernel))
        self.b = nn.Parameter(torch.zeros(width_out))
        nn.init.normal_(self.w, std=(width_in * kernel**2) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


class _Block(nn.Module):
    """x and a bottleneck's change of it, which begins small: the more blocks, the smaller."""

    def __init__(self, width_in: int, width_out: int, kernels: Sequence[int], gain: float) -> None:
        super().__init__()
        self.gain, inner = gain, width_out // 4
        self.id_path = nn.Identity() if width_in == width_out else Convolution(width_in, width_out, 1)
        widths = [width_in, inner, inner, inner, width_out]
        parts: list[tuple[str, nn.Module]] = []
        for number, kernel in enumerate(kernels, 1):
            parts.append((f"relu_{number}", nn.ReLU()))
            parts.append((f"conv_{number}", Convolution(widths[number - 1], widths[number], kernel)))
        self.res_path = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        kept: Tensor = self.id_path(x)
        return kept + self.gain * self.res_path(x)


def _group(widths: Sequence[int], blocks: int, kernels: Sequence[int], gain: float) -> OrderedDict[str, nn.Module]:
    width_in, width_out = widths
    return OrderedDict(
        (f"block_{number + 1}", _Block(width_out if number else width_in, width_out, kernels, gain))
        for number in range(blocks)
    )


def _stages(
    first: nn.Module, groups: Sequence[OrderedDict[str, nn.Module]], between: tuple[str, nn.Module], last: nn.Module
) -> nn.Sequential:
    """The input, groups with a change of size between them, the output."""
    name, resize = between
    for group in groups[:-1]:
        group[name] = resize  # it has no parameters: one serves all
    stages = OrderedDict[str, nn.Module](input=first)
    stages |= {f"group_{number}": nn.Sequential(group) for number, group in enumerate(groups, 1)}
    stages["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=last))
    return nn.Sequential(stages)
