"""One shard: every row of its input table ends with one status and one reason; what succeeded is stored.

An engine says what became of each row and puts stored bytes into a spool on disk, in any order; the tar is then
written in the order of the rows, so that the same web gives the same bytes. Nothing of clocks, attempts or addresses
enters the tar or the tables.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from infra.dataset import Dataset
from infra.jobs import Job, Outcome, Resources, Step
from infra.ledger import Counts
from infra.removed import REMOVED, UID, RemovedRows, blanked, is_in
from infra.shards import ShardWriter, sample_json
from infra.tables import write_table
from pipeline.download.config import DownloadConfig
from pipeline.download.deny import DenyList
from pipeline.download.split import duplicates_table, input_table, read_input

SUCCESS = "success"
FAILED_DOWNLOAD = "failed_to_download"
FAILED_RESIZE = "failed_to_resize"


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one image: stored bytes in the spool, or why not. Shared by all rows that want the same."""

    status: str
    reason: str | None = None
    error_message: str | None = None
    http_status: int | None = None
    place: tuple[int, int] | None = None  # (offset, size) in the spool
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    exif: str | None = None
    sha256: str | None = None


class ShardStep(Step):
    """One job a shard, whatever engine fetches it. An engine gives `find_fates`, and what it holds."""

    name = "download"
    holds = True

    def __init__(self, dataset: Dataset, config: DownloadConfig) -> None:
        self.dataset = dataset
        self.config = config
        self.resources = Resources(cpus=config.cpus_per_worker)
        self._deny = DenyList.load(config.deny)  # it travels: another machine may not have the file

    def settings(self) -> Mapping[str, Any]:
        """What changes the shards, the deny list's content included."""
        return {**self.config.fingerprint_values(), "deny": self._deny.digest}

    def inputs(self, job: Job) -> Any:
        """Digests of the shard's input table and of its list of repeated rows."""
        return job.payload

    def plan(self) -> Sequence[Job]:
        """A job for each input table that was split off."""
        ledger = self.dataset.ledger
        marks = [mark for step in ("split", "duplicates") for mark in ledger.done(step).values()]
        digests = {file.name: file.identity for mark in marks for file in mark.files}
        tables = sorted(name for name in digests if not name.startswith(duplicates_table("").rpartition("/")[0]))
        shards = [name.rpartition("/")[2].removesuffix(".parquet") for name in tables]
        return [
            Job(shard, {"input": digests[input_table(shard)], "duplicates": digests.get(duplicates_table(shard))})
            for shard in shards
        ]

    def find_fates(self, rows: pa.Table, spool: BinaryIO) -> Sequence[Fate]:
        """A fate for each row, in order; stored bytes go to the spool, at the fate's `place`."""
        raise NotImplementedError

    def run(self, job: Job) -> Outcome:
        """Fetch, convert and publish shard `job.id`. Rows in = rows of its input table without the repeated ones."""
        started = time.time()
        rows = read_input(self.dataset, job.id)
        is_removed = RemovedRows.of(self.dataset.storage).hold(rows["uid"], rows["url"])
        is_denied = is_in(rows["uid"], pa.array(sorted(self._deny.uids), UID))
        denied = Fate(FAILED_DOWNLOAD, "denied_uid", "on the deny list")
        refused = dict.fromkeys(np.flatnonzero(is_denied).tolist(), denied)
        refused |= {row: Fate(FAILED_DOWNLOAD, REMOVED) for row in np.flatnonzero(is_removed).tolist()}
        rows = blanked(rows, is_removed)
        with tempfile.TemporaryFile() as spool:
            fates = self._find_all(rows, refused, spool)
            return self._publish(job.id, rows, fates, spool, started)

    def _find_all(self, rows: pa.Table, refused: Mapping[int, Fate], spool: BinaryIO) -> Sequence[Fate]:
        """Fates of all rows; the refused ones are never asked for."""
        asked = [row for row in range(rows.num_rows) if row not in refused]
        found = iter(self.find_fates(rows.take(pa.array(asked, pa.int64())), spool) if asked else ())
        return [refused[row] if row in refused else next(found) for row in range(rows.num_rows)]

    def _publish(self, shard: str, rows: pa.Table, fates: Sequence[Fate], spool: BinaryIO, started: float) -> Outcome:
        storage, names = self.dataset.storage, self.dataset
        digits = max(1, len(str(self.config.shard_size - 1)))
        keys = [f"{shard}{row:0{digits}d}" for row in range(rows.num_rows)]
        table = _shard_table(rows, keys, fates)
        with storage.commit(names.tar(shard)) as draft, ShardWriter(draft.path) as writer:
            for row, fate in zip(table.to_pylist(), fates, strict=True):
                if fate.place is None:
                    continue
                spool.seek(fate.place[0])
                parts = {
                    self.config.encode_format: spool.read(fate.place[1]),
                    "txt": (row["caption"] or "").encode("utf-8", "replace"),
                    "json": sample_json(row),
                }
                writer.write(row["uid"], row["key"], parts)
        files = [
            draft.result(),
            write_table(storage, names.table(shard), table),
            write_table(storage, names.index(shard), writer.index()),
        ]
        statuses = Counter(fate.status for fate in fates)
        storage.commit_bytes(names.stats(shard), _stats(shard, fates, statuses, started))
        dropped = Counter(fate.reason for fate in fates if fate.reason is not None)
        return Outcome(Counts(rows.num_rows, statuses[SUCCESS], dropped), tuple(files))


def _shard_table(rows: pa.Table, keys: Sequence[str], fates: Sequence[Fate]) -> pa.Table:
    """img2dataset's columns with its status words, our uid, reason and sizes, then the input's further columns."""

    def of(name: str, kind: pa.DataType) -> pa.Array:
        return pa.array([getattr(fate, name) for fate in fates], kind)

    columns: dict[str, Any] = {
        "uid": rows["uid"].cast(UID),
        "key": pa.array(keys, pa.string()),
        "url": rows["url"],
        "caption": rows["caption"],
        "status": of("status", pa.string()),
        "reason": of("reason", pa.string()),
        "error_message": of("error_message", pa.string()),
        "http_status": of("http_status", pa.int16()),
        "width": of("width", pa.int32()),
        "height": of("height", pa.int32()),
        "original_width": of("original_width", pa.int32()),
        "original_height": of("original_height", pa.int32()),
        "bytes": pa.array([fate.place[1] if fate.place else None for fate in fates], pa.int64()),
        "exif": of("exif", pa.string()),
        "sha256": of("sha256", pa.string()),
    }
    columns |= {name: rows[name] for name in rows.column_names if name not in columns}
    return pa.table(columns)


def _stats(shard: str, fates: Sequence[Fate], statuses: Mapping[str, int], started: float) -> bytes:
    ended = time.time()
    values = {
        "count": len(fates),
        "successes": statuses[SUCCESS],
        "failed_to_download": statuses[FAILED_DOWNLOAD],
        "failed_to_resize": statuses[FAILED_RESIZE],
        "duration": ended - started,
        "start_time": started,
        "end_time": ended,
        "status_dict": dict(Counter(fate.reason or SUCCESS for fate in fates).most_common()),
    }
    return json.dumps(values, indent=1).encode() + b"\n"
