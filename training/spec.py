"""TrainSpec: what a model must bring to be trained. The trainer knows nothing else of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from infra.recipe import Config
from training.ranks import Ranks

# Shapes: B rows of a rank


@dataclass(frozen=True)
class Batch:
    """Samples side by side. tensors: B rows each, "valid" (B,) bool among them; a row that is not valid is padding."""

    uids: Sequence[bytes]
    tensors: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __len__(self) -> int:
        return len(self.uids)

    def part(self, start: int, stop: int) -> Batch:
        """Rows from start to before stop."""
        return Batch(self.uids[start:stop], {name: tensor[start:stop] for name, tensor in self.tensors.items()})

    def to(self, device: torch.device) -> Batch:
        """On another device, without waiting where the memory is pinned."""
        return Batch(self.uids, {name: value.to(device, non_blocking=True) for name, value in self.tensors.items()})

    @staticmethod
    def joined(parts: Sequence[Batch], device: torch.device) -> Batch:
        """Parts as one batch on a device; a single part is only moved."""
        if len(parts) == 1:
            return parts[0].to(device)
        uids = [uid for part in parts for uid in part.uids]
        tensors = {}
        for name, first in parts[0].tensors.items():
            tensors[name] = torch.empty((len(uids), *first.shape[1:]), dtype=first.dtype, device=device)
            for at, part in zip(accumulate(map(len, parts), initial=0), parts, strict=False):
                tensors[name][at : at + len(part)].copy_(part[name], non_blocking=True)
        return Batch(uids, tensors)

    def pin_memory(self) -> Batch:
        """In page-locked memory; torch's loader asks for it."""
        return Batch(self.uids, {name: value.pin_memory() for name, value in self.tensors.items()})


@dataclass(frozen=True)
class Context:
    """What a forward pass may know beside its batch. Chance is seeded for it: torch's own generator may be used."""

    step: int  # optimiser steps done
    ranks: Ranks


Outputs = Mapping[str, Tensor]  # (B, …) each; () is shared by all rows, such as a scale
Loss = Callable[[Outputs, Batch, Ranks], Tensor]
Schedule = Callable[[int], float]  # optimiser steps done → weight


@dataclass(frozen=True)
class Term:
    """A loss and its weight, which may change over the steps."""

    loss: Loss
    weight: Schedule = lambda step: 1.0


class Tokenizer(Protocol):
    """Texts to token ids."""

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(B, L) int64, padded and cut to one length."""


@runtime_checkable
class DrawingTokenizer(Tokenizer, Protocol):
    """One that reads a text a little otherwise each time, in training."""

    def drawn(self, texts: Sequence[str], chance: Callable[[int], np.random.Generator]) -> Tensor:
        """The same as a call, row r by what chance(r) draws."""


STARTS = ("pretrained", "towers", "vae")  # settings that name other weights, which a checkpoint needs no more


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """A model, and what it is trained by. Functions take the model's settings, as a recipe gives them under `model`."""

    Settings: type[Config]
    tiny: Mapping[str, Any]  # settings of the twin that learns on a CPU in a minute: tests, dry run
    build: Callable[[Any], nn.Module]  # forward(batch: Batch, context: Context) → Outputs
    losses: Callable[[Any], Mapping[str, Term]]
    ops: Callable[[Any], tuple[str, str]]  # image operations of training and of evaluation, for training.preprocess
    tokenizer: Callable[[Any], Tokenizer] | None  # None: it sees images alone, and batches have no text
    # module, device and, if not float32, dtype → what training.evaluate asks; None: it has none
    encoder: Callable[..., Any] | None = None
    captioner: Callable[..., Any] | None = None  # the same, for what asks for captions
    painter: Callable[..., Any] | None = None  # the same, for what asks for pictures; takes vae, too
    after_step: Callable[[nn.Module], None] | None = None  # clamp a scale, let a teacher follow, push a queue
    accumulate: Literal["plain", "cached"] = "plain"  # cached: the loss sees the features of the whole batch at once
    frozen: Callable[[Any], Sequence[str]] = lambda settings: ()  # regexes on the names of parameters
    # image tokens of a picture and how many kinds of them, where batches have these in place of pictures
    codes: Callable[[Any], tuple[int, int] | None] = lambda settings: None

    def tokenizer_of(self, settings: Any) -> Tokenizer | None:
        """Its tokenizer, by the settings; None: none."""
        return None if self.tokenizer is None else self.tokenizer(settings)

    def build_bare(self, settings: Config) -> nn.Module:
        """The module without the weights that its settings start from: others are put in."""
        starts = {name: None for name in STARTS if name in self.Settings.model_fields}
        return self.build(settings.model_copy(update=starts))
