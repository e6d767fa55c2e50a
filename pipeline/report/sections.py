"""The page's sections: each a small function, dataset → section or nothing. A new one is a function and a template."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, NamedTuple

from infra.page.words import size_text
from infra.reasons import explain
from pipeline.report import charts, gather
from pipeline.report.funnel import Flow, Stage, StepFacts, conservation_faults, flows, step_facts
from pipeline.report.gallery import stored_pictures
from pipeline.report.source import Source

SEED = 0
NUM_PICTURES = 48
NUM_FAILURES_PER_REASON = 5
MAX_TEXT = 40_000  # characters of settings and errors
NOT_FETCHED = "failed_to_download"


@dataclass(frozen=True, slots=True)
class Overview:
    """What several sections share."""

    steps: Sequence[StepFacts]
    flows: Sequence[Flow]
    faults: Sequence[str]
    downloaded: gather.Downloaded | None
    failed: Mapping[str, Mapping[str, int]]  # status → reason → rows
    pages: gather.Pages | None

    @property
    def fell(self) -> dict[str, int]:
        """Reason → failed rows of the download."""
        total = Counter[str]()
        for words in self.failed.values():
            total.update(words)
        return dict(total)

    def step(self, name: str) -> StepFacts | None:
        """The step of that name, where it was planned."""
        return next((step for step in self.steps if step.name == name), None)


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page: its template (templates/NAME.html.j2) and the facts that it shows."""

    title: str
    template: str
    intro: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


class Fall(NamedTuple):
    """One reason: rows that fell by it, their share of the step's rows, and what it means."""

    word: str
    num_rows: int
    share: float
    sentence: str


def overview(source: Source) -> Overview:
    """Gather what several sections share."""
    steps = step_facts(source)
    failed = gather.reasons(source) if source.has_rows else {}
    return Overview(
        steps=steps,
        flows=flows(steps, failed.get(NOT_FETCHED, {})) or _foreign_flow(source, failed),
        faults=conservation_faults(steps, source),
        downloaded=gather.downloaded(source) if source.has_rows else None,
        failed=failed,
        pages=gather.pages(source) if source.has_pages else None,
    )


def funnel(source: Source, seen: Overview) -> Section | None:
    """From page to stored pair."""
    if not seen.flows:
        return None
    intro = "What went in, what came out, and what fell off on the way. Bars share a scale within each block."
    return Section("From page to stored pair", "funnel", intro, {"flows": seen.flows})


