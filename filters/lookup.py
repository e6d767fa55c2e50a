"""Rows by uid or address, wherever a dataset has them: in shards, before a download, in tables and tars of others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from infra.dataset import Dataset
from infra.errors import DatasetError
from infra.removed import REMOVED, RemovedRows, url_digests
from infra.rows import CAPTION_NAMES, URL_NAMES, Rows, as_uids
from infra.sample import UID_BYTES, pair_uid
from infra.tables import connect, urls

MAX_FOUND = 20  # rows that one address may tell of
STORED, WAITING = "stored", "waiting"
SUCCESS = "success"
ADDRESSES = (*URL_NAMES, "page_url")
FILE = "file, as DuckDB names it"  # no column of anybody's


@dataclass(frozen=True, slots=True)
class Found:
    """One row: its fate (stored, waiting, or the reason that it is neither), and its columns but for the uid.

    url and caption have these names, whatever the table calls them. shard: None for a row of which but a tombstone is.
    """

    uid: bytes
    shard: str | None
    fate: str
    row: Mapping[str, Any]


def find_rows(dataset: Dataset, what: str) -> list[Found]:
    """Rows with a uid (32 hex digits), or of an image's or page's address: of the newest tables that know them.

    That is the shards, then what was asked for, then what a crawl found; removed rows by their tombstones, last.
    Raises DatasetError where there is no dataset.
    """
    if not dataset.storage.exists():
        raise DatasetError(f"{dataset.storage.url}: no dataset there; give the folder of a crawl or download")
    what = what.encode("utf-8", "replace").decode()  # what a terminal gives may be no text
    held, uid = Rows(dataset), as_uid(what)
    removed = RemovedRows.of(dataset.storage)
    for found in _by_place(held, what, uid):
        if found:
            uids = pa.chunked_array([pa.array([one.uid for one in found], pa.binary(UID_BYTES))])
            gone = removed.hold(uids, None)
            return [replace(one, fate=REMOVED) if is_gone else one for one, is_gone in zip(found, gone, strict=True)]
    return [Found(one, None, REMOVED, {}) for one in _buried(removed, what, uid)[:MAX_FOUND]]


def _by_place(held: Rows, what: str, uid: bytes | None) -> Iterator[list[Found]]:
    """Rows of shards, then those that wait in inputs/, then those in pairs/."""
    dataset = held.dataset
    shards = held.shards if held.kind in ("stored", "table") else []
    published = set(dataset.storage.list("", ".parquet"))
    tables = [dataset.table(shard) for shard in shards if dataset.table(shard) in published]
    columns, rows = _query(dataset, tables, what, uid)
    found = [_found(held, row, is_own=True) for row in rows]
    if uid is not None:
        unnamed = [shard for shard in shards if "uid" not in columns or dataset.table(shard) not in published]
        found += _stream(held, unnamed, uid)
    yield found
    for folder in ("inputs", "pairs"):
        _, rows = _query(dataset, dataset.tables(folder), what, uid)
        yield [_found(held, row, is_own=False) for row in rows]


def as_uid(what: str) -> bytes | None:
    """The 16 bytes that 32 hex digits stand for; None for other words."""
    try:
        uid = bytes.fromhex(what)
    except ValueError:
        return None
    return uid if len(uid) == UID_BYTES else None


def _query(
    dataset: Dataset, names: Sequence[str], what: str, uid: bytes | None
) -> tuple[set[str], list[dict[str, Any]]]:
    """The tables' columns, and their rows that have the uid or address in one of them; FILE tells the table."""
    if not names:
        return set(), []
    connection = connect(dataset.storage)
    files = ", ".join(_literal(url) for url in urls(dataset.storage, names))
    source = f"read_parquet([{files}], union_by_name = true, filename = {_literal(FILE)})"
    try:
        kinds = {name: kind for name, kind, *_ in connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()}
        if uid is not None:
            is_hex = kinds.get("uid") == "VARCHAR"  # as DataComp's are
            same = [f"lower(uid) = {_literal(uid.hex())}" if is_hex else f"uid = unhex({_literal(uid.hex())})"]
            conditions = same if "uid" in kinds else []
        else:
            conditions = [f'"{name}" = {_literal(what)}' for name in ADDRESSES if kinds.get(name) == "VARCHAR"]
        if not conditions:
            return set(kinds), []
        asked = f"SELECT * FROM {source} WHERE {' OR '.join(conditions)} LIMIT {MAX_FOUND}"
        return set(kinds), connection.sql(asked).to_arrow_table().to_pylist()
    except duckdb.Error as error:
        raise DatasetError(
            f"{dataset.storage.url}: a table cannot be read: {str(error).partition(chr(10))[0]}"
        ) from None


def _found(held: Rows, row: dict[str, Any], *, is_own: bool) -> Found:
    """A row of a table as it is told."""
    shard = str(row.pop(FILE)).rpartition("/")[2].removesuffix(".parquet")
    for want, aliases in (("url", URL_NAMES), ("caption", CAPTION_NAMES)):
        if name := next((alias for alias in aliases if alias in row), None):
            row[want] = row.pop(name)
    fate = WAITING
    if is_own and held.kind == "stored":
        is_stored = row.get("status", SUCCESS) == SUCCESS
        fate = STORED if is_stored else str(row.get("reason") or row["status"] or "no_status")
    own = row.pop("uid", None)
    if own is not None:
        uid = as_uids(pa.chunked_array([[own]]))[0].as_py()
    else:
        known = _keys(held, shard) if fate == STORED else {}
        uid = known.get(row.get("key")) or pair_uid(row.get("url") or "", row.get("caption"))
    return Found(uid, shard, fate, row)


def _stream(held: Rows, shards: Sequence[str], uid: bytes) -> Iterator[Found]:
    """Rows whose uid no table has: it is in an index, or made of url and caption."""
    for shard in shards:
        try:
            if uid not in held.read(shard, [])["uid"].to_pylist():
                continue
            rows = held.read(shard)
        except FileNotFoundError as error:
            raise DatasetError(f"{error.filename or shard}: it is missing; python -m infra verify says more") from None
        else:
            for row in rows.filter(pc.equal(rows["uid"], pa.scalar(uid, rows["uid"].type))).to_pylist():
                own = {name: value for name, value in row.items() if name != "uid"}
                yield Found(uid, shard, STORED if held.kind == "stored" else WAITING, own)


def _keys(held: Rows, shard: str) -> dict[str | None, bytes]:
    rows = held.read(shard, [])
    return dict(zip(rows["key"].to_pylist(), rows["uid"].to_pylist(), strict=True))


def _buried(removed: RemovedRows, what: str, uid: bytes | None) -> list[bytes]:
    if uid is not None:
        return [uid] if uid in removed.table["uid"].to_pylist() else []
    digest = url_digests(pa.chunked_array([[what]]))[0]
    return list(removed.table.filter(pc.equal(removed.table["url"], digest))["uid"].to_pylist())


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
