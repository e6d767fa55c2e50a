"""Purging: every file that holds something of a removed row is written anew without it, then the marks that name it.

A job is a shard (tar, index, table, statistics), another done-mark with its files, or a file that no mark names. Files
keep the identity that later steps know them by. A job may be killed at any instruction: what it has done it finds done.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from infra.dataset import Dataset
from infra.jobs import Job, Outcome, Step
from infra.ledger import DoneMark
from infra.recipe import fingerprint
from infra.removed import REMOVING, TOMBSTONES, RemovedRows
from infra.tables import read_table
from pipeline.remove.unit import Unit

FOUND = "found.parquet"  # all that goes
OF_A_CRAWL = ("crawl/", "ledger/pages/")  # tables that may name an address wherever it was met
UNTOUCHED = ("inputs/duplicates/",)  # uids alone
MARKS_AT_ONCE = 256

MarkName = tuple[str, str]  # step, job


class Purge(Step):
    """All rows of FOUND, out of every file of the dataset."""

    name = "purge"
    derived = True  # what was made again since is purged again

    def __init__(self, source: Dataset, work: Dataset, tables: Sequence[str]) -> None:
        """tables: files of pairs that hold rows to be purged; tables made from them have their names."""
        self.source = source
        self.dataset = work
        self.stems = {name.rpartition("/")[2].rpartition(".")[0] for name in tables}

    def settings(self) -> Mapping[str, Any]:
        """None: FOUND says all, and does not change."""
        return {}

    def inputs(self, job: Job) -> Any:
        """What the job's files were made as."""
        return job.payload

    def plan(self) -> Sequence[Job]:
        """A job for each shard, mark and unnamed file that may hold something."""
        names = self.source.storage.sizes()
        marks = read_marks(self.source, names)
        owners: dict[str, list[MarkName]] = {}
        for mark in marks.values():
            for file in mark.files:
                owners.setdefault(file.name, []).append((mark.step, mark.job))
        jobs = []
        taken: set[str] = set()
        for shard in self.source.tars():
            files = (self.source.tar(shard), self.source.index(shard), self.source.table(shard))
            taken.update(files)
            if shard in self.stems:
                of_shard = dict.fromkeys(owner for file in files for owner in owners.get(file, ()))
                jobs.append(_job(f"shard~{shard}", of_shard, marks, shard=shard))
        for (step, id), mark in marks.items():
            if any(self._may_hold(file.name) and file.name not in taken for file in mark.files):
                jobs.append(_job(f"{step}~{id}", [(step, id)], marks))
        loose = (name for name in names if name not in owners and name not in taken and self._may_hold(name))
        return [*jobs, *(_job(f"file~{name.replace('/', '~')}", [], marks, file=name) for name in loose)]

    def setup(self) -> None:
        """Read what goes."""
        self._removed = RemovedRows(read_table(self.dataset.storage, FOUND))

    def run(self, job: Job) -> Outcome:
        """Rows in = rows of the tables that were looked at, rows out = those that stay; `extra` tells of selections."""
        marks = read_marks(self.source, [f"ledger/done/{step}/{id}.json" for step, id in job.payload["marks"]])
        unit = Unit(self.source, self.dataset, self._removed, job.id, list(marks.values()))
        if shard := job.payload.get("shard"):
            unit.purge_shard(shard)
        elif file := job.payload.get("file"):
            unit.purge_table(file)
        else:
            for name in dict.fromkeys(file.name for mark in marks.values() for file in mark.files):
                if self._may_hold(name):
                    unit.purge_table(name)
        return unit.end()

    def _may_hold(self, name: str) -> bool:
        if not name.endswith(".parquet") or name == TOMBSTONES or name.startswith((REMOVING, *UNTOUCHED)):
            return False
        return name.startswith(OF_A_CRAWL) or name.rpartition("/")[2].removesuffix(".parquet") in self.stems


def read_marks(dataset: Dataset, names: Iterable[str]) -> dict[MarkName, DoneMark]:
    """The done-marks among these files."""
    chosen = [name for name in names if name.startswith("ledger/done/") and name.endswith(".json")]
    marks: dict[MarkName, DoneMark] = {}
    for at in range(0, len(chosen), MARKS_AT_ONCE):
        for data in dataset.storage.read_many(chosen[at : at + MARKS_AT_ONCE]).values():
            mark = DoneMark.from_json(json.loads(data))
            marks[mark.step, mark.job] = mark
    return marks


def _job(id: str, owners: Iterable[MarkName], marks: Mapping[MarkName, DoneMark], **what: str) -> Job:
    owners = list(owners)
    made = [[file.name, file.identity] for owner in owners for file in marks[owner].files]
    return Job(id, {**what, "marks": [list(owner) for owner in owners], "made": fingerprint(made)})
