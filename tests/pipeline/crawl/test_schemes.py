"""robots.txt is asked for by scheme: a host that answers to one only is crawled by it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from infra.dataset import Dataset
from pipeline.crawl.config import CrawlConfig
from pipeline.crawl.live import LiveRound, _Bucket
from pipeline.fetch.errors import FetchError


class OnlyHttps:
    async def get(self, url: str, **how: Any) -> Any:
        if not url.startswith("https:"):
            raise FetchError("connect", "refused")
        if not url.endswith("/page"):
            raise FetchError("http_404", "", status=404)
        return SimpleNamespace(status=200, headers={"Content-Type": "text/html"}, body=b"<html><p>x</p></html>")


def test_a_closed_port_for_http_costs_no_page_of_https(tmp_path):
    step = LiveRound(Dataset(tmp_path), CrawlConfig(), ["https://example.org/"])
    step._fetcher = OnlyHttps()
    bucket = _Bucket(step)
    urls = ["http://example.org/page", "https://example.org/page"]
    rows = [{"url": url, "host": "example.org", "depth": 0, "num_redirects": 0} for url in urls]
    asyncio.run(bucket.crawl({"example.org": rows}))
    assert {page["url"]: page["reason"] for page in bucket.harvest.pages} == dict(
        zip(urls, ["connect", "ok"], strict=True)
    )
