"""How fidelity_inception.npz was made: torch-fidelity's Inception-v3 with drawn weights, asked for two drawn pictures.

    pip install --target FOLDER --no-deps torch-fidelity==0.4.0 tqdm
    PYTHONPATH=.:FOLDER python tests/training/evaluate/fidelity_inception.py

Not beside the other packages: it brings a top-level `tests`.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOUND = Path(__file__).with_suffix(".npz")


def drawn(shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Weights that keep numbers in range through all layers, each tensor by a seed of its own."""
    found = {}
    for at, (name, shape) in enumerate(sorted(shapes.items())):
        noise = torch.from_numpy(np.random.default_rng(at).normal(size=shape).astype(np.float32))
        if name.endswith("num_batches_tracked"):
            found[name] = torch.zeros(shape, dtype=torch.int64)
        elif name.endswith(("running_var", "bn.weight")):
            found[name] = 1 + 0.1 * noise.abs()
        else:
            found[name] = noise * (2 / shape[1:].numel()) ** 0.5 if len(shape) > 1 else 0.1 * noise
    return found


def pictures() -> Tensor:
    """(2, 3, 40, 56) uint8."""
    return torch.from_numpy(np.random.default_rng(7).integers(256, size=(2, 3, 40, 56), dtype=np.uint8))


def main() -> None:
    from infra.torchvision_here import make_importable

    make_importable()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    from training.evaluate.inception import network

    weights = io.BytesIO()
    torch.save(drawn({name: tensor.shape for name, tensor in network().state_dict().items()}), weights)
    weights.seek(0)
    module = FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], feature_extractor_weights_path=weights)
    features, logits = module(pictures())
    np.savez_compressed(FOUND, features=features.numpy(), logits=logits.numpy())


if __name__ == "__main__":
    main()
