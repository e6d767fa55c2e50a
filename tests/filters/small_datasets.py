"""Datasets of a few rows with score and caption tables, as a download and scorers leave them; no image, no model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from infra.dataset import Dataset
from infra.ledger import Counts, DoneMark
from infra.selection import Selection
from infra.storage import Committed
from infra.tables import KEYS, write_keyed_table, write_table

Tables = Mapping[str, pa.Table]  # shard → its table


def uid_of(word: Any) -> bytes:
    """16 bytes that a word stands for."""
    return hashlib.blake2b(str(word).encode(), digest_size=16).digest()


def rows_table(uids: Sequence[bytes], **columns: Any) -> pa.Table:
    """A shard's rows: uid, and columns as arrays or lists."""
    return pa.table({"uid": pa.array(uids, KEYS.field("uid").type), **columns})


def image_scores(uids: Sequence[bytes], **columns: Any) -> pa.Table:
    """Scores of images."""
    nothing = [None] * len(uids)
    return _keyed(uids, nothing, nothing, columns)


def caption_scores(keys: Sequence[tuple[bytes, str | None, int | None]], **columns: Any) -> pa.Table:
    """Scores of captions, named by (uid, source, n)."""
    return _keyed([key[0] for key in keys], [key[1] for key in keys], [key[2] for key in keys], columns)


def web(uids: Iterable[bytes]) -> list[tuple[bytes, str, int]]:
    """Keys of the web's captions."""
    return [(uid, "web", 0) for uid in uids]


def make_dataset(
    folder: Path | str, rows: Tables, scores: Mapping[str, Tables] | None = None,
    captions: Mapping[str, Tables] | None = None, *, by_others: bool = False,
) -> Dataset:  # fmt: skip
    """A dataset of stored rows; its tars are empty files. Called again, it adds to what is there, or puts in its place.

    by_others: score tables are not written by us, so that they may be in any order, and lack rows or hold strangers.
    """
    dataset = Dataset(folder)
    for shard, table in rows.items():
        files = [
            write_table(dataset.storage, dataset.table(shard), table),
            dataset.storage.commit_bytes(dataset.tar(shard), b""),
        ]
        _mark(dataset, "download", shard, table.num_rows, files)
    _plan(dataset, "download", rows)
    for kind, tables in (("score", scores or {}), ("captions", captions or {})):
        for name, of_shards in tables.items():
            place = "scores" if kind == "score" else "captions"
            write = write_table if by_others else write_keyed_table
            for shard, table in of_shards.items():
                file = write(dataset.storage, f"{place}/{name}/{shard}.parquet", table)
                _mark(dataset, f"{kind}_{name}", shard, table.num_rows, [file])
            _plan(dataset, f"{kind}_{name}", of_shards)
    return dataset


def verdicts(dataset: Dataset, name: str) -> list[tuple[bytes, str, int, str | None]]:
    """What a selection says of each caption, in order: uid, source, n, and the reason it fell by, None where kept."""
    selection = Selection(dataset, name)
    told = [row for shard in selection.shards for row in selection.read(shard).to_pylist()]
    assert all(row["keep"] == (row["reason"] is None) for row in told)
    return [(row["uid"], row["source"], row["n"], row["reason"]) for row in told]


def _keyed(uids: Any, sources: Any, numbers: Any, columns: Mapping[str, Any]) -> pa.Table:
    keys = [pa.array(values, field.type) for values, field in zip((uids, sources, numbers), KEYS, strict=True)]
    return pa.table([*keys, *columns.values()], names=[*KEYS.names, *columns])


def _mark(dataset: Dataset, step: str, shard: str, num_rows: int, files: Sequence[Committed]) -> None:
    counts = Counts(num_rows, num_rows)
    dataset.ledger.mark_done(DoneMark(step, shard, "", counts, tuple(files), {"took_s": 0.0}))


def _plan(dataset: Dataset, step: str, shards: Iterable[str]) -> None:
    known = (dataset.ledger.plan(step) or {"jobs": []})["jobs"]
    dataset.ledger.write_plan(step, "", sorted({*known, *shards}), settings={})
