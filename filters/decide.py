"""Decisions that need all rows: a Top's threshold, the rows that fall by a Unique. One job a rule, in bounded memory.

selections/NAME/rule_K.json                threshold and counts, of the first dataset
selections/NAME/unique_K/SHARD.parquet     row, uid, because_of, distance: the rows of a shard that fall
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from filters.joined import Group, Joined
from filters.listed import lists_of
from filters.rules import Rule, Top, Unique
from filters.seen import Seen
from filters.spilled import Spilled
from filters.values import values_of
from filters.verdicts import Decided, Judge
from infra.dataset import Dataset
from infra.jobs import Job, Outcome, Step
from infra.ledger import Counts
from infra.recipe import fingerprint
from infra.storage import Committed
from infra.tables import read_table, write_table


class Decide(Step):
    """One rule that sees all rows, over one or several datasets; the first of them keeps its mark."""

    derived = True

    def __init__(
        self, datasets: Sequence[Dataset], selection: str, rules: Sequence[Rule], captions: Sequence[str]
    ) -> None:
        self.datasets = list(datasets)
        self.dataset = self.datasets[0]
        self.selection = selection
        self.rules = list(rules)
        self.rule = self.rules[-1]
        self.captions = tuple(captions)
        self.number = len(self.rules) - 1
        self.name = f"select_{selection}.rule_{self.number}"
        # Of all rows only the rule's own columns are needed; of survivors, those of the rules before it.
        self.before = [] if isinstance(self.rule, Top) and self.rule.of == "all" else self.rules[:-1]

    def settings(self) -> Mapping[str, Any]:
        """The rules up to this one."""
        return settings_of(self.rules, self.captions)

    def inputs(self, job: Job) -> Any:
        """Everything that is read of every dataset, the lists, and the decisions before this one."""
        return job.payload["digest"]

    def plan(self) -> Sequence[Job]:
        """One job."""
        joined = [self._joined(dataset) for dataset in self.datasets]
        lists = {number: listed.digest for number, listed in lists_of(self.before).items()}
        parts = [each.inputs(each.rows.shards) for each in joined]
        return [
            Job(
                "all",
                {"digest": fingerprint(parts, lists, decisions_digest(self.dataset, self.selection, self.before))},
            )
        ]

    def run(self, job: Job) -> Outcome:
        """Rows in = rows that the rule sees. A Top's threshold is not applied here: nothing falls yet."""
        with tempfile.TemporaryDirectory(prefix="pairmill-select-") as folder:
            if isinstance(self.rule, Top):
                return self._top(self.rule, Path(folder))
            assert isinstance(self.rule, Unique)
            return self._unique(self.rule, Path(folder))

    def _top(self, rule: Top, folder: Path) -> Outcome:
        values = Spilled(folder / "values")
        for _, group, is_in in self._groups():
            found = values_of(group.columns[rule.top])[is_in]
            values.add(found[~np.isnan(found)])
        place = rule.place(values.num_values)
        threshold = values.at(place) if place < values.num_values else None
        return self._publish({"threshold": threshold, "num_values": values.num_values}, values.num_values, [])

    def _unique(self, rule: Unique, folder: Path) -> Outcome:
        seen = Seen(folder, rule)
        places: list[tuple[int, str, int]] = []  # dataset, shard, rows: places count through all of them
        for number, group, is_in in self._groups():
            seen.add(group, is_in, self.per_image)
            places += [(number, shard, rows) for shard, rows in group.shards.items()]
        files: list[Committed] = []
        num_fallen = 0
        stale = {(number, name) for number, dataset in enumerate(self.datasets)
                 for name in dataset.tables(f"selections/{self.selection}/unique_{self.number}")}  # fmt: skip
        for number, shard, table in seen.fallen(places):
            storage = self.datasets[number].storage
            file = write_table(storage, fallen_table(self.selection, self.number, shard), table)
            files += [file] if number == 0 else []
            stale.discard((number, file.name))
            num_fallen += table.num_rows
        for number, name in stale:  # of an earlier run over other rows
            self.datasets[number].storage.remove(name)
        return self._publish({"num_values": seen.num_rows, "num_fallen": num_fallen}, seen.num_rows, files)

    def _publish(self, decision: Mapping[str, Any], num_rows: int, files: Sequence[Committed]) -> Outcome:
        text = json.dumps({"rule": self.rule.text, **decision}, indent=1).encode() + b"\n"
        file = self.dataset.storage.commit_bytes(decision_file(self.selection, self.number), text)
        return Outcome(Counts(num_rows, num_rows), (file, *files))

    def _groups(self) -> Iterator[tuple[int, Group, npt.NDArray[np.bool_]]]:
        """(dataset, group, which of its rows are still in)."""
        for number, dataset in enumerate(self.datasets):
            joined = self._joined(dataset)
            judge = Judge(
                self.before, decisions(self.dataset, dataset, self.selection, self.before), lists_of(self.before)
            )
            self.per_image = joined.columns[self.rule.columns[0]].per_image
            for shards in joined.groups():
                group = joined.read(shards)
                yield number, group, judge.judge(group).kept

    def _joined(self, dataset: Dataset) -> Joined:
        read = [name for rule in self.before for name in rule.columns]
        return Joined(dataset, [*read, *self.rule.columns, *self.rule.also_reads], self.captions)


def settings_of(rules: Sequence[Rule], captions: Sequence[str]) -> dict[str, Any]:
    """What names a selection: each rule on its own, so that a changed one can be told."""
    numbered = {f"rule {number}": rule for number, rule in enumerate(rules, 1)}
    told = {name: rule.model_dump(mode="json", by_alias=True, exclude_none=True) for name, rule in numbered.items()}
    return {**told, "captions": list(captions)}


def decision_file(selection: str, number: int) -> str:
    """Name of what a rule decided."""
    return f"selections/{selection}/rule_{number}.json"


def fallen_table(selection: str, number: int, shard: str) -> str:
    """Name of the rows of a shard that fall by a Unique; absent where none do."""
    return f"selections/{selection}/unique_{number}/{shard}.parquet"


def decisions(home: Dataset, dataset: Dataset, selection: str, rules: Sequence[Rule]) -> dict[int, Decided]:
    """What was decided for `dataset`, by the number of the rule."""
    found: dict[int, Decided] = {}
    for number, rule in enumerate(rules):
        if isinstance(rule, Top):
            told = json.loads(home.storage.read(decision_file(selection, number)))
            found[number] = Decided(threshold=told["threshold"])
        elif isinstance(rule, Unique):
            found[number] = Decided(fallen=_Fallen(dataset, selection, number))
    return found


def decisions_digest(home: Dataset, selection: str, rules: Sequence[Rule]) -> list[Any]:
    """Digests of all files that the rules' decisions have written."""
    numbers = [number for number, rule in enumerate(rules) if rule.sees_all]
    marks = [home.ledger.done(f"select_{selection}.rule_{number}").get("all") for number in numbers]
    return [[file.identity for file in mark.files] if mark else None for mark in marks]


class _Fallen:
    """shard → places of its rows that fall."""

    def __init__(self, dataset: Dataset, selection: str, number: int) -> None:
        self._dataset, self._selection, self._number = dataset, selection, number

    def __call__(self, shard: str) -> npt.NDArray[np.int64]:
        try:
            table = read_table(self._dataset.storage, fallen_table(self._selection, self._number, shard), ["row"])
        except FileNotFoundError:
            return np.zeros(0, np.int64)
        return np.asarray(table["row"].to_numpy(), np.int64)
