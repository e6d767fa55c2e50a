"""Score tables and selections: are their rows those that their shard stores, and do a selection's counts add up?

What readers trust without looking is looked at: the digests in a footer, by which tables are laid side by side unread.
Each check yields what is wrong, a phrase each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.checked_files import CheckedFiles
from infra.ledger import Counts, DoneMark
from infra.removed import REMOVED, UID, RemovedRows
from infra.shard_check import SUCCESS
from infra.storage import Committed
from infra.tables import CAPTIONS_DIGEST, KEYS, UIDS_DIGEST, keys_digests

COLUMNS = (*KEYS.names, "keep", "reason")
WEB = "web"

URLS = ("inputs", "pairs")  # folders of url tables, which may be scored before anything is stored
SELECTING = "select_"  # steps of selections begin so

Reasons = Counter[str | None]  # None: kept


class KeyedTables:
    """Score tables and selections among the files of done-marks, met shards first. Holds a digest a shard."""

    def __init__(self, files: CheckedFiles, removed: RemovedRows) -> None:
        self._files = files
        self._removed = removed
        self._stored: dict[str, bytes] = {}  # shard → digest of its stored uids

    def look(self, mark: DoneMark, files: dict[str, Committed], found: list[str]) -> dict[str, bytes]:
        """Note what is wrong with a mark's own tables; take them out of `files`. Returns digests of the uids in them.

        Marks may be looked at in several threads.
        """
        uids: dict[str, bytes] = {}
        reasons: Reasons = Counter()
        is_selection = mark.step.startswith(SELECTING)
        names = [name for name in files if shard_of(name) is not None]
        num_read = 0
        for name in names:
            num_found = len(found)
            table = self._files.table(name, files.pop(name), found, COLUMNS)
            if table is None or len(found) > num_found:  # damaged: what it says is no matter
                continue
            num_read += 1
            if not has_keys(table):
                found.append(f"{name} lacks its first columns: {', '.join(KEYS.names)}")
                continue
            if is_selection or is_vouched_for(table):  # score tables of others may be in any order
                found += check_keys(name, table)
                rows = self._without_removed(table) if is_selection else table  # there they keep their place
                uids[name] = images_digest(rows)
            if is_selection:
                found += check_verdicts(name, table, reasons)
        if is_selection and 0 < num_read == len(names):
            found += check_reasons(reasons, mark.counts)
        return uids

    def compare(self, stored: Mapping[str, bytes], uids: Mapping[str, bytes]) -> Iterator[tuple[str, bool]]:
        """Take in what shards store; (what, is it a problem) for tables whose rows are not those of their shard."""
        self._stored.update(stored)
        for name, digest in uids.items():
            shard = str(shard_of(name))
            if self._stored.get(shard, digest) == digest:
                continue
            if self._is_of_urls(shard, digest):
                yield f"{name} is of the url table {shard}, from before shard {shard} was stored", False
            else:
                yield f"{name} does not hold the rows that shard {shard} stores, in their order", True

    def _is_of_urls(self, shard: str, digest: bytes) -> bool:
        for folder in URLS:
            table = self._files.table(f"{folder}/{shard}.parquet", None, [], ["uid"])
            if table is None or table.column_names != ["uid"] or table["uid"].type != UID:
                continue
            again = self._files.table(f"{folder}/duplicates/{shard}.parquet", None, [], ["row"])
            if again is not None:
                table = table.take(pa.array(np.delete(np.arange(table.num_rows), again["row"].to_numpy())))
            if uids_digest(self._without_removed(table)["uid"]) == digest:
                return True
        return False

    def _without_removed(self, table: pa.Table) -> pa.Table:
        return table.filter(pa.array(~self._removed.hold(table["uid"], None)))


def shard_of(name: str) -> str | None:
    """The shard that a score table or a selection's table is of; None for other files."""
    folder, _, base = name.rpartition("/")
    is_keyed = folder.count("/") == 1 and folder.startswith(("scores/", "selections/"))
    return base.removesuffix(".parquet") if is_keyed and base.endswith(".parquet") else None


def uids_digest(uids: pa.ChunkedArray) -> bytes:
    """What the footer of a table of these uids, in this order, would say."""
    nothing = [pa.nulls(len(uids), kind) for kind in KEYS.types[1:]]
    return keys_digests(pa.table([uids, *nothing], names=KEYS.names))[0]


def stored_digest(table: pa.Table) -> bytes:
    """The digest of the uids that a shard's table calls stored."""
    return uids_digest(table.filter(pc.fill_null(pc.equal(table["status"], SUCCESS), False))["uid"])


