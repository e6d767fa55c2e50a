"""Kept captions of the source's caption tables, shard by curated shard, under the same (uid, source, n).

captions/NAME/NNNNN.parquet   the source's columns; rows that the selection keeps, in their order
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from infra.dataset import Dataset
from infra.jobs import Job, Outcome, Step
from infra.ledger import Counts
from infra.selection import Selection
from infra.tables import KEYS, read_table, write_keyed_table
from pipeline.download.shard import SUCCESS
from pipeline.download.split import input_table
from pipeline.reshard.shard import Reshard, runs


class KeptCaptions(Step):
    """One caption table; a job a shard."""

    def __init__(self, selection: Selection, out: Dataset, table: str) -> None:
        self.selection = selection
        self.dataset = out
        self.table = table
        self.name = f"captions_{table}"

    def settings(self) -> Mapping[str, Any]:
        """None: the selection says all."""
        return {}

    def inputs(self, job: Job) -> Any:
        """What the shard was made of."""
        return job.payload["shard"]

    def plan(self) -> Sequence[Job]:
        """A job for each shard that is done."""
        marks = self.dataset.ledger.done(Reshard.name)
        return [Job(shard, {"shard": mark.fingerprint}) for shard, mark in marks.items()]

    def run(self, job: Job) -> Outcome:
        """Rows in = rows out = kept captions of stored samples."""
        storage = self.dataset.storage
        rows = read_table(storage, self.dataset.table(job.id), ["uid", "status"])
        stored = rows.filter(pc.equal(rows["status"], SUCCESS))["uid"].combine_chunks()
        origins = [origin for origin, _ in runs(read_table(storage, input_table(job.id))["origin_shard"])]
        table = pa.concat_tables([self._kept(origin, stored) for origin in origins], promote_options="permissive")
        file = write_keyed_table(storage, f"captions/{self.table}/{job.id}.parquet", table)
        return Outcome(Counts(table.num_rows, table.num_rows), (file,))

    def _kept(self, origin: str, stored: pa.Array) -> pa.Table:
        captions = read_table(self.selection.dataset.storage, f"captions/{self.table}/{origin}.parquet")
        captions = captions.filter(pc.is_in(captions["uid"], value_set=stored))
        judged = self.selection.read(origin, [*KEYS.names, "keep"])
        judged = judged.filter(pc.and_(judged["keep"], pc.equal(judged["source"], self.table)))
        kept = set(zip(judged["uid"].to_pylist(), judged["n"].to_pylist(), strict=True))
        keys = zip(captions["uid"].to_pylist(), captions["n"].to_pylist(), strict=True)
        return captions.filter(pa.array([key in kept for key in keys], pa.bool_()))
