"""Parquet tables of a dataset, and DuckDB over many of them: the join is by uid, never by position."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Sequence

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from infra.sample import UID_BYTES
from infra.storage import Committed, Storage

ROW_GROUP = 100_000

# What a row of a score table or a selection is about. Scores of an image have neither source nor n.
KEYS = pa.schema([("uid", pa.binary(UID_BYTES)), ("source", pa.string()), ("n", pa.int32())])
UIDS_DIGEST = b"pairmill.uids"  # in a keyed table's metadata: two tables with the same one hold the same uids in order
CAPTIONS_DIGEST = b"pairmill.captions"  # the same of source and n; b"image" and b"web" for what most tables hold


def write_table(
    storage: Storage, name: str, table: pa.Table, row_group: int = ROW_GROUP, *, keep_types: bool = True,
    is_checked: bool = False,
) -> Committed:  # fmt: skip
    """Publish a table. The same rows give the same bytes: fixed compression and row groups, no clock.

    keep_types: readers of Arrow get its types and descriptions back; else a dictionary of words is read as words.
    is_checked: pages have checksums, for values of which a wrong one looks like any other.
    """
    with storage.commit(name) as draft:
        # Of values that hardly ever repeat a dictionary is built for nothing, and read for nothing; so are bounds.
        repeating = [path for field in table.schema if not _is_uid(field) for path in _leaves(field)]
        with pq.ParquetWriter(
            draft.path,
            table.schema,
            compression="zstd",
            store_schema=keep_types,
            use_dictionary=repeating,
            write_statistics=repeating,
            write_page_checksum=is_checked,
        ) as file:
            file.write_table(table, row_group_size=row_group)
            if not keep_types and table.schema.metadata:  # without Arrow's types its metadata is left out, too
                file.add_key_value_metadata({name.decode(): word for name, word in table.schema.metadata.items()})
    return draft.result()


def write_keyed_table(
    storage: Storage,
    name: str,
    table: pa.Table,
    *,
    keep_types: bool = True,
    digests: tuple[bytes, bytes] | None = None,
) -> Committed:
    """Publish a table that begins with KEYS; digests of its keys (known, or made here) go into its metadata.

    A reader of several tables then knows from their footers whether their rows are of the same uids in the same order.
    """
    uids, captions = digests or keys_digests(table)
    metadata = {**(table.schema.metadata or {}), UIDS_DIGEST: uids, CAPTIONS_DIGEST: captions}
    return write_table(storage, name, table.replace_schema_metadata(metadata), keep_types=keep_types)


def keys_digests(table: pa.Table) -> tuple[bytes, bytes]:
    """Of a keyed table's uids in the order of its rows, blake2b-128; and the same of its captions.

    The second is b"image" where the rows are of images, and b"web" where each is of the web's caption.
    """
    uids = table["uid"].combine_chunks()
    first = uids.offset * UID_BYTES
    held = uids.buffers()[1][first : first + len(uids) * UID_BYTES] if len(uids) else b""
    return hashlib.blake2b(held, digest_size=16).digest(), _captions_word(table["source"], table["n"])


def read_table(
    storage: Storage, name: str, columns: Sequence[str] | None = None, *, is_checked: bool = False
) -> pa.Table:
    """A table, or some of its columns. is_checked: compare pages with their checksums. Raises FileNotFoundError."""
    return pq.read_table(
        io.BytesIO(storage.read(name)), columns=list(columns) if columns is not None else None,
        page_checksum_verification=is_checked,
    )  # fmt: skip


def open_table(storage: Storage, name: str) -> pq.ParquetFile:
    """A table of which only some columns or the footer are wanted. Raises FileNotFoundError."""
    source = storage.path(name) if storage.is_local else io.BytesIO(storage.read(name))
    return pq.ParquetFile(source)


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


def _captions_word(source: pa.ChunkedArray, n: pa.ChunkedArray) -> bytes:
    if source.null_count == len(source) == n.null_count:
        return b"image"
    encoded = source.combine_chunks().dictionary_encode()
    sources, numbers = encoded.dictionary.to_pylist(), n.fill_null(-1).to_numpy()
    if sources == ["web"] and encoded.null_count == 0 and not numbers.any():
        return b"web"
    which = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return hashlib.blake2b(repr(sources).encode() + which.tobytes() + numbers.tobytes(), digest_size=16).digest()


def _is_uid(field: pa.Field) -> bool:
    return bool(field.type == pa.binary(UID_BYTES))


def _leaves(field: pa.Field, path: str = "") -> list[str]:
    """Parquet's names of a field's columns, those of nested values included."""
    path = f"{path}{field.name}"
    if pa.types.is_struct(field.type):
        return [leaf for child in field.type for leaf in _leaves(child, f"{path}.")]
    if pa.types.is_map(field.type):
        parts = (field.type.key_field.with_name("key"), field.type.item_field.with_name("value"))
        return [leaf for part in parts for leaf in _leaves(part, f"{path}.key_value.")]
    if pa.types.is_list(field.type) or pa.types.is_large_list(field.type) or pa.types.is_fixed_size_list(field.type):
        return _leaves(field.type.value_field.with_name("element"), f"{path}.list.")
    return [path]
