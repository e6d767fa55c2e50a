"""A trained dVAE that is asked: which tokens is a picture, and which picture are tokens?"""

# Shapes: B images, I tokens of each

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from infra.errors import UsageError
from training.models.dalle_vae import DalleVae
from training.models.dalle_vae_spec import ops as ops_of
from training.models.encoder import DTYPES, digest_of


class TokenMaker:
    """ops: what training.preprocess does to an image."""

    def __init__(self, module: DalleVae, device: str, dtype: str, ops: str) -> None:
        self.ops, self.grid, self.kinds = ops, module.settings.grid, module.settings.vocab
        told = {"num": module.settings.grid**2, "kinds": module.settings.vocab, "ops": ops}
        self._identity = {**told, "weights": digest_of(module.state_dict())}
        self._device, self._dtype = torch.device(device), DTYPES[dtype]
        self._module = module.eval().requires_grad_(False).to(self._device, self._dtype)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] → (B, I) int64."""
        return self._module.encode(images.to(self._device, self._dtype)).flatten(1).cpu()

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """(B, I) int64 → (B, 3, H, W) float32 in [0, 1]."""
        return self._module.decode(codes.to(self._device).unflatten(1, (self.grid, self.grid))).cpu()

    def identity(self) -> Mapping[str, Any]:
        """What made the tokens, JSON-ready: how many of how many kinds, the weights' digest, an image's operations."""
        return self._identity


def load_token_maker(place: str, device: str = "cpu", dtype: str = "float32") -> TokenMaker:
    """The dVAE of a checkpoint or run of ours. Raises UsageError where there is none."""
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype}: one of {', '.join(DTYPES)}")
    module = dvae_of(place)
    return TokenMaker(module, device, dtype, ops_of(module.settings)[1])


def dvae_of(place: str) -> DalleVae:
    """The module of a checkpoint or run of ours. Raises UsageError where it holds another model."""
    from training.checkpoint import checkpoint_of
    from training.models.load import module_of

    if (checkpoint := checkpoint_of(place)) is None:
        raise UsageError(f"{place}: no checkpoint or run there; python -m training train makes one of a dalle.vae")
    name, _, module = module_of(checkpoint)
    if not isinstance(module, DalleVae):
        raise UsageError(f"{place}: holds a {name}, not a dalle.vae")
    return module
