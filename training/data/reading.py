"""Samples to batches, in a worker process: read, decode, augment, tokenise. What is broken becomes a masked row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from infra.storage import Storage
from training.data.copies import Copies
from training.data.tokens import as_codes
from training.preprocess import Ops, UnreadableImage
from training.spec import Batch, DrawingTokenizer, Tokenizer

# Shapes: B samples, H height, W width, L tokens

AUGMENT = b"augment"
TEXT = b"text"  # the same of how a text is read


class Sample(NamedTuple):
    """One row of a batch: what to read, and where."""

    uid: bytes
    source: int  # the number of its dataset
    shard: str
    offset: int  # of the encoded image in the tar, bytes
    size: int  # 0 where there is no image
    text: str | None
    epoch: int
    codes: bytes | None = None  # image tokens, in place of the image


Broken = tuple[bytes, str]  # uid and reason


class Reader:
    """Makes batches of samples; torch's loader runs it in its workers. Picklable."""

    def __init__(
        self, sources: Sequence[Storage], ops: str, tokenizer: Tokenizer | None, seed: int, copies: Copies,
        num_codes: int = 0,
    ) -> None:  # fmt: skip
        self._sources = sources
        self._ops = Ops.parse(ops)
        self._tokenizer = tokenizer
        self._seed = seed
        self._copies = copies
        self._num_codes = num_codes

    def __getitems__(self, samples: Sequence[Sample]) -> tuple[Batch, list[Broken]]:
        """The batch, and what of it is masked. Nothing in the data can make it fail."""
        name, made, reasons = self._codes(samples) if self._num_codes else self._images(samples)
        broken = [(sample.uid, reason) for sample, reason in zip(samples, reasons, strict=True) if reason is not None]
        tensors: dict[str, Tensor] = {name: made, "valid": torch.tensor([reason is None for reason in reasons])}
        if self._tokenizer is not None:
            tensors["text"] = self._tokens(self._tokenizer, samples)
        return Batch([sample.uid for sample in samples], tensors), broken

    def _tokens(self, tokenizer: Tokenizer, samples: Sequence[Sample]) -> Tensor:
        texts = [sample.text or "" for sample in samples]
        if not isinstance(tokenizer, DrawingTokenizer):
            return tokenizer(texts)
        return tokenizer.drawn(texts, lambda row: chance_of(self._seed, samples[row].epoch, samples[row].uid, TEXT))

    def _images(self, samples: Sequence[Sample]) -> tuple[str, Tensor, list[str | None]]:
        """(B, 3, H, W), and of each row why it is masked, if it is."""
        images = torch.zeros(len(samples), 3, self._ops.size, self._ops.size)
        if get_worker_info() is not None:
            images.share_memory_()  # now, instead of a copy on the way to the trainer
        rows = zip(images, samples, self._read(samples), strict=True)
        return "image", images, [self._fill(image, sample, data) for image, sample, data in rows]

    def _codes(self, samples: Sequence[Sample]) -> tuple[str, Tensor, list[str | None]]:
        """(B, I) int64, and of each row why it is masked, if it is."""
        codes, reasons = torch.zeros(len(samples), self._num_codes, dtype=torch.int64), []
        for row, sample in zip(codes, samples, strict=True):
            if sample.codes is not None:
                row.copy_(as_codes(sample.codes))
            missing = None if sample.text or self._tokenizer is None else "no_caption"
            reasons.append("no_tokens" if sample.codes is None else missing)
        return "codes", codes, reasons

    def _fill(self, image: Tensor, sample: Sample, data: bytes | str) -> str | None:
        """Decode into (3, H, W). Returns the reason where that cannot be."""
        if isinstance(data, str):
            return data
        if not sample.text and self._tokenizer is not None:
            return "no_caption"
        try:
            self._ops.into(data, chance_of(self._seed, sample.epoch, sample.uid), image)
        except UnreadableImage as error:
            return error.reason
        return None

    def _read(self, samples: Sequence[Sample]) -> list[bytes | str]:
        """Encoded images, or the reason why there is none."""
        return [self._copies.read(self._sources[each.source], f"{each.shard}.tar", each.offset, each.size)
                if each.size else "no_image" for each in samples]  # fmt: skip


def chance_of(seed: int, epoch: int, uid: bytes, what: bytes = AUGMENT) -> np.random.Generator:
    """What augmentation may draw from: the same for the same image in the same epoch, wherever it is decoded."""
    key = hashlib.blake2b(what + uid + epoch.to_bytes(8, "little"), digest_size=16, key=seed.to_bytes(8, "little"))
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key.digest(), "little")))
