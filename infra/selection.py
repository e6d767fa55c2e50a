"""A selection as its readers see it: which captions of which images are kept, shard by shard, and why others fell."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from infra.dataset import Dataset
from infra.errors import DatasetError
from infra.ledger import Counts
from infra.removed import REMOVED
from infra.tables import KEYS, read_table

SCHEMA = pa.schema([*KEYS, ("keep", pa.bool_()), ("reason", pa.string())])


class Selection:
    """One selection of a dataset. Raises DatasetError where there is none, or where it is not finished."""

    def __init__(self, dataset: Dataset, name: str) -> None:
        self.dataset = dataset
        self.name = name
        try:
            self.summary: dict[str, Any] = json.loads(dataset.storage.read(summary_file(name)))
        except FileNotFoundError:
            known = ", ".join(selections(dataset)) or "none"
            raise DatasetError(
                f"{dataset.storage.url}: no finished selection {name}; there are: {known}. "
                "Make one: python -m filters select DATASET --rules RECIPE --name NAME"
            ) from None

    @property
    def shards(self) -> list[str]:
        """Shards that it covers, sorted."""
        names = self.dataset.tables(f"selections/{self.name}")
        return sorted((name.rpartition("/")[2].removesuffix(".parquet") for name in names), key=lambda n: (len(n), n))

    def read(self, shard: str, columns: Sequence[str] | None = None) -> pa.Table:
        """uid, source, n, keep, reason of a shard's captions, in the order of its rows."""
        return read_table(self.dataset.storage, selection_table(self.name, shard), columns)


def selections(dataset: Dataset) -> list[str]:
    """Names of the finished selections of a dataset, sorted."""
    steps = [step.removeprefix("select_") for step in dataset.ledger.steps() if step.startswith("select_")]
    return sorted(name for name in steps if "." not in name and dataset.storage.exists(summary_file(name)))


def rules_told(rules: Sequence[Mapping[str, Any]], counts: Counts) -> list[Mapping[str, Any]]:
    """A summary's rules, and behind them what was removed on request since: they end at the rows that are kept."""
    told = [rule for rule in rules if rule["rule"] != REMOVED]
    if removed := counts.dropped.get(REMOVED, 0):
        rows = {"rows_in": counts.rows_out + removed, "rows_out": counts.rows_out, "dropped": {REMOVED: removed}}
        told.append({"rule": REMOVED, "text": "taken down", "reason": REMOVED, **rows, "columns": [], "cuts": []})
    return told


def selection_table(name: str, shard: str) -> str:
    """Name of a shard's part of a selection."""
    return f"selections/{name}/{shard}.parquet"


def summary_file(name: str) -> str:
    """Name of a selection's summary, published when all its shards are."""
    return f"selections/{name}/summary.json"
