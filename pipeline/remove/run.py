"""A removal from start to end: rows found, tombstones set, files purged, sums over shards told anew.

ledger/removing/    the removal's own ledger and tables; open.json there says that a removal is at work
    found.parquet   all that goes: once it is there, every run of the command goes on to the end
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from infra.dataset import Dataset
from infra.errors import UsageError
from infra.executors import LocalExecutor
from infra.indexing import INDEXING
from infra.jobs import Executor, RunOptions, Step, StepResult, require, run_jobs
from infra.ledger import Counts
from infra.log import get_logger
from infra.progress import Progress
from infra.removed import OPEN, REMOVED, REMOVING, SCHEMA, TOMBSTONES, RemovedRows
from infra.selection import Selection, rules_told, selections, summary_file
from infra.tables import read_table, write_table
from pipeline.download.deny import DenyList
from pipeline.remove.find import Find, gather, lines_matched
from pipeline.remove.purge import FOUND, Purge
from pipeline.remove.subsets import subsets_with
from pipeline.reshard.run import RESHARDED

log = get_logger("remove")

SCOPE = "scope.json"  # beside found.parquet: the tables that hold such rows
PAGES = ".html"  # reports, which show pictures and addresses: they are written again at any time
NUM_SHOWN = 5
STORING = ("download", "reshard", INDEXING)

Run = Callable[[Step], StepResult]


@dataclass(frozen=True, slots=True)
class Found:
    """What goes: rows of FOUND's columns, the files of pairs that hold them, and how many samples are stored."""

    rows: pa.Table
    files: list[str]
    num_stored: int
    num_unreadable: int  # stored images that no perceptual hash could be taken of
    matched: list[int]  # numbers of the list's lines that some row matches

    def by_match(self) -> dict[str, int]:
        """Distinct uids by what they match."""
        pairs = zip(self.rows["uid"].to_pylist(), self.rows["why"].to_pylist(), strict=True)
        return dict(sorted(Counter(dict(pairs).values()).items()))

    def lines_without(self, listed: DenyList) -> list[str]:
        """The list's lines that match no row."""
        return [text for number, text in listed.lines.items() if number not in self.matched]


