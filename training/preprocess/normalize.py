"""Bytes to the numbers that a model was trained on: (level / 255 - mean) / std, channels first, in one pass."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from pydantic import Field
from torch import Tensor

from infra.recipe import Config
from training.preprocess.decode import Pixels

_MEAN_STD = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),  # openai/CLIP
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


class Normalize(Config):
    """Levels to float32 around zero."""

    by: Literal["clip", "imagenet", "half"] = Field(
        description="whose mean and standard deviation: clip, imagenet or half"
    )

    def into(self, pixels: Pixels, out: Tensor) -> None:
        """(H, W, 3) → out, (3, H, W) float32."""
        for plane, target, mean, std in zip(cv2.split(pixels), out.numpy(), *_MEAN_STD[self.by], strict=True):
            np.multiply(plane, np.float32(1 / (255 * std)), out=target)
            target -= np.float32(mean / std)
