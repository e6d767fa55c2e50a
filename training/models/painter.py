"""A trained DALL-E with its dVAE, ready to be asked: prompts to pictures."""

# Shapes: C candidates of a prompt, I tokens of a picture

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infra.errors import UsageError
from training.models.dalle import Dalle
from training.models.dalle_sampler import DalleSampler
from training.models.token_maker import TokenMaker, load_token_maker
from training.sample_settings import SampleSettings


@dataclass(frozen=True)
class Painter:
    """sampler: what draws tokens; maker: what makes them pictures."""

    sampler: DalleSampler
    maker: TokenMaker

    def paint(
        self,
        prompts: Sequence[str],
        settings: SampleSettings,
        given: Tensor | None = None,
        tell: Callable[[int], None] = lambda num: None,
        times: Sequence[int] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each prompt tokens and pictures of its candidates: (C, I) int64, (C, 3, H, W) uint8.

        given, tell, times, errors: as of `DalleSampler.candidates`.
        """
        for codes in self.sampler.candidates(prompts, settings, given, tell, times):
            shown = [as_bytes(self.maker.decode(part)) for part in codes.split(settings.batch)]
            yield codes, torch.cat(shown)

    def identity(self) -> Mapping[str, Any]:
        """What made the pictures, JSON-ready."""
        return {"dalle": dict(self.sampler.identity()), "vae": dict(self.maker.identity())}


def as_bytes(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] → the same as uint8."""
    return (255 * images).round().to(torch.uint8)


def load_painter(place: str, device: str = "cpu", dtype: str = "float32", vae: str | None = None) -> Painter:
    """The DALL-E of a checkpoint or run of ours. vae: a dVAE's checkpoint or run; unset: the one of training.

    Raises UsageError where there is none, or its tokens are not the model's.
    """
    from training.checkpoint import Checkpoint, checkpoint_of
    from training.models.load import module_of

    if (checkpoint := checkpoint_of(place)) is None:
        raise UsageError(f"{place}: no checkpoint or run there; python -m training train makes one of a dalle")
    name, _, module = module_of(checkpoint)
    if not isinstance(module, Dalle):
        raise UsageError(f"{place}: holds a {name}, not a dalle")
    facts = Checkpoint.open(checkpoint).facts
    return painter_of(module, device, dtype, vae or facts.model["settings"].get("vae"), facts.loader.get("tokens"))


def painter_of(
    module: Dalle, device: str, dtype: str = "float32", vae: str | None = None, tokens: str | None = None
) -> Painter:
    """The same of a module; vae: of its settings, unless told. tokens: digest of the dVAE that made those it learnt."""
    settings = module.settings
    vae = vae or settings.vae
    if vae is None:
        raise UsageError("this dalle was trained from a table of tokens; say with vae which dalle.vae made them")
    maker = load_token_maker(vae, device)
    if (maker.kinds, maker.grid) != (settings.codes, settings.grid):
        raise UsageError(
            f"{vae}: makes {maker.grid} x {maker.grid} tokens of {maker.kinds} kinds, this dalle draws "
            f"{settings.grid} x {settings.grid} of {settings.codes}; give the dVAE that it was trained with"
        )
    if tokens is not None and tokens != maker.identity()["weights"]:
        raise UsageError(
            f"{vae}: not the dVAE that made the tokens of this dalle's training; its pictures mean nothing"
        )
    return Painter(DalleSampler(module, device, dtype), maker)