def pictures(source: Source, seen: Overview) -> Section | None:
    """Stored pairs."""
    if seen.downloaded is None or not seen.downloaded.num_stored:
        return None
    shown = stored_pictures(source, SEED, NUM_PICTURES)
    intro = f"{len(shown)} of {seen.downloaded.num_stored:,}, drawn at random with a fixed seed."
    if any(picture.is_blurred for picture in shown):
        intro += " Those that a safety score doubts, or does not know, are blurred."
    return Section("Stored pairs", "pictures", intro, {"pictures": shown, "num_open": NUM_PICTURES // 2})


def reasons(source: Source, seen: Overview) -> Section | None:
    """Why rows fell, by step."""
    groups = []
    for step in seen.steps:
        if step.counts.dropped and not (step.name == "download" and source.has_rows):
            groups.append((step.words.title, step.words.unit, step.counts.rows_in, step.counts.dropped))
    if seen.downloaded is not None:
        groups.append(("Download", "row", seen.downloaded.num_rows, seen.fell))
    tables = [(title, unit, total, falls(dropped, total)) for title, unit, total, dropped in groups if dropped]
    if not tables:
        return None
    intro = "Each row that went in has one fate; each fate has one reason."
    return Section("Why rows fell", "reasons", intro, {"tables": tables})


def failures(source: Source, seen: Overview) -> Section | None:
    """Failed rows as text."""
    found = gather.failed_samples(source, SEED, NUM_FAILURES_PER_REASON) if source.has_rows else {}
    if not found:
        return None
    intro = f"Up to {NUM_FAILURES_PER_REASON} rows for each reason, drawn at random with a fixed seed."
    return Section("Failures, looked at", "failures", intro, {"samples": found, "counts": seen.fell})


def hosts(source: Source, seen: Overview) -> Section | None:
    """The hosts with most rows."""
    if seen.downloaded is None or not seen.downloaded.num_rows:
        return None
    found = gather.hosts(source)
    intro = f"The {len(found)} hosts with most rows" if len(found) == gather.MAX_HOSTS else "All hosts of images"
    return Section("Image hosts", "hosts", f"{intro}.", {"hosts": found})


def statuses(source: Source, seen: Overview) -> Section | None:
    """What servers answered."""
    blocks = []
    if source.has_rows:
        blocks.append(("Images", gather.statuses(source, "rows", "http_status")))
    if source.has_pages:
        blocks.append(("Pages", gather.statuses(source, "pages", "status")))
    named = [(title, {_status_name(code): n for code, n in found.items()}) for title, found in blocks if found]
    if not named:
        return None
    intro = "Requests that no server answered are not among them."
    return Section("HTTP status codes", "bars", intro, {"blocks": named})


def shapes(source: Source, seen: Overview) -> Section | None:
    """Sizes, aspects, bytes and caption lengths."""
    if seen.downloaded is None or not seen.downloaded.num_stored:
        return None

    def pair(measure: Callable[[Source, str], gather.Histogram]) -> list[charts.Series]:
        series = [charts.Series("stored", measure(source, "")), charts.Series("original", measure(source, "original_"))]
        return [one for one in series if one.histogram.bins]

    def ratio(value: float) -> str:
        return f"{value:.3g}:1" if value >= 1 else f"1:{1 / value:.3g}"

    def pixels(value: float) -> str:
        return f"{value:.0f}"

    drawn = (
        ("Longer side, pixels", pair(gather.sizes), pixels),
        ("Aspect ratio, width : height", pair(gather.aspects), ratio),
        ("Size of a stored image", [charts.Series("stored", gather.weights(source))], size_text),
        ("Caption length, characters", [charts.Series("stored", gather.caption_lengths(source))], pixels),
    )
    figures = [
        (title, charts.histogram(title, series, label), [one.label for one in series if one.histogram.bins])
        for title, series, label in drawn
    ]
    figures = [figure for figure in figures if figure[1]]
    if not figures:
        return None
    intro = "Stored pairs only; horizontal axes are logarithmic."
    return Section("Sizes and shapes", "shapes", intro, {"figures": figures})


def crawl(source: Source, seen: Overview) -> Section | None:
    """Pages, their depth and hosts, and what is known of the pairs found."""
    blocks: list[tuple[str, Mapping[Any, int]]] = []
    if source.has_pages:
        depths = gather.depths(source)
        blocks.append(("Fates of pages", gather.tally(source, "pages", "reason")))
        blocks.append(("Distance from the seeds", depths if len(depths) > 1 else {}))
    # The crawl's own tables know all pairs; a download may have kept these columns of another tool's crawl.
    table = "pairs" if source.has_pairs else "rows" if source.has_rows else None
    for title, column in (
        ("Where captions come from", "caption_from"), ("Languages hinted", "lang_hint"), ("Licences", "licence"),
    ):  # fmt: skip
        found = gather.tally(source, table, column) if table else {}
        if set(found) - {""}:
            blocks.append((title, {value or "(none)": n for value, n in found.items()}))
    page_hosts = gather.page_hosts(source) if source.has_pages else []
    blocks = [(title, found) for title, found in blocks if found]
    if not blocks:
        return None
    intro = "Pages by fate and depth, and what they say of their images."
    return Section("Crawl", "crawl", intro, {"blocks": blocks, "hosts": page_hosts})


def run(source: Source, seen: Overview) -> Section | None:
    """Steps, jobs, clocks, settings, and what was given up."""
    quarantined = [
        (step.words.title, job, str(found.get("error", ""))[-4000:], found.get("attempts"))
        for step in seen.steps
        for job, found in sorted(step.quarantined.items())
    ]
    settings = {
        step.words.title: json.dumps(step.settings, indent=1, ensure_ascii=False)[:MAX_TEXT]
        for step in seen.steps
        if step.settings
    }
    if recipe := _recipe(source):
        settings = {"recipe.yaml": recipe, **settings}
    stats = _stats(source) if not seen.step("download") else None
    if not seen.steps and not settings and stats is None:
        return None
    facts = {
        "steps": seen.steps, "quarantined": quarantined[:50], "num_quarantined": len(quarantined),
        "settings": settings, "stats": stats,
    }  # fmt: skip
    return Section("Run", "run", "The steps in their order: jobs, rows and clocks.", facts)


def falls(dropped: Mapping[str, int], total: int) -> list[Fall]:
    """Reasons with their shares and sentences, most frequent first."""
    ordered = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
    return [Fall(word, number, number / total if total else 0.0, explain(word)) for word, number in ordered]


def _foreign_flow(source: Source, failed: Mapping[str, Mapping[str, int]]) -> list[Flow]:
    """The funnel of a folder without a ledger: its tables tell of the download alone."""
    if not source.has_rows:
        return []
    num_rows, num_stored = (source.value(f"SELECT count(*) FROM rows {where}") for where in ("", "WHERE is_stored"))
    not_fetched = failed.get(NOT_FETCHED, {})
    later = {word: n for status, words in failed.items() if status != NOT_FETCHED for word, n in words.items()}
    fetched = Stage("Images fetched", num_rows - sum(not_fetched.values()), not_fetched)
    return [Flow("row", (Stage("Rows to download", num_rows), fetched, Stage("Pairs stored", num_stored, later)))]


def _status_name(code: int) -> str:
    try:
        return f"{code} {HTTPStatus(code).phrase}"
    except ValueError:
        return str(code)


def _recipe(source: Source) -> str:
    try:
        return source.storage.read("recipe.yaml", 0, MAX_TEXT).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def _stats(source: Source) -> dict[str, Any] | None:
    """Sums over img2dataset's statistics files: shards and seconds of work; None where there are none."""
    names = source.storage.list("", "_stats.json")
    seconds = [json.loads(data).get("duration", 0.0) for data in source.storage.read_many(names).values()]
    return {"num_shards": len(names), "work_s": sum(seconds)} if names else None
