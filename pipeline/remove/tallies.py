"""Counts of done-marks and statistics of shards, as their tables say after rows were removed from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa

from infra.dataset import Dataset
from infra.indexing import INDEXING
from infra.ledger import Counts, DoneMark
from infra.tables import read_table
from pipeline.download.shard import FAILED_DOWNLOAD, FAILED_RESIZE, SUCCESS
from pipeline.remove.tables import kind_of


def counts_now(dataset: Dataset, mark: DoneMark) -> Counts:
    """Of a shard and of a selection what the tables say; of all others what was done at the time."""
    names = [file.name for file in mark.files if file.name.endswith((".tar", ".parquet"))]
    if mark.step == INDEXING:
        keys = {key for name in names for key in read_table(dataset.storage, name, ["key"])["key"].to_pylist()}
        return replace(mark.counts, rows_in=len(keys), rows_out=len(keys))
    fates: Counter[str | None] = Counter()
    if tar := next((name for name in names if name.endswith(".tar")), None):
        table = read_table(dataset.storage, dataset.table(tar.removesuffix(".tar")), ["status", "reason"])
        fates.update(_fates(table))
    elif judged := [name for name in names if kind_of(name) == "judged"]:
        for name in judged:
            fates.update(read_table(dataset.storage, name, ["reason"])["reason"].to_pylist())
        fates[SUCCESS] = fates.pop(None, 0)
    else:
        return mark.counts
    num_kept = fates.pop(SUCCESS, 0)
    dropped = {str(word): number for word, number in fates.items()}
    return Counts(num_kept + sum(dropped.values()), num_kept, dropped, mark.counts.extra)


def stats_now(told: Mapping[str, Any], table: pa.Table) -> dict[str, Any]:
    """img2dataset's statistics of a shard with this table; clocks stay as they were told."""
    statuses = Counter(table["status"].to_pylist())
    counted = {"successes": SUCCESS, FAILED_DOWNLOAD: FAILED_DOWNLOAD, FAILED_RESIZE: FAILED_RESIZE}
    fates = dict(Counter(_fates(table)).most_common())
    return {**told, **{name: statuses[status] for name, status in counted.items()}, "status_dict": fates}


def _fates(table: pa.Table) -> list[str]:
    """Of each row of a shard: success, or why not; img2dataset tells that by its message."""
    words = table["reason" if "reason" in table.column_names else "error_message"].to_pylist()
    statuses = table["status"].to_pylist()
    return [status if status == SUCCESS else word or status for status, word in zip(statuses, words, strict=True)]
