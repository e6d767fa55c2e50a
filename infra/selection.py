"""A selection as its readers see it: which captions of which images are kept, shard by shard, and why others fell."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from infra.dataset import Dataset
from infra.errors import DatasetError
from infra.ledger import Counts
from infra.removed import REMOVED
from infra.sample import UID_BYTES
from infra.tables import KEYS, open_table, read_table

SCHEMA = pa.schema([*KEYS, ("keep", pa.bool_()), ("reason", pa.string())])
KEPT = b"pairmill.kept"  # in the metadata of a selection's table: how many images and captions it keeps


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

    def num_kept(self, shard: str) -> tuple[int, int]:
        """Images and captions that it keeps of a shard; from the footer, where that tells."""
        file = open_table(self.dataset.storage, selection_table(self.name, shard))
        told = (file.metadata.metadata or {}).get(KEPT) or _count(file.read(["uid", "keep"]))
        images, captions = told.split()
        return int(images), int(captions)


def selections(dataset: Dataset) -> list[str]:
    """Names of the finished selections of a dataset, sorted."""
    steps = [step.removeprefix("select_") for step in dataset.ledger.steps() if step.startswith("select_")]
    return sorted(name for name in steps if "." not in name and dataset.storage.exists(summary_file(name)))


def counted(table: pa.Table) -> pa.Table:
    """A selection's table whose metadata says how many images and captions it keeps, so that readers need not count."""
    return table.replace_schema_metadata({**(table.schema.metadata or {}), KEPT: _count(table)})


def runs(uids: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Where each image begins in rows of captions: the captions of one image stand together."""
    data = uids.combine_chunks()
    if not len(data):
        return np.empty(0, np.int64)
    words = np.frombuffer(data.buffers()[1], np.uint64, 2 * len(data), data.offset * UID_BYTES).reshape(-1, 2)
    return np.flatnonzero(np.concatenate([[True], (words[1:] != words[:-1]).any(axis=1)]))


def _count(table: pa.Table) -> bytes:
    kept = table["uid"].filter(pc.fill_null(table["keep"], False))
    return b"%d %d" % (len(runs(kept)), len(kept))


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
