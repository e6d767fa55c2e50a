"""Tables of a crawl: pairs as found, pages and their fates, links, images that lie in archives.

crawl/frontier/RNNNNN-BNNNNN.parquet   pages to ask for in a round, by host bucket
crawl/later/RNNNNN.parquet         links put off to a later round
crawl/found/JOB.parquet            pairs as found by a job, sorted by uid, repeats and all
crawl/links/JOB.parquet            links a job found, for the next round
crawl/images/JOB.parquet           image records of an archive
ledger/pages/JOB.parquet           pages and their fates
pairs/NNNNN.parquet                the result: distinct pairs, by uid
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from infra.sample import UID_BYTES, pair_uid
from infra.storage import Committed, Storage
from infra.tables import write_table
from pipeline.crawl.html import Candidate, Page

FOUND = pa.schema(
    [
        ("uid", pa.binary(UID_BYTES)),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("page_url", pa.string()),
        ("caption_from", pa.string()),
        ("lang_hint", pa.string()),
        ("licence", pa.string()),
        ("page_warc_path", pa.string()),
        ("page_warc_offset", pa.int64()),
        ("depth", pa.int32()),
        ("position", pa.int32()),  # of the pair on its page
    ]
)
PAGES = pa.schema(
    [
        ("url", pa.string()),
        ("host", pa.string()),
        ("depth", pa.int32()),
        ("status", pa.int16()),
        ("reason", pa.string()),  # "ok", or why the page gave nothing
        ("detail", pa.string()),
        ("title", pa.string()),
        ("num_img", pa.int32()),
        ("num_img_with_alt", pa.int32()),
        ("num_pairs", pa.int32()),
        ("num_links", pa.int32()),
        ("warc_path", pa.string()),
        ("warc_offset", pa.int64()),
    ]
)
LINKS = pa.schema(
    [
        ("url", pa.string()),
        ("host", pa.string()),
        ("bucket", pa.int32()),
        ("depth", pa.int32()),
        ("num_redirects", pa.int32()),
        ("in_scope", pa.bool_()),
    ]
)
IMAGES = pa.schema([("url", pa.string()), ("warc_path", pa.string()), ("warc_offset", pa.int64())])


class Harvest:
    """What one job gathers from its pages. Written at its end, in a fixed order."""

    def __init__(self) -> None:
        self._found: list[tuple[Candidate, tuple[Any, ...]]] = []
        self.pages: list[dict[str, Any]] = []
        self.images: list[tuple[str, str, int]] = []
        self.tally: Counter[str] = Counter()

    def add_page(
        self, page: Page, *, url: str, host: str, depth: int = 0, status: int | None = None,
        warc_path: str | None = None, warc_offset: int | None = None, opt_out: str | None = None,
    ) -> None:  # fmt: skip
        """Take a parsed page: its pairs, or with `opt_out` none of them, and its row."""
        self.tally["images"] += page.num_img
        self.tally["images_with_alt"] += page.num_img_with_alt
        for reason, number in page.dropped.items():
            self.tally[f"no_pair:{reason}"] += number
        if opt_out is not None:
            self.tally["no_pair:opt_out"] += len(page.candidates)
        else:
            self.tally["pairs"] += len(page.candidates)
            for position, pair in enumerate(page.candidates):
                self._found.append((pair, (url, warc_path, warc_offset, depth, position)))
        self.pages.append(
            {
                "url": url, "host": host, "depth": depth, "status": status, "title": page.title,
                "reason": "opt_out" if opt_out is not None else "ok", "detail": opt_out,
                "num_img": page.num_img, "num_img_with_alt": page.num_img_with_alt,
                "num_pairs": 0 if opt_out is not None else len(page.candidates), "num_links": len(page.links),
                "warc_path": warc_path, "warc_offset": warc_offset,
            }
        )  # fmt: skip

    def drop_page(self, *, url: str, host: str, reason: str, depth: int = 0, **more: Any) -> None:
        """Note a page that gave nothing."""
        self.pages.append({"url": url, "host": host, "depth": depth, "reason": reason, **more})

    def write(self, storage: Storage, job: str) -> list[Committed]:
        """Publish found pairs, pages and, where there are any, images."""
        found = pa.table(dict(_columns(sorted(self._rows(), key=_by_uid), FOUND)), schema=FOUND)
        pages = sorted(self.pages, key=lambda row: (row["url"], row.get("warc_offset") or 0))
        files = [
            write_table(storage, f"crawl/found/{job}.parquet", found),
            write_table(storage, f"ledger/pages/{job}.parquet", pa.Table.from_pylist(pages, schema=PAGES)),
        ]
        if self.images:
            images = pa.table(dict(_columns(sorted(self.images), IMAGES)), schema=IMAGES)
            files.append(write_table(storage, f"crawl/images/{job}.parquet", images))
        return files

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        inside = {url for url, _, _ in self.images}
        for pair, (page_url, *place) in self._found:
            # Of one picture's addresses, one that lies in this archive: a browser has fetched just that.
            url = next((url for url in (pair.url, *pair.others) if url in inside), pair.url)
            row = (pair_uid(url, pair.caption), url, pair.caption, page_url)
            yield (*row, pair.caption_from, pair.lang_hint, pair.licence, *place)


def _columns(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> list[tuple[str, pa.Array]]:
    return [(field.name, pa.array([row[at] for row in rows], field.type)) for at, field in enumerate(schema)]


def _by_uid(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return (row[0], row[9], row[3], row[10])  # uid, depth, page, position: what the merge keeps comes first
