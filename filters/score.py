"""Scoring: every scorer that was asked for, over each shard once; a table a scorer, a row a stored image or caption."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import tee
from typing import Any

import pyarrow as pa

from filters import SCORERS
from filters.base import Reduction, Scorer, batches, keys_of
from infra.dataset import Dataset
from infra.errors import DatasetError, PairmillError, UsageError
from infra.jobs import (
    Executor,
    Job,
    Outcome,
    Pass,
    RunOptions,
    Step,
    StepResult,
    refuse_changed_settings,
    require,
    run_jobs,
)
from infra.ledger import Counts, Ledger
from infra.log import one_line
from infra.progress import Progress
from infra.recipe import apply_settings
from infra.rows import Rows
from infra.tables import KEYS, write_keyed_table

BATCH = 64  # pairs, unless a scorer wants more: their encoded images and pixels are held at once
IMPORTED = "tables"  # the setting that imports alone have
MEND = "Give another --as, or the settings of the first run"
NAME = re.compile(r"[a-z0-9][a-z0-9_]*")


def score(
    dataset: Dataset,
    scorers: Sequence[str],
    executor: Executor,
    *,
    name: str | None = None,
    settings: Sequence[str] = (),
    captions: Sequence[str] = (),
    options: RunOptions | None = None,
    progress: Progress | None = None,
) -> list[StepResult]:
    """Score a dataset; what is done is skipped, shards whose rows have changed are scored anew. A result a table.

    scorers: names of SCORERS or "my_package.module:MyScorer". name: the table's name, where there is one scorer.
    settings: "scorer.option=value". captions: caption tables whose texts are scored beside the web's.
    Raises FingerprintError where a table of that name holds scores of other settings.
    """
    options = options or RunOptions()
    steps = make_steps(dataset, scorers, name=name, settings=settings, captions=captions)
    for step in steps:
        refuse_changed_settings(step, MEND)
    passes: list[Step] = [step for step in steps if not isinstance(step, ScoreTable)]
    if together := [step for step in steps if isinstance(step, ScoreTable)]:
        passes.insert(0, ScorePass("score", together))
    for step in steps:
        dataset.ledger.keep_only(step.name, [job.id for job in step.plan()])
    for each in passes:
        limit = options.limit if isinstance(each, ScorePass) else None
        result = run_jobs(each, executor, limit=limit, attempts=options.attempts, progress=progress)
        require(result, options.max_quarantined)
    return [result_of(step) for step in steps]


def plan_text(dataset: Dataset, scorers: Sequence[str], **options: Any) -> list[str]:
    """What a run would do. Raises what it would raise before its first job."""
    steps = make_steps(dataset, scorers, **options)
    for step in steps:
        refuse_changed_settings(step, MEND)
    return [plan_step(step) for step in steps]


def plan_step(step: Step) -> str:
    """What a run of one step over shards would do."""
    jobs, done = step.plan(), step.dataset.ledger.done(step.name)
    return f"{step.name}: {len(jobs):,} jobs, {sum(job.id in done for job in jobs):,} done before"


def summary(results: Sequence[StepResult], dataset: Dataset) -> dict[str, Any]:
    """The --json facts: a mapping a table, and all of them together."""
    tables = {
        result.step.removeprefix("score_"): {
            "rows_in": result.counts.rows_in,
            "rows_out": result.counts.rows_out,
            "dropped": {},
            "unknown": dict(sorted(result.counts.extra.items())),
            "quarantined": sorted(result.quarantined),
        }
        for result in results
    }
    return {
        "tables": tables,
        "rows_in": sum(told["rows_in"] for told in tables.values()),
        "rows_out": sum(told["rows_out"] for told in tables.values()),
        "dropped": {},
        "quarantined": sorted({job for result in results for job in result.quarantined}),
        "paths": [dataset.storage.file_url(f"scores/{table}") for table in tables],
    }


def make_steps(
    dataset: Dataset,
    scorers: Sequence[str],
    *,
    name: str | None = None,
    settings: Sequence[str] = (),
    captions: Sequence[str] = (),
) -> list[Step]:
    """A step for each scorer. Raises UsageError for an unknown scorer, option or name."""
    if not scorers:
        raise UsageError(f"give --scorers; known: {', '.join(SCORERS)}, or my_package.module:MyScorer")
    if name is not None and len(scorers) > 1:
        raise UsageError(f"--as {name} names one table; give one scorer, or leave it out")
    rows = Rows(dataset)
    given = apply_settings({}, tuple(settings))
    steps: list[Step] = []
    for word in dict.fromkeys(scorers):
        kind = find_scorer(word)
        table = check_name(name or kind.name)
        if was_imported(dataset.ledger, f"score_{table}"):
            raise UsageError(f"{dataset.storage.url}: scores/{table} was imported; give another --as")
        options = {**given.pop(kind.name, {}), **(given.pop(word, {}) if word != kind.name else {})}
        if options and not kind.Settings.model_fields:
            raise UsageError(f"--set {kind.name}: unknown key {next(iter(options))}; {kind.name} has no settings")
        chosen = kind.Settings.parse(options, f"--set {kind.name}")
        if issubclass(kind, Scorer):
            steps.append(ScoreTable(rows, table, kind(chosen), captions))
        else:
            steps.append(kind(rows, table, chosen))
    if given:
        raise UsageError(f"--set {next(iter(given))}: no such scorer in this run; it scores {', '.join(scorers)}")
    return steps


def find_scorer(word: str) -> type[Scorer] | type[Reduction]:
    """A scorer's class. Raises UsageError where its module cannot be imported, or where it is not whole."""
    try:
        kind = SCORERS[word]
    except PairmillError:
        raise
    except Exception as error:  # modules from outside may raise anything
        what = f"{type(error).__name__}: {one_line(str(error))}"
        raise UsageError(f"scorer {word}: its module cannot be imported: {what}; mend it there") from error
    if not (isinstance(kind, type) and issubclass(kind, Scorer | Reduction)):
        raise UsageError(f"scorer {word}: not a Scorer or Reduction of filters.base")
    base, facts = (Scorer, ("name", "per", "columns")) if issubclass(kind, Scorer) else (Reduction, ("name",))
    lacking = [*(fact for fact in facts if not getattr(kind, fact, None)), *sorted(kind.__abstractmethods__)]
    if lacking:
        raise UsageError(
            f"scorer {word}: {kind.__name__} has no {', '.join(lacking)}; see filters.base.{base.__name__}"
        )
    return kind


