"""Settings of a crawl, live or from archives."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from infra.recipe import tuning
from pipeline.fetch.config import FetchConfig

CAPTION_SOURCES = ("alt", "figcaption", "title")


class CrawlConfig(FetchConfig):
    """Every setting of `python -m pipeline crawl`."""

    captions: tuple[str, ...] = Field(
        CAPTION_SOURCES, description="Where captions come from, with commas between: alt,figcaption,title."
    )
    scope: Literal["host", "domain", "any"] = Field(
        "host", description="Which links a live crawl follows: to the seeds' hosts, their domains, or anywhere."
    )
    max_pages: int = Field(1_000, gt=0, description="Pages that a live crawl asks for, over all hosts.")
    max_depth: int | None = Field(None, ge=0, description="Links to follow from a seed; unset: no limit.")
    max_page_bytes: int = Field(8 << 20, gt=0, description="Largest page, decoded.")
    respect_robots: bool = Field(True, description="Obey robots.txt and its crawl-delay.")
    respect_opt_out: bool = Field(
        True,
        description="Take no pairs from pages that opt out: noai, noimageai, noindex, noimageindex, TDM reservation.",
    )
    buckets: int = Field(16, gt=0, description="Host buckets of a live crawl: a host is always crawled by one worker.")
    host_pages_per_round: int = Field(
        100, gt=0, description="Pages of one host in a round; a round is what a kill costs."
    )
    pairs_per_table: int = Field(500_000, gt=0, description="Most pairs in one url table.")
    archive_prefix: str = Field(
        "https://data.commoncrawl.org/", description="Where the entries of a warc.paths.gz lie."
    )
    delay_s: float = tuning(0.5, "Pause between requests to one host, in seconds; robots.txt may ask for more.", ge=0)
    per_host: int = tuning(1, "Requests to one host at the same time.", gt=0)
    max_crawl_delay_s: float = tuning(60.0, "Longest crawl-delay obeyed; a longer one is cut to this.", ge=0)
    sort_memory: str = tuning("2GB", "Memory of the merge before it spills to disk.")

    @field_validator("captions")
    @classmethod
    def _known_sources(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in value if name not in CAPTION_SOURCES]
        if unknown or not value:
            raise ValueError(f"no caption source {', '.join(unknown)}; choose from {', '.join(CAPTION_SOURCES)}")
        return value
