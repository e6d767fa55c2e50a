"""The funnel from page to stored pair, out of the steps' done-marks; and whether every row has exactly one fate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from infra.ledger import Counts, DoneMark
from pipeline.report.source import Source

WAITING = "waiting"
NO_PAIR = "no_pair:"


class Words(NamedTuple):
    """How a step is called on the page: what it counts, and what its rows are before and after it."""

    title: str
    unit: str
    before: str
    after: str


# In the order of the pipeline. Steps that are not here stand under "Run" only.
STEPS = {
    "crawl_frontier": Words("Crawl, frontier", "link", "Links found", "Pages to ask for"),
    "crawl_live": Words("Crawl, live", "page", "Pages asked for", "Pages read"),
    "crawl_archive": Words("Crawl, archives", "record", "Records in the archives", "Pages read"),
    "crawl_merge": Words("Merge pairs", "pair", "Pairs found", "Distinct pairs"),
    "split": Words("Split tables", "row", "Rows given", "Rows read"),
    "duplicates": Words("Drop repeated rows", "row", "Rows read", "Rows to download"),
    "download": Words("Download", "row", "Rows to download", "Pairs stored"),
}
NEVER_ASKED = ("over_budget", "too_deep")  # pages that the frontier found and left


@dataclass(frozen=True, slots=True)
class StepFacts:
    """One step: its summed counts, how far it is, and what its clocks say."""

    name: str
    words: Words
    counts: Counts
    num_jobs: int
    num_done: int
    quarantined: Mapping[str, Mapping[str, Any]]
    work_s: float
    started: float | None
    ended: float | None
    settings: Mapping[str, Any]

    @property
    def num_waiting(self) -> int:
        """Jobs neither done nor given up."""
        return max(0, self.num_jobs - self.num_done - len(self.quarantined))

    @property
    def is_finished(self) -> bool:
        """Are all planned jobs done?"""
        return self.num_done >= self.num_jobs

    @property
    def num_unaccounted(self) -> int:
        """Rows in, less rows out and dropped: anything but 0 is a defect."""
        return self.counts.rows_in - self.counts.rows_out - self.counts.num_dropped

    @property
    def wall_s(self) -> float | None:
        """From the first job's start to the last one's end; a pause between two runs is part of it."""
        return None if self.started is None or self.ended is None else max(0.0, self.ended - self.started)


@dataclass(frozen=True, slots=True)
class Stage:
    """One bar of the funnel, and what fell off on the way to it."""

    title: str
    count: int
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Flow:
    """Stages that count the same thing, so that their bars share one scale."""

    unit: str
    stages: tuple[Stage, ...]


def step_facts(source: Source) -> list[StepFacts]:
    """All planned steps, the known ones first and in the order of the pipeline."""
    order = list(STEPS)
    names = sorted(source.steps, key=lambda name: (order.index(name) if name in order else len(order), name))
    return [_facts_of(source, name, source.steps[name]) for name in names]


def flows(steps: Sequence[StepFacts], num_not_fetched: Mapping[str, int]) -> list[Flow]:
    """The funnel. num_not_fetched: reason → rows of the download for which no image came (the rest failed later)."""
    known = {step.name: step for step in steps if step.name in STEPS}
    result: list[Flow] = []
    frontier = known.pop("crawl_frontier", None)
    for name in ("crawl_live", "crawl_archive"):
        if crawl := known.pop(name, None):
            first = _asked(frontier, crawl) if name == "crawl_live" else ()
            first = first or (Stage(crawl.words.before, crawl.counts.rows_in),)
            result.append(Flow(crawl.words.unit, first + _after(crawl, {})))
            tags = Counter(crawl.counts.extra)
            if tags["images"]:
                result.append(Flow("pair", _from_tags(tags)))
    for step in known.values():
        _extend(result, step, num_not_fetched)
    return result


def _extend(result: list[Flow], step: StepFacts, num_not_fetched: Mapping[str, int]) -> None:
    """Let the step go on from the last stage where it takes what that one gave; else begin a new flow."""
    before = Stage(step.words.before, step.counts.rows_in)
    goes_on = bool(result) and result[-1].unit in ("pair", "row")
    num_missing = result[-1].stages[-1].count - before.count if goes_on else 0
    if goes_on and num_missing == 0:
        stages: tuple[Stage, ...] = ()
    elif goes_on and num_missing > 0 and not step.is_finished:
        stages = (replace(before, dropped={WAITING: num_missing}),)
    else:
        result.append(Flow(step.words.unit, ()))
        stages = (before,)
    stages += _after(step, num_not_fetched)
    result[-1] = replace(result[-1], stages=result[-1].stages + stages)


def conservation_faults(steps: Sequence[StepFacts], source: Source) -> list[str]:
    """Sentences about rows that have no fate, or about tables and ledger that disagree. Empty where all is well."""
    faults = [
        f"{step.words.title}: {step.counts.rows_in:,} rows in, but {step.counts.rows_out:,} out and "
        f"{step.counts.num_dropped:,} dropped; {abs(step.num_unaccounted):,} rows are "
        f"{'unaccounted for' if step.num_unaccounted > 0 else 'counted twice'}."
        for step in steps
        if step.num_unaccounted
    ]
    if source.missing:
        some = ", ".join(source.missing[:3])
        faults.append(
            f"{len(source.missing):,} published tables are missing ({some}{' …' * (len(source.missing) > 3)})."
        )
    for step in steps:
        faults += _against_tables(step, source)
    return faults


def _against_tables(step: StepFacts, source: Source) -> list[str]:
    # Whole tables are counted, so a table that is missing altogether has been told of already.
    if source.missing:
        return []
    if step.name == "download" and source.has_rows:
        told: tuple[int, ...] = (step.counts.rows_in, step.counts.rows_out)
        held = tuple(source.query("SELECT count(*) AS n, count(*) FILTER (is_stored) AS m FROM rows")[0].values())
        what = "{:,} rows of which {:,} stored"
    elif step.name == "crawl_merge" and source.has_pairs:
        told, held = (step.counts.rows_out,), (source.value("SELECT count(*) FROM pairs"),)
        what = "{:,} pairs"
    else:
        return []
    if told == held:
        return []
    return [f"{step.words.title}: the ledger tells of {what.format(*told)}, the tables hold {what.format(*held)}."]


def _facts_of(source: Source, name: str, marks: Mapping[str, DoneMark]) -> StepFacts:
    plan = source.dataset.ledger.plan(name) or {}
    jobs = set(plan.get("jobs", ())) | set(marks)
    clocks = [mark.clock for mark in marks.values() if "started" in mark.clock and "took_s" in mark.clock]
    return StepFacts(
        name=name,
        words=STEPS.get(name, Words(name.replace("_", " ").capitalize(), "row", "Rows in", "Rows out")),
        counts=sum((mark.counts for mark in marks.values()), Counts()),
        num_jobs=len(jobs),
        num_done=len(marks),
        quarantined={job: found for job, found in source.dataset.ledger.quarantined(name).items() if job not in marks},
        work_s=sum(clock["took_s"] for clock in clocks),
        started=min((clock["started"] for clock in clocks), default=None),
        ended=max((clock["started"] + clock["took_s"] for clock in clocks), default=None),
        settings=plan.get("settings", {}),
    )


def _asked(frontier: StepFacts | None, live: StepFacts) -> tuple[Stage, ...]:
    """Pages found and pages asked for, where a frontier tells of those between."""
    if frontier is None:
        return ()
    lost = {word: frontier.counts.dropped[word] for word in NEVER_ASKED if frontier.counts.dropped.get(word)}
    if not live.is_finished and frontier.counts.rows_out > live.counts.rows_in:
        lost[WAITING] = frontier.counts.rows_out - live.counts.rows_in
    num_found = live.counts.rows_in + sum(lost.values())
    return (Stage("Pages found", num_found), Stage(live.words.before, live.counts.rows_in, lost))


def _from_tags(tags: Mapping[str, int]) -> tuple[Stage, ...]:
    """Image tags on the pages, and why some of them made no pair; the crawl's marks keep these as tallies."""
    lost = {word.removeprefix(NO_PAIR): number for word, number in tags.items() if word.startswith(NO_PAIR)}
    return (Stage("Images on the pages", tags["images"]), Stage("Pairs found", tags["pairs"], lost))


def _after(step: StepFacts, num_not_fetched: Mapping[str, int]) -> tuple[Stage, ...]:
    counts = step.counts
    if step.name == "split" and not counts.dropped:
        return ()  # the same number with a lesser name
    if step.name != "download" or not num_not_fetched:
        return (Stage(step.words.after, counts.rows_out, counts.dropped),)
    lost = {reason: number for reason, number in num_not_fetched.items() if number}
    later = {reason: number - lost.get(reason, 0) for reason, number in counts.dropped.items()}
    return (
        Stage("Images fetched", counts.rows_in - sum(lost.values()), lost),
        Stage(step.words.after, counts.rows_out, {reason: number for reason, number in later.items() if number > 0}),
    )
