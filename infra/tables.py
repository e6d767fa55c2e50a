"""Parquet tables of a dataset, and DuckDB over many of them: the join is by uid, never by position."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from infra.storage import Committed, Storage

ROW_GROUP = 100_000


def write_table(storage: Storage, name: str, table: pa.Table, row_group: int = ROW_GROUP) -> Committed:
    """Publish a table. The same rows give the same bytes: fixed compression and row groups, no clock."""
    with storage.commit(name) as draft:
        pq.write_table(table, draft.path, compression="zstd", row_group_size=row_group, store_schema=True)
    return draft.result()


def read_table(storage: Storage, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """A table, or some of its columns. Raises FileNotFoundError."""
    return pq.read_table(io.BytesIO(storage.read(name)), columns=list(columns) if columns is not None else None)


def connect(storage: Storage, memory: str = "2GB") -> duckdb.DuckDBPyConnection:
    """A DuckDB that reads the storage's files and spills to disk beyond `memory`."""
    connection = duckdb.connect()
    connection.execute("SET memory_limit = ?", [memory])
    connection.execute("SET temp_directory = ?", [tempfile.gettempdir()])
    connection.execute("SET enable_progress_bar = false")
    if not storage.is_local:
        connection.register_filesystem(storage.filesystem)
    return connection


def urls(storage: Storage, names: Sequence[str]) -> list[str]:
    """What DuckDB's read_parquet takes for these files."""
    return [storage.file_url(name) for name in names]
