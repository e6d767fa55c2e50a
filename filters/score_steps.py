"""The steps of scoring: over every shard a scorer's table, of scores or of captions; several in one reading."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import tee
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from filters.base import Batch, Scorer, batches, keys_of
from infra.errors import DatasetError, UsageError
from infra.jobs import Job, Outcome, Pass, Step
from infra.ledger import Counts
from infra.rows import Rows
from infra.tables import KEYS, write_keyed_table

BATCH = 64  # pairs, unless a scorer wants more: their encoded images and pixels are held at once
MADE = b"pairmill.made"  # in a caption table's metadata: by what


def shard_jobs(rows: Rows, captions: Sequence[str], awaited: Collection[str] = ()) -> list[Job]:
    """A job for each shard, with the digests of its rows and caption tables.

    awaited: those of the tables that the same command makes first. Raises DatasetError for any other that is missing.
    """
    ledger = rows.dataset.ledger
    texts = {name: ledger.tables(f"captions_{name}", f"captions/{name}") for name in captions}
    for name, found in texts.items():
        if name not in awaited and (missing := [shard for shard in rows.shards if shard not in found]):
            raise DatasetError(
                f"{rows.dataset.storage.url}: captions/{name} lacks {len(missing)} of {len(rows.shards)} shards "
                f"(first {missing[0]}); make it, or leave it out of --captions"
            )

    def digests(shard: str) -> dict[str, str | None]:
        return {name: found[shard].identity if shard in found else None for name, found in texts.items()}

    return [Job(shard, {"rows": rows.digest(shard), "captions": digests(shard)}) for shard in rows.shards]


class ScoreTable(Step):
    """One scorer over every shard: scores/NAME/SHARD.parquet. Done in a ScorePass, together with others."""

    derived = True  # shards that were downloaded since, or changed, are scored anew

    folder = "scores"

    def __init__(
        self, rows: Rows, table: str, scorer: Scorer, captions: Sequence[str] = (), awaited: Sequence[str] = ()
    ) -> None:  # fmt: skip
        """captions: tables whose texts are scored beside the web's; awaited: such that are made first, named or not."""
        self.dataset = rows.dataset
        self.rows = rows
        self.table = table
        self.name = f"score_{table}"
        self.scorer = scorer
        self.awaited = tuple(awaited) if scorer.per == "caption" else ()
        self.captions = tuple(dict.fromkeys((*captions, *awaited))) if scorer.per == "caption" else ()
        self.resources = scorer.resources
        self.holds = scorer.holds
        if scorer.needs_image and rows.kind != "stored":
            raise UsageError(f"{self.dataset.storage.url}: {table} needs images, and none are stored there yet")

    def settings(self) -> Mapping[str, Any]:
        """The scorer, its settings, and what else it says that it is made of."""
        kind = type(self.scorer)
        return {
            "scorer": f"{kind.__module__}:{kind.__qualname__}",
            "captions": list(self.captions),
            **self.scorer.settings.fingerprint_values(),
            **self.scorer.identity(),
        }

    def inputs(self, job: Job) -> Any:
        """Digests of the shard's rows and images, and of its caption tables."""
        return {"rows": job.payload["rows"], **{name: job.payload["captions"][name] for name in self.captions}}

    def plan(self) -> Sequence[Job]:
        """A job for each shard."""
        return shard_jobs(self.rows, self.captions, self.awaited)

    def run(self, job: Job) -> Outcome:
        """Score one shard on its own."""
        ((_, outcome),) = ScorePass(self.name, [self]).run_parts(job, [self])
        return outcome

    def keyed(self, batch: Batch, answer: pa.Table) -> pa.Table:
        """The scorer's answer for a batch, behind the keys of its rows."""
        keys = keys_of(batch, self.scorer.per)
        if answer.num_rows != keys.num_rows:
            raise ValueError(f"{self.table}: {answer.num_rows} scores for {keys.num_rows} rows")
        return pa.Table.from_arrays([*keys.columns, *answer.columns], [*KEYS.names, *answer.column_names])

    def publish(self, shard: str, parts: Sequence[pa.Table]) -> Outcome:
        """Write a shard's scores. Rows in = rows out: a scorer drops nothing; `extra` counts what it could not tell."""
        table = self.typed(parts)
        file = write_keyed_table(self.dataset.storage, f"{self.folder}/{self.table}/{shard}.parquet", table)
        nulls = {f"no_{field.name}": table[field.name].null_count for field in self.scorer.columns}
        extra = {name: number for name, number in nulls.items() if number}
        return Outcome(Counts(table.num_rows, table.num_rows, extra=extra), (file,))

    def typed(self, parts: Sequence[pa.Table]) -> pa.Table:
        """A shard's rows, with the scorer's columns as it declared them: descriptions and all."""
        schema = pa.schema([*KEYS, *self.scorer.columns])
        table = pa.concat_tables(parts) if parts else schema.empty_table()
        return pa.Table.from_arrays([table[field.name].cast(field.type) for field in schema], schema=schema)


