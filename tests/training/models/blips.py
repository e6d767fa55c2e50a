"""Small BLIPs of random weights that tests make on the spot, what they are shown, and checkpoints of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from training.models import MODELS
from training.models.blip import Blip
from training.ranks import Ranks
from training.spec import Batch, Context

ENTRIES = ("blip", "blip.caption", "blip.retrieval")
VISION = {"width": 48, "layers": 2, "heads": 3, "patch": 8}
TEXT = {"width": 32, "layers": 3, "heads": 4, "positions": 40, "dropout": 0.0}
CAPTIONS = (
    "a red house",
    "two small blue circles left of a large green tree",
    "a dotted star",
    "on the left three hearts, on the right an orange square",
    "a drawing of a moon on a grey wall",
    "x",
)
ALONE = Context(0, Ranks())

# Of checkpoints that scorers load: smaller still, and a CLIP, which is none of them.
SIZES = {
    "vision": {"width": 16, "layers": 1, "heads": 2, "patch": 8},
    "text": {"width": 16, "layers": 1, "heads": 2, "positions": 40, "dropout": 0.0},
}
CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"layers": 1, "width": 64, "patch_size": 16, "image_size": 32},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


def settings_of(entry: str, **changes: Any) -> Any:
    """A size that is odd on purpose: widths of both towers differ, and heads and layers too."""
    contrast = {} if entry == "blip.caption" else {"queue": 16, "embed_dim": 24}
    values = {"vision": VISION, "text": TEXT, "vocab": "tiny", "image_size": 32, "context": 16, **contrast, **changes}
    return MODELS[entry].Settings.parse(values, "a test's model")


def blip(entry: str = "blip", seed: int = 0, scale: float = 1.0, **changes: Any) -> Blip:
    """No two tensors of it alike, momentum copies neither. scale: of its random part; 0: as it begins."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module: Blip = MODELS[entry].build(settings_of(entry, **changes))
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name != "contrast.temperature":
                    parameter.add_(0.1 * scale * torch.randn_like(parameter))
    return module.eval()


def pictures(num: int, side: int = 32, seed: int = 1) -> Tensor:
    return torch.randn(num, 3, side, side, generator=torch.Generator().manual_seed(seed))


def pairs(
    module: Blip, texts: Sequence[str] = CAPTIONS, *, seed: int = 1, masked: Sequence[int] = (),
    uids: Sequence[bytes] | None = None,
) -> Batch:  # fmt: skip
    """A batch of noise with these captions."""
    valid = torch.ones(len(texts), dtype=torch.bool)
    valid[list(masked)] = False
    images = pictures(len(texts), module.settings.image_size, seed)
    uids = uids or [(1000 * seed + number).to_bytes(16, "little") for number in range(1, len(texts) + 1)]
    return Batch(uids, {"image": images, "text": module.tokenizer(texts), "valid": valid})


def terms(module: Blip, entry: str, batch: Batch, context: Context = ALONE) -> dict[str, Tensor]:
    """Each loss of a forward pass."""
    outputs = module(batch, context)
    return {
        name: term.loss(outputs, batch, context.ranks) for name, term in MODELS[entry].losses(module.settings).items()
    }


def published_config(module: Blip, **text: Any) -> dict[str, Any]:
    """config.json of transformers for it."""
    from training.convert.blip import transformers_config

    ids = {word: module.tokenizer.words.id(word) for word in ("[DEC]", "[SEP]", "[PAD]")}
    config = transformers_config(module.settings, len(module.tokenizer), ids)
    config["text_config"] |= text
    return config