def images_digest(table: pa.Table) -> bytes:
    """The digest of the uids that a table is about, each image once."""
    return uids_digest(table.filter(pc.invert(_is_further(table)))["uid"])


def has_keys(table: pa.Table) -> bool:
    """Does it begin with KEYS?"""
    return table.column_names[: len(KEYS)] == KEYS.names and table["uid"].type == UID


def is_vouched_for(table: pa.Table) -> bool:
    """Does a footer of ours tell of its keys?"""
    return {UIDS_DIGEST, CAPTIONS_DIGEST} <= set(table.schema.metadata or {})


def check_keys(name: str, table: pa.Table) -> Iterator[str]:
    """The footer tells of the rows; further captions lie behind the one that their image came with."""
    if is_vouched_for(table):
        told = tuple(table.schema.metadata[word] for word in (UIDS_DIGEST, CAPTIONS_DIGEST))
        if keys_digests(table) != told:
            yield f"{name}: its footer tells of other rows than it holds"
    further, uids = _is_further(table), table["uid"].combine_chunks()
    if not pc.any(further, min_count=0).as_py():
        return
    is_same = pa.concat_arrays([pa.array([False]), pc.equal(uids.slice(1), uids.slice(0, len(uids) - 1))])
    if num_astray := pc.sum(pc.and_not(further, is_same)).as_py():
        yield f"{name}: {num_astray} further captions do not lie behind that of their image"


def check_verdicts(name: str, table: pa.Table, reasons: Reasons) -> Iterator[str]:
    """A selection's rows are kept, or have a reason. Adds the reasons to `reasons`."""
    if not {"keep", "reason"} <= set(table.column_names):
        yield f"{name}: it does not say what is kept, and why not"
        return
    torn = pc.sum(pc.equal(pc.fill_null(table["keep"], False), pc.is_valid(table["reason"]))).as_py()
    if torn:
        yield f"{name}: {torn} rows are kept and have a reason, or neither"
    found = pc.value_counts(table["reason"].cast(pa.string()))
    for word, number in zip(found.field(0).to_pylist(), found.field(1).to_pylist(), strict=True):
        reasons[word] += number


def check_reasons(reasons: Reasons, counts: Counts) -> Iterator[str]:
    """The rows of a selection's tables are those that the done-mark counted."""
    if reasons[None] != counts.rows_out:
        yield f"its tables keep {reasons[None]} rows, the done-mark says {counts.rows_out}"
    fell = {word: number for word, number in reasons.items() if word is not None}
    yield from _differing(fell, "its tables", counts.dropped, "the done-mark")


def check_summary(summary: Any, counts: Counts) -> Iterator[str]:
    """A selection's summary says what its done-marks say, and its rules tell of every row that fell."""
    try:
        told = Counts(summary["rows_in"], summary["rows_out"], summary["dropped"])
        rules = [Counts(rule["rows_in"], rule["rows_out"], rule["dropped"]) for rule in summary["rules"]]
        by_rules = sum(rules, Counts())
        # What was removed on request since had passed the rules.
        removed = Counts(dropped={REMOVED: told.dropped.get(REMOVED, 0) - by_rules.dropped.get(REMOVED, 0)})
    except (KeyError, TypeError, AttributeError):
        yield "it is no summary of a selection"
        return
    for field in ("rows_in", "rows_out"):
        if getattr(told, field) != getattr(counts, field):
            yield f"it says {getattr(told, field)} {field}, the done-marks {getattr(counts, field)}"
    yield from _differing(told.dropped, "the summary", counts.dropped, "the done-marks")
    yield from _differing(told.dropped, "the summary", (by_rules + removed).dropped, "its rules together")
    left = told.rows_in
    for number, rule in enumerate(rules, 1):
        if rule.rows_in != left or rule.rows_out != left - rule.num_dropped:
            yield f"rule {number} takes {rule.rows_in} rows of {left} and leaves {rule.rows_out}"
        left = rule.rows_out


def _is_further(table: pa.Table) -> pa.Array:
    """Is the row about a caption that did not come with the image?"""
    return pc.fill_null(pc.not_equal(table["source"].cast(pa.string()), WEB), False).combine_chunks()


def _differing(one: Mapping[str, int], who: str, other: Mapping[str, int], whom: str) -> Iterator[str]:
    """The first reason that is counted otherwise."""
    words = sorted(word for word in {*one, *other} if one.get(word, 0) != other.get(word, 0))
    if words:
        yield f"dropped as {words[0]}: {one.get(words[0], 0)} in {who}, {other.get(words[0], 0)} in {whom}"
