"""How many rows each rule drops, and how scores lie: a pass of DuckDB over the table in memory for each question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from filters.rules import Top, Where, parse_rule
from pipeline.explore.axis import TAIL, Axis, make_axis
from pipeline.explore.load import Loaded
from pipeline.explore.rules import Asked, Column, check, entries, recipe_text

POOLS = 4  # sorted columns that are kept for shares: 40 MB each, of 5 million rows


@dataclass(frozen=True, slots=True)
class Condition:
    """A rule that asks for something, as SQL over the table in memory. `at`: its place among the rules asked."""

    at: int
    column: Column
    entry: Mapping[str, Any]
    sql: str
    threshold: float | None = None  # of a share


class Explorer:
    """Answers questions on what is loaded. Several threads may ask at once."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.axes = {column.sql: self._axis(column) for column in loaded.columns if column.is_number}
        self._pool = lru_cache(POOLS)(self._sorted)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of a query, on a cursor of its own: threads do not share one."""
        with self.loaded.connection.cursor() as cursor:
            return cursor.execute(sql).fetchall()

    def conditions(self, asked: Sequence[Asked]) -> list[Condition]:
        """The rules that ask for something, in their order. Raises UsageError for what is not in the lists."""
        columns = self.loaded.columns
        check(asked, columns)
        found: list[Condition] = []
        for at, entry in enumerate(entries(asked, columns)):
            if entry is None:
                continue
            column = columns[asked[at].column]
            rule = parse_rule(entry, f"rule {at + 1}")
            if isinstance(rule, Where):
                found.append(Condition(at, column, entry, rule.expression.sql({column.path: column.sql})))
            elif isinstance(rule, Top):
                threshold = self._threshold(rule, column, all_of(found) if rule.of == "survivors" else "true")
                sql = "true" if threshold is None else f"{column.sql}::DOUBLE >= {threshold!r}::DOUBLE"
                found.append(Condition(at, column, entry, sql, threshold))
        return found

    def count(self, asked: Sequence[Asked]) -> dict[str, Any]:
        """Rows kept; for each rule those that it is the first to drop, and how many of these lack a value; the YAML."""
        conditions = self.conditions(asked)
        found = dict(self.query(f"SELECT {fate(conditions)} AS fate, count(*) FROM rows GROUP BY fate"))
        rules: list[dict[str, Any] | None] = [None] * len(asked)
        for place, condition in enumerate(conditions):
            fell, missing = (found.get(code, 0) for code in codes(place))
            rules[condition.at] = {"dropped": fell + missing, "missing": missing, "threshold": condition.threshold}
        recipe = recipe_text([condition.entry for condition in conditions], self.loaded.captions)
        return {"total": self.loaded.num_rows, "kept": found.get(0, 0), "rules": rules, "recipe": recipe}

    def effects(self, asked: Sequence[Asked]) -> list[dict[str, Any] | None]:
        """For each rule: rows it would drop alone, rows that it alone drops, and how the rows lie that others keep."""
        conditions = self.conditions(asked)
        effects: list[dict[str, Any] | None] = [None] * len(asked)
        for condition in conditions:
            others = all_of([other for other in conditions if other is not condition])
            ((fails, only),) = self.query(
                "SELECT count(*) FILTER (passes IS NOT true), count(*) FILTER (passes IS NOT true AND others) "
                f"FROM (SELECT {_passes(condition)} AS passes, ({others}) AS others FROM rows)"
            )
            effects[condition.at] = {"fails": fails, "only": only, "bins": self.bins(condition.column, others)}
        return effects

    def bins(self, column: Column, among: str = "true") -> list[int]:
        """Rows in each bin of a numeric column, or of each value of another; of the rows for which `among` holds."""
        if column.is_number:
            axis = self.axes[column.sql]
            place = f"floor(({column.sql}::DOUBLE - {axis.low!r}::DOUBLE) / {axis.width!r}::DOUBLE)"
            number, length = f"least({axis.num_bins - 1}, greatest(0, {place}))::INTEGER", axis.num_bins
        elif column.kind == "category":
            number, length = f"enum_code({column.sql})", len(column.values)
        else:
            number, length = f"{column.sql}::INTEGER", len(column.values)
        found = dict(
            self.query(
                f"SELECT {number} AS bin, count(*) FROM rows WHERE {column.sql} IS NOT NULL AND ({among}) GROUP BY bin"
            )
        )
        return [found.get(at, 0) for at in range(length)]

    def num_missing(self, column: Column) -> int:
        """Rows without a value."""
        ((number,),) = self.query(f"SELECT count(*) - count({column.sql}) FROM rows")
        return int(number)

    def _axis(self, column: Column) -> Axis:
        ((ends,),) = self.query(
            f"SELECT quantile_disc({column.sql}::DOUBLE, [0, {TAIL}, {1 - TAIL}, 1]) FROM rows "
            f"WHERE isfinite({column.sql}::DOUBLE)"
        )
        lowest, low, high, highest = ends or (0.0, 0.0, 1.0, 1.0)
        return make_axis(lowest, low, high, highest, column.kind == "whole")

    def _threshold(self, rule: Top, column: Column, before: str) -> float | None:
        """The lowest value that a share keeps; None where it keeps all. As filters/decide.py has it for all rows."""
        values = self._pool(column.sql, before)
        place = rule.place(len(values))
        return float(values[-1 - place]) if place < len(values) else None

    def _sorted(self, name: str, among: str) -> npt.NDArray[Any]:
        with self.loaded.connection.cursor() as cursor:
            found = cursor.execute(f"SELECT {name} AS v FROM rows WHERE {name} IS NOT NULL AND ({among})").fetchnumpy()
        return np.sort(np.asarray(found["v"]))


def codes(place: int) -> tuple[int, int]:
    """What `fate` says of a row that falls by the condition at a place: by its value, and by having none."""
    return 2 * place + 1, 2 * place + 2


def fate(conditions: Sequence[Condition]) -> str:
    """SQL: 0 for a row that is kept, else which condition is the first that it fails, and how."""
    cases = []
    for place, condition in enumerate(conditions):
        fell, missing = codes(place)
        cases.append(f"WHEN {condition.column.sql} IS NULL THEN {missing}::UTINYINT")
        cases.append(f"WHEN NOT ({condition.sql}) THEN {fell}::UTINYINT")
    return f"CASE {' '.join(cases)} ELSE 0::UTINYINT END" if cases else "0::UTINYINT"


def all_of(conditions: Sequence[Condition]) -> str:
    """SQL that holds for the rows that all conditions keep."""
    return " AND ".join(_passes(condition) for condition in conditions) or "true"


def _passes(condition: Condition) -> str:
    return f"({condition.sql} AND {condition.column.sql} IS NOT NULL)"
