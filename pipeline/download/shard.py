"""One shard: its rows' images fetched, converted and stored; every row ends with one status and one reason.

Bodies arrive in any order and wait in a spool on disk; the tar is then written in the order of the rows, so that the
same web gives the same bytes. Nothing of clocks, attempts or addresses enters the tar or the tables.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import pyarrow as pa

from infra.dataset import Dataset
from infra.jobs import Job, Outcome, Resources
from infra.ledger import Counts
from infra.sample import UID_BYTES
from infra.shards import ShardWriter, sample_json
from infra.tables import read_table, write_table
from pipeline.crawl.optout import image_opt_out
from pipeline.crawl.warc import RecordError, read_record
from pipeline.download.config import DownloadConfig
from pipeline.download.deny import DenyList
from pipeline.download.split import duplicates_table, input_table, shard_name
from pipeline.fetch.client import Fetcher
from pipeline.fetch.errors import FetchError
from pipeline.images.convert import ImageError, convert

SUCCESS = "success"
FAILED_DOWNLOAD = "failed_to_download"
FAILED_RESIZE = "failed_to_resize"
IN_FLIGHT = 4  # times the connections: rows that wait for their host keep no connection idle


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


@dataclass(frozen=True, slots=True)
class Wanted:
    """One image to fetch: rows that agree on all of this share it."""

    url: str
    expected_hash: str | None
    boxes: str | None
    warc_path: str | None
    warc_offset: int | None


class Download:
    """One job a shard. Holds connections, names and a thread pool from shard to shard."""

    name = "download"
    holds = True

    def __init__(self, dataset: Dataset, config: DownloadConfig) -> None:
        self.dataset = dataset
        self.config = config
        self.resources = Resources(cpus=config.cpus_per_worker)
        self._deny_digest = DenyList.load(config.deny).digest

    def settings(self) -> Mapping[str, Any]:
        """What changes the shards, the deny list's content included."""
        return {**self.config.fingerprint_values(), "deny": self._deny_digest}

    def inputs(self, job: Job) -> Any:
        """Digests of the shard's input table and of its list of repeated rows."""
        return job.payload

    def plan(self) -> Sequence[Job]:
        """A job for each input table that was split off."""
        ledger = self.dataset.ledger
        digests = {file.name: file.digest for step in ("split", "duplicates")
                   for mark in ledger.done(step).values() for file in mark.files}  # fmt: skip
        shards = sorted(name.rpartition("/")[2].removesuffix(".parquet") for name in digests if "/duplicates/" not in name)
        return [
            Job(shard, {"input": digests[input_table(shard)], "duplicates": digests.get(duplicates_table(shard))})
            for shard in shards
        ]

    def setup(self) -> None:
        """Open the fetcher on an event loop of its own, and the threads for pixels."""
        self._deny = DenyList.load(self.config.deny)
        self._loop = asyncio.new_event_loop()
        self._fetcher = Fetcher(self.config)
        self._loop.run_until_complete(self._fetcher.__aenter__())
        num_threads = self.config.threads or max(1, int(self.config.cpus_per_worker))
        self._threads = ThreadPoolExecutor(num_threads, "pixels")

    def teardown(self) -> None:
        """Close connections and threads."""
        self._threads.shutdown(cancel_futures=True)
        self._loop.run_until_complete(self._fetcher.__aexit__(None, None, None))
        self._loop.close()

    def run(self, job: Job) -> Outcome:
        """Fetch, convert and publish shard `job.id`. Rows in = rows of its input table without the repeated ones."""
        started = time.time()
        rows = read_table(self.dataset.storage, input_table(job.id))
        if job.payload["duplicates"] is not None:
            rows = _without(rows, read_table(self.dataset.storage, duplicates_table(job.id))["row"].to_pylist())
        wanted = self._wanted(rows)
        with tempfile.TemporaryFile() as spool:
            fates = self._loop.run_until_complete(self._fetch_all(list(dict.fromkeys(wanted)), spool))
            return self._publish(job.id, rows, [fates[want] for want in wanted], spool, started)

    def _wanted(self, rows: pa.Table) -> list[Wanted]:
        def column(name: str | None) -> list[Any]:
            present = name is not None and name in rows.column_names
            return rows[name].to_pylist() if present else [None] * rows.num_rows

        hashes = column(self.config.hash_col) if self.config.verify_hash else column(None)
        boxes = [None if value is None else json.dumps(value) for value in column(self.config.bbox_col)]
        columns = (rows["url"].to_pylist(), hashes, boxes, column("warc_path"), column("warc_offset"))
        return [Wanted(*values) for values in zip(*columns, strict=True)]

    async def _fetch_all(self, wanted: Sequence[Wanted], spool: BinaryIO) -> dict[Wanted, Fate]:
        fates: dict[Wanted, Fate] = {}
        queue = _by_turns(wanted)

        async def work() -> None:
            for want in queue:
                fates[want] = await self._fetch_one(want, spool)

        num_workers = min(len(wanted), IN_FLIGHT * self.config.connections)
        await asyncio.gather(*(work() for _ in range(num_workers)))
        return fates

    async def _fetch_one(self, want: Wanted, spool: BinaryIO) -> Fate:
        denied = self._deny.denies_url(want.url)
        if denied is not None:
            return Fate(FAILED_DOWNLOAD, denied, "on the deny list")
        status: int | None = None
        try:
            if want.warc_path is not None and want.warc_offset is not None:
                record = self._loop.run_in_executor(
                    self._threads, read_record, want.warc_path, want.warc_offset, self.config.max_bytes
                )
                body = (await record)[1]
            else:
                got = await self._fetcher.get(want.url)
                body, status = got.body, got.status
                if self.config.respect_opt_out:
                    refused = image_opt_out(got.headers.getall("X-Robots-Tag", ()), self.config.agent_token)
                    if refused is not None:
                        return Fate(FAILED_DOWNLOAD, "opt_out", refused, status)
        except FetchError as error:
            return Fate(FAILED_DOWNLOAD, error.reason, error.detail, error.status)
        except RecordError as error:
            return Fate(FAILED_DOWNLOAD, error.reason, error.detail)
        fate, data = await self._loop.run_in_executor(self._threads, self._convert, want, body)
        if data:
            # Only this thread writes the spool.
            place = (spool.seek(0, 2), len(data))
            spool.write(data)
            fate = replace(fate, place=place)
        return replace(fate, http_status=status)

    def _convert(self, want: Wanted, body: bytes) -> tuple[Fate, bytes]:
        sha256 = hashlib.sha256(body).hexdigest()
        fate = Fate(FAILED_DOWNLOAD, sha256=sha256)
        if self.config.verify_hash:
            digest = sha256 if self.config.verify_hash == "sha256" else hashlib.new(self.config.verify_hash, body).hexdigest()
            if digest != (want.expected_hash or "").lower():
                return replace(fate, reason="hash_mismatch", error_message=f"{self.config.verify_hash} differs"), b""
        denied = self._deny.denies_bytes(sha256)
        if denied is None and self._deny.phashes:
            denied = self._denied_phash(body)
        if denied is not None:
            return replace(fate, reason=denied, error_message="on the deny list"), b""
        try:
            image = convert(body, self.config, json.loads(want.boxes) if want.boxes else None)
        except ImageError as error:
            return replace(fate, status=FAILED_RESIZE, reason=error.reason, error_message=error.detail), b""
        stored = Fate(
            SUCCESS,
            width=image.width,
            height=image.height,
            original_width=image.original_width,
            original_height=image.original_height,
            exif=image.exif,
            sha256=sha256,
        )
        return stored, image.data

    def _denied_phash(self, body: bytes) -> str | None:
        from filters.phash import perceptual_hash_of_bytes

        try:
            return self._deny.denies_pixels(perceptual_hash_of_bytes(body, self.config.max_pixels))
        except ImageError:
            return None  # convert() gives the reason

    def _publish(
        self, shard: str, rows: pa.Table, fates: Sequence[Fate], spool: BinaryIO, started: float
    ) -> Outcome:
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
        "uid": rows["uid"].cast(pa.binary(UID_BYTES)),
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


def _without(rows: pa.Table, dropped: Sequence[int]) -> pa.Table:
    gone = set(dropped)
    return rows.take(pa.array([row for row in range(rows.num_rows) if row not in gone], pa.int64()))


def _by_turns(wanted: Sequence[Wanted]) -> Iterator[Wanted]:
    """Hosts take turns, so that one slow host does not hold every place."""
    queues: dict[str, list[Wanted]] = {}
    for want in wanted:
        queues.setdefault(want.url.split("/", 3)[2] if want.url.count("/") >= 2 else "", []).append(want)
    turns = [iter(queue) for queue in queues.values()]
    while turns:
        left = []
        for turn in turns:
            want = next(turn, None)
            if want is not None:
                yield want
                left.append(turn)
        turns = left


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
