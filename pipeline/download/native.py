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
from pipeline.crawl.urls import host_of
from pipeline.crawl.warc import RecordError, read_record
from pipeline.download.deny import DenyList
from pipeline.download.shard import FAILED_DOWNLOAD, FAILED_RESIZE, SUCCESS, Fate, ShardStep
from pipeline.fetch.client import Fetcher
from pipeline.fetch.errors import FetchError
from pipeline.images.convert import convert
from pipeline.images.errors import ImageError

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

    def find_fates(self, rows: pa.Table, spool: BinaryIO) -> Sequence[Fate]:
        """Fetch each distinct image once."""
        wanted = self._wanted(rows)
        fates = self._loop.run_until_complete(self._fetch_all(list(dict.fromkeys(wanted)), spool))
        return [fates[want] for want in wanted]

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
                # Held to the end of this call: its bytes count against the fetcher's budget for as long.
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
        except FileNotFoundError:
            return Fate(FAILED_DOWNLOAD, "no_archive", want.warc_path)
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
            digest = (
                sha256
                if self.config.verify_hash == "sha256"
                else hashlib.new(self.config.verify_hash, body).hexdigest()
            )
            if digest != (want.expected_hash or "").lower():
                return replace(fate, reason="hash_mismatch", error_message=f"{self.config.verify_hash} differs"), b""
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


def _by_turns(wanted: Sequence[Wanted]) -> Iterator[Wanted]:
    """Hosts take turns, so that one slow host does not hold every place."""
    hosts: dict[str, list[Wanted]] = {}
    for want in wanted:
        hosts.setdefault(host_of(want.url), []).append(want)
    for turn in zip_longest(*hosts.values()):
        yield from (want for want in turn if want is not None)
