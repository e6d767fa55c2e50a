"""A vision transformer: a picture to a class token and a token a patch. Pre-norm layers behind a stem.

Source: ViT, arXiv 2010.11929; the stem of convolutions arXiv 2106.14881.
"""

# Shapes: B pictures, P tokens (a class token, then the grid's, row by row), D width

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.blocks.attention import SelfAttention

USUAL_WIDTH = 768  # at which weights begin with a deviation of .02; narrower layers begin wider, or they hardly act
GROUP = 8  # channels that a stem's norm takes together


class Vit(nn.Module):
    """Pictures to tokens.

    channels: of the stem's convolutions, each of which halves the picture; none: one linear map of each patch, as the
    paper has it. With convolutions small pictures are learnt from far fewer samples. is_checkpointed: reckon
    activations again in the backward pass.
    """

    def __init__(
        self, *, image_size: int, patch: int, width: int, layers: int, heads: int, hidden: int, norm_eps: float = 1e-6,
        channels: Sequence[int] = (), is_checkpointed: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        grid = image_size // patch
        self.stem = _stem(channels, width) if channels else nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, 1 + grid * grid, width))
        self.layers = nn.ModuleList(_Layer(width, heads, hidden, norm_eps) for _ in range(layers))
        self.norm = nn.LayerNorm(width, norm_eps)
        self.is_checkpointed = is_checkpointed
        self.memory_format = torch.channels_last if channels else torch.preserve_format
        for parameter in (self.class_token, self.positions):
            nn.init.trunc_normal_(parameter, std=0.02)
        self.apply(partial(_init, width=width))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, P, D), normed."""
        grid = self.stem(images.contiguous(memory_format=self.memory_format))  # (B, D, H', W')
        patches = grid.flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(images), -1, -1), patches], 1) + self.positions  # (B, P, D)
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.is_checkpointed and self.training else layer(x)
        return self.norm(x)


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, norm_eps: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, norm_eps)
        self.attention = SelfAttention(width, heads)
        self.feed_norm = nn.LayerNorm(width, norm_eps)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.fc2(F.gelu(self.fc1(self.feed_norm(x))))


def _stem(channels: Sequence[int], width: int) -> nn.Module:
    halvings = [
        nn.Sequential(nn.Conv2d(here, there, 3, 2, 1), nn.GroupNorm(max(1, there // GROUP), there), nn.GELU())
        for here, there in pairwise([3, *channels])
    ]
    return nn.Sequential(*halvings, nn.Conv2d(channels[-1], width, 1))


def _init(module: nn.Module, width: int) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02 * (USUAL_WIDTH / width) ** 0.5)
        nn.init.zeros_(module.bias)


def resized_positions(positions: Tensor, num_tokens: int) -> Tensor:
    """(1, P, D) of one picture size → (1, num_tokens, D) of another: the class token's stays, the grid's is resampled.

    Bicubic, for fine-tuning at a higher resolution (arXiv 2010.11929, section 3.2). Both grids are square.
    """
    if positions.shape[1] == num_tokens:
        return positions
    old, new = round((positions.shape[1] - 1) ** 0.5), round((num_tokens - 1) ** 0.5)
    grid = positions[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid.float(), (new, new), mode="bicubic", align_corners=False).to(positions.dtype)
    return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)
