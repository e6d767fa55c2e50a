"""Bytes to the numbers that a model was trained on: (level / 255 - mean) / std, channels first, in one pass."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from infra.recipe import Config
from training.preprocess.decode import Pixels

_MEAN_STD = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),  # openai/CLIP
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),  # levels as they are, 0 to 1
}
# A level times the first, less the second; (3, 1, 1) each. Tensors of three numbers cost as much to make as to apply.
_FACTORS = {
    name: (1 / (255 * std), mean / std)
    for name, (mean, std) in ((name, torch.tensor(both)[..., None, None]) for name, both in _MEAN_STD.items())
}


class Normalize(Config):
    """Levels to float32 around zero, or with unit from 0 to 1."""

    by: Literal["clip", "imagenet", "half", "unit"] = Field(
        description="whose mean and standard deviation: clip, imagenet, half or unit"
    )

    def into(self, pixels: Pixels, out: Tensor) -> None:
        """(H, W, 3) → out, (3, H, W) float32."""
        planes = np.empty((3, *pixels.shape[:2]), np.uint8)
        cv2.split(pixels, list(planes))
        scale, shift = _FACTORS[self.by]
        out.copy_(torch.from_numpy(planes)).mul_(scale).sub_(shift)
