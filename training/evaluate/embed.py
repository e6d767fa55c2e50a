"""Samples to points: images decoded a few batches ahead of the encoder, texts as they are; what fails is counted."""

# Shapes: B batch, H height, W width, N images that could be read, T texts, E embedding

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from infra.ahead import begun_ahead
from infra.storage import Storage
from training.data.copies import Copies
from training.evaluate.samples import Sample
from training.preprocess import Ops, UnreadableImage

AHEAD = 2  # batches that are decoded while the encoder works
NO_IMAGE = "no_image"
T = TypeVar("T")


class Encoder(Protocol):
    """Pictures and texts to points of one space. `training.models.encoder.Encoder` is one."""

    ops: str
    dim: int

    def images(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, E) float32, unit length."""

    def texts(self, texts: Sequence[str]) -> Tensor:
        """(B, E) float32, unit length."""

    def identity(self) -> Mapping[str, Any]:
        """JSON-ready: what made the numbers."""


@dataclass(frozen=True)
class Images:
    """samples: those N that could be read. emb: (N, E). unreadable: the others, by reason. digest: of all of them."""

    samples: Sequence[Sample]
    emb: Tensor
    unreadable: Mapping[str, int]
    digest: str

    @property
    def num_seen(self) -> int:
        """Samples, read or not."""
        return len(self.samples) + sum(self.unreadable.values())


def embed_images(
    encoder: Encoder, samples: Iterable[Sample], storage: Storage, copies: Copies, *, batch: int, threads: int
) -> Images:  # fmt: skip
    """All images of `samples`. Encoded bytes and pixels of a few batches are held, and every embedding."""
    ops = Ops.parse(encoder.ops)
    read: list[Sample] = []
    embs: list[Tensor] = [torch.empty(0, encoder.dim)]
    unreadable: Counter[str] = Counter()
    digest = hashlib.blake2b(digest_size=16)

    def decode(sample: Sample, data: bytes | str) -> tuple[Tensor | str, bytes]:
        if isinstance(data, str):
            return data, data.encode()
        seen = hashlib.blake2b(data, digest_size=16).digest()
        try:
            return ops(data, np.random.default_rng(0)), seen  # what is done for evaluation draws nothing
        except UnreadableImage as error:
            return error.reason, seen

    with ThreadPoolExecutor(threads) as pool:
        begun = (
            [(each, pool.submit(decode, each, _bytes(each, storage, copies))) for each in group]
            for group in batched(samples, batch)
        )
        for group in begun_ahead(begun, AHEAD):
            pixels: list[Tensor] = []
            for sample, future in group:
                decoded, seen = future.result()
                digest.update(repr((sample.name, sample.captions, sample.label)).encode("utf-8", "replace") + seen)
                if isinstance(decoded, str):
                    unreadable[decoded] += 1
                else:
                    read.append(sample)
                    pixels.append(decoded)
            if pixels:
                embs.append(encoder.images(torch.stack(pixels)))  # (B, E)
    device = embs[-1].device
    emb = torch.cat([part.to(device) for part in embs])
    return Images(read, emb, dict(sorted(unreadable.items())), digest.hexdigest())


def embed_texts(encoder: Encoder, texts: Iterable[str], batch: int) -> Tensor:
    """(T, E), on the encoder's device."""
    parts = [encoder.texts(group) for group in batched(texts, batch)]
    return torch.cat(parts) if parts else torch.empty(0, encoder.dim)


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items, `size` at a time; the last may be fewer."""
    left = iter(items)
    while group := list(islice(left, size)):
        yield group


def _bytes(sample: Sample, storage: Storage, copies: Copies) -> bytes | str:
    return copies.read(storage, sample.tar, sample.offset, sample.size) if sample.size else NO_IMAGE


Decoding = list[tuple[Sample, Future[tuple[Tensor | str, bytes]]]]
