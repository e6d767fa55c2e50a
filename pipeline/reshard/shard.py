"""One curated shard: samples of the source's shards under new keys, their images byte for byte.

Its table has the source's columns, and where each sample came from (origin_shard, origin_key) and which of its captions
it is stored with (caption_source, caption_n).
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from infra.dataset import Dataset
from infra.jobs import Job, Outcome, Step
from infra.ledger import Counts
from infra.removed import REMOVED, RemovedRows
from infra.rows import Rows
from infra.shards import IMAGE_ENDINGS, ShardWriter, sample_json
from infra.tables import read_table, write_table
from pipeline.download.shard import FAILED_DOWNLOAD, SUCCESS
from pipeline.download.split import input_table
from pipeline.reshard.arrange import Arrange
from pipeline.reshard.config import ReshardConfig
from pipeline.reshard.members import Sample, members_of, read_samples


class Reshard(Step):
    """One job a shard."""

    name = "reshard"

    def __init__(self, rows: Rows, out: Dataset, config: ReshardConfig) -> None:
        self.rows = rows
        self.source = rows.dataset
        self.dataset = out
        self.config = config

    def settings(self) -> Mapping[str, Any]:
        """What changes keys and shards."""
        return self.config.fingerprint_values()

    def inputs(self, job: Job) -> Any:
        """What the shard takes; the selection that said so knows the source's shards by their digests."""
        return job.payload["input"]

    def plan(self) -> Sequence[Job]:
        """A job for each input table."""
        files = [file for mark in self.dataset.ledger.done(Arrange.name).values() for file in mark.files]
        return [Job(file.name.rpartition("/")[2].removesuffix(".parquet"), {"input": file.identity}) for file in files]

    def run(self, job: Job) -> Outcome:
        """Rows in = samples of the input table; what its shard lacks is dropped as missing_image or removed."""
        started = time.time()
        shard, storage, names = job.id, self.dataset.storage, self.dataset
        wanted = read_table(storage, input_table(shard))
        digits = max(1, len(str(self.config.shard_size - 1)))
        keys = pa.array([f"{shard}{row:0{digits}d}" for row in range(wanted.num_rows)], pa.string())
        parts: list[pa.Table] = []
        with storage.commit(names.tar(shard)) as draft, ShardWriter(draft.path) as writer:
            for origin, rows in runs(wanted["origin_shard"]):
                samples = members_of(self.rows.index, origin)
                parts.append(self._table(origin, wanted[rows], keys[rows], samples))
                self._copy(origin, parts[-1], samples, writer)
        table = pa.concat_tables(parts, promote_options="permissive")
        files = [
            draft.result(),
            write_table(storage, names.table(shard), table),
            write_table(storage, names.index(shard), writer.index()),
        ]
        dropped = Counter(table["reason"].drop_null().to_pylist())
        counts = Counts(table.num_rows, table.num_rows - dropped.total(), dropped)
        storage.commit_bytes(names.stats(shard), _stats(counts, started))
        return Outcome(counts, tuple(files))

    def _table(self, origin: str, wanted: pa.Table, keys: pa.Array, samples: Mapping[bytes, Sample]) -> pa.Table:
        """The rows of these samples, in the order wanted, with their fates."""
        rows = self.rows.read(origin)
        rows = rows.take(pc.index_in(wanted["uid"], value_set=rows["uid"].combine_chunks()))
        has_image = [any(part.ending in IMAGE_ENDINGS for part in samples.get(uid, ())) for uid in _list(wanted["uid"])]
        is_removed = RemovedRows.of(self.source.storage).hold(wanted["uid"], None)
        fates = zip(is_removed, has_image, strict=True)
        reasons = [REMOVED if gone else None if held else "missing_image" for gone, held in fates]
        columns: dict[str, Any] = {
            "uid": wanted["uid"],
            "key": keys,
            "url": rows["url"],
            "caption": _captions(self.source, origin, wanted, rows["caption"]),
            "status": pa.array([SUCCESS if reason is None else FAILED_DOWNLOAD for reason in reasons], pa.string()),
            "reason": pa.array(reasons, pa.string()),
        }
        columns |= {name: rows[name] for name in rows.column_names if name not in columns}
        if "origin_shard" not in columns:  # of shards that were cut before: where they first came from
            columns |= {"origin_shard": wanted["origin_shard"], "origin_key": rows["key"]}
        return pa.table(columns | {name: wanted[name] for name in ("caption_source", "caption_n")})

    def _copy(self, origin: str, table: pa.Table, samples: Mapping[bytes, Sample], writer: ShardWriter) -> None:
        """Append the stored samples: text and facts are the new table's, all else is copied."""
        rows = [row for row in table.to_pylist() if row["status"] == SUCCESS]
        found = read_samples(self.source.storage, self.source.tar(origin), [samples[row["uid"]] for row in rows])
        for row, parts in zip(rows, found, strict=True):
            facts = _facts(parts.get("json"))
            facts |= {name: value for name, value in row.items() if value is not None or name not in facts}
            own = {"txt": (row["caption"] or "").encode("utf-8", "replace"), "json": sample_json(facts)}
            images = {ending: data for ending, data in parts.items() if ending in IMAGE_ENDINGS}
            writer.write(
                row["uid"], row["key"], images | own | {kind: parts[kind] for kind in parts if kind not in own}
            )


def runs(column: pa.ChunkedArray) -> Iterator[tuple[str, slice]]:
    """Each run of equal values, and its rows."""
    start = 0
    for value, group in groupby(_list(column)):
        end = start + sum(1 for _ in group)
        yield value, slice(start, end)
        start = end


def _captions(source: Dataset, shard: str, wanted: pa.Table, web: pa.ChunkedArray) -> pa.Array:
    """The text that each sample is stored with: its first kept caption."""
    keys = list(zip(*(_list(wanted[name]) for name in ("caption_source", "uid", "caption_n")), strict=True))
    texts: dict[Any, str | None] = {}
    for name in {source for source, *_ in keys} - {"web"}:
        columns = read_table(source.storage, f"captions/{name}/{shard}.parquet", ["uid", "n", "text"]).columns
        texts |= {(name, uid, n): text for uid, n, text in zip(*map(_list, columns), strict=True)}
    chosen = [text if key[0] == "web" else texts.get(key) for key, text in zip(keys, _list(web), strict=True)]
    return pa.array(chosen, pa.string())


def _list(column: pa.ChunkedArray) -> list[Any]:
    return list(column.to_pylist())


def _facts(data: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(data) if data else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _stats(counts: Counts, started: float) -> bytes:
    ended = time.time()
    values = {
        "count": counts.rows_in,
        "successes": counts.rows_out,
        "failed_to_download": counts.num_dropped,
        "failed_to_resize": 0,
        "duration": ended - started,
        "start_time": started,
        "end_time": ended,
        "status_dict": {SUCCESS: counts.rows_out, **counts.dropped},
    }
    return json.dumps(values, indent=1).encode() + b"\n"
