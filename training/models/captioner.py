"""A trained captioner that is asked: what does an image show, in words, and how sure is it of them?"""

# Shapes: B images, P image tokens, T tokens of a caption

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infra.errors import UsageError
from training.blocks.decoding import StackDecoding
from training.generate import Decoding, GenerationSettings, generate
from training.models.blip import Blip
from training.models.blip_encoder import at_work, identity_of
from training.models.blip_parts import DECODER
from training.models.encoder import DTYPES


@dataclass(frozen=True)
class Written:
    """One caption. num_tokens: behind the prompt, the end token among them. score: as `Generated.scores` has it."""

    text: str
    score: float
    num_tokens: int


class Captioner:
    """Images to captions. ops: what training.preprocess does to an image; size: its pixels a side."""

    def __init__(self, module: Blip, device: str, dtype: str, ops: str) -> None:
        if module.head is None:
            raise UsageError("a filter cannot write captions; give a blip or blip.caption")
        self.ops, self.size = ops, module.settings.image_size
        self._identity = identity_of(module, ops)
        self._module = at_work(module, device, dtype)
        assert self._module.head is not None
        self._head = self._module.head
        self._tokenizer, self._device, self._dtype = module.tokenizer, torch.device(device), DTYPES[dtype]

    def check(self, settings: GenerationSettings) -> None:
        """Raises UsageError where captions of such lengths cannot be written."""
        longest, prompt = self._module.settings.text.positions, 1 + self._tokenizer.num_prompt
        if not prompt < settings.max_length <= longest:
            raise UsageError(
                f"max_length={settings.max_length}: give more than the {prompt} tokens of the prompt, "
                f"{self._tokenizer.prompt!r}, and at most the model's {longest} positions"
            )

    @torch.inference_mode()
    def write(self, images: Tensor, uids: Sequence[bytes], settings: GenerationSettings) -> list[list[Written]]:
        """(B, 3, size, size) → `settings.num` captions of each. uids: B, what chance is keyed by."""
        patches = self._module.vision(images.to(self._device, self._dtype))  # (B, P, D)
        seen = self._module.text.look(patches)

        def begin(width: int, length: int) -> Decoding:
            return StackDecoding(self._module.text, self._head, DECODER, seen, width=width, length=length)

        prompt = self._tokenizer.prompts(len(images)).to(self._device)
        found = generate(begin, prompt, settings, end=self._tokenizer.end, pad=self._tokenizer.pad, uids=uids)
        told = zip(found.tokens.tolist(), found.lengths.tolist(), found.scores.tolist(), strict=True)
        return [[self._written(*one, prompt.shape[1]) for one in zip(*each, strict=True)] for each in told]

    def identity(self) -> Mapping[str, Any]:
        """What made the captions, JSON-ready: the sizes, the weights' digest, the prompt, what is done to an image."""
        return {**self._identity, "prompt": self._tokenizer.prompt}

    def _written(self, ids: list[int], length: int, score: float, num_prompt: int) -> Written:
        return Written(self._tokenizer.text(ids[:length]), score, length - num_prompt)