def was_imported(ledger: Ledger, step: str) -> bool | None:
    """Is a finished table an imported one? None where there is none."""
    plan = ledger.plan(step)
    return None if plan is None or ledger.any_done(step) is None else IMPORTED in plan.get("settings", {})


def check_name(name: str) -> str:
    """The name of a table or selection, as rules and folders can hold it. Raises UsageError."""
    if not NAME.fullmatch(name) or name == "row":
        raise UsageError(f"{name!r}: a table is named by small letters, digits and _, such as clip_b32; not row")
    return name


def result_of(step: Step) -> StepResult:
    """Where a step stands, by its marks: those of earlier runs included."""
    ledger = step.dataset.ledger
    done = ledger.done(step.name)
    counts = sum((mark.counts for mark in done.values()), Counts())
    given_up = {
        job: str(found["error"]).strip().splitlines()[-1] for job, found in ledger.quarantined(step.name).items()
    }
    return StepResult(step.name, counts, len((ledger.plan(step.name) or {"jobs": []})["jobs"]), 0, given_up, 0.0)


def shard_jobs(rows: Rows, captions: Sequence[str]) -> list[Job]:
    """A job for each shard, with the digests of its rows and caption tables. Raises DatasetError for missing ones."""
    ledger = rows.dataset.ledger
    texts = {name: ledger.tables(f"captions_{name}", f"captions/{name}") for name in captions}
    for name, found in texts.items():
        if missing := [shard for shard in rows.shards if shard not in found]:
            raise DatasetError(
                f"{rows.dataset.storage.url}: captions/{name} lacks {len(missing)} of {len(rows.shards)} shards "
                f"(first {missing[0]}); make it, or leave it out of --captions"
            )
    digests = {shard: {name: found[shard].identity for name, found in texts.items()} for shard in rows.shards}
    return [Job(shard, {"rows": rows.digest(shard), "captions": digests[shard]}) for shard in rows.shards]


class ScoreTable(Step):
    """One scorer over every shard: scores/NAME/SHARD.parquet. Done in a ScorePass, together with others."""

    derived = True  # shards that were downloaded since, or changed, are scored anew

    def __init__(self, rows: Rows, table: str, scorer: Scorer, captions: Sequence[str] = ()) -> None:
        self.dataset = rows.dataset
        self.rows = rows
        self.table = table
        self.name = f"score_{table}"
        self.scorer = scorer
        self.captions = tuple(captions) if scorer.per == "caption" else ()
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
        return shard_jobs(self.rows, self.captions)

    def run(self, job: Job) -> Outcome:
        """Score one shard on its own."""
        ((_, outcome),) = ScorePass(self.name, [self]).run_parts(job, [self])
        return outcome

    def publish(self, shard: str, parts: Sequence[pa.Table]) -> Outcome:
        """Write a shard's scores. Rows in = rows out: a scorer drops nothing; `extra` counts what it could not tell."""
        schema = pa.schema([*KEYS, *self.scorer.columns])
        table = pa.concat_tables(parts) if parts else schema.empty_table()
        # From the scorer's columns as it declared them: descriptions and all.
        table = pa.Table.from_arrays([table[field.name].cast(field.type) for field in schema], schema=schema)
        file = write_keyed_table(self.dataset.storage, f"scores/{self.table}/{shard}.parquet", table)
        nulls = {f"no_{field.name}": table[field.name].null_count for field in self.scorer.columns}
        extra = {name: number for name, number in nulls.items() if number}
        return Outcome(Counts(table.num_rows, table.num_rows, extra=extra), (file,))


class ScorePass(Pass):
    """Several scorers over each shard, in one reading: an image is decoded once for all of them."""

    def __init__(self, name: str, parts: Sequence[ScoreTable]) -> None:
        super().__init__(name, parts)
        self.rows = parts[0].rows
        self.captions = next((part.captions for part in parts if part.captions), ())

    def plan(self) -> Sequence[Job]:
        """A job for each shard, with the digests of all that any of the scorers reads."""
        return shard_jobs(self.rows, self.captions)

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
        size = max([BATCH, *(part.scorer.at_once for part in tables)])
        read, *streams = tee(batches(pairs, size), 1 + len(tables))  # a scorer may look ahead
        scored = [part.scorer.score_all(stream) for part, stream in zip(tables, streams, strict=True)]
        for batch, *found_now in zip(read, *scored, strict=True):
            for part, scores in zip(tables, found_now, strict=True):
                keys = keys_of(batch, part.scorer.per)
                if scores.num_rows != keys.num_rows:
                    raise ValueError(f"{part.table}: {scores.num_rows} scores for {keys.num_rows} rows")
                found[part.table].append(
                    pa.Table.from_arrays([*keys.columns, *scores.columns], [*KEYS.names, *scores.column_names])
                )
        for part in tables:
            yield part, part.publish(job.id, found[part.table])
