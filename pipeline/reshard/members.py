"""Samples of a shard by their index: members that lie near each other are read together, in bounded blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from infra.dataset import Dataset
from infra.errors import DatasetError
from infra.shards import Member
from infra.storage import Storage
from infra.tables import read_table

BLOCK_BYTES = 32 << 20  # of a tar, read at once
GAP_BYTES = 1 << 20  # passed over rather than asked for apart

Sample = Sequence[Member]  # in the order of the tar


def members_of(dataset: Dataset, shard: str) -> dict[bytes, list[Member]]:
    """uid → members of its sample, by the shard's index. Of a uid that comes twice, the first."""
    columns = read_table(dataset.storage, dataset.index(shard), ["uid", "key", "member", "offset", "size"]).columns
    found: dict[bytes, list[Member]] = {}
    keys: dict[bytes, str] = {}
    for uid, key, *place in zip(*(column.to_pylist() for column in columns), strict=True):
        member = Member(*place)
        if keys.setdefault(uid, key) == key and member.ending:
            found.setdefault(uid, []).append(member)
    return found


def read_samples(storage: Storage, tar: str, samples: Sequence[Sample]) -> Iterator[dict[str, bytes]]:
    """Each sample's members by their ending. Raises DatasetError where the tar ends before one of them."""
    for block in _blocks(samples):
        start = block[0][0].offset
        data = storage.read(tar, start, _end(block[-1]))
        for sample in block:
            parts = {member.ending: data[member.offset - start :][: member.size] for member in sample}
            if any(len(parts[member.ending]) != member.size for member in sample):
                raise DatasetError(f"{storage.file_url(tar)}: ends before its index does; rebuild the index")
            yield parts


def _blocks(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    block: list[Sample] = []
    for sample in samples:
        gap = sample[0].offset - _end(block[-1]) if block else 0
        if block and not (0 <= gap <= GAP_BYTES and _end(sample) - block[0][0].offset <= BLOCK_BYTES):
            yield block
            block = []
        block.append(sample)
    if block:
        yield block


def _end(sample: Sample) -> int:
    return sample[-1].offset + sample[-1].size
