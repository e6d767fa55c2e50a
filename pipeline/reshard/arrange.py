"""Which kept sample goes into which shard: one query over a selection's columns, which spills to disk.

inputs/NNNNN.parquet   what shard NNNNN takes: uid, origin_shard, caption_source, caption_n
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from infra.dataset import Dataset
from infra.jobs import Job, Outcome, Step
from infra.ledger import Counts
from infra.removed import UID
from infra.selection import Selection, selection_table
from infra.tables import connect, urls, write_table
from pipeline.download.split import input_table, rebatch, shard_name
from pipeline.reshard.config import ReshardConfig

MEMORY = "2GB"
INPUT = pa.schema(
    [("uid", UID), ("origin_shard", pa.string()), ("caption_source", pa.string()), ("caption_n", pa.int32())]
)

# Of each kept uid: where its sample lies, and which of its kept captions comes first, the web's before all others.
_KEPT = """
CREATE TEMP TABLE kept AS
SELECT uid, min({'nth': nth, 'row': row}) AS place, count(*) AS num_kept, count(DISTINCT {'s': source, 'n': n}) AS num,
       arg_min({'shard': name, 'source': source, 'n': n}, {'nth': nth, 'other': source <> 'web', 'row': row}) AS lead
FROM (SELECT uid, source, n, file_row_number AS row, parse_filename(filename, true) AS name
      FROM read_parquet(?, filename = true, file_row_number = true) WHERE keep) JOIN shard USING (name)
GROUP BY uid
"""
_FELL = "SELECT reason, count(*) FROM read_parquet(?) WHERE NOT keep GROUP BY reason"
_TALLY = "SELECT count(*), coalesce(sum(num), 0)::BIGINT, coalesce(sum(num_kept), 0)::BIGINT FROM kept"
_PLACED = """
SELECT uid, lead.shard AS origin_shard, lead.source AS caption_source, lead.n AS caption_n FROM kept ORDER BY place
"""


class Arrange(Step):
    """One job. Samples keep the order of the source: its shards, then its rows."""

    name = "reshard_plan"

    def __init__(self, selection: Selection, out: Dataset, config: ReshardConfig) -> None:
        self.dataset = out
        self.selection = selection
        self.config = config

    def settings(self) -> Mapping[str, Any]:
        """The selection's name, and what changes how shards are cut."""
        return {"selection": self.selection.name, **self.config.fingerprint_values()}

    def inputs(self, job: Job) -> Any:
        """The selection's fingerprint: it covers the shards, their scores and the rules."""
        return self.selection.summary["fingerprint"]

    def plan(self) -> Sequence[Job]:
        """One job."""
        return [Job("all")]

    def run(self, job: Job) -> Outcome:
        """Rows in = captions of the selection, rows out = samples to store: a uid is stored once, where it is first."""
        storage, shards = self.selection.dataset.storage, self.selection.shards
        files = urls(storage, [selection_table(self.selection.name, shard) for shard in shards])
        connection = connect(storage, MEMORY)
        connection.register("shard", pa.table({"name": pa.array(shards, pa.string()), "nth": range(len(shards))}))
        connection.execute(_KEPT, [files])
        ((num_rows,),) = connection.execute("SELECT count(*) FROM read_parquet(?)", [files]).fetchall()
        ((num_samples, num_captions, num_kept),) = connection.execute(_TALLY).fetchall()
        dropped = Counter(dict(connection.execute(_FELL, [files]).fetchall()))
        dropped.update(further_caption=num_captions - num_samples, duplicate_row=num_kept - num_captions)
        reader: Any = connection.sql(_PLACED).to_arrow_reader(100_000)
        parts = rebatch((pa.Table.from_batches([batch]).cast(INPUT) for batch in reader), self.config.shard_size)
        written = [
            write_table(self.dataset.storage, input_table(shard_name(number, self.config.shard_digits)), part)
            for number, part in enumerate(parts)
        ]
        return Outcome(Counts(num_rows, num_samples, +dropped), tuple(written))
