"""The native engine: bounded, guarded, polite fetching; pixels in threads; one fetch for rows that want the same."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.crawl.optout import image_opt_out
from pipeline.crawl.warc import RecordError, read_record
from pipeline.download.shard import FAILED_DOWNLOAD, FAILED_RESIZE, SUCCESS, Fate, ShardStep
from pipeline.fetch.client import Fetcher
from pipeline.fetch.errors import FetchError
from pipeline.images.convert import convert
from pipeline.images.errors import ImageError
from pipeline.urls import host_of

# A table may name what is no archive, and no file at all; other faults are the storage's, and may pass.
NOT_AN_ARCHIVE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, ValueError, ImportError)
IN_FLIGHT = 4  # times the connections: rows that wait for their host keep no connection idle


@dataclass(frozen=True, slots=True)
class Wanted:
    """One image to fetch: rows that agree on all of this share it."""

    url: str
    expected_hash: str | None
    boxes: str | None
    warc_path: str | None
    warc_offset: int | None


class Native(ShardStep):
    """Holds connections, names and a thread pool from shard to shard."""

    def setup(self) -> None:
        """Open the fetcher on an event loop of its own, and the threads for pixels."""
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

    def find_fates(self, rows: pa.Table, spool: BinaryIO) -> Sequence[Fate]:
        """Fetch each distinct image once."""
        wanted = self._wanted(rows)
        fates = self._loop.run_until_complete(self._fetch_all(list(dict.fromkeys(wanted)), spool))
        return [fates[want] for want in wanted]

    def _wanted(self, rows: pa.Table) -> list[Wanted]:
        def column(name: str | None) -> list[Any]:
            present = name is not None and name in rows.column_names
            return rows[name].to_pylist() if present else [None] * rows.num_rows

        hashes = [_hex(value) for value in column(self.config.hash_col if self.config.verify_hash else None)]
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
        workers = [asyncio.ensure_future(work()) for _ in range(num_workers)]
        try:
            await asyncio.gather(*workers)
        finally:  # after a fault none may go on behind the shard's next try
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return fates

    async def _fetch_one(self, want: Wanted, spool: BinaryIO) -> Fate:
        denied = self._deny.denies_url(want.url)
        if denied is not None:
            return Fate(FAILED_DOWNLOAD, denied, "on the deny list")
        if want.warc_path is not None and want.warc_offset is not None:
            return _kept(*await self._loop.run_in_executor(self._threads, self._from_archive, want), spool)
        try:
            # Held to the end of this call: its bytes count against the fetcher's budget for as long.
            got = await self._fetcher.get(want.url)
        except FetchError as error:
            return Fate(FAILED_DOWNLOAD, error.reason, error.detail, error.status)
        if self.config.respect_opt_out:
            refused = image_opt_out(got.headers.getall("X-Robots-Tag", ()), self.config.agent_token)
            if refused is not None:
                return Fate(FAILED_DOWNLOAD, "opt_out", refused, got.status)
        denied = self._deny.denies_url(got.url)
        if denied is not None:
            return Fate(FAILED_DOWNLOAD, denied, "redirected to what is on the deny list", got.status)
        fate, data = await self._loop.run_in_executor(self._threads, self._convert, want, got.body)
        return _kept(replace(fate, http_status=got.status), data, spool)

    def _from_archive(self, want: Wanted) -> tuple[Fate, bytes]:
        """Read and convert in one go: as many bodies are held as there are threads."""
        assert want.warc_path is not None
        assert want.warc_offset is not None
        try:
            _, body = read_record(want.warc_path, want.warc_offset, self.config.max_bytes)
        except RecordError as error:
            return Fate(FAILED_DOWNLOAD, error.reason, error.detail), b""
        except NOT_AN_ARCHIVE as error:
            return Fate(FAILED_DOWNLOAD, "no_archive", type(error).__name__), b""
        return self._convert(want, body)

    def _convert(self, want: Wanted, body: bytes) -> tuple[Fate, bytes]:
        sha256 = hashlib.sha256(body).hexdigest()
        fate = Fate(FAILED_DOWNLOAD, sha256=sha256)
        if self.config.verify_hash:
            digest = (
                sha256
                if self.config.verify_hash == "sha256"
                else hashlib.new(self.config.verify_hash, body).hexdigest()
            )
            if digest != want.expected_hash:
                return replace(fate, reason="hash_mismatch", error_message=f"{self.config.verify_hash} differs"), b""
        if self.config.bbox_col and want.boxes is None:
            message = f"no value in {self.config.bbox_col}; an empty list says that there is nothing to blur"
            return replace(fate, status=FAILED_RESIZE, reason="bad_boxes", error_message=message), b""
        denied = self._deny.denies_bytes(sha256)
        if denied is not None:
            return replace(fate, reason=denied, error_message="on the deny list"), b""
        try:
            image = convert(body, self.config, json.loads(want.boxes) if want.boxes else None)
        except ImageError as error:
            return replace(fate, status=FAILED_RESIZE, reason=error.reason, error_message=error.detail), b""
        denied = self._denied_by_sight(image.data)
        if denied is not None:
            return replace(fate, reason=denied, error_message="on the deny list"), b""
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

    def _denied_by_sight(self, image: bytes) -> str | None:
        if not self._deny.phashes:
            return None
        from filters.phash import perceptual_hash_of_bytes

        return self._deny.denies_pixels(perceptual_hash_of_bytes(image))


def _kept(fate: Fate, data: bytes, spool: BinaryIO) -> Fate:
    """The fate with the place of its image in the spool. Only the event loop's thread calls this."""
    if not data:
        return fate
    place = (spool.seek(0, 2), len(data))
    spool.write(data)
    return replace(fate, place=place)


def _hex(value: Any) -> str | None:
    """A hash as tables have it, digits or bytes."""
    return None if value is None else value.hex() if isinstance(value, bytes) else str(value).strip().lower()


def _by_turns(wanted: Sequence[Wanted]) -> Iterator[Wanted]:
    """Hosts take turns, so that one slow host does not hold every place."""
    hosts: dict[str, list[Wanted]] = {}
    for want in wanted:
        hosts.setdefault(host_of(want.url), []).append(want)
    for turn in zip_longest(*hosts.values()):
        yield from (want for want in turn if want is not None)
