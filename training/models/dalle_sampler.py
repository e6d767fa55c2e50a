"""A trained DALL-E that is asked: what could a picture of this text look like? Many candidates, token by token.

Candidate n of a prompt hangs on the model's logits and on numbers that are a function of (prompt, seed, n, place)
alone: it is the same whatever is drawn beside it.
"""

# Shapes: N prompts, W candidates of each that are drawn together, T tokens of a text, I of a picture, V codes

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from infra.errors import UsageError
from training.blocks.packed import packed
from training.models.dalle import Dalle
from training.models.encoder import DTYPES
from training.models.token_maker import TokenMaker, load_token_maker
from training.next_token import draw, probabilities, uniform_numbers
from training.sample_settings import SampleSettings


class DalleSampler:
    """Prompts to image tokens, and those to pictures by the model's dVAE."""

    def __init__(self, module: Dalle, device: str, dtype: str = "float32") -> None:
        self.settings, self.tokenizer = module.settings, module.tokenizer
        self._device, self._dtype = torch.device(device), DTYPES[dtype]
        self._module = packed(module.to(self._device, self._dtype).eval())

    def candidates(
        self, prompt: str, num: int, settings: SampleSettings, given: Tensor | None = None
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
    def _drawn(self, text: Tensor, numbers: Tensor, given: Tensor, settings: SampleSettings) -> Tensor:
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


def load_sampler(
    place: str, device: str = "cpu", dtype: str = "float32", vae: str | None = None
) -> tuple[DalleSampler, TokenMaker]:
    """What draws tokens, and what makes them pictures. vae: a dVAE's checkpoint or run; unset: the one of training.

    Raises UsageError where there is none, or its tokens are not the model's.
    """
    from training.checkpoint import Checkpoint, checkpoint_of
    from training.models.load import module_of

    if (checkpoint := checkpoint_of(place)) is None:
        raise UsageError(f"{place}: no checkpoint or run there; python -m training train makes one of a dalle")
    name, _, module = module_of(checkpoint)
    if not isinstance(module, Dalle):
        raise UsageError(f"{place}: holds a {name}, not a dalle")
    vae = vae or Checkpoint.open(checkpoint).facts.model["settings"].get("vae")
    if vae is None:
        raise UsageError(f"{place}: was trained from a table of tokens; say with --vae which dVAE made them")
    maker, settings = load_token_maker(vae, device, dtype), module.settings
    if (maker.kinds, maker.grid) != (settings.codes, settings.grid):
        raise UsageError(
            f"{vae}: makes {maker.grid} x {maker.grid} tokens of {maker.kinds} kinds, {place} draws "
            f"{settings.grid} x {settings.grid} of {settings.codes}; give the dVAE that it was trained with"
        )
    return DalleSampler(module, device, dtype), maker