class CaptionTable(ScoreTable):
    """One captioner over every shard: captions/NAME/SHARD.parquet, a row a caption, as an import would have them."""

    folder = "captions"

    def __init__(self, rows: Rows, table: str, scorer: Scorer) -> None:
        super().__init__(rows, table, scorer)
        self.name = f"captions_{table}"

    def keyed(self, batch: Batch, answer: pa.Table) -> pa.Table:
        """The captions behind their keys; what was asked for and is not there keeps its reason."""
        pairs = answer["pair"].to_pylist()
        keys = [
            pa.array([batch.pairs[at].uid for at in pairs], KEYS.field("uid").type),
            pa.array([self.table] * len(pairs)),
            answer["n"],
        ]
        columns = {name: answer[name] for name in ("fate", *self.scorer.columns.names)}
        return pa.table(dict(zip(KEYS.names, keys, strict=True)) | columns)

    def publish(self, shard: str, parts: Sequence[pa.Table]) -> Outcome:
        """Write a shard's captions. Rows in = captions asked for, of which those without a text fall by a reason."""
        whole = _once(pa.concat_tables(parts)) if parts else None
        dropped = Counter(fate for fate in whole["fate"].to_pylist() if fate is not None) if whole else Counter[str]()
        kept = [whole.filter(pc.is_null(whole["fate"]))] if whole else []
        told = json.dumps({"by": self.settings()}, sort_keys=True).encode()
        table = self.typed(kept).replace_schema_metadata({MADE: told})
        file = write_keyed_table(self.dataset.storage, f"{self.folder}/{self.table}/{shard}.parquet", table)
        counts = Counts(table.num_rows + dropped.total(), table.num_rows, dict(dropped))
        return Outcome(counts, (file,))


def _once(captions: pa.Table) -> pa.Table:
    """Keys name one caption: of a uid that stands twice, as folders of others may have it, the first is kept."""
    seen: set[tuple[bytes, int]] = set()
    fates = captions["fate"].to_pylist()
    for row, key in enumerate(zip(captions["uid"].to_pylist(), captions["n"].to_pylist(), strict=True)):
        if key in seen and fates[row] is None:
            fates[row] = "duplicate_row"
        seen.add(key)
    return captions.set_column(captions.schema.get_field_index("fate"), "fate", pa.array(fates, pa.string()))


class ScorePass(Pass):
    """Several scorers over each shard, in one reading: an image is decoded once for all of them."""

    def __init__(self, name: str, parts: Sequence[ScoreTable]) -> None:
        super().__init__(name, parts)
        self.rows = parts[0].rows
        self._widest = next((part for part in parts if part.captions), parts[0])

    def plan(self) -> Sequence[Job]:
        """A job for each shard, with the digests of all that any of the scorers reads."""
        return self._widest.plan()

    def setup(self) -> None:
        """Load the models."""
        for part in self.parts:
            assert isinstance(part, ScoreTable)
            part.scorer.setup()

    def run_parts(self, job: Job, parts: Sequence[Step]) -> Iterator[tuple[Step, Outcome]]:
        """Read the shard once, batch by batch, for those tables that lack it."""
        tables = [part for part in parts if isinstance(part, ScoreTable)]
        found: dict[str, list[pa.Table]] = {part.table: [] for part in tables}
        facts = dict.fromkeys(name for part in tables for name in part.scorer.facts)
        captions = next((part.captions for part in tables if part.captions), ())
        needs_image = any(part.scorer.needs_image for part in tables)
        pairs = self.rows.pairs(job.id, images=needs_image, captions=captions, facts=list(facts))
        # By all parts: where a kill left one alone, other batches would round its numbers otherwise.
        size = max([BATCH, *(part.scorer.at_once for part in self.parts if isinstance(part, ScoreTable))])
        read, *streams = tee(batches(pairs, size), 1 + len(tables))  # a scorer may look ahead
        scored = [part.scorer.score_all(stream) for part, stream in zip(tables, streams, strict=True)]
        for batch, *found_now in zip(read, *scored, strict=True):
            for part, scores in zip(tables, found_now, strict=True):
                found[part.table].append(part.keyed(batch, scores))
        for part in tables:
            yield part, part.publish(job.id, found[part.table])
