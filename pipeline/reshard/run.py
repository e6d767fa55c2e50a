"""Resharding from start to end: samples arranged, shards written, kept captions beside them, origin and sizes told.

ledger/origin.json                  in the curated dataset: the dataset and the selection that it was made of
ledger/resharded/DIGEST.json        in the source, where it can be written: what was made of it
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

from filters.select import is_stale
from infra.dataset import Dataset
from infra.errors import DatasetError, FingerprintError, UsageError
from infra.jobs import Executor, RunOptions, Step, StepResult, require, run_jobs
from infra.log import get_logger, one_line
from infra.progress import Progress
from infra.rows import Rows
from infra.selection import Selection
from infra.storage import digest_bytes
from pipeline.reshard.arrange import Arrange
from pipeline.reshard.captions import KeptCaptions
from pipeline.reshard.config import ReshardConfig
from pipeline.reshard.shard import Reshard

log = get_logger("reshard")

ORIGIN = "ledger/origin.json"
RESHARDED = "ledger/resharded"
WRITTEN = ("", "inputs", "index")  # folders of the tables that a resharding writes


def reshard(
    source: Dataset,
    out: Dataset,
    selection: str,
    config: ReshardConfig,
    executor: Executor,
    *,
    options: RunOptions | None = None,
    progress: Progress | None = None,
) -> list[StepResult]:
    """Store the selection's kept samples of `source` in `out`; what is done is skipped. Returns a result a step.

    Raises FingerprintError where `out` was made of something else, StepError where too much was quarantined.
    """
    options = options or RunOptions()
    chosen, rows = check(source, out, selection)

    def run(step: Step, limit: int | None = None, allowed: float | None = None) -> StepResult:
        return require(run_jobs(step, executor, limit=limit, attempts=options.attempts, progress=progress), allowed)

    results = [run(Arrange(chosen, out, config))]
    note_origin(chosen, out)
    try:
        results.append(run(Reshard(rows, out, config), options.limit, options.max_quarantined))
    finally:
        write_sizes(out)  # the shards that are done can be read
    captions: list[str] = chosen.summary["recipe"]["captions"]
    return [*results, *(run(KeptCaptions(chosen, out, table)) for table in captions)]


def check(source: Dataset, out: Dataset, name: str) -> tuple[Selection, Rows]:
    """Whether this can be done. Raises UsageError, DatasetError or FingerprintError with the mend."""
    check_place(source, out)
    chosen, rows = Selection(source, name), Rows(source)
    if rows.kind != "stored":
        raise UsageError(f"{source.storage.url}: no images are stored there yet; download them first")
    if missing := sorted(set(rows.shards) - set(chosen.shards)):
        raise DatasetError(
            f"{source.storage.url}: selection {name} lacks {len(missing)} of {len(rows.shards)} shards (first "
            f"{missing[0]}), which came after it; run the select command again"
        )
    if is_stale(source, name):
        raise DatasetError(
            f"{source.storage.url}: selection {name} was made of other rows or scores than are there now; "
            "run the select command again"
        )
    return chosen, rows


def check_place(source: Dataset, out: Dataset) -> None:
    """Whether `out` may be written: a folder apart from the source's, with no tables but those begun here."""
    one, other = _folder(source), _folder(out)
    if one == other:
        raise UsageError(f"{out.storage.url}: --out is the dataset itself; give another folder")
    if one.startswith(f"{other}/") or other.startswith(f"{one}/"):
        raise UsageError(f"{out.storage.url}: --out and the dataset lie one inside the other; give a folder apart")
    if out.ledger.plan(Arrange.name) is not None:
        return
    if out.ledger.steps():
        raise FingerprintError(f"{out.storage.url}: holds a crawl or a download; give another --out")
    if found := [*out.storage.list("", ".tar"), *(name for folder in WRITTEN for name in out.tables(folder))]:
        raise FingerprintError(
            f"{out.storage.url}: holds {found[0]}, which no resharding has written; give another --out"
        )


def _folder(dataset: Dataset) -> str:
    storage = dataset.storage
    return os.path.realpath(storage.url) if storage.is_local else storage.url


def note_origin(selection: Selection, out: Dataset) -> None:
    """Say in `out` what it is made of, and in the source, where that can be written, what was made of it."""
    source, name = selection.dataset.storage, selection.name
    made_of = {"dataset": source.url, "selection": name, "fingerprint": selection.summary["fingerprint"]}
    out.storage.commit_bytes(ORIGIN, json.dumps(made_of, indent=1).encode() + b"\n")
    made = json.dumps({"dataset": out.storage.url, "selection": name}, indent=1).encode() + b"\n"
    try:
        source.commit_bytes(f"{RESHARDED}/{digest_bytes(out.storage.url.encode())}.json", made)
    except OSError as error:
        log.warning("source=%s not told what was made of it: %s", source.url, one_line(str(error)))


def write_sizes(out: Dataset) -> None:
    """Publish sizes.json for the shards that are done."""
    marks = out.ledger.done(Reshard.name)
    out.write_sizes({out.tar(shard): mark.counts.rows_out for shard, mark in marks.items()})


def plan_text(source: Dataset, out: Dataset, selection: str, config: ReshardConfig) -> list[str]:
    """What a run would do. Raises what it would raise before its first job."""
    told = check(source, out, selection)[0].summary
    num_kept, num_rows = told["rows_out"], told["rows_in"]
    num_bytes = sum(file.size for mark in source.ledger.done("download").values() for file in mark.files)
    disk = f"; about {num_bytes * num_kept / max(num_rows, 1) / 1e9:,.2f} GB, its share of the source"
    return [
        f"reshard: {num_kept:,} of {num_rows:,} rows are kept by {selection}: at most "
        f"{-(-num_kept // config.shard_size):,} shards of {config.shard_size:,}" + (disk if num_bytes else ""),
        f"done before: {len(out.ledger.done(Reshard.name)):,} shards",
    ]


def summary(results: Sequence[StepResult], out: Dataset) -> dict[str, Any]:
    """The --json facts: rows of the selection to samples stored. `waiting`: in shards that are not done."""
    arranged, stored, *captions = results
    dropped = Counter(waiting=arranged.counts.rows_out - stored.counts.rows_in)
    dropped.update(arranged.counts.dropped)
    dropped.update(stored.counts.dropped)
    return {
        "rows_in": arranged.counts.rows_in,
        "rows_out": stored.counts.rows_out,
        "dropped": {reason: number for reason, number in sorted(dropped.items()) if number},
        "captions": {result.step.removeprefix("captions_"): result.counts.rows_out for result in captions},
        "quarantined": sorted(job for result in results for job in result.quarantined),
        "paths": [out.storage.file_url(out.tar(shard)) for shard in out.ledger.done(Reshard.name)],
    }
