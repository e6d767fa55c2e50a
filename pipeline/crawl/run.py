"""A crawl from start to end: rounds over host buckets or archives, then the merge into tables of distinct pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from infra.dataset import Dataset
from infra.errors import FingerprintError, UsageError
from infra.jobs import Executor, RunOptions, Step, StepResult, require, run_jobs
from infra.ledger import Counts
from infra.progress import Progress
from pipeline.crawl.archive import Archives
from pipeline.crawl.config import CrawlConfig
from pipeline.crawl.frontier import Frontier
from pipeline.crawl.html import clean_url
from pipeline.crawl.live import LiveRound
from pipeline.crawl.merge import Merge
from pipeline.crawl.warc import expand_paths


def crawl(
    dataset: Dataset,
    config: CrawlConfig,
    executor: Executor,
    *,
    seeds: Sequence[str] = (),
    warcs: Sequence[str] = (),
    options: RunOptions | None = None,
    progress: Progress | None = None,
) -> list[StepResult]:
    """Crawl from seeds or archives into `pairs/`; what is done is skipped. Returns a result a step.

    Raises UsageError where there is nothing to start from, FingerprintError for other settings, StepError where too
    much was quarantined.
    """
    options = options or RunOptions()

    def run(step: Step, limit: int | None = None) -> StepResult:
        shown = Progress.quiet() if isinstance(step, Frontier) else progress  # a moment's work between rounds
        result = run_jobs(step, executor, limit=limit, attempts=options.attempts, progress=shown)
        # Archives are independent; the rounds of a live crawl rest on all links of the rounds before.
        return require(result, options.max_quarantined if isinstance(step, Archives) else None)

    check_start(seeds, warcs)
    _refuse_other_kind(dataset, LiveRound.name if warcs else Archives.name)
    if warcs:
        archives = expand_paths(warcs, config.archive_prefix)
        results = [run(Archives(dataset, config, archives), options.limit)]
    else:
        results = _rounds(dataset, config, seeds, run, options.limit)
    results.append(run(Merge(dataset, config, [results[-1].step])))
    return results


def check_start(seeds: Sequence[str], warcs: Sequence[str]) -> None:
    """Raise UsageError where a crawl could not start."""
    if bool(seeds) == bool(warcs):
        raise UsageError("give either --seed URL… for a live crawl or --warc PATH… for archives")
    for seed in seeds:
        if clean_url(seed, seed) is None:
            raise UsageError(f"--seed {seed}: not an http or https url")


def _refuse_other_kind(dataset: Dataset, other: str) -> None:
    # The merge would publish the pairs of one and drop those of the other.
    if dataset.ledger.plan(other) is not None:
        raise FingerprintError(
            f"{dataset.storage.url}: holds a crawl of the other kind, live or from archives; give another --out"
        )


def _rounds(
    dataset: Dataset, config: CrawlConfig, seeds: Sequence[str], run: Any, limit: int | None
) -> list[StepResult]:
    """Round after round until no page is left, or `limit` rounds."""
    number = 0
    while True:
        frontier = run(Frontier(dataset, config, seeds, number))
        live = run(LiveRound(dataset, config, seeds))
        number += 1
        last = dataset.ledger.done(Frontier.name)[f"R{number - 1:05d}"].counts
        nothing_left = last.rows_out == 0 and not last.dropped.get("later")
        if nothing_left or number == limit:
            return [frontier, live]


def plan_text(dataset: Dataset, config: CrawlConfig, seeds: Sequence[str], warcs: Sequence[str]) -> list[str]:
    """What a run would do, with the reckoning behind each figure."""
    if warcs:
        archives = expand_paths(warcs, config.archive_prefix)
        num_done = len(dataset.ledger.done(Archives.name))
        return [
            f"crawl: {len(archives):,} archives, {num_done:,} of them done",
            *[f"  {path}" for path in archives[:5]],
        ]
    pause_s = max(config.delay_s, 0.05) / config.per_host
    return [
        f"crawl: at most {config.max_pages:,} pages from {len(seeds)} seeds, scope {config.scope}",
        f"traffic: about {config.max_pages * RECKONED_PAGE_BYTES / 1e6:,.0f} MB (reckoned: 100 kB a page)",
        f"time: at least {config.max_pages * pause_s / 3600:,.2f} h where all pages lie on one host",
    ]


RECKONED_PAGE_BYTES = 100_000


def summary(results: Sequence[StepResult], dataset: Dataset) -> dict[str, Any]:
    """The --json facts: caption candidates in, distinct pairs out; pages and links apart under "steps"."""
    merge = results[-1]
    # All that was found here: the merge takes archives of earlier commands, too.
    found = sum((mark.counts for mark in dataset.ledger.done(results[-2].step).values()), Counts())
    dropped: Counter[str] = Counter(merge.counts.dropped)
    for name, number in found.extra.items():
        if name.startswith("no_pair:"):
            dropped[name.removeprefix("no_pair:")] += number
    return {
        "rows_in": found.extra.get("pairs", 0) + sum(dropped.values()) - merge.counts.num_dropped,
        "rows_out": merge.counts.rows_out,
        "dropped": dict(sorted(dropped.items())),
        "steps": {result.step: result.counts.as_json() for result in results},
        "quarantined": sorted(name for result in results for name in result.quarantined),
        "paths": [dataset.storage.file_url(name) for name in dataset.tables("pairs")],
    }
