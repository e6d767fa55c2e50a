"""The index of foreign folders (img2dataset, DataComp, CLIP_benchmark): random access, and a uid for every sample.

A uid comes from the sample's json, else from the table beside the tar (by key), else it is made of url and caption.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import pyarrow.parquet as pq

from infra.dataset import Dataset
from infra.errors import UsageError
from infra.jobs import Executor, Job, Outcome, RunOptions, Step, StepResult, require, run_jobs
from infra.ledger import Counts
from infra.progress import Progress
from infra.sample import UID_BYTES, pair_uid
from infra.shards import IMAGE_ENDINGS, Member, index_table, read_at, walk_members
from infra.tables import write_table
from infra.verify import INDEXING

MAX_TEXT_BYTES = 1 << 20  # of a txt or json member; a larger one is no caption
TABLE_COLUMNS = ("key", "uid", "url", "caption")


def index_dataset(
    source: Dataset,
    executor: Executor,
    *,
    target: Dataset | None = None,
    options: RunOptions | None = None,
    progress: Progress | None = None,
) -> StepResult:
    """Index every tar of `source`; index, ledger and sizes.json go to `target`, or beside the tars.

    Raises UsageError where there is nothing to index, or where the tars are ours and came with their index.
    """
    options = options or RunOptions()
    target = target or source
    refuse(source)
    step = Indexing(source, target)
    result = run_jobs(step, executor, limit=options.limit, attempts=options.attempts, progress=progress)
    require(result, options.max_quarantined)
    write_sizes(source, target)
    return result


def index_plan(source: Dataset, target: Dataset) -> list[str]:
    """What a run would do. Raises UsageError as `index_dataset` does."""
    refuse(source)
    sizes = source.storage.sizes()
    tars = [source.tar(shard) for shard in source.tars()]
    num_done = len(target.ledger.done(INDEXING))
    num_bytes = sum(sizes[tar] for tar in tars)
    return [
        f"index: {len(tars):,} tars of {num_bytes / 1e9:,.2f} GB, {num_done:,} done before; "
        f"headers, texts and json are read, images passed over",
        f"written: {target.storage.file_url('index')}, sizes.json; about 80 bytes a sample",
    ]


def refuse(source: Dataset) -> None:
    """Raise UsageError for a folder that has no tars, or that has its index."""
    if not source.tars():
        raise UsageError(f"{source.storage.url}: no .tar files there; give the folder that holds them")
    if set(source.ledger.steps()) - {INDEXING}:
        raise UsageError(
            f"{source.storage.url} was made by pairmill, which writes the index with each shard; "
            "python -m infra verify says whether it fits"
        )


def write_sizes(source: Dataset, target: Dataset) -> None:
    """Publish sizes.json: what it said before, and the shards that are indexed."""
    holder = target if target.storage.exists("sizes.json") else source
    try:
        known = json.loads(holder.storage.read("sizes.json"))
    except (FileNotFoundError, ValueError):
        known = {}
    counted = {source.tar(shard): mark.counts.rows_out for shard, mark in target.ledger.done(INDEXING).items()}
    target.write_sizes({**(known if isinstance(known, dict) else {}), **counted})


class Indexing(Step):
    """One job a tar."""

    name = INDEXING
    derived = True  # a tar that has changed is indexed anew

    def __init__(self, source: Dataset, target: Dataset) -> None:
        self.source = source
        self.dataset = target

    def settings(self) -> Mapping[str, Any]:
        """None: there is one way to index."""
        return {}

    def inputs(self, job: Job) -> Any:
        """Stamps of the tar and of the table beside it: reading every tar to plan would cost as much as the work."""
        return job.payload

    def plan(self) -> Sequence[Job]:
        """A job for each tar of the folder."""
        stamps = self.source.storage.stamps()
        return [
            Job(shard, {"tar": stamps[self.source.tar(shard)], "table": stamps.get(self.source.table(shard))})
            for shard in self.source.tars()
        ]

    def run(self, job: Job) -> Outcome:
        """Rows in = rows out = samples. `extra` tells where uids came from, and samples without an image."""
        shard = job.id
        beside = self._table(shard) if job.payload["table"] is not None else {}
        tally: Counter[str] = Counter()
        rows: list[tuple[bytes, str, str, int, int]] = []
        num_samples = 0
        with self.source.storage.open(self.source.tar(shard)) as file:
            for sample in _samples(file):
                uid, origin = _identify(sample, beside.get(sample.key, {}), shard)
                tally[f"uid_from_{origin}"] += 1
                tally["without_image"] += not any(member.ending in IMAGE_ENDINGS for member in sample.members)
                rows += [(uid, sample.key, member.name, member.offset, member.size) for member in sample.members]
                num_samples += 1
        index = write_table(self.dataset.storage, self.dataset.index(shard), index_table(rows))
        extra = {name: number for name, number in tally.items() if number}
        return Outcome(Counts(num_samples, num_samples, extra=extra), (index,))

    def _table(self, shard: str) -> dict[str, dict[str, Any]]:
        """The rows of the table beside the tar, by key; none where it has no keys."""
        with self.source.storage.open(self.source.table(shard)) as file:
            table = pq.ParquetFile(file)
            columns = [name for name in TABLE_COLUMNS if name in table.schema_arrow.names]
            rows = table.read(columns).to_pylist() if "key" in columns else []
        return {str(row["key"]): row for row in rows}


@dataclass(slots=True)
class _Sample:
    key: str
    members: list[Member] = field(default_factory=list)
    text: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def _samples(file: IO[bytes]) -> Iterator[_Sample]:
    """Consecutive members that share a key; of their bytes only text and json are read."""
    current: _Sample | None = None
    for member in walk_members(file):
        if current is None or member.key != current.key:
            if current is not None:
                yield current
            current = _Sample(member.key)
        current.members.append(member)
        if member.ending in ("txt", "json") and member.size <= MAX_TEXT_BYTES:
            data = read_at(file, member.offset, member.size)
            if member.ending == "txt":
                current.text = data.decode("utf-8", "replace")
            else:
                current.facts = _json_object(data)
    if current is not None:
        yield current


def _identify(sample: _Sample, row: Mapping[str, Any], shard: str) -> tuple[bytes, str]:
    """A sample's uid, and where it came from: json, table or made."""
    for values, origin in ((sample.facts, "json"), (row, "table")):
        uid = _as_uid(values.get("uid"))
        if uid is not None:
            return uid, origin
    url = sample.facts.get("url") or row.get("url")
    caption = sample.facts.get("caption") or row.get("caption") or sample.text
    # Without a url the place is all that tells two samples of one class apart.
    url = url if isinstance(url, str) else f"{shard}.tar#{sample.key}"
    return pair_uid(url, caption if isinstance(caption, str) else None), "made"


def _as_uid(value: Any) -> bytes | None:
    if isinstance(value, str):
        try:
            value = bytes.fromhex(value)
        except ValueError:
            return None
    return value if isinstance(value, bytes) and len(value) == UID_BYTES else None


def _json_object(data: bytes) -> Mapping[str, Any]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
