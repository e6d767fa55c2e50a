"""What each rule says of each row of a group: kept, fallen, or lacking a value. The only place where rows are judged.

Conditions are judged by DuckDB over the group's columns, all rules in one query; what SQL has no word for (lists of
uids, near hashes, the best of an image's captions) by numpy. Rules are then asked in their order, and the first one
that a row fails is its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from filters.expression import connect
from filters.joined import Group
from filters.listed import Listed
from filters.rules import BestCaption, NotIn, Rule, Top, Unique, Where
from filters.values import as_hashes, nan_as_null, readable, values_of

PASSED, FELL = 0, 1  # a verdict above names the missing column: 2 + its place among the rule's columns

Codes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Decided:
    """What a rule that sees all rows has decided: a threshold, or which rows of a shard fall."""

    threshold: float | None = None  # None: nothing falls below it
    fallen: Callable[[str], npt.NDArray[np.int64]] | None = None  # shard → places of its rows that fall


@dataclass(frozen=True)
class Judged:
    """Of each row: the reason it falls by, as a place in `reasons` counted from 1, 0 where it is kept."""

    reasons: Sequence[str]
    rule_of: Sequence[int]  # the rule that each reason belongs to
    codes: npt.NDArray[np.uint16]

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        """Which rows are kept."""
        return self.codes == 0


class Judge:
    """Rules made ready to judge group after group. Rules that see all rows need their decision in `decided`."""

    def __init__(
        self, rules: Sequence[Rule], decided: Mapping[int, Decided] | None = None,
        lists: Mapping[int, Listed] | None = None,
    ) -> None:  # fmt: skip
        self.rules = rules
        self._decided = decided or {}
        self._lists = lists or {}
        self._connection = connect()
        for number, listed in self._lists.items():
            if listed.values is not None:
                self._connection.register(f"list_{number}", listed.values)
                shown = readable(listed.values.schema.field("value"))
                self._connection.execute(
                    f"CREATE TABLE listed_{number} AS SELECT DISTINCT CAST(value AS VARCHAR) AS value "
                    f"FROM (SELECT {shown} FROM list_{number}) WHERE value IS NOT NULL"
                )

    @property
    def reads(self) -> list[str]:
        """Columns that the rules need."""
        return list(dict.fromkeys(name for rule in self.rules for name in rule.columns))

    def judge(self, group: Group) -> Judged:
        """Every row's first failing rule."""
        codes = np.zeros(group.num_rows, np.uint16)
        reasons: list[str] = []
        rule_of: list[int] = []
        for number, (rule, verdicts) in enumerate(zip(self.rules, self.verdicts(group, codes), strict=True)):
            fell = (verdicts != PASSED) & (codes == 0)
            codes[fell] = verdicts[fell] + len(reasons)
            reasons += rule.reasons
            rule_of += [number] * len(rule.reasons)
        return Judged(reasons, rule_of, codes)

    def verdicts(self, group: Group, codes: npt.NDArray[np.uint16]) -> Iterator[Codes]:
        """Each rule's verdict on every row, whatever the others say; `codes` tells which rows are still in (0)."""
        plain = self._by_sql(group)
        for number, rule in enumerate(self.rules):
            verdicts = plain[number]
            if isinstance(rule, Unique):
                verdicts = np.where(verdicts == PASSED, self._fallen(number, group), verdicts)
            elif isinstance(rule, NotIn) and (rule.by == "uid" or rule.distance is not None):
                verdicts = np.where(verdicts == PASSED, self._listed(number, rule, group), verdicts)
            elif isinstance(rule, BestCaption):
                verdicts = _only_best(rule, group, verdicts, codes == 0)
            yield verdicts.astype(np.uint8)

    def _by_sql(self, group: Group) -> list[Codes]:
        """What SQL can say of each rule: for some that is only whether a value is missing."""
        names = {name: f"c{at}" for at, name in enumerate(self.reads)}
        if not group.num_rows or not names:
            return [np.zeros(group.num_rows, np.uint8) for _ in self.rules]
        table = pa.table([nan_as_null(group.columns[name]) for name in names], names=list(names.values()))
        shown = ", ".join(readable(field) for field in table.schema)
        chosen = [f"CAST({self._sql(at, rule, names)} AS UTINYINT) AS v{at}" for at, rule in enumerate(self.rules)]
        # Rows come back in any order where a list is looked up: DuckDB promises none.
        self._connection.register("rows", table.append_column("place", pa.array(np.arange(group.num_rows))))
        found: pa.Table = self._connection.sql(
            f"SELECT place, {', '.join(chosen)} FROM (SELECT place, {shown} FROM rows)"
        ).to_arrow_table()
        self._connection.unregister("rows")
        place, *judged = (column.to_numpy() for column in found.columns)
        return [_by_place(verdicts, place) for verdicts in judged]

    def _sql(self, number: int, rule: Rule, names: Mapping[str, str]) -> str:
        columns = [names[column] for column in rule.columns]
        absent = " ".join(f"WHEN {name} IS NULL THEN {FELL + at}" for at, name in enumerate(columns, 1))
        if isinstance(rule, Where):
            # NULL is no answer: the row lacks a value, or the expression cannot be told of it (text that is no number).
            holds = f"TRY({rule.expression.sql(names)})"
            return f"CASE WHEN {holds} THEN {PASSED} WHEN {holds} IS NOT NULL THEN {FELL} {absent} ELSE {FELL} END"
        fails = "false"
        if isinstance(rule, Top) and (threshold := self._decided[number].threshold) is not None:
            fails = f"CAST({columns[0]} AS DOUBLE) < {_literal(threshold)}"
        elif isinstance(rule, BestCaption) and rule.at_least is not None:
            # As a condition would say it: 0.7 of 32 bits is not below 0.7.
            fails = f"{columns[0]} < {rule.at_least if isfinite(rule.at_least) else _literal(rule.at_least)}"
        elif isinstance(rule, NotIn) and columns and rule.distance is None:
            is_listed = f"CAST({columns[0]} AS VARCHAR) IN (SELECT value FROM listed_{number})"
            fails = f"NOT {is_listed}" if rule.wants else is_listed
        return f"CASE {absent} WHEN {fails} THEN {FELL} ELSE {PASSED} END" if absent else str(PASSED)

    def _fallen(self, number: int, group: Group) -> Codes:
        fell = np.zeros(group.num_rows, np.uint8)
        fallen = self._decided[number].fallen
        assert fallen is not None
        for shard, rows in group.parts():
            fell[rows][fallen(shard)] = FELL
        return fell

    def _listed(self, number: int, rule: NotIn, group: Group) -> Codes:
        listed = self._lists[number]
        if rule.by == "uid":
            found = listed.holds_uids(group.uids)
        else:
            found = listed.is_near(as_hashes(group.columns[rule.by].fill_null(0)).to_numpy())
        return np.where(found == rule.wants, PASSED, FELL).astype(np.uint8)


def _only_best(rule: BestCaption, group: Group, verdicts: Codes, still_in: npt.NDArray[np.bool_]) -> Codes:
    """Of each image's captions that are still in and not judged otherwise, all but the best fall."""
    candidates = np.flatnonzero(still_in & (verdicts == PASSED))
    scores = values_of(group.columns[rule.columns[0]])[candidates]
    images = group.images[candidates]
    # By image, best first; the sort is stable, so that the first of equals leads.
    order = np.lexsort((np.arange(len(candidates)), -scores, images))
    leads = np.ones(len(order), bool)
    leads[1:] = images[order][1:] != images[order][:-1]
    verdicts = np.array(verdicts)
    verdicts[candidates[order[~leads]]] = FELL
    return verdicts


def _by_place(verdicts: Codes, place: npt.NDArray[np.int64]) -> Codes:
    ordered = np.empty_like(verdicts)
    ordered[place] = verdicts
    return ordered


def _literal(value: float) -> str:
    """A number in SQL, infinite ones too."""
    return f"'{value!r}'::DOUBLE"