def remove(
    dataset: Dataset,
    path: str,
    executor: Executor,
    *,
    options: RunOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Purge what the list at `path` names. Returns the --json facts. A removal that was cut off is finished first.

    Nothing else may be at work on the dataset. Raises UsageError for a list that cannot be read, StepError where a
    file could not be purged: the removal stays open, and `infra verify` says so.
    """
    options = options or RunOptions()
    if options.limit is not None:
        raise UsageError("--limit: a removal is done as a whole; leave it out")
    listed = load_list(path)

    def run(step: Step) -> StepResult:
        return require(run_jobs(step, executor, attempts=options.attempts, progress=progress), None)

    work = _work(dataset)
    if _opened(dataset) != listed.digest:
        if _opened(dataset) is not None and work.storage.exists(FOUND):
            _carry_out(dataset, work, _kept(work), run)  # of another list
        dataset.storage.remove_folder(REMOVING)
        dataset.storage.commit_bytes(OPEN, json.dumps({"list": listed.digest}).encode() + b"\n")
    if not work.storage.exists(FOUND):
        _keep(work, find_all(dataset, work, listed, run))
    found = _kept(work)
    facts = _carry_out(dataset, work, found, run)
    unmatched, subsets = found.lines_without(listed), subsets_with(dataset, RemovedRows.of(dataset.storage))
    if unmatched:
        log.warning("%s", unmatched_text(unmatched))
    for name in subsets:
        log.warning("%s", subset_text(dataset, name))
    return {**facts, "unmatched": unmatched, "subsets": subsets, "resharded": list(_resharded(dataset, path))}


def load_list(path: str) -> DenyList:
    """The list. Raises UsageError for one that is empty or cannot be read."""
    listed = DenyList.load(path, "--list")
    if not any((listed.urls, listed.domains, listed.uids, listed.sha256s, listed.phashes)):
        raise UsageError(
            f"--list {path}: names nothing; write url:…, domain:…, uid:…, sha256:… or phash:…, a line each"
        )
    return listed


def unmatched_text(lines: Sequence[str]) -> str:
    """That lines match nothing, with the first of them."""
    more = ", …" if len(lines) > NUM_SHOWN else ""
    return f"{len(lines):,} lines of the list match nothing that is still here: {', '.join(lines[:NUM_SHOWN])}{more}"


def subset_text(dataset: Dataset, name: str) -> str:
    """That a subset file lists removed uids, with the mend."""
    return f"{dataset.storage.file_url(name)}: lists removed uids, not changed; write it anew with select --npy"


def plan_text(dataset: Dataset, path: str) -> list[str]:
    """What would go. The rows are looked for in this process; nothing is written into the dataset."""
    listed = load_list(path)
    with tempfile.TemporaryDirectory(prefix="pairmill-remove-") as folder:
        found = find_all(dataset, Dataset(folder), listed, lambda step: require(run_jobs(step, LocalExecutor()), None))
    by_match = ", ".join(f"{word} {number:,}" for word, number in found.by_match().items())
    lines = [
        f"remove: {sum(found.by_match().values()):,} rows" + (f" ({by_match})" if by_match else ""),
        f"  {found.num_stored:,} stored samples, in {len(found.files):,} files of rows"
        + (f": {', '.join(found.files[:5])}" if found.files else ""),
    ]
    if found.num_unreadable:
        lines.append(
            f"  {found.num_unreadable:,} stored images cannot be decoded: whether they are listed is not known"
        )
    if unmatched := found.lines_without(listed):
        lines.append(f"  {unmatched_text(unmatched)}")
    removed = RemovedRows(found.rows)
    stems = {name.rpartition("/")[2].rpartition(".")[0] for name in found.files}
    for name in selections(dataset):
        selection = Selection(dataset, name)
        tables = (selection.read(shard, ["uid", "keep"]) for shard in selection.shards if shard in stems)
        num_kept = sum(
            table["keep"].filter(removed.hold(table["uid"], None)).to_pylist().count(True) for table in tables
        )
        if num_kept:
            lines.append(f"  selection {name}: {num_kept:,} rows that it keeps")
    lines += [f"  {subset_text(dataset, name)}" for name in subsets_with(dataset, removed)]
    return [*lines, *(f"  made of this dataset, not changed: {each['dataset']}" for each in _resharded(dataset, path))]


def find_all(dataset: Dataset, work: Dataset, listed: DenyList, run: Run) -> Found:
    """Rounds until one finds no more than the last."""
    number, num_before = 0, -1
    while True:
        step = Find(dataset, work, listed, number)
        result = run(step)
        rows = gather(work, number)
        if number == 0:
            first = result.counts
        if rows.num_rows in (0, num_before):
            break
        number, num_before = number + 1, rows.num_rows
    marks = work.ledger.done(step.name)
    files = [job.payload["file"] for job in step.plan() if marks[job.id].counts.num_dropped]
    num_stored, num_unreadable = result.counts.extra.get("stored", 0), first.extra.get("unreadable", 0)
    return Found(rows, files, num_stored, num_unreadable, lines_matched(first))


def _keep(work: Dataset, found: Found) -> None:
    """Publish what goes; from now on the removal is finished by whoever runs next."""
    scope = {
        "files": found.files,
        "stored": found.num_stored,
        "unreadable": found.num_unreadable,
        "matched": found.matched,
    }
    work.storage.commit_bytes(SCOPE, json.dumps(scope).encode() + b"\n")
    write_table(work.storage, FOUND, found.rows)


def _kept(work: Dataset) -> Found:
    """What `_keep` has published."""
    scope = json.loads(work.storage.read(SCOPE))
    rows = read_table(work.storage, FOUND)
    return Found(rows, scope["files"], scope["stored"], scope["unreadable"], scope["matched"])


def _carry_out(dataset: Dataset, work: Dataset, found: Found, run: Run) -> dict[str, Any]:
    """Purge what was found, and close the removal."""
    judged: dict[str, int] = {}
    pages: list[str] = []
    if found.rows.num_rows:
        _set_tombstones(dataset, found.rows)
        judged = dict(run(Purge(dataset, work, found.files)).counts.extra)
        _tell_sums(dataset, judged)
        pages = [name for name in dataset.storage.sizes() if name.endswith(PAGES)]
    for name in pages:
        dataset.storage.remove(name)
    dataset.storage.sweep(orphan_age_s=0)  # what others left half-written may hold such bytes, too
    dataset.storage.remove(OPEN)
    dataset.storage.remove_folder(REMOVING)
    by_match = found.by_match()
    num_left = sum((mark.counts for step in STORING for mark in dataset.ledger.done(step).values()), Counts()).rows_out
    return {
        "rows_in": num_left + found.num_stored,
        "rows_out": num_left,
        "dropped": {REMOVED: found.num_stored} if found.num_stored else {},
        "removed": sum(by_match.values()),
        "by_match": by_match,
        "selections": {name: number for name, number in sorted(judged.items()) if number},
        "unreadable": found.num_unreadable,
        "deleted": pages,
        "quarantined": [],
        "paths": [dataset.storage.file_url(name) for name in found.files],
    }


def _set_tombstones(dataset: Dataset, rows: pa.Table) -> None:
    """From now on nothing fetches or stores these rows."""
    tables = [RemovedRows.of(dataset.storage).table, rows.select(SCHEMA.names)]
    merged = pa.concat_tables(tables).group_by(["uid", "url"]).aggregate([("why", "min")])
    table = pa.table({"uid": merged["uid"], "why": merged["why_min"], "url": merged["url"]}, schema=SCHEMA)
    write_table(dataset.storage, TOMBSTONES, table.sort_by([("uid", "ascending"), ("url", "ascending")]))


def _tell_sums(dataset: Dataset, judged: dict[str, int]) -> None:
    """sizes.json and the summaries of selections, by the marks as they are now."""
    sizes = dataset.read_sizes()
    for step in STORING:
        stored = {dataset.tar(shard): mark.counts.rows_out for shard, mark in dataset.ledger.done(step).items()}
        sizes |= {tar: number for tar, number in stored.items() if tar in sizes}
    if sizes:
        dataset.write_sizes(sizes)
    for name in set(judged) & set(selections(dataset)):
        told = Selection(dataset, name).summary
        counts = sum((mark.counts for mark in dataset.ledger.done(f"select_{name}").values()), Counts())
        told |= {field: counts.as_json()[field] for field in ("rows_in", "rows_out", "dropped")}
        told["rules"] = rules_told(told["rules"], counts)
        text = json.dumps(told, indent=1, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        dataset.storage.commit_bytes(summary_file(name), text)


def _resharded(dataset: Dataset, path: str) -> Iterator[dict[str, str]]:
    """Datasets that were made of this one, and what to run there."""
    for name in dataset.storage.list(RESHARDED, ".json"):
        made = json.loads(dataset.storage.read(name))
        yield {**made, "run": f"python -m pipeline remove {made['dataset']} --list {path}"}


def _opened(dataset: Dataset) -> str | None:
    """The list of the removal at work."""
    try:
        return str(json.loads(dataset.storage.read(OPEN))["list"])
    except FileNotFoundError:
        return None


def _work(dataset: Dataset) -> Dataset:
    return Dataset(f"{dataset.storage.url}/{REMOVING}")
