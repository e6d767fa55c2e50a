"""The live crawl: a job is (round, host bucket); hosts of a bucket run side by side, a host's pages one after another.

A redirect is not followed on the spot: its target is a link for the next round, so that scope, robots.txt, politeness
and repeats are decided for it as for any other page.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from infra.dataset import Dataset
from infra.jobs import Job, Outcome, Step
from infra.ledger import Counts
from infra.tables import read_table, write_table
from pipeline.crawl.config import CrawlConfig
from pipeline.crawl.frontier import Scope
from pipeline.crawl.html import clean_url, parse_page
from pipeline.crawl.optout import TdmRules, links_refused, page_opt_out, tdm_reserved, tdm_rules
from pipeline.crawl.robots import Robots, parse_sitemap
from pipeline.crawl.tables import LINKS, Harvest
from pipeline.fetch.client import Fetched, Fetcher
from pipeline.fetch.errors import FetchError

HTML_TYPES = ("text/html", "application/xhtml+xml")
GZIP_TYPES = ("application/gzip", "application/x-gzip", "application/octet-stream")
ACCEPT = "text/html,application/xhtml+xml;q=0.9,application/xml;q=0.5,*/*;q=0.1"
ROBOTS_BYTES = 8 << 20  # the first 500 KiB are read; a longer one is no reason to think there is none
SITEMAP_URLS = 50_000


@dataclass(frozen=True, slots=True)
class HostRules:
    """What a host asks for: robots.txt, and its reservation of text and data mining."""

    robots: Robots
    tdm: TdmRules | None
    unreachable: str | None = None  # the reason, where the host did not answer for robots.txt


class LiveRound(Step):
    """All rounds planned so far; run_jobs does those that are not done."""

    name = "crawl_live"
    holds = True

    def __init__(self, dataset: Dataset, config: CrawlConfig, seeds: Sequence[str]) -> None:
        self.dataset = dataset
        self.config = config
        self.scope = Scope(seeds, config)
        self._seeds = sorted(seeds)

    def settings(self) -> Mapping[str, Any]:
        """What changes pages and pairs."""
        return {"seeds": self._seeds, **self.config.fingerprint_values()}

    def inputs(self, job: Job) -> Any:
        """Digest of the frontier table."""
        return job.payload["digest"]

    def plan(self) -> Sequence[Job]:
        """A job for each frontier table."""
        marks = self.dataset.ledger.done("crawl_frontier").values()
        files = sorted({file.name: file.identity for mark in marks for file in mark.files}.items())
        return [
            Job(name.rpartition("/")[2].removesuffix(".parquet"), {"table": name, "digest": digest})
            for name, digest in files
            if name.startswith("crawl/frontier/")
        ]

    def setup(self) -> None:
        """Open the fetcher on an event loop of its own."""
        self._loop = asyncio.new_event_loop()
        self._fetcher = Fetcher(self.config)
        self._loop.run_until_complete(self._fetcher.__aenter__())

    def teardown(self) -> None:
        """Close the connections."""
        self._loop.run_until_complete(self._fetcher.__aexit__(None, None, None))
        self._loop.close()

    def run(self, job: Job) -> Outcome:
        """Rows in = pages of the bucket; rows out = pages parsed; the others are dropped by reason."""
        rows = read_table(self.dataset.storage, job.payload["table"]).to_pylist()
        hosts: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            hosts.setdefault(row["host"], []).append(row)
        bucket = _Bucket(self)
        self._loop.run_until_complete(bucket.crawl(hosts))
        files = bucket.harvest.write(self.dataset.storage, job.id)
        links = sorted(bucket.links)
        columns = [pa.array([link[at] for link in links], field.type) for at, field in enumerate(LINKS)]
        table = pa.Table.from_arrays(columns, schema=LINKS)
        files.append(write_table(self.dataset.storage, f"crawl/links/{job.id}.parquet", table))
        fates = Counter(page["reason"] for page in bucket.harvest.pages)
        num_ok = fates.pop("ok", 0)
        return Outcome(Counts(len(rows), num_ok, fates, bucket.harvest.tally), tuple(files))


class _Bucket:
    """One job at work."""

    def __init__(self, step: LiveRound) -> None:
        self.config = step.config
        self.scope = step.scope
        self.fetcher = step._fetcher
        self.harvest = Harvest()
        self.links: set[tuple[Any, ...]] = set()

    async def crawl(self, hosts: Mapping[str, list[dict[str, Any]]]) -> None:
        """Every host at once (the fetcher bounds the connections), each at its own pace."""
        await _all(self._crawl_host(host, rows) for host, rows in hosts.items())

    async def _crawl_host(self, host: str, rows: list[dict[str, Any]]) -> None:
        # robots.txt speaks for one scheme: a host may answer to https alone.
        first = {_scheme(row["url"]): row["url"] for row in reversed(rows)}
        rules = {scheme: await self._rules(url) for scheme, url in sorted(first.items())}
        delay_s = max(rule.robots.crawl_delay or 0.0 for rule in rules.values())
        if delay_s and self.config.respect_robots:
            self.fetcher.set_delay(host, min(max(delay_s, self.config.delay_s), self.config.max_crawl_delay_s))
        queue = iter(sorted(rows, key=lambda row: str(row["url"])))

        async def work() -> None:
            for row in queue:
                await self._crawl_page(row, rules[_scheme(row["url"])])

        await _all(work() for _ in range(min(self.config.per_host, len(rows))))

    async def _crawl_page(self, row: dict[str, Any], rules: HostRules) -> None:
        url, place = row["url"], {"url": row["url"], "host": row["host"], "depth": row["depth"]}
        if rules.unreachable is not None:
            self.harvest.drop_page(**place, reason=rules.unreachable, detail="no answer for robots.txt")
            return
        if self.config.respect_robots and not rules.robots.allows(url):
            self.harvest.drop_page(**place, reason="robots")
            return
        try:
            got = await self.fetcher.get(url, max_bytes=self.config.max_page_bytes, accept=ACCEPT, follow=False)
        except FetchError as error:
            self.harvest.drop_page(**place, reason=error.reason, status=error.status, detail=error.detail)
            return
        if 300 <= got.status < 400:
            self._redirect(row, got)
            return
        kind = (got.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
        if _may_be_sitemap(url, kind) and self._take_sitemap(got.body, row):
            self.harvest.drop_page(**place, reason="sitemap", status=got.status)
            return
        if kind not in HTML_TYPES and not (kind == "" and got.body.lstrip()[:1] == b"<"):
            self.harvest.drop_page(**place, reason="not_html", status=got.status, detail=kind or None)
            return
        self._take_page(row, got, rules)

    def _take_page(self, row: dict[str, Any], got: Fetched, rules: HostRules) -> None:
        content_type = got.headers.get("Content-Type")
        page = parse_page(
            got.body, url=row["url"], content_type=content_type, sources=self.config.captions,
            content_language=got.headers.get("Content-Language"),
        )  # fmt: skip
        headers = list(got.headers.items())
        place = {"url": row["url"], "host": row["host"], "depth": row["depth"], "status": got.status}
        if page.fault is not None:
            self.harvest.drop_page(**place, reason=page.fault)
            return
        refused = None
        if self.config.respect_opt_out:
            refused = page_opt_out(headers, page.meta_robots, self.config.agent_token)
            if refused is None and rules.tdm is not None and tdm_reserved(rules.tdm, urlsplit(row["url"]).path):
                refused = "tdm-reservation by /.well-known/tdmrep.json"
        self.harvest.add_page(page, **place, opt_out=refused)
        if not (self.config.respect_robots and links_refused(headers, page.meta_robots, self.config.agent_token)):
            for link in page.links:
                self.links.add(self.scope.link(link, row["depth"] + 1))

    def _redirect(self, row: dict[str, Any], got: Fetched) -> None:
        place = {"url": row["url"], "host": row["host"], "depth": row["depth"], "status": got.status}
        target = clean_url(got.headers.get("Location") or "", row["url"])
        if target is None:
            self.harvest.drop_page(**place, reason="bad_redirect")
        elif row["num_redirects"] >= self.config.max_redirects:
            self.harvest.drop_page(**place, reason="too_many_redirects")
        else:
            self.harvest.drop_page(**place, reason="redirect", detail=target)
            self.links.add(self.scope.link(target, row["depth"], row["num_redirects"] + 1))

    def _take_sitemap(self, body: bytes, row: dict[str, Any]) -> bool:
        """Links of a sitemap, as deep as itself: seeds may be sitemaps. False where it is another kind of XML."""
        pages, sitemaps = parse_sitemap(body, SITEMAP_URLS)
        for url in [*pages, *sitemaps]:
            self.links.add(self.scope.link(url, row["depth"]))
        return bool(pages or sitemaps)

    async def _rules(self, url: str) -> HostRules:
        """robots.txt and tdmrep.json of a host, each asked for once a round."""
        robots = Robots.from_response(404, None, self.config.agent_token)
        if self.config.respect_robots:
            try:
                got = await self._well_known(url, "/robots.txt")
                robots = Robots.from_response(got.status, got.body, self.config.agent_token)
            except FetchError as error:
                if error.status is None:
                    return HostRules(robots, None, error.reason)
                # An answer that cannot be read whole (too large, badly encoded) allows nothing.
                status = 503 if error.status == 200 else error.status
                robots = Robots.from_response(status, None, self.config.agent_token)
        tdm = None
        if self.config.respect_opt_out:
            try:
                tdm = tdm_rules((await self._well_known(url, "/.well-known/tdmrep.json")).body)
            except FetchError:
                tdm = None  # most hosts have none
        return HostRules(robots, tdm)

    async def _well_known(self, url: str, path: str) -> Fetched:
        parts = urlsplit(url)
        return await self.fetcher.get(f"{parts.scheme}://{parts.netloc}{path}", max_bytes=ROBOTS_BYTES, accept="*/*")


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Wait for all; after a fault none may go on behind the job's next try."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _scheme(url: str) -> str:
    return url.partition(":")[0]


def _may_be_sitemap(url: str, kind: str) -> bool:
    is_xml = kind.endswith("xml") and kind not in HTML_TYPES
    return is_xml or (kind in GZIP_TYPES and urlsplit(url).path.endswith(".xml.gz"))
