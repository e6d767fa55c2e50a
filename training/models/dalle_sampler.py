"""A trained DALL-E that is asked: what could a picture of this text look like? Many candidates, token by token.

Candidate n of a prompt hangs on the model's logits and on numbers that are a function of (prompt, seed, n, place)
alone: it is the same whatever is drawn beside it.
"""

# Shapes: N prompts, C candidates of each, of which W are drawn together, T tokens of a text, I of a picture, V codes

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from infra.errors import PairmillError, UsageError
from training.blocks.packed import packed
from training.blocks.replayed import Replayed
from training.models.dalle import Dalle
from training.models.encoder import DTYPES, digest_of
from training.next_token import draw, probabilities, uniform_numbers
from training.sample_settings import SampleSettings


class DrawingError(PairmillError):
    """What the model says of the next token is no number."""


class DalleSampler:
    """Prompts to image tokens, and those to pictures by the model's dVAE."""

    def __init__(self, module: Dalle, device: str, dtype: str = "float32") -> None:
        self.settings, self.tokenizer = module.settings, module.tokenizer
        self._device, self._dtype = torch.device(device), DTYPES[dtype]
        self._digest = digest_of(module.state_dict())
        self._module = packed(module.to(self._device, self._dtype)).eval()  # a twin: who trains goes on

    def candidates(
        self,
        prompts: Sequence[str],
        settings: SampleSettings,
        given: Tensor | None = None,
        tell: Callable[[int], None] = lambda num: None,
        times: Sequence[int] | None = None,
    ) -> Iterator[Tensor]:
        """Of each prompt its candidates in order, (C, I) int64. tell: is told of so many more that are drawn.

        given: (I',) first tokens, which all of them begin with. times: how often each prompt was drawn before; each
        time it has other candidates. Raises UsageError, before anything is drawn, for a prompt that cannot be read, and
        for more given tokens than a picture has; DrawingError where tokens have no probabilities.
        """
        texts = [self.tokenizer.asked(prompt) for prompt in prompts]
        uids = [_uid(text, time) for text, time in zip(texts, times or [0] * len(texts), strict=True)]
        given = torch.zeros(0, dtype=torch.int64) if given is None else given
        if len(given) >= self.settings.num_codes:
            raise UsageError(f"{len(given)} tokens are given of {self.settings.num_codes}: nothing is left to draw")
        num = settings.num_candidates
        together = max(1, settings.batch // num)  # prompts
        for first in range(0, len(texts), together):
            group = texts[first : first + together]
            own = uids[first : first + together]
            numbers = uniform_numbers(own, num, self.settings.num_codes, settings.seed)  # (N, num, I)
            parts = []
            for part in numbers.split(settings.batch, 1):
                parts.append(self._drawn(torch.stack(group), part, given, settings))
                tell(len(group) * part.shape[1])
            yield from torch.cat(parts, 1)

    def identity(self) -> Mapping[str, Any]:
        """What draws: the weights' digest, JSON-ready."""
        return {"weights": self._digest}

    @torch.inference_mode()
    def _drawn(self, texts: Tensor, numbers: Tensor, given: Tensor, settings: SampleSettings) -> Tensor:
        """texts: (N, T), numbers: (N, W, I) in [0, 1) → (N, W, I) int64."""
        num_texts, width, num = numbers.shape
        if settings.guidance:
            texts = torch.cat([texts, self.tokenizer([""] * num_texts)])
        logits, caches = self._module.begin(texts.to(self._device), width)
        logits = logits.repeat_interleave(width, 0)  # (N * W, V), N twice: with and without the text
        numbers = numbers.flatten(0, 1).to(self._device)
        found = torch.empty(numbers.shape, dtype=torch.int64, device=self._device)
        places = torch.arange(num, device=self._device)
        is_broken = torch.zeros((), dtype=torch.bool, device=self._device)
        read: Callable[[Tensor, Tensor], Tensor] = partial(self._module.read, caches=caches)
        if self._device.type == "cuda":
            # What is read while it is recorded is written over when the first token is.
            read = Replayed(read, torch.zeros(len(logits), dtype=torch.int64, device=self._device), places[:1])
        for place in range(num):
            if place < len(given):
                found[:, place] = given[place]
            else:
                shares = probabilities(
                    _guided(logits.float(), settings.guidance), settings.temperature, settings.top_k, settings.top_p
                )
                is_broken |= ~shares.isfinite().all()
                found[:, place] = draw(shares, numbers[:, place])
            if place + 1 < num:
                logits = read(found[:, place].repeat(len(texts) // num_texts), places[place : place + 1])
        if is_broken:  # asked once: on a GPU each question waits
            raise DrawingError(
                "tokens have no probabilities: the model's weights are broken, its dtype is too narrow, or temperature "
                "or guidance lie beyond what it can hold"
            )
        return found.unflatten(0, (num_texts, width)).cpu()


def _uid(text: Tensor, time: int) -> bytes:
    words = " ".join(map(str, text.tolist())) + (f" again {time}" if time else "")
    return hashlib.blake2b(words.encode(), digest_size=16).digest()


def _guided(logits: Tensor, guidance: float) -> Tensor:
    """(2 * N * W, V), first with the text and then without, or (N * W, V) without guidance → (N * W, V)."""
    if not guidance:
        return logits
    told, untold = logits.chunk(2)
    return told + guidance * (told - untold)
