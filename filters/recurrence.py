"""Recurrence: how many rows have a row's caption? What stands below hundreds of pictures says little of any of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from filters.base import Reduction, column
from filters.placed import PLACE, cut, insert, spilling
from infra.dataset import Dataset
from infra.jobs import Job, Outcome
from infra.ledger import Counts
from infra.recipe import Config
from infra.rows import Rows
from infra.storage import Committed
from infra.tables import KEYS, write_keyed_table

COUNT = column("caption_count", pa.int64(), "rows with this caption, its own among them; case and spaces do not matter")
SCHEMA = pa.schema([*KEYS, COUNT])


class RecurrenceSettings(Config):
    """Over which rows captions are counted."""

    also: tuple[str, ...] = Field((), description="Further datasets whose rows are counted, too; they get no table.")


class Recurrence(Reduction):
    """Counts of the web's captions, over all rows of a dataset; an absent caption is the empty one."""

    name = "recurrence"
    Settings = RecurrenceSettings

    def settings(self) -> Mapping[str, Any]:
        """The further datasets."""
        return self.options.fingerprint_values()

    def inputs(self, job: Job) -> Any:
        """Every shard of every dataset, with its digest."""
        return [{shard: rows.digest(shard) for shard in rows.shards} for rows in self._all_rows()]

    def plan(self) -> Sequence[Job]:
        """One job."""
        return [Job("all")]

    def run(self, job: Job) -> Outcome:
        """Rows in = rows out: one for each row of the dataset."""
        folder = f"scores/{self.table}"
        with spilling() as connection:
            connection.execute("CREATE TABLE captions (_place BIGINT, high UBIGINT, low UBIGINT)")
            sizes: dict[str, int] = {}
            num_rows = 0
            for number, rows in enumerate(self._all_rows()):
                for shard in rows.shards:
                    captions = rows.read(shard, [])["caption"].to_pylist()
                    is_own = number == 0
                    places = pa.array(range(num_rows, num_rows + len(captions))) if is_own else pa.nulls(len(captions))
                    insert(connection, "captions", pa.table([places, *_hashes(captions)], [PLACE, "high", "low"]))
                    if is_own:
                        sizes[shard] = len(captions)
                        num_rows += len(captions)
            # What occurs once, most of it, needs no place in the answer.
            recurring = connection.sql("""
                SELECT _place, times FROM captions JOIN (
                    SELECT high, low, count(*) AS times FROM captions GROUP BY high, low HAVING count(*) > 1
                ) USING (high, low) WHERE _place IS NOT NULL ORDER BY _place""")
            files = []
            for shard, found in cut(recurring, sizes):
                counts = np.ones(sizes[shard], np.int64)
                counts[found[PLACE].to_numpy()] = found["times"].to_numpy()
                files.append(self._write(shard, counts))
        for stale in set(self.dataset.tables(folder)) - {file.name for file in files}:
            self.dataset.storage.remove(stale)
        return Outcome(Counts(num_rows, num_rows), tuple(files))

    def _all_rows(self) -> Iterator[Rows]:
        assert isinstance(self.options, RecurrenceSettings)
        yield self.rows
        for url in self.options.also:
            yield Rows(Dataset(url))

    def _write(self, shard: str, counts: np.ndarray[Any, np.dtype[np.int64]]) -> Committed:
        uids = self.rows.read(shard, [])["uid"]
        keys = [uids, pa.repeat("web", len(uids)), pa.array(np.zeros(len(uids), np.int32))]
        table = pa.table([*keys, pa.array(counts)], schema=SCHEMA)
        return write_keyed_table(self.dataset.storage, f"scores/{self.table}/{shard}.parquet", table)


def normalised(caption: str | None) -> str:
    """Captions that count as one: case folded, white space made one space and none at the ends."""
    return " ".join((caption or "").casefold().split())


def _hashes(captions: Sequence[str | None]) -> list[pa.Array]:
    """128 bits of each caption, as two columns: among 10¹⁰ captions two meet by chance once in 10¹⁸ datasets."""
    digests = (hashlib.blake2b(normalised(text).encode("utf-8", "surrogatepass"), digest_size=16) for text in captions)
    halves = np.frombuffer(b"".join(digest.digest() for digest in digests), np.uint64).reshape(-1, 2)
    return [pa.array(halves[:, 0]), pa.array(halves[:, 1])]
