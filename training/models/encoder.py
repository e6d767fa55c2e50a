"""A trained CLIP, ready to be asked: pictures and texts to points of one space. For filters and evaluation."""

# Shapes: B inputs, E embedding

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from training.models.architecture import image_ops, model_cfg, preprocess_cfg, tokenizer
from training.models.clip import Clip

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Encoder:
    """Images and texts → (B, E) float32 of unit length, in evaluation mode and without gradients.

    ops: what training.preprocess does to an image; size: its pixels a side; dim: E; scale: 1 / temperature.
    """

    def __init__(self, module: Clip, device: str, dtype: str) -> None:
        settings = module.settings
        self.ops, self.size = image_ops(settings)[1], preprocess_cfg(settings)["size"]
        self.dim: int = model_cfg(settings)["embed_dim"]
        self.scale = module.clip.logit_scale.float().exp().item()
        self._digest = digest_of(module.clip.state_dict())  # of the weights as published, before they change dtype
        self._tokenizer = tokenizer(settings)
        self._module = module.eval().requires_grad_(False).to(device, DTYPES[dtype])
        self._device = torch.device(device)

    @torch.inference_mode()
    def images(self, images: Tensor) -> Tensor:
        """(B, 3, size, size), as `ops` makes them → (B, E) float32, unit length, on the encoder's device."""
        return self._module.embed_images(images.to(self._device))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """(B, E) float32, unit length, on the encoder's device; a text is cut to the model's context."""
        return self._module.embed_texts(self._tokenizer(texts).to(self._device))

    def identity(self) -> dict[str, Any]:
        """What made the numbers, JSON-ready: the architecture, its weights' digest, and what is done to an image."""
        return {"arch": self._module.settings.arch, "weights": self._digest, "ops": self.ops}


def fit(image_emb: Tensor, text_emb: Tensor) -> Tensor:
    """Cosines of pairs: (…, E) of unit length each → (…,) in [-1, 1]."""
    return (image_emb * text_emb).sum(-1).clamp(-1, 1)  # rounding may lead out of it


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """blake2b-128 over names and bytes, as hex: equal for equal weights, wherever they came from."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
