"""Tombstones: which rows were removed from a dataset on request, and by what kind of match. No more of them is kept.

ledger/removed.parquet        uid, why, url (its digest), by uid; steps that fetch or store ask it first
ledger/removing/open.json     a removal is at work; gone when all of it is done
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from infra.sample import UID_BYTES
from infra.storage import Storage
from infra.tables import read_table

TOMBSTONES = "ledger/removed.parquet"
REMOVING = "ledger/removing"
OPEN = f"{REMOVING}/open.json"
REMOVED = "removed"  # the reason of such a row
UID = pa.binary(UID_BYTES)
SCHEMA = pa.schema([("uid", UID), ("why", pa.string()), ("url", UID)])

# What stays of a removed row that keeps its place; the rest is null.
KEPT = ("uid", "key", "status", "reason")

Mask = npt.NDArray[np.bool_]


class RemovedRows:
    """Removed rows, known by uid or by the digest of their address. columns: uid and url, of SCHEMA's types."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @classmethod
    def of(cls, storage: Storage) -> RemovedRows:
        """The tombstones of a dataset; none before its first removal."""
        try:
            return cls(read_table(storage, TOMBSTONES))
        except FileNotFoundError:
            return cls(SCHEMA.empty_table())

    def hold(self, uids: pa.ChunkedArray | None, urls: pa.ChunkedArray | None) -> Mask:
        """Which rows are removed ones. uids: 16 bytes each. Either may be None, not both."""
        columns = [column for column in (uids, urls) if column is not None]
        held = np.zeros(len(columns[0]), bool)
        if self.table.num_rows and uids is not None:
            held |= is_in(uids, self.table["uid"])
        if len(self._urls) and urls is not None:
            held |= is_in(url_digests(urls), self._urls)
        return held

    @cached_property
    def _urls(self) -> pa.ChunkedArray:
        return self.table["url"].drop_null()


def url_digests(column: pa.ChunkedArray) -> pa.Array:
    """blake2b-128 of each address: it can be compared, and not be asked for again. Null for none."""
    encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    digests = pa.array([_digest(url) for url in encoded.dictionary.to_pylist()], UID)
    return digests.take(encoded.indices)


def is_in(column: pa.ChunkedArray | pa.Array, values: pa.ChunkedArray | pa.Array) -> Mask:
    """Which values of a column are among `values`; null never is."""
    return np.asarray(pc.is_in(column, value_set=_whole(values), skip_nulls=True).to_numpy(zero_copy_only=False), bool)


def blanked(table: pa.Table, rows: Mask, kept: Iterable[str] = KEPT) -> pa.Table:
    """The table with all but the columns `kept` null in these rows: they keep their place."""
    if not rows.any():
        return table
    places = pa.array(np.arange(table.num_rows), mask=rows)
    for at, field in enumerate(table.schema):
        if field.name not in set(kept):
            table = table.set_column(at, field.with_nullable(True), table.column(at).take(places))
    return table


def _digest(url: str | None) -> bytes | None:
    return hashlib.blake2b(url.encode("utf-8", "surrogatepass"), digest_size=UID_BYTES).digest() if url else None


def _whole(values: pa.ChunkedArray | pa.Array) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
