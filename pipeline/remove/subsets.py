"""Subset files in a dataset's folder that still list removed uids: told, not changed; others may hold copies."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from filters.subset import read_subset
from infra.dataset import Dataset
from infra.errors import RecipeError
from infra.removed import UID, RemovedRows

AT_ONCE = 1_000_000  # uids


def subsets_with(dataset: Dataset, removed: RemovedRows) -> list[str]:
    """Names of the subset files that list a removed uid."""
    names = [name for name in dataset.storage.sizes() if name.endswith(".npy")] if removed.table.num_rows else []
    return [name for name in names if any(_lists(dataset.storage.file_url(name), removed))]


def _lists(path: str, removed: RemovedRows) -> Iterator[bool]:
    try:
        halves = read_subset(path)
    except RecipeError:
        return  # an array of something else
    for start in range(0, len(halves), AT_ONCE):
        part = halves[start : start + AT_ONCE].astype(">u8")
        uids = pa.FixedSizeBinaryArray.from_buffers(UID, len(part), [None, pa.py_buffer(part.tobytes())])
        yield bool(removed.hold(pa.chunked_array([uids]), None).any())
