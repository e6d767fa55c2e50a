"""A table without removed rows, by what the table is for.

blanked   rows that others count on keep their place and their uid: shards' tables, inputs/, pairs/, found pairs, pages
judged    rows of a selection are kept no longer
dropped   rows of all other tables: scores, captions, links, images in archives, whatever else has a uid
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.removed import REMOVED, Mask, RemovedRows, blanked
from infra.rows import as_uids
from pipeline.download.shard import FAILED_DOWNLOAD, SUCCESS

Kind = Literal["blanked", "judged", "dropped"]
COUNTED_ON = ("inputs/", "pairs/", "crawl/found/", "ledger/pages/")


def kind_of(name: str) -> Kind:
    """What becomes of a table's removed rows."""
    if "/" not in name or name.startswith(COUNTED_ON):
        return "blanked"
    is_selection = name.startswith("selections/") and name.count("/") == 2
    return "judged" if is_selection else "dropped"


def held(table: pa.Table, removed: RemovedRows) -> Mask:
    """Which rows are removed ones: by uid, or where there is none by any text that is a removed address."""
    if "uid" in table.column_names:
        return removed.hold(as_uids(table["uid"]), None)
    found = np.zeros(table.num_rows, bool)
    for column in table.columns:
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            found |= removed.hold(None, column)
    return found


def without(table: pa.Table, rows: Mask, kind: Kind) -> pa.Table:
    """The table when these rows are removed; equal to it where nothing is left to do."""
    if kind == "dropped":
        return table.filter(pa.array(~rows))
    if kind == "judged":
        rows = rows & _mask(table["keep"])
        table = _put(table, "keep", rows, False)
        return _put(table, "reason", rows, REMOVED)
    if "status" in table.column_names:
        # What failed before keeps its reason: a later try is reckoned by it.
        stored = rows & _mask(pc.equal(table["status"].cast(pa.string()), SUCCESS))
        table = _put(table, "status", stored, FAILED_DOWNLOAD)
        table = _put(table, "reason", stored, REMOVED)
    return blanked(table, rows)


def _put(table: pa.Table, name: str, rows: Mask, value: bool | str) -> pa.Table:
    if name not in table.column_names or not rows.any():
        return table
    at, column = table.column_names.index(name), table[name]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return table.set_column(at, name, pc.if_else(pa.array(rows), pa.scalar(value, column.type), column))


def _mask(column: pa.ChunkedArray) -> Mask:
    return np.asarray(pc.fill_null(column, False).to_numpy(zero_copy_only=False), bool)
