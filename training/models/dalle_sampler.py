"""A trained DALL-E that is asked: what could a picture of this text look like? Many candidates, token by token.

Candidate n of a prompt hangs on the model's logits and on numbers that are a function of (prompt, seed, n, place)
alone: it is the same whatever is drawn beside it.
"""

# Shapes: N prompts, W candidates of each that are drawn together, T tokens of a text, I of a picture, V codes

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from infra.errors import UsageError
from infra.recipe import Config, tuning
from training.blocks.packed import packed
from training.models.dalle import Dalle
from training.models.encoder import DTYPES
from training.next_token import draw, probabilities, uniform_numbers


class SamplingSettings(Config):
    """How image tokens are drawn."""

    temperature: float = Field(1.0, gt=0, description="Divides the logits; less is likelier pictures.")
    top_k: int | None = Field(None, ge=1, description="Draw from so many likeliest tokens.")
    top_p: float | None = Field(None, gt=0, le=1, description="Draw from the likeliest tokens that hold this share.")
    guidance: float = Field(
        0.0, ge=0, description="How far logits are moved away from those of no text at all. (Not the paper's: 0 is.)"
    )
    seed: int = Field(0, ge=0, lt=2**64, description="Of the numbers that are drawn.")
    batch: int = tuning(64, "Candidates that are drawn together.", gt=0)


class DalleSampler:
    """Prompts to image tokens, and those to pictures by the model's dVAE."""

    def __init__(self, module: Dalle, device: str, dtype: str = "float32") -> None:
        self.settings, self.tokenizer = module.settings, module.tokenizer
        self._device, self._dtype = torch.device(device), DTYPES[dtype]
        self._module = packed(module.to(self._device, self._dtype).eval())

    def candidates(
        self, prompt: str, num: int, settings: SamplingSettings, given: Tensor | None = None
    ) -> Iterator[Tensor]:
        """`num` candidates in order, (W, I) int64 at a time. given: (I',) first tokens, which all of them begin with.

        Raises UsageError for a prompt that cannot be read, and for more given tokens than a picture has.
        """
        text = self.tokenizer.asked(prompt)
        given = torch.zeros(0, dtype=torch.int64) if given is None else given
        if len(given) >= self.settings.num_codes:
            raise UsageError(f"{len(given)} tokens are given of {self.settings.num_codes}: nothing is left to draw")
        uid = hashlib.blake2b(" ".join(map(str, text.tolist())).encode(), digest_size=16).digest()
        numbers = uniform_numbers([uid], num, self.settings.num_codes, settings.seed)[0]  # (num, I)
        for first in range(0, num, settings.batch):
            yield self._drawn(text, numbers[first : first + settings.batch], given, settings)

    @torch.inference_mode()
    def _drawn(self, text: Tensor, numbers: Tensor, given: Tensor, settings: SamplingSettings) -> Tensor:
        """numbers: (W, I) in [0, 1) → (W, I) int64."""
        width, num = numbers.shape
        texts = [text, self.tokenizer([""])[0]] if settings.guidance else [text]
        logits, caches = self._module.begin(torch.stack(texts).to(self._device), width)
        logits = logits.repeat_interleave(width, 0)  # (N * W, V), N: with and without the text
        found, numbers = torch.empty(width, num, dtype=torch.int64, device=self._device), numbers.to(self._device)
        for place in range(num):
            if place < len(given):
                found[:, place] = given[place]
            else:
                shares = probabilities(
                    _guided(logits.float(), len(texts), settings.guidance), settings.temperature, settings.top_k,
                    settings.top_p,
                )  # fmt: skip
                found[:, place] = draw(shares, numbers[:, place])
            if place + 1 < num:
                logits = self._module.read(found[:, place].repeat(len(texts)), place, caches)
        return found.cpu()


def _guided(logits: Tensor, num_texts: int, guidance: float) -> Tensor:
    """(N * W, V), first with the text and then without → (W, V)."""
    if num_texts == 1:
        return logits
    told, untold = logits.chunk(2)
    return told + guidance * (told - untold)
