"""From disk into memory: the columns that can be cut, of all rows or of an even sample of them, in one DuckDB table.

A row is a caption: the web's of every image, and those of further caption tables that were asked for. What a score is
of, and how columns are called, is as in `filters select`: both read by filters/joined.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import duckdb
import numpy as np
import pyarrow as pa

from filters.base import description
from filters.joined import ROW, SCORES, Group, Joined, score_tables
from infra.dataset import Dataset
from infra.log import get_logger
from infra.rows import CAPTION_NAMES, URL_NAMES, Rows
from infra.tables import KEYS, connect
from pipeline.explore.rules import MAX_NUMBER, MAX_VALUES, Column, Kind

log = get_logger("explore")

MAX_ROWS = 5_000_000
TABLE_BYTES = 1 << 30  # of the table in memory: the wider its rows, the fewer of them
MEMORY = "3GB"  # what DuckDB may take in all
GROUP_ROWS = 500_000
MAX_SHOWN = 80  # characters of a value
_KEY_BYTES = 56  # of a row, beside its columns
_TYPES = {
    "int8": "TINYINT", "int16": "SMALLINT", "int32": "INTEGER", "uint8": "UTINYINT", "uint16": "USMALLINT",
    "uint32": "UINTEGER", "float": "FLOAT", "halffloat": "FLOAT",
}  # fmt: skip
_BY_KIND = {"number": "DOUBLE", "whole": "BIGINT", "category": "VARCHAR", "flag": "BOOLEAN"}
_BYTES = {"TINYINT": 1, "UTINYINT": 1, "BOOLEAN": 1, "SMALLINT": 2, "USMALLINT": 2, "INTEGER": 4, "UINTEGER": 4,
          "FLOAT": 4, "VARCHAR": 24}  # fmt: skip
# Of the row's own columns these are names, places and messages: nobody cuts by them.
_NO_SCORES = {
    "uid", "key", "status", "reason", "error_message", "http_status", "exif", "sha256", "page_url", "warc_path",
    "warc_offset", "page_warc_path", "page_warc_offset", *CAPTION_NAMES, *URL_NAMES,
}  # fmt: skip


@dataclass(frozen=True)
class Loaded:
    """The table `rows` in memory: mix (a hash of the uid), shard, uid, source, n, and the columns by their `sql` names.

    shards: their names by number. num_seen: rows of the dataset. left_out: columns that cannot be cut, and why.
    """

    connection: duckdb.DuckDBPyConnection
    rows: Rows
    shards: Sequence[str]
    captions: Sequence[str]
    columns: tuple[Column, ...]
    num_rows: int
    num_seen: int
    left_out: Mapping[str, str]


def load(dataset: Dataset, captions: Sequence[str] = (), max_rows: int = MAX_ROWS) -> Loaded:
    """Read a dataset's scores. Of more than `max_rows` rows, those whose uid's hash is low: the same ones each time.

    Raises DatasetError where there are no rows.
    """
    rows = Rows(dataset)
    types, left_out = _explorable(rows)
    max_rows = max(1, min(max_rows, TABLE_BYTES // (_KEY_BYTES + sum(_BYTES.get(kind, 8) for kind in types.values()))))
    joined = Joined(dataset, [column.path for column in types], captions)
    connection = connect(dataset.storage, MEMORY)
    named = "".join(f", {column.sql} {kind}" for column, kind in types.items())
    connection.execute(f"CREATE TABLE rows (mix UBIGINT, shard UINTEGER, uid BLOB, source VARCHAR, n INTEGER{named})")
    numbers = {shard: number for number, shard in enumerate(rows.shards)}
    num_seen, num_rows, highest = 0, 0, (1 << 64) - 1
    for shards in joined.groups(GROUP_ROWS):
        group = joined.read(shards, [column.path for column in types])
        num_seen += group.num_rows
        log.info("reading rows=%d shard=%s of=%s", num_seen, shards[-1], rows.shards[-1])
        _insert(connection, group, numbers, types, highest)
        while (num_rows := _value(connection, "SELECT count(*) FROM rows")) > max_rows:
            highest //= 2
            connection.execute(f"CREATE OR REPLACE TABLE rows AS SELECT * FROM rows WHERE mix <= {highest}")
        for column in [column for column in types if _is_no_category(connection, column)]:
            connection.execute(f"ALTER TABLE rows DROP COLUMN {column.sql}")
            del types[column]
            left_out[column.path] = "too many different texts"
    columns = _settled(connection, list(types), left_out)
    log.info("rows=%d of=%d columns=%d left_out=%d", num_rows, num_seen, len(columns), len(left_out))
    return Loaded(connection, rows, rows.shards, captions, columns, num_rows, num_seen, left_out)


def _explorable(rows: Rows) -> tuple[dict[Column, str], dict[str, str]]:
    """Columns that may be cut, in order of their tables, with DuckDB's types; and what is left out, with the reason."""
    schemas = score_tables(rows.dataset)
    held = Counter(name for schema in schemas.values() for name in schema.names)
    left_out: dict[str, str] = {}
    for table in list(schemas):
        # By its files: one job may have made them all.
        num_done = len(set(rows.shards).intersection(rows.dataset.ledger.tables(SCORES + table, f"scores/{table}")))
        if num_done < len(rows.shards):
            left_out[table] = f"scored in {num_done} of {len(rows.shards)} shards so far"
            del schemas[table]
    found: dict[Column, str] = {}
    for table, schema in {**schemas, ROW: rows.columns()}.items():
        for field in schema:
            kind = _kind(field.type)
            if kind is None or field.name in KEYS.names or (table == ROW and field.name in _NO_SCORES):
                continue
            # As rules have it: a bare name is a score's before it is the row's.
            is_unique = held[field.name] == (0 if table == ROW else 1)
            column = Column(table, field.name, kind, f"c{len(found)}", is_unique, description(field))
            found[column] = _TYPES.get(str(field.type), _BY_KIND[kind])
    return found, left_out


