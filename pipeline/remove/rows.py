"""Rows of any table that tells of images, or of a tar without one, in one form: what a takedown asks about them."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from infra.dataset import Dataset
from infra.removed import UID
from infra.rows import URL_NAMES, as_uids
from infra.sample import pair_uid
from infra.tables import open_table, read_table
from pipeline.download.shard import SUCCESS
from pipeline.reshard.members import members_of, read_samples

ROWS = pa.schema(
    [("uid", UID), ("url", pa.string()), ("page_url", pa.string()), ("sha256", pa.string()), ("stored", pa.bool_())]
)
TOLD = ("url", "page_url", "sha256")
FOLDERS = ("", "inputs", "inputs/retry", "pairs", "crawl/found")  # of tables with a row for each pair


def row_files(dataset: Dataset) -> list[str]:
    """Every table that has a row for each pair, and every tar that has no table beside it."""
    tables = [name for folder in FOLDERS for name in dataset.tables(folder)]
    return [*tables, *(dataset.tar(shard) for shard in dataset.tars() if dataset.table(shard) not in tables)]


def shard_of(dataset: Dataset, name: str) -> str | None:
    """The shard whose table or tar this is; None for other tables."""
    stem = name.rpartition(".")[0]
    return stem if "/" not in name and dataset.storage.exists(dataset.tar(stem)) else None


def read_rows(dataset: Dataset, name: str) -> pa.Table:
    """ROWS of a file of `row_files`, but for those that were blanked before."""
    rows = _of_bare_tar(dataset, name) if name.endswith(".tar") else _of_table(dataset, name)
    return rows.filter(pc.or_(pc.is_valid(rows["url"]), rows["stored"]))


def _of_table(dataset: Dataset, name: str) -> pa.Table:
    file = open_table(dataset.storage, name)
    present = file.schema_arrow.names
    url = next((alias for alias in URL_NAMES if alias in present), "url")
    wanted = ("uid", "key", url, "page_url", "sha256", "status", "caption")
    table = file.read([column for column in wanted if column in present])
    shard = shard_of(dataset, name)
    texts = [_text(table, column) for column in (url, *TOLD[1:])]
    if "status" in present:
        stored = pc.fill_null(pc.equal(_text(table, "status"), SUCCESS), False)
    else:
        stored = pa.chunked_array([pa.array([shard is not None] * table.num_rows, pa.bool_())])
    if "uid" in present:
        uids = as_uids(table["uid"])
    else:  # as `infra index` and a download make them
        known = _keys(dataset, shard) if shard is not None else {}
        told = zip(*(_text(table, column).to_pylist() for column in ("key", url, "caption")), strict=True)
        made = [known.get(key) or pair_uid(address or "", caption) for key, address, caption in told]
        uids = pa.chunked_array([pa.array(made, UID)])
    return pa.Table.from_arrays([uids, *texts, stored], schema=ROWS)


def _text(table: pa.Table, name: str) -> pa.ChunkedArray:
    """A column as text; null where it is absent or something else."""
    if name in table.column_names:
        kind = table[name].type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return table[name].cast(pa.string())
    return pa.chunked_array([pa.nulls(table.num_rows, pa.string())])


def _keys(dataset: Dataset, shard: str) -> dict[str, bytes]:
    index = read_table(dataset.storage, dataset.index(shard), ["uid", "key"])
    return dict(zip(index["key"].to_pylist(), index["uid"].to_pylist(), strict=True))


def _of_bare_tar(dataset: Dataset, tar: str) -> pa.Table:
    """uids by the index, addresses by the samples' json."""
    samples = members_of(dataset, tar.removesuffix(".tar"))
    facts = {uid: [part for part in sample if part.ending == "json"] for uid, sample in samples.items()}
    facts = {uid: parts for uid, parts in facts.items() if parts}
    found = zip(facts, read_samples(dataset.storage, tar, list(facts.values())), strict=True)
    told = {uid: _json(parts["json"]) for uid, parts in found}
    rows = [{"uid": uid, "stored": True, **told.get(uid, {})} for uid in samples]
    return pa.Table.from_pylist(rows, schema=ROWS)


def _json(data: bytes) -> dict[str, Any]:
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return {name: told[name] for name in TOLD if isinstance(told.get(name), str)} if isinstance(told, dict) else {}
