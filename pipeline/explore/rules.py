"""What the page asks for, rules over columns by number, as the entries of a recipe that say the same.

Nothing that a browser sends becomes SQL: a column is a number in the server's list, a value a number in the column's
list, a cut a finite number. The words are written here, once, and the counts are of these very words.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

import duckdb
import numpy as np
import yaml
from pydantic import Field

from filters.rules import parse_rule
from infra.errors import UsageError
from infra.recipe import Config

MAX_RULES = 24
MAX_NUMBER = 1e15  # beyond, whole numbers run out of digits
MAX_VALUES = 250  # a text column with more is no category
_PLAIN_NAME = re.compile(r"[a-z_][a-z0-9_]*")

Kind = Literal["number", "whole", "category", "flag"]
Number = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER, allow_inf_nan=False)]
Id = Annotated[int, Field(ge=0, le=10_000)]


@dataclass(frozen=True, slots=True)
class Column:
    """A column that can be cut."""

    table: str  # a score table's name, or "row" for the row's own columns
    name: str
    kind: Kind
    sql: str  # its name in memory
    is_unique: bool = True  # has no other table a column of that name?
    description: str = ""
    values: tuple[str, ...] = ()  # of a category, most frequent first; of a flag false, true

    @property
    def path(self) -> str:
        """What a recipe calls it: its name, with the table's before it where two tables have it."""
        return self.name if self.is_unique else f"{self.table}.{self.name}"

    @property
    def ref(self) -> str:
        """The same as SQL: in quotes where a name needs them."""
        return _quoted(self.name) if self.is_unique else f"{_quoted(self.table)}.{_quoted(self.name)}"

    @property
    def is_number(self) -> bool:
        """Has it an order to cut?"""
        return self.kind in ("number", "whole")


class Range(Config):
    """low <= column <= high; None is no limit."""

    kind: Literal["range"]
    column: Id
    low: Number | None = None
    high: Number | None = None


class Share(Config):
    """The highest `fraction` of the column's values, of all rows or of those that earlier rules keep."""

    kind: Literal["top"]
    column: Id
    fraction: Annotated[float, Field(gt=0, le=1)]
    of: Literal["all", "survivors"]


class Values(Config):
    """The column has one of these values; or, with `drop`, a value that is none of them."""

    kind: Literal["values"]
    column: Id
    values: Annotated[tuple[Id, ...], Field(max_length=MAX_VALUES)] = ()
    drop: bool = False


Asked = Range | Share | Values
AskedRules = Annotated[tuple[Annotated[Asked, Field(discriminator="kind")], ...], Field(max_length=MAX_RULES)]


def check(asked: Sequence[Asked], columns: Sequence[Column]) -> None:
    """Raise UsageError for a column or value that is not in the lists, or a cut of what has no order."""
    for rule in asked:
        if rule.column >= len(columns):
            raise UsageError(f"column {rule.column}: there are {len(columns)}; load the page again")
        column = columns[rule.column]
        if isinstance(rule, Values) == column.is_number:
            raise UsageError(f"{column.ref}: a rule of kind {rule.kind} does not fit a {column.kind}")
        if isinstance(rule, Values) and any(code >= len(column.values) for code in rule.values):
            raise UsageError(f"{column.ref} has {len(column.values)} values; load the page again")


def is_open(rule: Asked) -> bool:
    """Does the rule ask for nothing yet? Such a rule drops no row and is not written."""
    if isinstance(rule, Range):
        return rule.low is None and rule.high is None
    return isinstance(rule, Values) and not rule.values


def entries(asked: Sequence[Asked], columns: Sequence[Column]) -> list[dict[str, Any] | None]:
    """The rules as entries of a recipe, in their order; None for those that ask for nothing yet."""
    seen: Counter[str] = Counter()
    result: list[dict[str, Any] | None] = []
    for rule in asked:
        entry = None if is_open(rule) else _entry(rule, columns[rule.column])
        if entry is not None:
            # Columns of one name in two tables would give one reason twice, which a recipe refuses.
            word = parse_rule(entry, "rule").word
            seen[word] += 1
            if seen[word] > 1:
                entry["reason"] = f"{word}_{seen[word]}"
        result.append(entry)
    return result


def recipe_text(rules: Sequence[Mapping[str, Any]], captions: Sequence[str] = ()) -> str:
    """YAML of entries, to paste into a recipe; "" where there are none."""
    if not rules:
        return ""
    values = ({"captions": list(captions)} if captions else {}) | {"rules": [dict(entry) for entry in rules]}
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000))


def limits(rule: Range, column: Column) -> tuple[float | None, float | None]:
    """The range's ends; whole numbers for a column of whole numbers, where 2.5 <= words is 3 <= words."""
    low, high = rule.low, rule.high
    if column.kind == "whole":
        low = None if low is None else math.ceil(low)
        high = None if high is None else math.floor(high)
    return low, high


def literal(number: float | np.generic) -> str:
    """A number as SQL: the shortest digits that give it back, without an exponent.

    DuckDB takes 1e-05 for a double and 0.00001 for a decimal, and only that is compared as the float it came from.
    """
    if isinstance(number, int | np.integer):
        return str(number)
    return np.format_float_positional(number, trim="-")  # type: ignore[arg-type]


def _entry(rule: Asked, column: Column) -> dict[str, Any]:
    if isinstance(rule, Share):
        return {"top": column.path, "fraction": rule.fraction, "of": rule.of}
    return {"where": _range(rule, column) if isinstance(rule, Range) else _values(rule, column)}


def _range(rule: Range, column: Column) -> str:
    ends = zip((">=", "<="), limits(rule, column), strict=True)
    return " and ".join(f"{column.ref} {sign} {literal(end)}" for sign, end in ends if end is not None)


def _values(rule: Values, column: Column) -> str:
    texts = [column.values[code] for code in rule.values]
    quoted = texts if column.kind == "flag" else ["'" + text.replace("'", "''") + "'" for text in texts]
    if len(quoted) == 1:
        return f"{column.ref} {'<>' if rule.drop else '='} {quoted[0]}"
    return f"{column.ref} {'not ' * rule.drop}in ({', '.join(quoted)})"


def _quoted(name: str) -> str:
    is_plain = _PLAIN_NAME.fullmatch(name) and name not in _reserved()
    return name if is_plain else '"' + name.replace('"', '""') + '"'


@cache
def _reserved() -> frozenset[str]:
    rows = duckdb.execute("SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category = 'reserved'").fetchall()
    return frozenset(name for (name,) in rows)