def _kind(kind: pa.DataType) -> Kind | None:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_boolean(kind):
        return "flag"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "category"
    if pa.types.is_uint64(kind):  # a hash: its size says nothing
        return None
    if pa.types.is_integer(kind):
        return "whole"
    return "number" if pa.types.is_floating(kind) or pa.types.is_decimal(kind) else None


def _insert(
    connection: duckdb.DuckDBPyConnection, group: Group, numbers: Mapping[str, int], types: Mapping[Column, str],
    highest: int,
) -> None:  # fmt: skip
    shard = np.repeat([numbers[shard] for shard in group.shards], list(group.shards.values()))
    values = {column.sql: group.columns[column.path] for column in types}
    arrays = {"shard": pa.array(shard, pa.uint32()), **{name: group.keys[name] for name in KEYS.names}, **values}
    connection.register("batch", pa.table(arrays))
    chosen = "".join(f", {_cast(column.sql, kind)} AS {column.sql}" for column, kind in types.items())
    connection.execute(
        f"INSERT INTO rows BY NAME SELECT hash(uid) AS mix, shard, uid, source, n{chosen} FROM batch "
        f"WHERE hash(uid) <= {highest}"
    )
    connection.unregister("batch")


def _cast(name: str, kind: str) -> str:
    # Not-a-number is a missing value; DuckDB would take it for the largest.
    cast = f"TRY_CAST({name} AS {kind})"
    return f"nullif({cast}, 'nan'::{kind})" if kind in ("FLOAT", "DOUBLE") else cast


def _is_no_category(connection: duckdb.DuckDBPyConnection, column: Column) -> bool:
    """Has a text column too many values? Asked early: such texts are what fills the memory."""
    if column.kind != "category":
        return False
    found = connection.execute(f"SELECT DISTINCT {column.sql} FROM rows LIMIT {MAX_VALUES + 2}").fetchall()
    return len(found) > MAX_VALUES + 1  # null is none


def _settled(
    connection: duckdb.DuckDBPyConnection, found: Sequence[Column], left_out: dict[str, str]
) -> tuple[Column, ...]:
    """Columns as the page offers them: texts as categories, and none that can tell no row from another."""
    columns: list[Column] = []
    for column in found:
        name = column.sql
        ((missing, lowest, highest),) = connection.execute(
            f"SELECT count(*) - count({name}), min({name}), max({name}) FROM rows"
        ).fetchall()
        if lowest is None:
            left_out[column.path] = "no values"
        elif lowest == highest and (column.is_number or not missing):
            left_out[column.path] = f"one value: {str(lowest)[:MAX_SHOWN]}"
        elif column.kind == "whole" and max(-lowest, highest) > MAX_NUMBER:
            left_out[column.path] = "numbers too large to cut"
        elif column.kind == "flag":
            columns.append(replace(column, values=("false", "true")))
        elif column.kind == "category":
            kind = f"category_{name}"
            connection.execute(
                f"CREATE TYPE {kind} AS ENUM (SELECT {name} FROM rows WHERE {name} IS NOT NULL "
                f"GROUP BY {name} ORDER BY count(*) DESC, {name})"
            )
            connection.execute(f"ALTER TABLE rows ALTER {name} TYPE {kind}")
            texts = connection.execute(f"SELECT unnest(enum_range(NULL::{kind}))").fetchall()
            columns.append(replace(column, values=tuple(text for (text,) in texts)))
        else:
            columns.append(column)
    return tuple(columns)


def _value(connection: duckdb.DuckDBPyConnection, sql: str) -> int:
    ((value,),) = connection.execute(sql).fetchall()
    return int(value)
