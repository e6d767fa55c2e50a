"""Which of many pictures fits a text best? The cosine of both in a CLIP's space, as the score `clip_score` has it.

Source: DALL-E, arXiv 2102.12092, section 2.6.
"""

# Shapes: C candidates, E embedding

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from training.evaluate.embed import Encoder
from training.models.encoder import fit
from training.preprocess import Ops

BATCH = 64


def fits(encoder: Encoder, pictures: Tensor, prompt: str) -> Tensor:
    """(C, 3, H, W) uint8 → (C,) float32: how well each picture fits the text, as it would if it were stored."""
    return fit(picture_emb(encoder, pictures), encoder.texts([prompt]).cpu())


def picture_emb(encoder: Encoder, pictures: Tensor) -> Tensor:
    """(C, 3, H, W) uint8 → (C, E) float32 on the CPU, as of stored pictures."""
    ops = Ops.parse(encoder.ops)
    found = []
    for group in pictures.split(BATCH):
        images = torch.stack([ops(encoded(picture), np.random.default_rng(0)) for picture in group])
        found.append(encoder.images(images).cpu())
    return torch.cat(found)


def ranked(scores: Tensor) -> list[int]:
    """Places of the scores, the best first; equal ones in their order."""
    return sorted(range(len(scores)), key=lambda at: (-scores[at].item(), at))


def encoded(picture: Tensor) -> bytes:
    """(3, H, W) uint8 → a PNG."""
    pixels = picture.permute(1, 2, 0).contiguous().numpy()
    return bytes(cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1])
