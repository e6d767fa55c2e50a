"""Sections to one self-contained HTML page: no script, no network, everything from the web escaped."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from jinja2 import Environment

from infra.page import templates_of, words
from infra.reasons import explain
from pipeline.report.gather import Downloaded
from pipeline.report.sections import Overview, Section
from pipeline.report.source import Source


def render(source: Source, seen: Overview, sections: Sequence[Section]) -> str:
    """The page's HTML. The same dataset gives the same page."""
    facts = {"name": source.name, "url": source.storage.url, "figures": _figures(seen), "state": _state(seen)}
    return _templates().get_template("page.html.j2").render(facts, seen=seen, sections=sections)


@cache
def _templates() -> Environment:
    templates = templates_of("pipeline.report")
    templates.filters["explain"] = explain
    return templates


def _figures(seen: Overview) -> list[tuple[str, str, str]]:
    """Headline figures: value, what it is, and a smaller remark."""
    figures = []
    if (got := seen.downloaded) is not None:
        shards = f"in {got.num_shards:,} shard{'s' * (got.num_shards != 1)}"
        figures.append((words.count_text(got.num_stored), "pairs stored", shards))
        figures.append((words.share_text(got.share_stored), "of rows stored", f"{got.num_rows:,} rows asked for"))
        if got.num_images is not None:
            figures.append((words.count_text(got.num_images), "distinct images", "by their SHA-256"))
        if got.bytes_stored is not None:
            figures.append((words.size_text(got.bytes_stored), "of images", _median(got)))
    if (pages := seen.pages) is not None:
        hosts = f"of {pages.num_pages:,} found, on {pages.num_hosts:,} host{'s' * (pages.num_hosts != 1)}"
        figures.append((words.count_text(pages.num_read), "pages read", hosts))
    merged = seen.step("crawl_merge")
    if merged is not None and seen.downloaded is None:
        figures.append((words.count_text(merged.counts.rows_out), "distinct pairs", f"{merged.counts.rows_in:,} found"))
    download = seen.step("download")
    if download is not None and download.wall_s:
        rate = download.counts.rows_in / download.wall_s
        remark = f"{words.duration_text(download.wall_s)} of download"
        figures.append((f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}", "rows a second", remark))
    return figures


def _median(got: Downloaded) -> str:
    pixels = f", {got.median_width}\u00a0×\u00a0{got.median_height}" if got.median_width is not None else ""
    return f"median {words.size_text(got.median_bytes)}{pixels}"


def _state(seen: Overview) -> tuple[str, str]:
    """How the run stands: a kind (good, open, bad) and a few words."""
    num_quarantined = sum(len(step.quarantined) for step in seen.steps)
    num_waiting = sum(step.num_waiting for step in seen.steps)
    if seen.faults:
        return "bad", "rows unaccounted for"
    if num_quarantined:
        return "bad", f"{num_quarantined:,} job{'s' * (num_quarantined != 1)} given up"
    if num_waiting:
        return "open", f"unfinished: {num_waiting:,} job{'s' * (num_waiting != 1)} to do"
    if seen.steps:
        return "good", "every row accounted for"
    return "open", "no ledger: made by another tool" if seen.downloaded else "nothing here yet"
