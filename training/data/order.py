"""The order of training: a pure function of (seed, position). Nothing is drawn one after the other, so nothing is lost.

An epoch permutes the shards, lays their units side by side and cuts the row into lanes: equal contiguous ranges. A lane
is read from its start to its end, shuffled in windows. A rank has a contiguous run of lanes, so it opens its own shards
only. A global batch has as many samples of each lane, so any number of ranks that divides the lanes makes the same one.

Lanes go on into the next epoch without waiting for each other. Of the N units of an epoch, lane k of L has had
floor((epoch * N + k) / L) when the epoch begins: together epoch * N of them (Hermite's identity), and no lane is ever
more than one ahead of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

SHARDS, WINDOW = 1, 2  # what chance is drawn for: the first word of a random stream
HELD_WINDOWS = 1024  # permutations; of 8,192 units each they are 64 MiB
HELD_EPOCHS = 4


@dataclass(frozen=True)
class Units:
    """Some units in order: the shard of each, its number within the shard, and the epoch that it is of. (n,) each."""

    shards: Ints
    rows: Ints
    epochs: Ints


@dataclass(frozen=True, eq=False)
class Order:
    """Which unit stands at which place.

    sizes: (shards,) units in each. lanes: the most ranks that can share the work. window: units that are shuffled
    together. weights: (shards,) relative chance of a unit of each shard; given, shards are drawn with replacement, and
    an epoch is as many draws as there are units.
    """

    sizes: Ints
    seed: int
    lanes: int
    window: int
    weights: npt.NDArray[np.float64] | None = None

    @property
    def num_units(self) -> int:
        """Units of an epoch."""
        return int(self.sizes.sum())

    def batch(self, start: int, size: int, lanes: Sequence[int]) -> Units:
        """The part of some lanes in the global batch of `size` samples that begins at sample `start`, lane by lane.

        start and size must be multiples of the number of lanes.
        """
        assert start % self.lanes == 0, start
        assert size % self.lanes == 0, size
        places = np.arange(start // self.lanes, (start + size) // self.lanes)
        parts = [self.at(lane, places) for lane in lanes]
        return Units(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Units)))

    def at(self, lane: int, places: Ints) -> Units:
        """Units at some places of a lane, counted from the start of training."""
        epochs = ((places + 1) * self.lanes - 1 - lane) // self.num_units  # the last with _had(lane, epoch) <= place
        shards, rows = np.empty_like(places), np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            mine = epochs == epoch
            shards[mine], rows[mine] = self._in_epoch(epoch, lane, places[mine])
        return Units(shards, rows, epochs)

    def _had(self, lane: Any, epochs: Any) -> Any:
        """Units that a lane has had when an epoch begins."""
        return (epochs * self.num_units + lane) // self.lanes

    def _in_epoch(self, epoch: int, lane: int, places: Ints) -> tuple[Ints, Ints]:
        to_here = np.arange(lane + 1)
        lengths = self._had(to_here, epoch + 1) - self._had(to_here, epoch)
        start, length = int(lengths[:-1].sum()), int(lengths[-1])
        within = places - self._had(lane, epoch)
        in_row = np.empty_like(within)
        for window in np.unique(within // self.window).tolist():
            mine = within // self.window == window
            first = window * self.window
            shuffled = _shuffled(self.seed, epoch, lane, window, min(self.window, length - first))
            in_row[mine] = start + first + shuffled[within[mine] - first]
        shards, ends = _laid_out(self, epoch)
        at = np.searchsorted(ends, in_row, side="right")
        return shards[at], in_row - (ends[at] - self.sizes[shards[at]])


def chance(seed: int, *words: int) -> np.random.Generator:
    """The random stream of a purpose: the same words give the same stream, on every machine."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *words])))


@lru_cache(HELD_WINDOWS)
def _shuffled(seed: int, epoch: int, lane: int, window: int, length: int) -> Ints:
    return chance(seed, WINDOW, epoch, lane, window).permutation(length)


@lru_cache(HELD_EPOCHS)
def _laid_out(order: Order, epoch: int) -> tuple[Ints, Ints]:
    """An epoch's shards in their order, and where each ends in the row of all units."""
    rng = chance(order.seed, SHARDS, epoch)
    if order.weights is None:
        shards = rng.permutation(len(order.sizes))
    else:
        share = order.weights * order.sizes
        drawn: list[Ints] = []
        while sum(int(order.sizes[part].sum()) for part in drawn) < order.num_units:
            drawn.append(rng.choice(len(order.sizes), size=len(order.sizes), p=share / share.sum()))
        shards = np.concatenate(drawn)
    return shards, np.cumsum(order.sizes[shards])
