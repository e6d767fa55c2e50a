"""Which pages a live crawl asks for next: links of the last round, minus what was asked before, within the budgets.

One reduce job a round, in DuckDB. Every link in scope ends as a page of a later round, or with a fate of its own
(over_budget, too_deep); politeness stays local, since a host always lies in the same bucket.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from infra.dataset import Dataset
from infra.jobs import Job, Outcome, Step
from infra.ledger import Counts
from infra.recipe import fingerprint
from infra.storage import Committed
from infra.tables import connect, urls, write_table
from pipeline.crawl.config import CrawlConfig
from pipeline.crawl.tables import LINKS, PAGES
from pipeline.urls import clean_url, host_of

LINK_COLUMNS = ", ".join(LINKS.names)


def round_job(number: int, bucket: int) -> str:
    """The id of a job of the live crawl."""
    return f"R{number:05d}-B{bucket:05d}"


def frontier_table(number: int, bucket: int) -> str:
    """Pages of a round and bucket."""
    return f"crawl/frontier/{round_job(number, bucket)}.parquet"


class Scope:
    """Which hosts a live crawl enters, and in which bucket each lies."""

    def __init__(self, seeds: Sequence[str], config: CrawlConfig) -> None:
        self._kind = config.scope
        self._num_buckets = config.buckets
        hosts = {host_of(seed) for seed in seeds}
        self._allowed = {_domain(host) for host in hosts} if config.scope == "domain" else hosts

    def holds(self, host: str) -> bool:
        """May a page of this host be asked for?"""
        if self._kind == "any":
            return bool(host)
        return (_domain(host) if self._kind == "domain" else host) in self._allowed

    def bucket(self, host: str) -> int:
        """The host's bucket: the same in every round, on every machine."""
        return int.from_bytes(hashlib.blake2b(host.encode(), digest_size=4).digest(), "big") % self._num_buckets

    def link(self, url: str, depth: int, num_redirects: int = 0) -> tuple[Any, ...]:
        """A row of LINKS."""
        host = host_of(url)
        return (url, host, self.bucket(host), depth, num_redirects, self.holds(host))


