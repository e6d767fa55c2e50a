"""Selecting: rules over the joined score tables of one or several datasets. It costs no model and no download.

selections/NAME/SHARD.parquet   uid, source, n, keep, reason
selections/NAME/summary.json    the rules, their thresholds, what fell by each; published last
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from filters.column_types import check_types
from filters.decide import Decide, decision_file, decisions, decisions_digest, fallen_table, settings_of
from filters.joined import Group, Joined
from filters.listed import lists_of
from filters.rules import Rule, SelectRecipe, Unique
from filters.score import check_name
from filters.subset import write_subset
from filters.verdicts import Judge, Judged
from infra.dataset import Dataset
from infra.errors import UsageError
from infra.jobs import (
    Executor,
    Job,
    Outcome,
    RunOptions,
    Step,
    refuse_changed_settings,
    require,
    run_jobs,
)
from infra.ledger import Counts
from infra.progress import Progress
from infra.recipe import fingerprint
from infra.selection import SCHEMA, Selection, counted, rules_told, selection_table, summary_file
from infra.storage import Committed
from infra.tables import connect, urls, write_keyed_table

MEND = "Give another --name, or the rules of the first run"
WRITERS = 2  # threads that encode a job's tables


def select(
    datasets: Sequence[Dataset],
    recipe: SelectRecipe,
    name: str,
    executor: Executor,
    *,
    npy: str | None = None,
    options: RunOptions | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Select from datasets; a summary for each, with the jobs `waiting` where there is a limit.

    Rows that were scored since are judged anew, all of them.
    npy: also write the kept uids as a DataComp subset file. Raises FingerprintError where another recipe has the name.
    """
    options = options or RunOptions()
    steps = _checked_steps(datasets, recipe, name)
    rules = steps[0].rules
    for number, rule in enumerate(rules):
        if rule.sees_all:
            decide = Decide(datasets, name, rules[: number + 1], recipe.captions)
            require(run_jobs(decide, executor, attempts=options.attempts, progress=progress), None)
    for step in steps:
        if step.num_waiting():
            step.dataset.storage.remove(summary_file(name))  # not a selection until all of it is
            step.forget_others()
        require(run_jobs(step, executor, limit=options.limit, attempts=options.attempts, progress=progress), None)
    if options.limit is None:
        for step in steps:
            step.write_summary()
        if npy is not None:
            write_kept_uids(datasets, name, npy)
        return [step.summary() for step in steps]
    return [step.summary() | {"waiting": step.num_waiting()} for step in steps]


def is_stale(dataset: Dataset, name: str) -> bool:
    """Was a selection made of other rows, scores or lists than those that are there now, or with other datasets?

    Raises DatasetError or RecipeError where what it was made of is gone.
    """
    told = Selection(dataset, name).summary
    recipe = SelectRecipe.parse(told["recipe"], summary_file(name))
    is_alone = len(told["datasets"]) == 1
    datasets = [dataset] if is_alone else [Dataset(url) for url in told["datasets"]]
    return Choose(dataset, datasets, name, recipe.parsed(name), recipe.captions).num_waiting() > 0


