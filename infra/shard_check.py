"""One shard: do its tar, its index and its table agree? Each function yields what is wrong, a phrase each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from infra.ledger import Counts
from infra.removed import UID, RemovedRows
from infra.shards import IMAGE_ENDINGS, INDEX_SCHEMA, Member

SUCCESS = "success"
TEXTS = {"txt", "json"}
TABLE_COLUMNS = ("uid", "key", "status", "reason")


def check_shard(
    members: Sequence[Member] | None, index: pa.Table | None, table: pa.Table | None, uniform: bool
) -> Iterator[str]:
    """All of the rules for which there is something to compare; None: absent, or not readable.

    uniform: where one sample has a text or facts, all have, as in tars that we write.
    """
    if index is not None and not set(INDEX_SCHEMA.names) <= set(index.column_names):
        yield f"the index lacks columns; it needs {', '.join(INDEX_SCHEMA.names)}"
        index = None
    if members is not None:
        yield from check_members(members, uniform)
        if index is not None:
            yield from check_index(members, index)
    if table is None or "key" not in table.column_names:  # some other table by the same name
        return
    stored = stored_rows(table)
    repeated = [uid.hex() for uid, number in Counter(uid for _, uid in stored if uid).items() if number > 1]
    if repeated:
        yield f"the table stores {_some(repeated, 'uid')} more than once"
    keys = {member.key for member in members} if members is not None else None
    yield from check_stored(dict(stored), keys, index)


def check_members(members: Sequence[Member], uniform: bool) -> Iterator[str]:
    """Every sample has an image and no member comes twice; `uniform`: all or none have a txt, and a json."""
    repeated = [name for name, number in Counter(member.name for member in members).items() if number > 1]
    if repeated:
        yield f"the tar holds {_some(repeated, 'member')} more than once"
    endings: dict[str, set[str]] = {}
    for member in members:
        endings.setdefault(member.key, set()).add(member.ending)
    bare = [key for key, kinds in endings.items() if not any(kind in IMAGE_ENDINGS for kind in kinds)]
    if bare:
        yield f"{_some(bare, 'sample')} without an image"
    if uniform:
        every = set().union(*endings.values())
        for kind in sorted(every & TEXTS):
            lacking = [key for key, kinds in endings.items() if kind not in kinds and key not in bare]
            if lacking:
                yield f"{_some(lacking, 'sample')} without a .{kind} member"


def check_index(members: Sequence[Member], index: pa.Table) -> Iterator[str]:
    """The index names exactly the tar's members, each at its place, and one uid a sample."""
    held = {member.name: member for member in members}
    rows = index.select(["uid", "key", "member", "offset", "size"]).to_pylist()
    named = {row["member"]: row for row in rows}
    lost = [name for name in named if name not in held]
    if lost:
        yield f"the index names {_some(lost, 'member')} that the tar lacks"
    unnamed = [name for name in held if name not in named]
    if unnamed:
        yield f"the tar holds {_some(unnamed, 'member')} that the index lacks"
    moved = [name for name, row in named.items() if name in held and _place(row) != _place_of(held[name])]
    if moved:
        yield f"the index is stale: {_some(moved, 'member')} lie elsewhere in the tar, or under another key"
    uids: dict[str, set[bytes]] = {}
    for row in rows:
        uids.setdefault(row["key"], set()).add(row["uid"])
    torn = [key for key, found in uids.items() if len(found) > 1 or None in found]
    if torn:
        yield f"the index gives {_some(torn, 'sample')} no uid, or more than one"


def check_stored(
    stored: Mapping[str, bytes | None], keys: Collection[str] | None, index: pa.Table | None
) -> Iterator[str]:
    """The rows that the table calls stored are the tar's samples (by `keys`), under the uids of the index."""
    if keys is not None:
        absent = [key for key in stored if key not in keys]
        if absent:
            yield f"the table calls {_some(absent, 'row')} stored that the tar lacks"
        unknown = [key for key in keys if key not in stored]
        if unknown:
            yield f"the tar holds {_some(sorted(unknown), 'sample')} that the table does not call stored"
    if index is not None:
        by_key = dict(zip(index["key"].to_pylist(), index["uid"].to_pylist(), strict=True))
        other = [key for key, uid in stored.items() if uid is not None and by_key.get(key, uid) != uid]
        if other:
            yield f"table and index give {_some(other, 'sample')} different uids"


def check_counts(table: pa.Table, counts: Counts) -> Iterator[str]:
    """The table's rows by status and reason are those that the done-mark counted."""
    if table.num_rows != counts.rows_in:
        yield f"the table has {table.num_rows} rows, the done-mark says {counts.rows_in} in"
    if not {"status", "reason"} <= set(table.column_names):
        return
    is_stored = pc.fill_null(pc.equal(table["status"], SUCCESS), False)
    num_stored = pc.sum(is_stored).as_py() or 0
    if num_stored != counts.rows_out:
        yield f"the table calls {num_stored} rows stored, the done-mark says {counts.rows_out}"
    both = pc.and_(is_stored, pc.is_valid(table["reason"]))
    neither = pc.and_(pc.invert(is_stored), pc.is_null(table["reason"]))
    torn = (pc.sum(both).as_py() or 0) + (pc.sum(neither).as_py() or 0)
    if torn:
        yield f"{torn} rows are stored and have a reason, or neither"
    reasons = Counter(table.filter(pc.invert(is_stored))["reason"].to_pylist())
    said = {reason: number for reason, number in counts.dropped.items() if number}
    differing = sorted(str(reason) for reason in {*reasons, *said} if reasons.get(reason, 0) != said.get(reason, 0))
    if differing:
        first = differing[0]
        yield f"dropped as {first}: {reasons.get(first, 0)} rows in the table, {said.get(first, 0)} in the done-mark"


def check_removed(table: pa.Table, removed: RemovedRows) -> Iterator[str]:
    """No row that the table calls stored was removed on request."""
    if not {"uid", "status"} <= set(table.column_names) or table["uid"].type != UID:
        return
    stored = table.filter(pc.fill_null(pc.equal(table["status"], SUCCESS), False))
    num_removed = int(removed.hold(stored["uid"], None).sum())
    if num_removed:
        yield f"{num_removed} stored rows were removed on request; run python -m pipeline remove once more"


def stored_rows(table: pa.Table) -> list[tuple[str, bytes | None]]:
    """(key, uid) of the rows whose status is success (of all rows where there is no status). uids may be hex."""
    if "status" in table.column_names:
        table = table.filter(pc.fill_null(pc.equal(table["status"], SUCCESS), False))
    uids = table["uid"].to_pylist() if "uid" in table.column_names else [None] * table.num_rows
    return list(zip((str(key) for key in table["key"].to_pylist()), map(_bytes, uids), strict=True))


def _bytes(uid: bytes | str | None) -> bytes | None:
    if not isinstance(uid, str):
        return uid
    try:
        return bytes.fromhex(uid)
    except ValueError:
        return None


def _place(row: Mapping[str, object]) -> tuple[object, ...]:
    return (row["key"], row["offset"], row["size"])


def _place_of(member: Member) -> tuple[object, ...]:
    return (member.key, member.offset, member.size)


def _some(names: Sequence[str], kind: str) -> str:
    return f"{kind} {names[0]}" if len(names) == 1 else f"{len(names)} {kind}s (first {names[0]})"
