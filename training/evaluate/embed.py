"""Samples to points: images decoded a few batches ahead of the encoder, texts as they are; what fails is counted."""

# Shapes: B batch, H height, W width, N images that could be read, T texts, E embedding

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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


class Pictures:
    """The images of samples, decoded a few batches ahead of whoever works on them: (samples, (B, 3, H, W)) each.

    What cannot be read is left out and counted. unreadable, num_seen and digest tell of all that has been gone through.
    Encoded bytes and pixels of a few batches are held.
    """

    def __init__(
        self, ops: str, samples: Iterable[Sample], storage: Storage, copies: Copies, *, batch: int, threads: int
    ) -> None:  # fmt: skip
        self._ops, self._samples, self._storage, self._copies = Ops.parse(ops), samples, storage, copies
        self._batch, self._threads = batch, threads
        self.unreadable: Counter[str] = Counter()
        self.num_seen = 0
        self._digest = hashlib.blake2b(digest_size=16)

    @property
    def digest(self) -> str:
        """Of names, captions, classes and bytes of all of them."""
        return self._digest.hexdigest()

    def __iter__(self) -> Iterator[tuple[list[Sample], Tensor]]:
        with ThreadPoolExecutor(self._threads) as pool:
            begun = (
                [(each, pool.submit(self._decode, each, self._bytes(each))) for each in group]
                for group in batched(self._samples, self._batch)
            )
            for group in begun_ahead(begun, AHEAD):
                read: list[Sample] = []
                pixels: list[Tensor] = []
                for sample, future in group:
                    decoded, seen = future.result()
                    self.num_seen += 1
                    told = repr((sample.name, sample.captions, sample.label))
                    self._digest.update(told.encode("utf-8", "replace") + seen)
                    if isinstance(decoded, str):
                        self.unreadable[decoded] += 1
                    else:
                        read.append(sample)
                        pixels.append(decoded)
                if pixels:
                    yield read, torch.stack(pixels)

    def _decode(self, sample: Sample, data: bytes | str) -> tuple[Tensor | str, bytes]:
        if isinstance(data, str):
            return data, data.encode()
        seen = hashlib.blake2b(data, digest_size=16).digest()
        try:
            return self._ops(data, np.random.default_rng(0)), seen  # what is done for evaluation draws nothing
        except UnreadableImage as error:
            return error.reason, seen

    def _bytes(self, sample: Sample) -> bytes | str:
        return self._copies.read(self._storage, sample.tar, sample.offset, sample.size) if sample.size else NO_IMAGE


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


def embed_images(encoder: Encoder, pictures: Pictures) -> Images:
    """All of them; every embedding is held."""
    read: list[Sample] = []
    embs: list[Tensor] = [torch.empty(0, encoder.dim)]
    for samples, images in pictures:
        read += samples
        embs.append(encoder.images(images))  # (B, E)
    device = embs[-1].device
    emb = torch.cat([part.to(device) for part in embs])
    return Images(read, emb, dict(sorted(pictures.unreadable.items())), pictures.digest)


def embed_texts(encoder: Encoder, texts: Iterable[str], batch: int) -> Tensor:
    """(T, E), on the encoder's device."""
    parts = [encoder.texts(group) for group in batched(texts, batch)]
    return torch.cat(parts) if parts else torch.empty(0, encoder.dim)


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items, `size` at a time; the last may be fewer."""
    left = iter(items)
    while group := list(islice(left, size)):
        yield group
