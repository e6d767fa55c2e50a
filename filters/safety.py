"""Which pictures may be unfit to be seen: by columns of safety scores, whoever made them, and of the rows themselves.

Doubt is the safe side. Where a column of safety exists (in a score table, or kept by a download, as LAION's NSFW), a
picture of which it says nothing is doubtful too: no value, not-a-number, a shard or row that it lacks, a value that is
neither a number nor a known word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from filters.joined import score_tables
from infra.dataset import Dataset
from infra.errors import DatasetError
from infra.tables import open_table

_COLUMN = re.compile(r"unsafe|nsfw|porn|explicit", re.IGNORECASE)
SAFE_WORDS = {"unlikely", "safe", "sfw", "neutral", "no", "false", "0"}  # LAION's column NSFW says UNLIKELY
THRESHOLD = 0.5  # of a probability


def is_safety_column(name: str) -> bool:
    """Does a column of this name say how likely a picture is unfit to be seen?"""
    return _COLUMN.search(name) is not None


def is_doubtful(value: Any) -> bool:
    """Does a value of such a column say that the picture may be unfit, or say nothing that is understood?"""
    if isinstance(value, str):
        return value.strip().lower() not in SAFE_WORDS
    if isinstance(value, Decimal):
        value = float(value)
    # Not-a-number is never below.
    return not (isinstance(value, bool | int | float) and value <= THRESHOLD)


def are_doubtful(dataset: Dataset, rows: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Of each stored row, named by shard, key and uid: may its picture be unfit to be seen?

    Only tables of these rows' shards are read, and of them only keys and columns of safety. Raises DatasetError where
    one of them is broken.
    """
    columns = {table: _of_safety(schema.names) for table, schema in score_tables(dataset).items()}
    found = [False] * len(rows)
    for shard in dict.fromkeys(row["shard"] for row in rows):
        places = [at for at, row in enumerate(rows) if row["shard"] == shard]
        uids = [rows[at]["uid"] for at in places]
        try:
            told = [_own_doubts(dataset, shard, [rows[at]["key"] for at in places])]
            told += [_doubts_of_scores(dataset, table, shard, names, uids) for table, names in columns.items() if names]
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(
                f"{dataset.storage.url}: a table of shard {shard} cannot be read: {error}; "
                "`python -m infra verify` names what is broken"
            ) from None
        for at, *of_row in zip(places, *told, strict=True):
            found[at] = any(of_row)
    return found


def _doubts_of_scores(
    dataset: Dataset, table: str, shard: str, columns: Sequence[str], uids: Sequence[Any]
) -> list[bool]:
    try:
        file = open_table(dataset.storage, f"scores/{table}/{shard}.parquet")
    except FileNotFoundError:  # not scored yet
        return [True] * len(uids)
    return _doubts(file.read(["uid", *columns]), uids)


def _own_doubts(dataset: Dataset, shard: str, keys: Sequence[Any]) -> list[bool]:
    """What the shard's own table says: by key, the picture's name in the tar; tables of others may have no uid."""
    try:
        file = open_table(dataset.storage, dataset.table(shard))
    except FileNotFoundError:  # a tar alone
        return [False] * len(keys)
    columns = _of_safety(file.schema_arrow.names)
    if not columns:
        return [False] * len(keys)
    if "key" not in file.schema_arrow.names:
        return [True] * len(keys)
    told = file.read(["key", *columns])
    return _doubts(told.set_column(0, "key", told["key"].cast(pa.string())), keys)


def _doubts(table: pa.Table, names: Sequence[Any]) -> list[bool]:
    """table: its first column says of which picture a row is; all others are of safety."""
    key, *columns = table.column_names
    told = table.filter(pc.is_in(table[key], value_set=pa.array(names, table.schema.field(key).type)))
    safe = dict.fromkeys(told[key].to_pylist(), True)
    for column in columns:
        for name, value in zip(told[key].to_pylist(), told[column].to_pylist(), strict=True):
            safe[name] &= not is_doubtful(value)
    return [not safe.get(name, False) for name in names]


def _of_safety(names: Sequence[str]) -> list[str]:
    return [name for name in names if is_safety_column(name)]
