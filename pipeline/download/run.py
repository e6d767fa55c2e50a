"""The download from start to end: tables known, split, repeated rows found, shards fetched, sizes told."""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa

from infra.dataset import Dataset
from infra.errors import StepError, UsageError
from infra.executors import LocalExecutor
from infra.jobs import Executor, RunOptions, Step, StepResult, require, run_jobs
from infra.ledger import Counts
from infra.log import get_logger
from infra.progress import Progress
from infra.reasons import REASONS
from infra.tables import connect, urls, write_table
from pipeline.download.config import DownloadConfig
from pipeline.download.inputs import expand_tables, identify
from pipeline.download.native import Native
from pipeline.download.shard import ShardStep
from pipeline.download.split import Duplicates, Split, add_inputs, known_inputs, read_input
from pipeline.fetch.errors import matches_retry

log = get_logger("download")


def download(
    dataset: Dataset,
    config: DownloadConfig,
    tables: Sequence[str],
    executor: Executor,
    *,
    options: RunOptions | None = None,
    retry: Sequence[str] = (),
    fetch: bool = True,
    progress: Progress | None = None,
) -> list[StepResult]:
    """Download tables into a dataset; what is done is skipped, new tables append. Returns a result a step.

    fetch: off, the tables are split and no more, so that texts can be scored before anything is asked for.
    retry: reasons whose rows are tried again, into new shards, once all else is done.
    Raises FingerprintError for other settings, StepError where too much was quarantined.
    """
    options = options or RunOptions()
    if isinstance(executor, LocalExecutor) and config.threads is None:
        config = config.model_copy(update={"threads": os.cpu_count()})

    def run(step: Step) -> StepResult:
        is_fetch = step.name == ShardStep.name  # a gap before it would bring repeated rows, or another numbering
        limit, allowed = (options.limit, options.max_quarantined) if is_fetch else (None, None)
        return require(run_jobs(step, executor, limit=limit, attempts=options.attempts, progress=progress), allowed)

    def run_all() -> list[StepResult]:
        try:
            prepared = [run(Split(dataset, config)), run(Duplicates(dataset, config))]
            return [*prepared, run(make_step(dataset, config))] if fetch else prepared
        except StepError:
            write_sizes(dataset)  # the shards that are done can be read
            raise

    check_retry(retry)
    add_inputs(dataset, expand_tables(tables), config)
    was_finished = is_finished(dataset)
    if retry and not was_finished:
        log.warning("--retry waits for the shards that are not done yet; give the command once more when it has ended")
    results = run_all()
    if retry and was_finished and add_retry(dataset, config, retry):
        results = run_all()
    write_sizes(dataset)
    return results


def make_step(dataset: Dataset, config: DownloadConfig) -> Step:
    """The step that fetches a shard, by the engine that the settings name."""
    if config.engine == "img2dataset":
        from pipeline.download.img2dataset_engine import Img2Dataset

        return Img2Dataset(dataset, config)
    return Native(dataset, config)


def is_finished(dataset: Dataset) -> bool:
    """Did the last run come to its end, with every shard of the known tables downloaded? False before the first run."""
    num_shards = sum(item.num_shards for item in known_inputs(dataset))
    done = dataset.ledger.done("download")
    # sizes.json is written last: a run killed before it is only ended by the next one.
    return num_shards > 0 and len(done) >= num_shards and dataset.read_sizes().keys() == set(map(dataset.tar, done))


def check_retry(words: Sequence[str]) -> None:
    """Raise UsageError for a word of --retry that is no reason."""
    for word in words:
        if word not in REASONS and not re.fullmatch(r"(http_)?[1-5](\d\d|xx)", word):
            close = difflib.get_close_matches(word, REASONS, n=1)
            hint = f"did you mean {close[0]}?" if close else "write reasons of the tables, 404 or 5xx"
            raise UsageError(f"--retry {word}: no such reason; {hint}")


def add_retry(dataset: Dataset, config: DownloadConfig, reasons: Sequence[str]) -> bool:
    """Make a table of the rows whose last fate matches `reasons`, as a new batch. False where there are none."""
    parts: list[pa.Table] = []
    retried: Counter[str] = Counter()
    for shard, failures in _last_failures(dataset):
        wanted = {uid: reason for uid, reason in failures if matches_retry(reasons, reason)}
        if wanted:
            rows = read_input(dataset, shard)
            parts.append(rows.filter(pa.array([uid in wanted for uid in rows["uid"].to_pylist()], pa.bool_())))
            retried.update(wanted.values())
    if not parts:
        return False
    num_batches = 1 + max(item.batch for item in known_inputs(dataset))
    name = f"inputs/retry/{num_batches:05d}.parquet"
    write_table(dataset.storage, name, pa.concat_tables(parts, promote_options="permissive"))
    add_inputs(dataset, [dataset.storage.file_url(name)], config, retried=dict(retried))
    return True


