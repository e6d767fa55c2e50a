"""Places: rows of a dataset counted through its shards, so that one query over all of them can be cut up again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from tempfile import TemporaryDirectory

import duckdb
import numpy as np
import pyarrow as pa

MEMORY = "1GB"
BATCH_ROWS = 100_000
PLACE = "_place"


@contextmanager
def spilling(memory: str = MEMORY) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB of its own that goes to disk beyond `memory`, in a folder that is removed at the end."""
    with TemporaryDirectory(prefix="pairmill-query-") as folder, duckdb.connect() as connection:
        connection.execute("SET memory_limit = ?", [memory])
        connection.execute("SET temp_directory = ?", [folder])
        connection.execute("SET enable_progress_bar = false")
        yield connection


def insert(connection: duckdb.DuckDBPyConnection, name: str, table: pa.Table) -> None:
    """Append rows to a table of the query's own."""
    connection.register("arriving", table)
    connection.execute(f"INSERT INTO {name} SELECT * FROM arriving")
    connection.unregister("arriving")


def cut(found: duckdb.DuckDBPyRelation, sizes: Mapping[str, int]) -> Iterator[tuple[str, pa.Table]]:
    """A result sorted by its column PLACE, a shard at a time: (shard, its results), with places counted within it.

    sizes: shard → its rows, in the order in which places were given. Every shard comes once, also with no result.
    """
    reader = found.to_arrow_reader(BATCH_ROWS)
    held = reader.schema.empty_table()
    start = 0
    for shard, size in sizes.items():
        parts = []
        while True:
            own = int(np.searchsorted(held[PLACE].to_numpy(), start + size))
            parts.append(held.slice(0, own))
            held = held.slice(own)
            if held.num_rows or (batch := next(reader, None)) is None:
                break
            held = pa.Table.from_batches([batch])
        table = pa.concat_tables(parts)
        within = pa.array(table[PLACE].to_numpy() - start, pa.int64())
        yield shard, table.set_column(table.column_names.index(PLACE), PLACE, within)
        start += size
