"""Near 64-bit hashes by Hamming distance: of near ones keep the first; look up in a list. Exact and sub-quadratic.

Multi-index hashing (Norouzi, Punjani and Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", 2012): cut the
64 bits into d + k bands; two hashes that differ in at most d bits agree on at least k of the bands. So for each choice
of k bands, hashes are compared only with those that agree on them. More bands: more tables, of smaller buckets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import combinations, pairwise
from math import comb

import numpy as np
import numpy.typing as npt

from infra.log import get_logger

log = get_logger("near")

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
Band = tuple[int, int]  # shift, width in bits

BITS = 64
MAX_RUN = 2_000  # distinct hashes of one bucket that are compared all with all
ROW_BYTES = 64  # of a table's work, by row
PAIR_BYTES = 32
LEAST_ROWS = 1 << 16  # that are worked on together, however little memory is given


def greedy_unique(hashes: Hashes, distance: int, *, memory_bytes: int = 1 << 30) -> Places:
    """Which rows fall, taken in their order: a row falls if one kept before it differs in at most `distance` bits.

    hashes: (N,), in memory or on disk. Returns (N,): the first kept row that is so near, or -1 where the row is kept.
    Beside about 50 bytes for each distinct hash, `memory_bytes` bounds the work; a bucket of hashes that share bands
    but are far from each other costs the square of its size in time, and is logged.
    """
    # Of equal hashes only the first can be kept; what makes it fall makes all of them fall. So one stands for all.
    distinct, first, which = np.unique(np.asarray(hashes), return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    because = np.full(len(distinct), -1, np.int64)
    if distance and len(distinct):
        _Greedy(distinct[order], distance, memory_bytes, because).resolve(np.arange(len(distinct)))
    place = np.empty_like(order)  # of each distinct hash in the order of the rows
    place[order] = np.arange(len(order))
    ranks = first[order]
    mine = place[which]
    lead = np.where(because[mine] >= 0, ranks[because[mine]], ranks[mine])
    return np.where(lead == np.arange(len(hashes)), -1, lead)


class NearIndex:
    """A list of hashes to look others up in. Holds about 12 bytes for each listed hash and table (15 at distance 4)."""

    def __init__(self, hashes: Hashes, distance: int) -> None:
        self.hashes = np.asarray(hashes, np.uint64)
        self.distance = distance

    def nearest(self, queries: Hashes) -> Places:
        """Place of the nearest listed hash within the distance (the first of equally near ones), or -1. (Q,) → (Q,)."""
        best = np.full(len(queries), self.distance + 1, np.int64)
        found = np.full(len(queries), -1, np.int64)
        for bands, keys, order in self._tables:
            for query, place in _matches(keys, order, _keys(queries, bands)):
                apart = np.bitwise_count(queries[query] ^ self.hashes[place]).astype(np.int64)
                better = (apart < best[query]) | ((apart == best[query]) & (place < found[query]))
                best[query[better]] = apart[better]
                found[query[better]] = place[better]
        return found

    @cached_property
    def _tables(self) -> list[tuple[Sequence[Band], Hashes, Places]]:
        return [(bands, *_sorted(_keys(self.hashes, bands))) for bands in _choices(self.distance, len(self.hashes))]


class _Greedy:
    """Distinct hashes in their order; `because` is filled with what makes each fall."""

    def __init__(self, hashes: Hashes, distance: int, memory_bytes: int, because: Places) -> None:
        self.hashes = hashes
        self.distance = distance
        self.because = because
        self.max_rows = max(LEAST_ROWS, memory_bytes // 2 // ROW_BYTES)
        self.max_pairs = max(LEAST_ROWS, memory_bytes // 2 // PAIR_BYTES)

    def resolve(self, nodes: Places) -> Places:
        """Judge `nodes`, none of which is near one kept before; returns the kept ones, in order.

        Where a bucket is crowded, the first half is judged first: few of a crowd can be kept, since kept ones are all
        further apart than the distance, and those few take the rest of the crowd away.
        """
        found = self._pairs(nodes)
        if found is not None:
            return self._in_turn(nodes, *found)
        middle = len(nodes) // 2
        kept = self.resolve(nodes[:middle])
        rest = nodes[middle:]
        lead = self._first_near(kept, rest)
        fell = lead >= 0
        self.because[rest[fell]] = lead[fell]
        return np.concatenate([kept, self.resolve(rest[~fell])])

    def _pairs(self, nodes: Places) -> tuple[Places, Places] | None:
        """All near pairs as places in `nodes`, earlier ones first; None where they are too many to compare or hold."""
        hashes = self.hashes[nodes]
        firsts: list[Places] = []
        seconds: list[Places] = []
        num_pairs = 0
        for bands in _choices(self.distance, len(nodes)):
            for keys, order in _partitions(_keys(hashes, bands), self.max_rows):
                longest = _longest_run(keys)
                if longest > MAX_RUN and len(nodes) > MAX_RUN:
                    log.info("bands=%s rows=%d bucket=%d: crowded, judged in halves", bands, len(nodes), longest)
                    return None
                for first, second in _neighbours(keys, order):
                    near = np.bitwise_count(hashes[first] ^ hashes[second]) <= self.distance
                    firsts.append(first[near])
                    seconds.append(second[near])
                    num_pairs += int(near.sum())
                    if num_pairs > self.max_pairs and len(nodes) > MAX_RUN:
                        return None
        nothing = np.zeros(0, np.int64)
        return np.concatenate([nothing, *firsts]), np.concatenate([nothing, *seconds])

    def _in_turn(self, nodes: Places, first: Places, second: Places) -> Places:
        """Keep and drop by the pairs, in rounds: whoever has no earlier neighbour left that may stay is kept."""
        lead = np.full(len(nodes), len(nodes), np.int64)
        is_open = np.ones(len(nodes), bool)
        is_kept = np.zeros(len(nodes), bool)
        all_first, all_second = first, second
        while is_open.any():
            waits = np.zeros(len(nodes), bool)
            waits[second] = True
            kept_now = is_open & ~waits
            is_kept |= kept_now
            fell_now = second[kept_now[first]]
            is_open &= ~kept_now
            is_open[fell_now] = False
            # A pair still says something while its later row is open and its earlier one may yet be kept.
            alive = is_open[second] & is_open[first]
            first, second = first[alive], second[alive]
        by_kept = is_kept[all_first] & ~is_kept[all_second]
        np.minimum.at(lead, all_second[by_kept], all_first[by_kept])
        self.because[nodes[~is_kept]] = nodes[lead[~is_kept]]
        return nodes[is_kept]

    def _first_near(self, kept: Places, rest: Places) -> Places:
        """For each of `rest` the first of `kept` that is near, or -1."""
        lead = np.full(len(rest), np.iinfo(np.int64).max, np.int64)
        listed, asked = self.hashes[kept], self.hashes[rest]
        for bands in _choices(self.distance, len(kept) + len(rest)):
            keys, order = _sorted(_keys(listed, bands))
            for query, place in _matches(keys, order, _keys(asked, bands)):
                near = np.bitwise_count(asked[query] ^ listed[place]) <= self.distance
                np.minimum.at(lead, query[near], kept[place[near]])
        return np.where(lead == np.iinfo(np.int64).max, -1, lead)


def _choices(distance: int, num_hashes: int) -> list[Sequence[Band]]:
    """The tables for a distance: each is a choice of bands to agree on, as many as make the least work."""

    def cost(agreeing: int) -> float:
        bits = BITS * agreeing / (distance + agreeing)
        # A table's sort against the comparisons in its buckets, in about the same unit.
        return comb(distance + agreeing, agreeing) * (10.0 + num_hashes / 2.0**bits)

    agreeing = min(range(1, 5), key=cost)
    edges = np.linspace(0, BITS, distance + agreeing + 1).round().astype(int).tolist()
    bands = [(low, high - low) for low, high in pairwise(edges)]
    return list(combinations(bands, agreeing))


def _keys(hashes: Hashes, bands: Sequence[Band]) -> Hashes:
    """The bits of the bands, side by side."""
    keys = np.zeros(len(hashes), np.uint64)
    for shift, width in bands:
        keys = keys << np.uint64(width % BITS) | hashes >> np.uint64(shift) & np.uint64((1 << width) - 1)
    return keys


def _sorted(keys: Hashes) -> tuple[Hashes, Places]:
    order = np.argsort(keys, kind="stable")
    return keys[order], order


def _partitions(keys: Hashes, max_rows: int) -> Iterator[tuple[Hashes, Places]]:
    """Sorted keys with their places, in ranges of keys of about `max_rows` each: equal keys stay together."""
    if len(keys) <= max_rows:
        yield _sorted(keys)
        return
    number = -(-len(keys) // max_rows)
    sample = np.sort(keys[:: max(1, len(keys) // 100_000)])
    edges = np.unique(sample[np.linspace(0, len(sample) - 1, number + 1).astype(int)[1:-1]])
    part = np.searchsorted(edges, keys, side="right")
    for at in range(len(edges) + 1):
        places = np.flatnonzero(part == at)
        ordered, order = _sorted(keys[places])
        yield ordered, places[order]


def _neighbours(keys: Hashes, order: Places) -> Iterator[tuple[Places, Places]]:
    """Pairs of places with equal keys, the earlier place first: all that are one apart in the sort, then two, …"""
    apart = 1
    at = np.flatnonzero(keys[1:] == keys[:-1])
    while len(at):
        yield order[at], order[at + apart]
        apart += 1
        at = at[: np.searchsorted(at, len(keys) - apart)]
        at = at[keys[at] == keys[at + apart]]


def _matches(keys: Hashes, order: Places, asked: Hashes) -> Iterator[tuple[Places, Places]]:
    """(query, listed place) with equal keys: each query's first listed one, then the second, …"""
    queries = np.argsort(asked, kind="stable")  # in order, the search walks through memory once
    low = np.searchsorted(keys, asked[queries], "left")
    high = np.searchsorted(keys, asked[queries], "right")
    while True:
        has_more = low < high
        queries, low, high = queries[has_more], low[has_more], high[has_more]
        if not len(queries):
            return
        yield queries, order[low]
        low = low + 1


def _longest_run(keys: Hashes) -> int:
    """Size of the largest bucket."""
    edges = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1], [True]]))
    return int(np.diff(edges).max()) if len(keys) else 0
