"""Scorers that hold a model and look at pictures: decoded beside it, a batch ahead where it sits on a GPU."""

# Shapes: N images of a batch that could be read

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from filters.base import Batch, Scorer
from infra.ahead import begun_ahead
from infra.errors import UsageError
from infra.jobs import Resources
from infra.memory import keep_freed
from infra.recipe import Config, tuning
from infra.storage import Storage
from training.preprocess import Ops, UnreadableImage

AHEAD = 1  # batches that are decoded while a GPU is at another
MAX_CHARACTERS = 10_000  # of a text that are tokenised. No context is so long, and the web has texts of megabytes


class Model(Protocol):
    """What a scorer asks."""

    ops: str  # what training.preprocess does to an image

    def identity(self) -> Mapping[str, Any]:
        """JSON-ready: what made the numbers."""


class ModelSettings(Config):
    """Where and how a model runs."""

    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="What the model computes in.")
    device: str = tuning("auto", "cpu, cuda, cuda:1 …; auto: cuda where a worker has one.")
    batch: int = tuning(64, "Images, or texts, that the model sees at once.", ge=1, le=4096)
    threads: int = tuning(
        1, "CPUs of a worker on Ray: they decode while a GPU runs the model, or take turns at both.", ge=1
    )
    num_gpus: float = tuning(0.0, "GPUs of a worker that Ray is asked for; 0.5 puts two workers on one.", ge=0)


@dataclass(frozen=True)
class Decoding:
    """A batch whose images are being decoded: some of its pairs have one."""

    batch: Batch
    places: Sequence[int]  # in the batch, of each of those pairs
    images: Tensor  # (those pairs, 3, size, size) float32
    is_read: Sequence[Future[bool]]  # of each


class ModelScorer(Scorer):
    """A subclass loads its model and answers for a batch; decoding, devices and threads are seen to here.

    The size of a batch, its other rows and the device change an answer by no more than the rounding of the model's
    arithmetic.
    """

    needs_image = True
    holds = True
    Settings: ClassVar[type[Config]] = ModelSettings

    def __init__(self, settings: Config | None = None) -> None:
        super().__init__(settings)
        given = self.settings
        assert isinstance(given, ModelSettings)
        self.at_once, self._where = given.batch, given
        self.resources = Resources(cpus=given.threads, gpus=given.num_gpus)

    @abstractmethod
    def load(self, device: str) -> Model:
        """The model. Raises UsageError where it cannot be had."""

    @abstractmethod
    def answer(self, batch: Batch, images: Tensor, row_of_pair: Mapping[int, int]) -> pa.Table:
        """What `score` is to give. images: (N, 3, size, size). row_of_pair: of each pair whose image could be read."""

    def identity(self) -> Mapping[str, Any]:
        """What the model says that it is. Raises UsageError where it cannot be had."""
        return self._identity

    @cached_property
    def _identity(self) -> Mapping[str, Any]:
        # The model is loaded for this and let go: what it lacks is said before anything is scored, and workers get
        # the digest, not the weights.
        return self.load("cpu").identity()

    def setup(self) -> None:
        """Load the model. Raises UsageError where it is not the one that the run began with."""
        device = self._where.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model = self.load(device)
        if model.identity() != self._identity:
            raise UsageError(f"{self.name}: another model than where the run began; give every worker the same")
        self.model: Any = model
        self._ops = Ops.parse(model.ops)
        self._is_pinned = device.startswith("cuda")
        self._threads, self._ahead, self._model_threads = self._where.threads, AHEAD, torch.get_num_threads()
        if not self._is_pinned:
            self._threads, self._ahead = self._model_threads, 0
            keep_freed()

    def score(self, batch: Batch) -> pa.Table:
        """The answer for one batch."""
        return next(self.score_all(iter([batch])))

    def score_all(self, batches: Iterator[Batch]) -> Iterator[pa.Table]:
        """The same of each batch. While a GPU is at one, threads decode the next.

        On a CPU they take turns with the model, on the same cores: beside it, one would hold up all of the model's.
        Each decodes alone: with helpers of their own, there would be more threads than cores, and OpenMP would let the
        model's sleep between any two operations.
        """
        with ThreadPoolExecutor(self._threads, "decode", torch.set_num_threads, (1,)) as pool:
            for decoding in begun_ahead((self._begin(batch, pool) for batch in batches), self._ahead):
                is_read = [future.result() for future in decoding.is_read]
                torch.set_num_threads(self._model_threads)  # a decoding thread's setting holds for the process, too
                read = [row for row, is_one in enumerate(is_read) if is_one]
                images = decoding.images if len(read) == len(is_read) else decoding.images[read]
                yield self.answer(decoding.batch, images, {decoding.places[row]: at for at, row in enumerate(read)})

    def _begin(self, batch: Batch, pool: ThreadPoolExecutor) -> Decoding:
        encoded = {at: pair.image for at, pair in enumerate(batch.pairs) if pair.image is not None}
        images = torch.empty(len(encoded), 3, self._ops.size, self._ops.size, pin_memory=self._is_pinned)
        is_read = [pool.submit(self._decode, data, out) for data, out in zip(encoded.values(), images, strict=True)]
        return Decoding(batch, list(encoded), images, is_read)

    def _decode(self, data: bytes, out: Tensor) -> bool:
        """Bytes → out, (3, size, size). Is there a picture in them?"""
        try:
            self._ops.into(data, np.random.default_rng(0), out)  # what is done for evaluation draws nothing
        except UnreadableImage:
            return False
        return True


def readable(text: str) -> str:
    """What is tokenised of a caption; "" where it has no words."""
    return "" if text.isspace() else text[:MAX_CHARACTERS]


def anywhere(place: str | None) -> str | None:
    """The same place for a worker that stands in another folder; names of architectures and tags are none."""
    is_place = place is not None and ("/" in place or "." in place) and Storage(place).exists()
    return Storage(place).url if place is not None and is_place else place