def _last_failures(dataset: Dataset) -> Iterator[tuple[str, list[tuple[bytes, str]]]]:
    """By shard, the (uid, reason) of rows whose latest try failed."""
    names = [dataset.table(shard) for shard in dataset.ledger.done("download")]
    query = """
        SELECT shard, uid, reason
        FROM (SELECT uid, reason, parse_filename(filename, true) AS shard FROM read_parquet(?, filename = true))
        QUALIFY row_number() OVER (PARTITION BY uid ORDER BY CAST(shard AS BIGINT) DESC) = 1 AND reason IS NOT NULL
        ORDER BY shard, uid
    """
    reader = connect(dataset.storage).execute(query, [urls(dataset.storage, names)])
    rows = iter(lambda: reader.fetchmany(10_000), [])
    for shard, group in groupby(chain.from_iterable(rows), key=itemgetter(0)):
        yield shard, [(uid, reason) for _, uid, reason in group]


def write_sizes(dataset: Dataset) -> None:
    """Publish sizes.json for the shards that are done."""
    marks = dataset.ledger.done("download")
    dataset.write_sizes({dataset.tar(shard): mark.counts.rows_out for shard, mark in marks.items()})


def plan_text(dataset: Dataset, config: DownloadConfig, tables: Sequence[str]) -> list[str]:
    """What a run would do: rows, shards, disk, traffic and hours, with the measure or reckoning behind each."""
    known = {item.digest for item in known_inputs(dataset)}
    identified = [identify(path) for path in expand_tables(tables)]
    num_rows = sum(rows for digest, rows in identified if digest not in known)
    num_rows += sum(item.num_rows for item in known_inputs(dataset))
    num_shards = sum(-(-rows // config.shard_size) for digest, rows in identified if digest not in known)
    num_shards += sum(item.num_shards for item in known_inputs(dataset))
    marks = dataset.ledger.done("download")
    measured = sum((mark.counts for mark in marks.values()), Counts())
    took_s = sum(float(mark.clock["took_s"]) for mark in marks.values())
    if measured.rows_out:
        stored = sum(file.size for mark in marks.values() for file in mark.files) / measured.rows_in
        rate, source = measured.rows_in / max(took_s, 1e-9), f"measured on {len(marks)} finished shards"
    else:
        stored, rate = reckoned_bytes(config), RECKONED_ROWS_PER_S
        source = "reckoned: 60 % of rows fetched, 20 rows/s a CPU; run a few shards with --limit for measured figures"
    left = num_rows - measured.rows_in
    return [
        f"download: {num_rows:,} rows in {num_shards:,} shards of {config.shard_size:,}; {len(marks):,} shards done",
        f"disk: about {stored * num_rows / 1e9:,.2f} GB ({source})",
        f"traffic: about {RECKONED_WEB_BYTES * left / 1e9:,.2f} GB (reckoned: {RECKONED_WEB_BYTES // 1000} kB a row)",
        f"time: about {left / rate / 3600:,.2f} worker-hours",
    ]


RECKONED_ROWS_PER_S = 20.0
RECKONED_WEB_BYTES = 120_000
RECKONED_SHARE = 0.6


def reckoned_bytes(config: DownloadConfig) -> float:
    """Bytes a row before anything was measured: a quarter byte a pixel of a JPEG at quality 95, a 3:4 picture."""
    pixels = 0.75 * config.image_size**2 if config.resize_mode != "no" else 500_000
    return RECKONED_SHARE * (0.25 * pixels + 2_000)


def summary(results: Sequence[StepResult], dataset: Dataset) -> dict[str, Any]:
    """The --json facts of a download: rows of the tables to rows stored. `waiting`: in shards that are not done."""
    split, repeated, fetched = (*(result.counts for result in results), Counts())[:3]
    dropped: Counter[str] = Counter(waiting=repeated.rows_out - fetched.rows_in)
    for counts in (split, repeated, fetched):
        dropped.update(counts.dropped)
    rows_in = split.rows_in
    for item in known_inputs(dataset):  # a row tried again has one fate: its last
        dropped.subtract(item.retried)
        rows_in -= sum(item.retried.values())
    return {
        "rows_in": rows_in,
        "rows_out": fetched.rows_out,
        "dropped": {reason: number for reason, number in sorted(dropped.items()) if number},
        "quarantined": sorted(results[-1].quarantined),
        "paths": [dataset.storage.file_url(dataset.tar(shard)) for shard in dataset.ledger.done("download")],
    }
