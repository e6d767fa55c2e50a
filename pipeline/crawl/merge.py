"""Pairs as found to the result: distinct (url, caption), each with its archived image where one is known.

A job is a range of uids, so that jobs share nothing and the tables' order mixes hosts, which spreads later downloads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from infra.dataset import Dataset
from infra.jobs import Job, Outcome, Step
from infra.ledger import Counts
from infra.recipe import fingerprint
from infra.sample import UID_BYTES
from infra.tables import connect, urls, write_table
from pipeline.crawl.config import CrawlConfig

PAIRS = pa.schema(
    [
        ("uid", pa.binary(UID_BYTES)),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("page_url", pa.string()),
        ("caption_from", pa.string()),
        ("lang_hint", pa.string()),
        ("licence", pa.string()),
        ("warc_path", pa.string()),  # of the image, where it lies in an archive
        ("warc_offset", pa.int64()),
        ("page_warc_path", pa.string()),
        ("page_warc_offset", pa.int64()),
        ("num_seen", pa.int64()),  # how often the pair was found
    ]
)


class Merge(Step):
    """One job a table of the result."""

    name = "crawl_merge"
    derived = True

    def __init__(self, dataset: Dataset, config: CrawlConfig, finders: Sequence[str]) -> None:
        self.dataset = dataset
        self.config = config
        self._finders = finders  # the steps whose pairs are merged

    def settings(self) -> Mapping[str, Any]:
        """What changes the tables."""
        return {"pairs_per_table": self.config.pairs_per_table}

    def inputs(self, job: Job) -> Any:
        """The uid range and a digest of all that was found."""
        return job.payload

    def plan(self) -> Sequence[Job]:
        """As many equal ranges of uids as the number of pairs found asks for."""
        marks = [mark for step in self._finders for mark in self.dataset.ledger.done(step).values()]
        files = sorted({file.name: file.identity for mark in marks for file in mark.files}.items())
        found = [(name, digest) for name, digest in files if name.startswith("crawl/found/")]
        images = [(name, digest) for name, digest in files if name.startswith("crawl/images/")]
        num_pairs = sum(mark.counts.extra.get("pairs", 0) for mark in marks)
        num_tables = max(1, -(-num_pairs // self.config.pairs_per_table))
        edges = [_edge(at, num_tables) for at in range(num_tables + 1)]
        self._found = [name for name, _ in found]
        self._images = [name for name, _ in images]
        digest = fingerprint(found, images)
        return [
            Job(f"{at:05d}", {"from": edges[at], "to": edges[at + 1], "digest": digest}) for at in range(num_tables)
        ]

    def run(self, job: Job) -> Outcome:
        """Rows in = pairs found in the range; those found again are dropped as `duplicate_pair`."""
        storage = self.dataset.storage
        connection = connect(storage, self.config.sort_memory)
        if not self._found:
            return Outcome(Counts(), (write_table(storage, f"pairs/{job.id}.parquet", PAIRS.empty_table()),))
        connection.execute(
            "CREATE TEMP TABLE image (url VARCHAR, warc_path VARCHAR, warc_offset BIGINT)"
            if not self._images
            else "CREATE TEMP TABLE image AS SELECT url, (min({'p': warc_path, 'o': warc_offset})).p AS warc_path, "
            "(min({'p': warc_path, 'o': warc_offset})).o AS warc_offset FROM read_parquet(?) GROUP BY url",
            [urls(storage, self._images)] if self._images else [],
        )
        columns = ", ".join(f"image.{name}" if name.startswith("warc_") else f"ranked.{name}" for name in PAIRS.names)
        merged = connection.sql(
            f"""
            WITH ranked AS (
                SELECT *, row_number() OVER same AS nth, count(*) OVER (PARTITION BY uid) AS num_seen
                FROM read_parquet(?)
                WHERE uid >= from_hex(?) AND {"true" if job.payload["to"] is None else "uid < from_hex(?)"}
                WINDOW same AS (PARTITION BY uid ORDER BY depth, page_url, page_warc_path, page_warc_offset, position)
            )
            SELECT {columns}
            FROM ranked LEFT JOIN image USING (url) WHERE nth = 1 ORDER BY uid
            """,
            params=[
                urls(storage, self._found),
                job.payload["from"],
                *([job.payload["to"]] if job.payload["to"] else []),
            ],
        ).to_arrow_table()
        table = merged.cast(PAIRS)
        num_found = sum(table["num_seen"].to_pylist())
        repeated = num_found - table.num_rows
        dropped = {"duplicate_pair": repeated} if repeated else {}
        inside = table.num_rows - table["warc_path"].null_count
        extra = {"image_in_archive": inside} if inside else {}
        return Outcome(
            Counts(num_found, table.num_rows, dropped, extra), (write_table(storage, f"pairs/{job.id}.parquet", table),)
        )


def _edge(at: int, num_tables: int) -> str | None:
    """The first uid of range `at`, as hex; None behind the last."""
    return None if at == num_tables else f"{(at << 128) // num_tables:032x}"
