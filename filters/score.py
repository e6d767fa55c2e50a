"""Scoring: every scorer that was asked for, over each shard once; a table a scorer, a row a stored image or caption."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from filters import SCORERS
from filters.base import Reduction, Scorer
from filters.score_steps import CaptionTable, ScorePass, ScoreTable
from infra.dataset import Dataset
from infra.errors import PairmillError, UsageError
from infra.jobs import (
    Executor,
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
    settings: "scorer.option=value". captions: caption tables whose texts are scored beside the web's; those that the
    same call writes need not be named.
    Raises FingerprintError where a table of that name holds scores of other settings.
    """
    options = options or RunOptions()
    steps = make_steps(dataset, scorers, name=name, settings=settings, captions=captions)
    for step in steps:
        refuse_changed_settings(step, MEND)
    writing = [step for step in steps if isinstance(step, CaptionTable)]
    scoring = [step for step in steps if isinstance(step, ScoreTable) and not isinstance(step, CaptionTable)]
    # What is written first is scored with the rest.
    passes: list[Step] = [ScorePass(name, parts) for name, parts in (("caption", writing), ("score", scoring)) if parts]
    passes += [step for step in steps if not isinstance(step, ScoreTable)]
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
        _table(result.step): {
            "rows_in": result.counts.rows_in,
            "rows_out": result.counts.rows_out,
            "dropped": dict(sorted(result.counts.dropped.items())),
            "unknown": dict(sorted(result.counts.extra.items())),
            "quarantined": sorted(result.quarantined),
        }
        for result in results
    }
    return {
        "tables": tables,
        "rows_in": sum(told["rows_in"] for told in tables.values()),
        "rows_out": sum(told["rows_out"] for told in tables.values()),
        "dropped": dict(sum((Counter(result.counts.dropped) for result in results), Counter[str]())),
        "quarantined": sorted({job for result in results for job in result.quarantined}),
        "paths": [dataset.storage.file_url(table if "/" in table else f"scores/{table}") for table in tables],
    }


def _table(step: str) -> str:
    """How a step's table is called: as rules name it, or captions/NAME."""
    return step.replace("captions_", "captions/", 1) if step.startswith("captions_") else step.removeprefix("score_")


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
    kinds = {word: find_scorer(word) for word in dict.fromkeys(scorers)}
    tables = {word: check_name(name or kind.table or kind.name) for word, kind in kinds.items()}
    awaited = [tables[word] for word, kind in kinds.items() if kind.writes == "captions"]
    steps: list[Step] = []
    for word, kind in kinds.items():
        table, folder = tables[word], kind.writes
        if was_imported(dataset.ledger, f"{'score' if folder == 'scores' else folder}_{table}"):
            raise UsageError(f"{dataset.storage.url}: {folder}/{table} was imported; give another --as")
        options = {**given.pop(kind.name, {}), **(given.pop(word, {}) if word != kind.name else {})}
        if options and not kind.Settings.model_fields:
            raise UsageError(f"--set {kind.name}: unknown key {next(iter(options))}; {kind.name} has no settings")
        chosen = kind.Settings.parse(options, f"--set {kind.name}")
        if not issubclass(kind, Scorer):
            steps.append(kind(rows, table, chosen))
        elif kind.writes == "captions":
            steps.append(CaptionTable(rows, table, kind(chosen)))
        else:
            steps.append(ScoreTable(rows, table, kind(chosen), captions, awaited))
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