def facts(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The --json facts of a selection: rows over all datasets, and each one's summary."""
    dropped = sum((Counter(told["dropped"]) for told in summaries), Counter[str]())
    return {
        "rows_in": sum(told["rows_in"] for told in summaries),
        "rows_out": sum(told["rows_out"] for told in summaries),
        "dropped": dict(sorted(dropped.items())),
        "quarantined": [],
        "waiting": sum(told.get("waiting", 0) for told in summaries),
        "paths": [f"{url}/{summary_file(told['name'])}" for told, url in
                  zip(summaries, summaries[0]["datasets"], strict=True) if "waiting" not in told],
        "selections": list(summaries),
    }  # fmt: skip


def plan_text(datasets: Sequence[Dataset], recipe: SelectRecipe, name: str) -> list[str]:
    """What a run would do. Raises what it would raise before its first job."""
    steps = _checked_steps(datasets, recipe, name)
    rules = steps[0].rules
    lines = []
    for step in steps:
        tables = sorted({column.table for column in step.joined.columns.values()})
        url, shards = step.dataset.storage.url, step.joined.rows.shards
        lines.append(f"select: {url}: {len(shards):,} shards, columns of {', '.join(tables)}")
    passes = 1 + sum(rule.sees_all for rule in rules)
    lines += [f"  {rule.text}  → {rule.word}" for rule in rules]
    lines.append(f"passes over the columns: {passes}, one for each rule that sees all rows and one to write")
    return lines


def _checked_steps(datasets: Sequence[Dataset], recipe: SelectRecipe, name: str) -> list[Choose]:
    """A step for each dataset. Raises for everything that can be told before a row is read."""
    check_name(name)
    rules = recipe.parsed(name)
    if not rules:
        raise UsageError("the recipe has no rules; a selection of everything needs none")
    for url, times in Counter(dataset.storage.url for dataset in datasets).items():
        if times > 1:
            raise UsageError(f"{url} is given {times} times; its rows would be duplicates of themselves")
    steps = [Choose(dataset, datasets, name, rules, recipe.captions) for dataset in datasets]
    for step in steps:
        read = dict.fromkeys(name for rule in rules for name in (*rule.columns, *rule.also_reads))
        check_types(rules, Joined(step.dataset, list(read)).types())
        refuse_changed_settings(step, MEND)
    for listed in lists_of(rules).values():
        listed.check()
    return steps


class Choose(Step):
    """Judge one dataset's rows and write its part of the selection. A job is a group of shards."""

    derived = True  # of other scores another selection
    holds = True  # lists and thresholds

    def __init__(
        self, dataset: Dataset, datasets: Sequence[Dataset], selection: str, rules: Sequence[Rule],
        captions: Sequence[str],
    ) -> None:  # fmt: skip
        self.dataset = dataset
        self.datasets = list(datasets)
        self.selection = selection
        self.rules = list(rules)
        self.captions = tuple(captions)
        self.name = f"select_{selection}"
        self.joined = Joined(dataset, [name for rule in rules for name in rule.columns], captions)
        self._judge: Judge | None = None

    def settings(self) -> Mapping[str, Any]:
        """The rules."""
        return settings_of(self.rules, self.captions)

    def inputs(self, job: Job) -> Any:
        """Everything that is read of the group's shards, the lists, and what was decided over all rows."""
        return job.payload["digest"]

    def plan(self) -> Sequence[Job]:
        """A job for each group of shards, named by its first one."""
        lists = {number: listed.digest for number, listed in lists_of(self.rules).items()}
        decided = decisions_digest(self.datasets[0], self.selection, self.rules)
        return [
            Job(shards[0], {"shards": shards, "digest": fingerprint(self.joined.inputs(shards), lists, decided)})
            for shards in self.joined.groups()
        ]

    def num_waiting(self) -> int:
        """Jobs that are not done, were done with other scores, or are none of this selection any more."""
        done = self.dataset.ledger.done(self.name)
        want = {job.id: fingerprint(self.name, job.id, self.settings(), self.inputs(job)) for job in self.plan()}
        stale = sum(job not in done or done[job].fingerprint != word for job, word in want.items())
        return stale + len(done.keys() - want.keys())

    def forget_others(self) -> None:
        """Remove marks and tables of shards that are no longer there: a table of urls has become shards, say."""
        self.dataset.ledger.keep_only(self.name, [job.id for job in self.plan()])
        wanted = {selection_table(self.selection, shard) for shard in self.joined.rows.shards}
        for name in self.dataset.tables(f"selections/{self.selection}"):
            if name not in wanted:
                self.dataset.storage.remove(name)

    def setup(self) -> None:
        """Read thresholds and lists, once a worker."""
        decided = decisions(self.datasets[0], self.dataset, self.selection, self.rules)
        self._judge = Judge(self.rules, decided, lists_of(self.rules))

    def teardown(self) -> None:
        """Forget them."""
        self._judge = None

    def run(self, job: Job) -> Outcome:
        """Rows in = captions of the group's rows, rows out = kept ones. `extra` counts by rule and reason."""
        assert self._judge is not None
        group = self.joined.read(job.payload["shards"])
        judged = self._judge.judge(group)
        with ThreadPoolExecutor(WRITERS) as pool:
            files = list(pool.map(lambda part: self._write(group, judged, *part), group.parts()))
        numbers = np.bincount(judged.codes, minlength=len(judged.reasons) + 1)
        dropped: Counter[str] = Counter()
        by_rule: dict[str, int] = {}
        for word, rule, number in zip(judged.reasons, judged.rule_of, numbers[1:].tolist(), strict=True):
            if number:
                dropped[word] += number
                # A rule may say one word of two columns.
                by_rule[f"{rule}:{word}"] = by_rule.get(f"{rule}:{word}", 0) + number
        return Outcome(Counts(group.num_rows, int(numbers[0]), dropped, by_rule), (*files, *self._of_other_homes(job)))

    def _write(self, group: Group, judged: Judged, shard: str, rows: slice) -> Committed:
        codes = judged.codes[rows]
        fell = pa.array(codes - np.uint16(1), mask=codes == 0)
        reason = pa.DictionaryArray.from_arrays(fell, pa.array(judged.reasons, pa.string()))
        keys = group.keys.slice(rows.start, rows.stop - rows.start)
        source = keys["source"].combine_chunks().dictionary_encode()
        table = pa.table([keys["uid"], source, keys["n"], pa.array(codes == 0), reason], names=SCHEMA.names)
        name = selection_table(self.selection, shard)
        digests = group.digests.get(shard)
        return write_keyed_table(self.dataset.storage, name, counted(table), keep_types=False, digests=digests)

    def summary(self) -> dict[str, Any]:
        """What summary.json says."""
        marks = self.dataset.ledger.done(self.name)
        counts = sum((mark.counts for mark in marks.values()), Counts())
        rules = list(_funnel(self.rules, counts))
        for number, told in enumerate(rules):
            told["columns"] = [self._full_name(name) for name in self.rules[number].columns]
            told["cuts"] = [
                {
                    **asdict(cut),
                    "table": self.joined.columns[cut.column].table,
                    "column": self.joined.columns[cut.column].column,
                }
                for cut in self.rules[number].cuts
            ]
            if self.rules[number].sees_all:
                decision = json.loads(self.datasets[0].storage.read(decision_file(self.selection, number)))
                told["resolved"] = decision
                if decision.get("threshold") is not None:
                    column = self.joined.columns[self.rules[number].columns[0]]
                    told["cuts"] = [
                        {"column": column.column, "op": ">=", "value": decision["threshold"], "table": column.table}
                    ]
        return {
            "name": self.selection,
            "datasets": [dataset.storage.url for dataset in self.datasets],
            "fingerprint": fingerprint(sorted(mark.fingerprint for mark in marks.values())),
            **{name: value for name, value in counts.as_json().items() if name != "extra"},
            "rules": rules_told(rules, counts),
            "recipe": {
                "rules": [rule.model_dump(mode="json", by_alias=True) for rule in self.rules],
                "captions": list(self.captions),
            },
        }

    def write_summary(self) -> None:
        """Publish the summary: from now on the selection can be read."""
        text = json.dumps(self.summary(), indent=1, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        self.dataset.storage.commit_bytes(summary_file(self.selection), text)

    def _full_name(self, name: str) -> str:
        column = self.joined.columns[name]
        return f"{column.table}.{column.column}"

    def _of_other_homes(self, job: Job) -> Iterator[Committed]:
        """The tables of fallen rows that a decision has written here: their mark lies with the first dataset."""
        if self.dataset.storage.url == self.datasets[0].storage.url:
            return
        storage = self.dataset.storage
        for number, rule in enumerate(self.rules):
            names = [fallen_table(self.selection, number, shard) for shard in job.payload["shards"]]
            for name in names if isinstance(rule, Unique) else []:
                if storage.exists(name):
                    yield Committed(name, storage.size(name), storage.digest(name))


def write_kept_uids(datasets: Sequence[Dataset], name: str, path: str) -> None:
    """The kept uids of a selection as a DataComp subset file: distinct, sorted, streamed."""
    files = [
        url
        for dataset in datasets
        for url in urls(dataset.storage, [selection_table(name, shard) for shard in Joined(dataset, []).rows.shards])
    ]
    connection = connect(datasets[0].storage)
    connection.execute("CREATE TEMP TABLE kept AS SELECT DISTINCT uid FROM read_parquet(?) WHERE keep", [files])
    ((num_uids,),) = connection.execute("SELECT count(*) FROM kept").fetchall()
    reader: Any = connection.sql("SELECT uid FROM kept ORDER BY uid").to_arrow_reader(1_000_000)
    uid = SCHEMA.field("uid").type
    write_subset(path, num_uids, (pa.chunked_array([batch.column(0).cast(uid)]) for batch in reader))


def _funnel(rules: Sequence[Rule], counts: Counts) -> Iterator[dict[str, Any]]:
    """Each rule with the rows that it saw and those that fell by it."""
    rows_in = counts.rows_in
    for number, rule in enumerate(rules):
        dropped = {word: counts.extra.get(f"{number}:{word}", 0) for word in rule.reasons}
        dropped = {word: fell for word, fell in dropped.items() if fell}
        rows_out = rows_in - sum(dropped.values())
        yield {"rule": rule.key, "text": rule.text, "reason": rule.word, "rows_in": rows_in, "rows_out": rows_out,
               "dropped": dropped}  # fmt: skip
        rows_in = rows_out
