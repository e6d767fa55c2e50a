"""A tar without some of its samples: what stays is copied as it lies, header for header."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import IO

import pyarrow as pa

from infra.shards import BLOCK, RECORD, index_table, walk_members
from infra.storage import Committed, Storage

COPY_BYTES = 1 << 20


def holds_any(storage: Storage, tar: str, keys: Collection[str]) -> bool:
    """Does the tar hold a sample of these keys?"""
    with storage.open(tar) as file:
        return any(member.key in keys for member in walk_members(file))


def rewrite_without(storage: Storage, tar: str, keys: Collection[str]) -> Committed:
    """Publish the tar anew, without the samples of these keys. Of our own tars: as if they had never been stored."""
    with storage.open(tar) as file, storage.commit(tar) as draft, draft.path.open("wb") as new:
        start = 0
        for member in walk_members(file):
            end = member.offset + member.size + -member.size % BLOCK  # all since the last member belongs to this one
            if member.key not in keys:
                for data in _read(file, start, end):
                    new.write(data)
            start = end
        length = new.tell() + 2 * BLOCK
        new.write(bytes(2 * BLOCK + -length % RECORD))
    return draft.result()


def index_of(storage: Storage, tar: str, old: pa.Table) -> pa.Table:
    """The index of a tar as it lies now; its samples have the uids that the old index gave them."""
    uids = dict(zip(old["key"].to_pylist(), old["uid"].to_pylist(), strict=True))
    with storage.open(tar) as file:
        return index_table([(uids[m.key], m.key, m.name, m.offset, m.size) for m in walk_members(file)])


def _read(file: IO[bytes], start: int, end: int) -> Iterator[bytes]:
    file.seek(start)
    while start < end:
        data = file.read(min(COPY_BYTES, end - start))
        if not data:  # the last member's padding may be cut off
            return
        start += len(data)
        yield data
