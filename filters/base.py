"""Scorer: costs compute, judges nothing. What a score table's columns are, and the batch that scorers share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from filters.pixels import decode, grey
from infra.jobs import Resources, Step
from infra.recipe import Config
from infra.rows import Rows
from infra.sample import Caption, Pair
from infra.tables import KEYS

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Batch:
    """Consecutive pairs of one shard. What one scorer has decoded, the next one finds decoded."""

    pairs: Sequence[Pair]

    @cached_property
    def pixels(self) -> list[Pixels | None]:
        """An image each, (H, W, 3) uint8 RGB; None where there is none or it cannot be decoded."""
        return [None if pair.image is None else decode(pair.image) for pair in self.pairs]

    @cached_property
    def greys(self) -> list[Pixels | None]:
        """The same in grey, (H, W) uint8."""
        return [None if pixels is None else grey(pixels) for pixels in self.pixels]

    @cached_property
    def captions(self) -> list[tuple[Pair, Caption]]:
        """Every caption with its pair: the rows of a table of caption scores, in order."""
        return [(pair, caption) for pair in self.pairs for caption in pair.captions]

    @property
    def texts(self) -> list[str]:
        """The captions' texts."""
        return [caption.text for _, caption in self.captions]


class NoSettings(Config):
    """For scorers that have nothing to set."""


class Scorer(ABC):
    """One family of scores. It writes columns and never drops a row; what it cannot tell is null.

    A subclass names its `columns` by `column()`, its settings by a Config in `Settings` (`--set NAME.option=value`),
    and gives `score`. It is pickled before `setup`, which runs once a worker.
    """

    name: ClassVar[str]  # in SCORERS and --set, and the default name of its table; --as renames that
    per: ClassVar[Literal["image", "caption"]]  # a row for each pair, or for each of their captions
    writes: ClassVar[Literal["scores", "captions"]] = "scores"  # captions: see filters/capfilt.py
    table: ClassVar[str] = ""  # default name of its table, where it is not the scorer's own
    needs_image: ClassVar[bool] = False  # encoded bytes are read only if a scorer asks for them
    facts: ClassVar[tuple[str, ...]] = ()  # further columns of the row that its pairs bring along
    holds: ClassVar[bool] = False  # a model is kept between shards: Ray gives it actors instead of tasks
    resources: Resources = Resources()  # of a worker; a scorer may ask for them in its settings
    at_once: int = 1  # pairs that it wants in a batch; there may be more
    columns: pa.Schema  # known at the latest when it is set up
    Settings: ClassVar[type[Config]] = NoSettings

    def __init__(self, settings: Config | None = None) -> None:
        self.settings = settings if settings is not None else self.Settings()

    def identity(self) -> Mapping[str, Any]:
        """JSON-ready facts beside the settings that change the scores, such as a model's digest."""
        return {}

    def setup(self) -> None:  # noqa: B027 - most scorers hold nothing
        """Load the model; once a worker, before its first batch."""

    @abstractmethod
    def score(self, batch: Batch) -> pa.Table:
        """Columns of `columns`, a row for each pair (per image) or for each of `batch.captions` (per caption)."""

    def score_all(self, batches: Iterator[Batch]) -> Iterator[pa.Table]:
        """What `score` gives, of each batch in turn. For scorers that prepare the next batch while one is scored."""
        return map(self.score, batches)


class Reduction(Step):
    """Scores that need all rows of a dataset at once: one job, a DuckDB query over columns, a table a shard.

    Its class has the scorer's name; a made one is the step `score_TABLE`.
    """

    name = ""
    writes: ClassVar[Literal["scores", "captions"]] = "scores"
    table: str = ""
    derived = True  # its fingerprint holds the list of shards
    Settings: ClassVar[type[Config]] = NoSettings

    def __init__(self, rows: Rows, table: str, settings: Config) -> None:
        self.rows = rows
        self.dataset = rows.dataset
        self.table = table
        self.name = f"score_{table}"
        self.options = settings


def column(name: str, kind: pa.DataType, description: str) -> pa.Field:
    """A column of a score table. The description (range, unit, sense) travels in the file, to whoever shows it."""
    return pa.field(name, kind, metadata={"description": description})


def description(field: pa.Field) -> str:
    """What `column` was told of a field read back from a file; "" for tables of others."""
    return bytes((field.metadata or {}).get(b"description", b"")).decode("utf-8", "replace")


def keys_of(batch: Batch, per: Literal["image", "caption"]) -> pa.Table:
    """The key columns of a batch's scores."""
    if per == "image":
        nothing = [None] * len(batch.pairs)
        values: list[list[Any]] = [[pair.uid for pair in batch.pairs], nothing, nothing]
    else:
        captions = batch.captions
        values = [
            [pair.uid for pair, _ in captions],
            [caption.source for _, caption in captions],
            [caption.n for _, caption in captions],
        ]
    return pa.Table.from_arrays([pa.array(v, f.type) for v, f in zip(values, KEYS, strict=True)], schema=KEYS)


def batches(pairs: Iterator[Pair], size: int) -> Iterator[Batch]:
    """Cut a stream of pairs into batches of at most `size`."""
    held: list[Pair] = []
    for pair in pairs:
        held.append(pair)
        if len(held) == size:
            yield Batch(held)
            held = []
    if held:
        yield Batch(held)
