"""Inception-v3 as FID and the Inception score use it: torchvision's layers, pooled as TensorFlow's first release did.

Weights come from a file that a person fetched: `weights-inception-2015-12-05-6726825d.pth` of torch-fidelity's release
v0.2.0, or its tensors as safetensors. That package is not used itself: it brings a top-level `tests`, which would hide
the one of a checkout, and reads its weights as a pickle.
Sources: arXiv 1512.00567; FID, arXiv 1706.08500, whose figures hang on these very weights, pools and this resizing.
"""

# Shapes: B pictures

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infra.torchvision_here import make_importable
from training.models.encoder import digest_of
from training.models.tensor_files import read_tensors, refuse_misfits

BATCH = 32
SIDE, NUM_CLASSES = 299, 1008

_averaged = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
_highest = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)


class Inception:
    """(B, 3, H, W) uint8 → features (B, 2048) and logits (B, 1008), float32 on the CPU. Raises UsageError."""

    def __init__(self, path: str, device: str) -> None:
        found, module = dict(read_tensors(path)), network()
        refuse_misfits(found, module.state_dict(), path, "Inception-v3 as FID has it")
        module.load_state_dict(found)
        self.identity = {"weights": digest_of(found)}
        *body, self._head = module.to(device).children()
        self._body, self._device = nn.Sequential(*body), torch.device(device)

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        parts = []
        for part in pictures.split(BATCH):
            features = self._body(resized(part.to(self._device).float()) / 128 - 1).flatten(1)
            # The score is defined without the head's bias.
            parts.append((features.cpu(), (features @ self._head.weight.T).cpu()))
        features, logits = (torch.cat(each) for each in zip(*parts, strict=True))
        return features, logits


def network() -> nn.Module:
    """Of random weights. Its children, one after the other: (B, 3, 299, 299) in [-1, 1] → (B, 1008)."""
    make_importable()
    from torchvision.models.inception import Inception3

    module = Inception3(num_classes=NUM_CLASSES, aux_logits=False, init_weights=False)
    for name, block in module.named_children():
        if hasattr(block, "branch_pool"):
            block.forward = partial(_pooled, block, _highest if name == "Mixed_7c" else _averaged)
    return module.eval().requires_grad_(False)


def _pooled(block: Any, pool: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A block whose last branch pools otherwise than torchvision's: edges are means of what is there."""
    *others, _ = block._forward(x)
    return torch.cat([*others, block.branch_pool(pool(x))], 1)


def resized(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) → (B, 3, 299, 299), linearly as TensorFlow 1 did: places count from the corner, not the middle."""
    for dim in (2, 3):
        size = pictures.shape[dim]
        places = torch.arange(SIDE, dtype=torch.float32, device=pictures.device) * (size / SIDE)
        before = places.floor().long()
        after = (before + 1).clamp(max=size - 1)
        share = (places - before).unsqueeze(-1) if dim == 2 else places - before
        low, high = pictures.index_select(dim, before), pictures.index_select(dim, after)
        pictures = low + (high - low) * share
    return pictures
