"""Makes released_dvae.npz: what the released dVAE (github.com/openai/DALL-E, at 5be4b23) gives for weights by formula.

    PYTHONPATH=FOLDER_OF_THAT_REPOSITORY python -m tests.training.models.released_dvae

Its own smallest sizes: 64 wide, 512 codes; `attrs` must be there. The tests make the same weights and inputs anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FILE = Path(__file__).with_name("released_dvae.npz")
SIZES = {"hidden": 64, "vocab": 512, "first": 16}


def weights_like(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Numbers of a size that keeps activations near 1, by the order of the names alone."""
    chance = np.random.Generator(np.random.PCG64(7))
    found = {}
    for name in sorted(shapes):
        shape = shapes[name]
        scale = 0.3 if len(shape) == 1 else 1.5 / np.prod(shape[1:]) ** 0.5
        found[name] = torch.from_numpy((scale * chance.standard_normal(shape)).astype(np.float32))
    return found


def inputs() -> tuple[Tensor, Tensor]:
    """Pixels (2, 3, 16, 16) in [0, 1], and soft codes (2, 512, 2, 2)."""
    chance = np.random.Generator(np.random.PCG64(8))
    pixels, codes = chance.random((2, 3, 16, 16)), chance.dirichlet([0.01] * SIZES["vocab"], (2, 2, 2))
    return torch.from_numpy(pixels).float(), torch.from_numpy(codes).float().movedim(3, 1)


def main() -> None:
    """Runs their code and writes its outputs."""
    from dall_e.decoder import Decoder
    from dall_e.encoder import Encoder
    from dall_e.utils import map_pixels, unmap_pixels

    encoder = Encoder(n_hid=SIZES["hidden"], vocab_size=SIZES["vocab"])
    decoder = Decoder(n_hid=SIZES["hidden"], vocab_size=SIZES["vocab"], n_init=SIZES["first"])
    for module in (encoder, decoder):
        module.load_state_dict(weights_like({name: tuple(one.shape) for name, one in module.state_dict().items()}))
    pixels, codes = inputs()
    with torch.no_grad():
        logits, stats = encoder(map_pixels(pixels)), decoder(codes)
        shown = unmap_pixels(torch.sigmoid(stats[:, :3]))
    np.savez_compressed(FILE, mapped=map_pixels(pixels)[:, :, ::4], logits=logits, stats=stats, shown=shown)


if __name__ == "__main__":
    main()
