"""Pairs from archives: one job a WARC or WAT file, streamed. Every record ends in one fate."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from infra.dataset import Dataset
from infra.jobs import Job, Outcome, Step
from infra.ledger import Counts
from pipeline.crawl.config import CrawlConfig
from pipeline.crawl.html import parse_page
from pipeline.crawl.optout import image_opt_out, page_opt_out
from pipeline.crawl.tables import Harvest
from pipeline.crawl.warc import Found, ImageRecord, Skipped, WatRecord, archive_size, open_archive, read_archive
from pipeline.urls import host_of


class Archives(Step):
    """One job an archive file, named by its path, so that more archives given later are more jobs."""

    name = "crawl_archive"

    def __init__(self, dataset: Dataset, config: CrawlConfig, paths: Sequence[str]) -> None:
        self.dataset = dataset
        self.config = config
        self._paths = paths

    def settings(self) -> Mapping[str, Any]:
        """What changes which pairs a page gives."""
        names = ("captions", "max_page_bytes", "respect_opt_out")
        return {**{name: getattr(self.config, name) for name in names}, "agent": self.config.agent_token}

    def inputs(self, job: Job) -> Any:
        """The file's path, and a local file's size."""
        return job.payload

    def plan(self) -> Sequence[Job]:
        """A job for each file, in the order given."""
        # A published archive never changes, and asking for 90,000 sizes would take longer than many a job.
        return [
            Job(_job_id(path), {"path": path, "bytes": None if "://" in path else archive_size(path)})
            for path in self._paths
        ]

    def run(self, job: Job) -> Outcome:
        """Rows in = records; rows out = pages whose pairs were taken; other records are dropped by their fate."""
        path = job.payload["path"]
        harvest = Harvest()
        fates: Counter[str] = Counter()
        with open_archive(path) as stream:
            for record in self._read(stream, path):
                fates[self._take(record, path, harvest)] += 1
        files = harvest.write(self.dataset.storage, job.id)
        num_pages = fates.pop("ok", 0)
        return Outcome(Counts(num_pages + sum(fates.values()), num_pages, fates, harvest.tally), tuple(files))

    def _read(self, stream: IO[bytes], path: str) -> Iterator[Found]:
        return read_archive(stream, path, max_page_bytes=self.config.max_page_bytes, sources=self.config.captions)

    def _take(self, record: Found, path: str, harvest: Harvest) -> str:
        """Add a record to the harvest. Returns its fate."""
        if isinstance(record, Skipped):
            if record.url is not None and record.is_page:
                harvest.drop_page(
                    url=record.url, host=host_of(record.url), reason=record.reason, status=record.status,
                    warc_path=path, warc_offset=record.offset,
                )  # fmt: skip
            return record.reason
        if isinstance(record, ImageRecord):
            tags = [value for name, value in record.headers if name.lower() == "x-robots-tag"]
            if self.config.respect_opt_out and image_opt_out(tags, self.config.agent_token) is not None:
                return "opt_out"
            harvest.images.append((record.url, path, record.offset))
            return "image"
        if isinstance(record, WatRecord):
            page = record.page
        else:
            page = parse_page(
                record.body, url=record.url, content_type=record.content_type, sources=self.config.captions,
                content_language=record.content_language, with_links=False,
            )  # fmt: skip
        place: dict[str, Any] = {"url": record.url, "host": host_of(record.url), "status": record.status}
        place |= {"warc_path": path, "warc_offset": record.offset}
        if page.fault is not None:
            harvest.drop_page(**place, reason=page.fault)
            return page.fault
        refused = None
        if self.config.respect_opt_out:
            refused = page_opt_out(record.headers, page.meta_robots, self.config.agent_token)
        harvest.add_page(page, **place, opt_out=refused)
        return "ok" if refused is None else "opt_out"


def _job_id(path: str) -> str:
    base = path.rsplit("/", 1)[-1]
    stem = "".join(sign if (sign.isascii() and sign.isalnum()) or sign in "-_" else "-" for sign in base)[:80]
    return f"{stem}-{hashlib.blake2b(path.encode(), digest_size=4).hexdigest()}"
