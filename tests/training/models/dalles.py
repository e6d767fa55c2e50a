"""A small DALL-E, its dVAE and a CLIP that nobody trained, as checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.training import runs
from tests.training.untrained import checkpoint_of
from training.models import MODELS

VAE = {"image_size": 16, "vocab": 40, "hidden": 8, "first": 8, "groups": 3, "blocks": 1}
WORDS = {"stack": {"width": 16, "layers": 3, "heads": 2}, "vocab": "tiny", "text_length": 12, "codes": 40, "grid": 4,
         "kernel": 3}  # fmt: skip


def vae_at(folder: Path, seed: int = 0) -> str:
    """A checkpoint of a dVAE, to which pictures of different colours are different tokens."""
    torch.manual_seed(seed)
    module = MODELS["dalle.vae"].build(MODELS["dalle.vae"].Settings.parse(VAE, "tiny"))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return checkpoint_of(module, folder, "dalle.vae")


def all_at(folder: Path) -> dict[str, str]:
    """Checkpoints by name: vae, dalle, clip."""
    found = {"vae": vae_at(folder / "vae")}
    for name, values in (("dalle", {**WORDS, "vae": found["vae"]}), ("clip", {"arch": runs.MODEL["arch"]})):
        torch.manual_seed(1)
        spec = MODELS[name]
        module = spec.build(spec.Settings.parse(values, name))
        found[name] = checkpoint_of(module, folder / name, name)
    return found
