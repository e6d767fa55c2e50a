"""Do the columns hold what the rules ask of them? Told before a row is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import duckdb
import pyarrow as pa

from filters.expression import Expression, connect
from filters.rules import BestCaption, NotIn, Rule, Top, Unique, Where
from filters.values import readable
from infra.errors import RecipeError


def check_types(rules: Sequence[Rule], kinds: Mapping[str, pa.DataType]) -> None:
    """Raise RecipeError for a rule that asks of a column what values of its type cannot tell.

    kinds: type of each column, named as the rules name them.
    """
    for number, rule in enumerate(rules, 1):
        where = f"rule {number}, {rule.text}"
        for name in rule.columns:
            if isinstance(rule, Top | BestCaption) and not _is_number(kinds[name]):
                raise RecipeError(f"{where}: {name} is of type {kinds[name]}, which has no highest; name a number")
            if isinstance(rule, Unique | NotIn) and rule.distance is not None and not _is_hash(kinds[name]):
                raise RecipeError(f"{where}: {name} is of type {kinds[name]}; a distance is between 64-bit hashes")
        if isinstance(rule, Where):
            kind = _type_of(rule.expression, kinds, where)
            if not pa.types.is_boolean(kind):
                raise RecipeError(f"{where}: it gives a {kind}, neither true nor false; write a comparison")
        elif isinstance(rule, Unique) and rule.order is not None:
            kind = _type_of(rule.order, kinds, f"{where}, keep")
            if not _is_number(kind):
                raise RecipeError(f"{where}: keep gives a {kind}, which has no highest; name a number")


def _type_of(expression: Expression, kinds: Mapping[str, pa.DataType], where: str) -> pa.DataType:
    """What it gives, as DuckDB says over a table without rows."""
    names = {name: f"c{at}" for at, name in enumerate(expression.columns)}
    schema = pa.schema([(own, kinds[name]) for name, own in names.items()])
    connection = connect()
    connection.register("rows", schema.empty_table())
    shown = ", ".join(readable(field) for field in schema) or "1"
    try:
        asked = f"SELECT {expression.sql(names)} AS told FROM (SELECT {shown} FROM rows)"
        return connection.sql(asked).to_arrow_table().schema.field("told").type
    except duckdb.Error as error:
        raise RecipeError(f"{where}: {str(error).partition(chr(10))[0]}") from None


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
                or pa.types.is_boolean(kind) or pa.types.is_null(kind))  # fmt: skip


def _is_hash(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_null(kind))
