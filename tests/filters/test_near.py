"""Near hashes: what falls is what the definition says, row by row, however hashes crowd and memory is short."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from filters import near
from filters.near import NearIndex, greedy_unique

Hashes = npt.NDArray[np.uint64]


def by_definition(hashes: Hashes, distance: int) -> list[int]:
    """A row falls if one kept before it is within the distance; the first such one is why."""
    kept: list[int] = []
    because = []
    for row, value in enumerate(hashes.tolist()):
        lead = next((other for other in kept if (int(hashes[other]) ^ value).bit_count() <= distance), -1)
        because.append(lead)
        kept += [row] if lead < 0 else []
    return because


@st.composite
def crowds(draw: st.DrawFn) -> Hashes:
    """Hashes that are random, near a few centres, alike in all but their low bits, or chained bit by bit."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    num = draw(st.integers(0, 90))
    kind = draw(st.sampled_from(["random", "clusters", "low bits", "chain"]))
    if kind == "random":
        return rng.integers(0, 2**64, num, dtype=np.uint64)
    if kind == "chain":
        return np.cumsum(np.uint64(1) << rng.integers(0, 64, num).astype(np.uint64), dtype=np.uint64)
    centres = rng.integers(0, 2**64, 1 + num // 9, dtype=np.uint64)
    hashes = centres[rng.integers(0, len(centres), num)]
    for _ in range(draw(st.integers(0, 8))):
        width = 64 if kind == "clusters" else 9
        hashes = hashes ^ np.uint64(1) << rng.integers(0, width, num).astype(np.uint64)
    return hashes


@given(crowds(), st.integers(0, 16))
def test_what_falls_is_what_the_definition_says(hashes: Hashes, distance: int) -> None:
    assert greedy_unique(hashes, distance).tolist() == by_definition(hashes, distance)


@given(crowds(), st.integers(1, 8))
def test_crowded_buckets_and_short_memory_change_nothing(hashes: Hashes, distance: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "MAX_RUN", 2)  # every bucket is a crowd
        assert greedy_unique(hashes, distance).tolist() == by_definition(hashes, distance)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near, "LEAST_ROWS", 7)  # of a partition
        assert greedy_unique(hashes, distance, memory_bytes=1).tolist() == by_definition(hashes, distance)


@given(crowds(), st.integers(0, 12))
def test_the_nearest_listed_hash_is_found_or_none(hashes: Hashes, distance: int) -> None:
    listed, asked = hashes[::2], hashes
    found = NearIndex(listed, distance).nearest(asked).tolist()
    for value, place in zip(asked, found, strict=True):
        apart = np.bitwise_count(listed ^ value)
        assert place == (int(apart.argmin()) if len(apart) and apart.min() <= distance else -1)


def test_hashes_on_disk_are_judged_as_in_memory(tmp_path) -> None:
    hashes = np.random.default_rng(0).integers(0, 1 << 20, 5_000, dtype=np.uint64)
    hashes.tofile(tmp_path / "hashes")
    on_disk = np.memmap(tmp_path / "hashes", np.uint64, "r")
    assert (greedy_unique(on_disk, 2) == greedy_unique(hashes, 2)).all()


def test_a_crowd_of_a_hundred_thousand_is_judged_without_comparing_all_with_all() -> None:
    rng = np.random.default_rng(0)
    crowd = (np.uint64(1) << rng.integers(0, 64, (100_000, 3)).astype(np.uint64)).sum(axis=1, dtype=np.uint64)
    because = greedy_unique(crowd, 4)
    kept = crowd[because < 0]
    fell = np.flatnonzero(because >= 0)
    # Laws that need no second reading: kept ones are apart, and each that fell is near a kept one before it.
    assert (np.bitwise_count(kept[:, None] ^ kept[None, :]) + 64 * np.eye(len(kept), dtype=np.uint8) > 4).all()
    assert (np.bitwise_count(crowd[fell] ^ crowd[because[fell]]) <= 4).all()
    assert (because[because[fell]] == -1).all()
    assert (because[fell] < fell).all()
