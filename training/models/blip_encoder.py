"""A trained BLIP that is asked: how near are an image and a text, and do they match? For filters and evaluation."""

# Shapes: B inputs, N images, R pairs of an image and a text, L positions, E embedding

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from infra.errors import UsageError
from training.blocks.packed import Packed, can_pack, packed
from training.blocks.text import Context
from training.models.blip import Blip
from training.models.encoder import DTYPES, digest_of

TRAINING_ONLY = ("contrast.momentum.", "contrast.queue.")


class BlipEncoder:
    """Images and texts to points of one space, and to a probability that they belong together.

    ops: what training.preprocess does to an image; size: its pixels a side; dim: E; scale: 1 / temperature.
    """

    def __init__(self, module: Blip, device: str, dtype: str, ops: str) -> None:
        if module.contrast is None:
            raise UsageError("a captioner cannot tell whether an image and a text match; give a blip or blip.retrieval")
        self.ops, self.size, self.dim = ops, module.settings.image_size, module.contrast.settings.embed_dim
        self.scale = 1 / module.contrast.temperature.item()
        self._identity = identity_of(module, ops)
        self._module = at_work(module, device, dtype)
        assert self._module.contrast is not None
        self._contrast = self._module.contrast
        self._tokenizer, self._device, self._dtype = module.tokenizer, torch.device(device), DTYPES[dtype]

    @torch.inference_mode()
    def images(self, images: Tensor) -> Tensor:
        """(B, 3, size, size), as `ops` makes them → (B, E) float32, unit length, on the encoder's device."""
        return self._contrast.embed_image(self._patches(images))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """(B, E) float32, unit length, on the encoder's device; a text is cut to the model's context."""
        ids = self._tokenizer.trimmed(self._tokenizer(texts)).to(self._device)
        return self._contrast.embed_text(self._module.read(ids))

    @torch.inference_mode()
    def look(self, images: Tensor) -> Context:
        """(N, 3, size, size) → what `match` asks of them: made once for all texts of an image."""
        return self._module.text.look(self._patches(images))

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """(R, L) int64, on the CPU, as `match` takes them."""
        ids: Tensor = self._tokenizer(texts)
        return ids

    @torch.inference_mode()
    def match(self, seen: Context, images: Tensor, tokens: Tensor, batch: int) -> Tensor:
        """Log odds that each text matches its image: (R,) float32 on the CPU; their logistic is the probability.

        seen: of N images. images: (R,) int64, the image of each pair. tokens: (R, L). batch: pairs at once. Texts of
        like length go together, so that little of a batch is padding; a pair's number does not hang on the others.
        """
        found = torch.empty(len(tokens))
        order = self._tokenizer.is_text(tokens).sum(1).argsort(stable=True)
        for rows in order.split(batch):
            ids = self._tokenizer.trimmed(tokens[rows]).to(self._device)
            which = images[rows].to(self._device)
            logits = self._module.judge(ids, [(keys[which], values[which]) for keys, values in seen])
            found[rows] = (logits[:, 1].float() - logits[:, 0].float()).cpu()
        return found

    def identity(self) -> dict[str, Any]:
        """What made the numbers, JSON-ready: the sizes, the weights' digest, and what is done to an image."""
        return dict(self._identity)

    def _patches(self, images: Tensor) -> Tensor:
        patches: Tensor = self._module.vision(images.to(self._device, self._dtype))
        return patches


def identity_of(module: Blip, ops: str) -> Mapping[str, Any]:
    """JSON-ready: what a Blip's answers depend on. Taken before its weights change their dtype."""
    asked = {name: one for name, one in module.state_dict().items() if not name.startswith(TRAINING_ONLY)}
    vision, text = (part.model_dump(mode="json") for part in (module.settings.vision, module.settings.text))
    sizes = {"vision": vision, "text": text, **module.tokenizer.identity()}
    return {**sizes, "weights": digest_of(asked), "ops": ops}


def at_work(module: Blip, device: str, dtype: str) -> Blip:
    """The model as it answers: on its device, without gradients, and on a CPU with packed weights."""
    ready = module.eval().requires_grad_(False).to(device, DTYPES[dtype])
    twin, table = packed(ready, spared=TRAINING_ONLY), ready.text.tokens.weight
    if twin.head is not None and can_pack(table):
        twin.head.product = Packed(table, twin.head.bias)
    return twin