class Frontier(Step):
    """Round R: reads the links of round R-1 (round 0: the seeds), writes the pages of round R, a file a bucket."""

    name = "crawl_frontier"

    def __init__(self, dataset: Dataset, config: CrawlConfig, seeds: Sequence[str], last_round: int) -> None:
        self.dataset = dataset
        self.config = config
        self.scope = Scope(seeds, config)
        self._seeds = sorted({clean_url(seed, seed) or seed for seed in seeds})
        self._last = last_round

    def settings(self) -> Mapping[str, Any]:
        """What changes which pages are asked for."""
        names = ("scope", "max_pages", "max_depth", "buckets", "host_pages_per_round")
        return {"seeds": self._seeds, **{name: getattr(self.config, name) for name in names}}

    def inputs(self, job: Job) -> Any:
        """Digests of the links of the round before."""
        return job.payload

    def plan(self) -> Sequence[Job]:
        """A job for each round so far."""
        marks = self.dataset.ledger.done("crawl_live")
        jobs = []
        for number in range(self._last + 1):
            before = f"R{number - 1:05d}-"
            files = [file for id, mark in marks.items() if id.startswith(before) for file in mark.files]
            links = {file.name: file.identity for file in files if file.name.startswith("crawl/links/")}
            jobs.append(Job(f"R{number:05d}", {"round": number, "links": fingerprint(links)}))
        return jobs

    def run(self, job: Job) -> Outcome:
        """Rows in = links; rows out = pages of the round; the rest is told by reason, `later` among them."""
        number: int = job.payload["round"]
        storage = self.dataset.storage
        connection = connect(storage, self.config.sort_memory)
        num_links = self._load_links(connection, number)
        self._load_seen(connection, number)
        connection.execute(_RANK, [self.config.max_depth, self.config.max_depth])
        budget = self.config.max_pages - self._num_admitted(number)
        connection.execute(_DECIDE, [max(budget, 0), self.config.host_pages_per_round])
        tallies = dict(connection.execute("SELECT fate, count(*) FROM decided GROUP BY fate").fetchall())
        repeats = num_links - sum(tallies.values())
        files = self._write(connection, number)
        admitted = tallies.pop("go", 0)
        dropped = {**tallies, **({"repeated_link": repeats} if repeats else {})}
        return Outcome(Counts(num_links, admitted, dropped), tuple(files))

    def _load_links(self, connection: Any, number: int) -> int:
        names = [self._later_name(number - 1)] if number else []
        names = [name for name in names if self.dataset.storage.exists(name)]
        names += self._links_of(number - 1) if number else []
        if names:
            connection.execute(
                "CREATE TEMP TABLE link AS SELECT * FROM read_parquet(?)", [urls(self.dataset.storage, names)]
            )
        else:
            rows = [] if number else [(*self.scope.link(seed, 0)[:5], True) for seed in self._seeds]
            columns = [pa.array([row[at] for row in rows], field.type) for at, field in enumerate(LINKS)]
            seeds = pa.Table.from_arrays(columns, schema=LINKS)  # noqa: F841 - DuckDB reads it by name
            connection.execute("CREATE TEMP TABLE link AS SELECT * FROM seeds")
        return int(connection.execute("SELECT count(*) FROM link").fetchall()[0][0])

    def _load_seen(self, connection: Any, number: int) -> None:
        marks = self.dataset.ledger.done(self.name)
        names = [
            file.name
            for id, mark in marks.items()
            if id < f"R{number:05d}"
            for file in mark.files
            if file.name.startswith(("crawl/frontier/", "ledger/pages/"))
        ]
        if names:
            connection.execute(
                "CREATE TEMP TABLE seen AS SELECT DISTINCT url FROM read_parquet(?, union_by_name = true)",
                [urls(self.dataset.storage, names)],
            )
        else:
            connection.execute("CREATE TEMP TABLE seen (url VARCHAR)")

    def _write(self, connection: Any, number: int) -> list[Committed]:
        storage = self.dataset.storage
        files = []
        go = connection.sql(
            f"SELECT {LINK_COLUMNS} FROM decided WHERE fate = 'go' ORDER BY bucket, url"
        ).to_arrow_table().cast(LINKS)  # fmt: skip
        for bucket in sorted(set(go["bucket"].to_pylist())):
            rows = go.filter(pa.compute.equal(go["bucket"], bucket))
            files.append(write_table(storage, frontier_table(number, bucket), rows))
        later = connection.sql(
            f"SELECT {LINK_COLUMNS} FROM decided WHERE fate = 'later' ORDER BY url"
        ).to_arrow_table().cast(LINKS)  # fmt: skip
        if later.num_rows:
            files.append(write_table(storage, self._later_name(number), later))
        ended = connection.sql(
            "SELECT url, host, depth, fate AS reason FROM decided "
            "WHERE fate IN ('over_budget', 'too_deep') ORDER BY url"
        ).to_arrow_table()  # fmt: skip
        if ended.num_rows:
            pages = pa.Table.from_pylist(ended.to_pylist(), schema=PAGES)
            files.append(write_table(storage, f"ledger/pages/R{number:05d}-ended.parquet", pages))
        return files

    def _num_admitted(self, number: int) -> int:
        marks = self.dataset.ledger.done(self.name)
        return sum(mark.counts.rows_out for id, mark in marks.items() if id < f"R{number:05d}")

    def _links_of(self, number: int) -> list[str]:
        marks = self.dataset.ledger.done("crawl_live")
        names = [file.name for id, mark in marks.items() if id.startswith(f"R{number:05d}-") for file in mark.files]
        return [name for name in names if name.startswith("crawl/links/")]

    def _later_name(self, number: int) -> str:
        return f"crawl/later/R{number:05d}.parquet"


# One row a new url, at the least depth that it was found; what is out of scope or too deep has its fate already.
_RANK = """
CREATE TEMP TABLE candidate AS
SELECT link.url, any_value(link.host) AS host, any_value(link.bucket) AS bucket, min(link.depth) AS depth,
       min(link.num_redirects) AS num_redirects, bool_or(link.in_scope) AS in_scope,
       CASE WHEN NOT bool_or(link.in_scope) THEN 'out_of_scope'
            WHEN CAST(? AS INTEGER) IS NOT NULL AND min(link.depth) > CAST(? AS INTEGER) THEN 'too_deep'
            ELSE 'go' END AS fate
FROM link ANTI JOIN seen ON link.url = seen.url
GROUP BY link.url
"""

# Shallow pages first, hosts in turn: the same links and budget give the same pages, in whatever order they were found.
_DECIDE = """
CREATE TEMP TABLE decided AS
WITH turn AS (
    SELECT *, row_number() OVER (PARTITION BY host, fate ORDER BY depth, url) AS nth FROM candidate
), place AS (
    SELECT *, row_number() OVER (PARTITION BY fate ORDER BY depth, nth, host, url) AS rank FROM turn
)
SELECT url, host, bucket, depth, num_redirects, in_scope,
       CASE WHEN fate <> 'go' THEN fate WHEN rank > ? THEN 'over_budget' WHEN nth > ? THEN 'later' ELSE 'go' END AS fate
FROM place
"""


def _domain(host: str) -> str:
    # The last two labels: a public-suffix list would tell example.co.uk from other.co.uk; scope=host is exact.
    name, _, port = host.partition(":")
    return ".".join(name.split(".")[-2:]) + (f":{port}" if port else "")
