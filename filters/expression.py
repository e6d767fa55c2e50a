"""A rule's SQL expression: which columns it reads, where it cuts them, and that it does nothing else.

DuckDB parses it. Only operators, casts, CASE and plain scalar functions pass: no sub-query, no aggregate, nothing that
reads a file, a setting, the clock or chance. So an expression says the same of a row wherever and whenever it is asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from math import isfinite
from typing import Any

import duckdb

from infra.errors import RecipeError

_ALLOWED = frozenset(
    ["COLUMN_REF", "CONSTANT", "COMPARISON", "CONJUNCTION", "OPERATOR", "BETWEEN", "CASE", "CAST", "FUNCTION", "TYPE"]
)
# What DuckDB calls consistent, yet reads the clock, plans queries, or changes with its version.
_UNSTABLE = frozenset(["age", "current_localtime", "current_localtimestamp", "hash", "json_serialize_plan"])
MAX_DEPTH = 100  # of nested expressions: Python walks the tree, at three calls a level
_SIGNS = {
    "COMPARE_EQUAL": "=",
    "COMPARE_NOTEQUAL": "<>",
    "COMPARE_LESSTHAN": "<",
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_LESSTHANOREQUALTO": "<=",
    "COMPARE_GREATERTHANOREQUALTO": ">=",
}
_TURNED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "<>": "<>"}


@dataclass(frozen=True, slots=True)
class Cut:
    """A plain comparison that must hold: column, comparison and value. What a histogram draws."""

    column: str
    op: str
    value: float | str


class Expression:
    """A parsed expression over columns `name` or `table.name`. Raises RecipeError where it may not stand in a rule."""

    def __init__(self, text: str, where: str) -> None:
        self.text = text
        self._tree = _parse(text, where)
        select = self._tree["statements"][0]["node"]["select_list"]
        if len(select) != 1:
            raise RecipeError(f"{where}: {text!r}: one expression is wanted, not {len(select)}")
        if select[0]["alias"]:
            raise RecipeError(f"{where}: {text!r}: an expression has no name; leave AS {select[0]['alias']} out")
        _check(select[0], text, where)
        refs = [tuple(node["column_names"]) for node in _nodes(select[0]) if node["class"] == "COLUMN_REF"]
        self.columns: tuple[str, ...] = tuple(dict.fromkeys(".".join(ref) for ref in refs))

    @property
    def cuts(self) -> list[Cut]:
        """The comparisons of a column with a constant that must all hold; other conditions have no cut."""
        return list(_cuts(self._tree["statements"][0]["node"]["select_list"][0]))

    def sql(self, names: Mapping[str, str]) -> str:
        """The expression with every column under another name."""
        tree = json.loads(json.dumps(self._tree))
        for node in _nodes(tree["statements"][0]["node"]["select_list"][0]):
            if node["class"] == "COLUMN_REF":
                node["column_names"] = [names[".".join(node["column_names"])]]
        return _parser_says("json_deserialize_sql", json.dumps(tree)).removeprefix("SELECT ")


@cache
def _parse(text: str, where: str) -> dict[str, Any]:
    if "\0" in text or text.encode("utf-8", "replace").decode() != text:
        raise RecipeError(f"{where}: {text!r} holds what is no text")
    tree: dict[str, Any] = json.loads(_parser_says("json_serialize_sql", f"SELECT {text}"))
    if tree["error"]:
        why = tree["error_message"]
        if "expression depth" in why:
            why = f"it is nested more than {MAX_DEPTH} deep"
        raise RecipeError(f"{where}: {text!r} is no SQL expression: {why}")
    (statement,) = tree["statements"] if len(tree["statements"]) == 1 else (None,)
    node = statement["node"] if statement else {}
    if (
        node.get("type") != "SELECT_NODE"
        or node["from_table"]["type"] != "EMPTY"
        or node["modifiers"]
        or _clauses(node)
    ):
        raise RecipeError(f"{where}: {text!r}: write a condition on a row alone, such as words > 2")
    return tree


def _clauses(node: Mapping[str, Any]) -> bool:
    return any(node.get(name) for name in ("where_clause", "group_expressions", "having", "qualify", "sample"))


def _check(root: Mapping[str, Any], text: str, where: str) -> None:
    for node in _nodes(root):
        if node["class"] not in _ALLOWED or node["type"] == "GROUPING_FUNCTION":
            what = node["type" if node["class"] == "OPERATOR" else "class"].lower().replace("_", " ")
            raise RecipeError(f"{where}: {text!r}: a {what} cannot stand in a rule, which judges one row at a time")
        if node["class"] == "FUNCTION" and (why := _not_plain(node)):
            raise RecipeError(f"{where}: {text!r}: {node['function_name']}() {why}")


def _not_plain(function: Mapping[str, Any]) -> str:
    """Why a function may not stand in a rule; "" where it may."""
    name = function["function_name"]
    if function["schema"]:
        return f"is called through {function['schema']}; write {name}(…) with all it takes in brackets"
    if function["distinct"] or function["filter"] or function["order_bys"]["orders"]:
        return "takes values of one row, which have no DISTINCT, ORDER BY or FILTER"
    return "" if name in _plain_functions() else "is not a function of the row alone, or unknown"


def _cuts(node: Mapping[str, Any]) -> Iterator[Cut]:
    if node["type"] == "CONJUNCTION_AND":
        for child in node["children"]:
            yield from _cuts(child)
    elif node["class"] == "BETWEEN":
        yield from _cut(node["input"], ">=", node["lower"])
        yield from _cut(node["input"], "<=", node["upper"])
    elif node["type"] in _SIGNS:
        sign = _SIGNS[node["type"]]
        yield from _cut(node["left"], sign, node["right"])
        yield from _cut(node["right"], _TURNED[sign], node["left"])


def _cut(column: Mapping[str, Any], sign: str, value: Mapping[str, Any]) -> Iterator[Cut]:
    if column["class"] != "COLUMN_REF" or value["class"] != "CONSTANT":
        return
    literal = value["literal"]
    try:
        told = {"STRING": str, "INTEGER": int}.get(literal["kind"], float)(literal["text"])
    except ValueError:
        return
    if not isinstance(told, float) or isfinite(told):  # JSON has no infinity, and a histogram no place for it
        yield Cut(".".join(column["column_names"]), sign, told)


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every node of an expression's tree, outermost first, in the order of the text."""
    if isinstance(value, dict):
        if "class" in value:
            yield value
        for child in value.values():
            yield from _nodes(child)
    elif isinstance(value, list):
        for child in value:
            yield from _nodes(child)


def connect(**settings: str) -> duckdb.DuckDBPyConnection:
    """A DuckDB in which expressions say the same on every machine. What arithmetic cannot tell is NULL, not a NaN.

    A NaN would be above every number, so that 0 / 0 > 3 would keep a row. settings: more of DuckDB's own.
    """
    connection = duckdb.connect(config={"enable_external_access": "false", **settings})
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET ieee_floating_point_ops = false")  # an error, which TRY turns into NULL
    connection.execute("SET error_on_division_by_zero = false")
    return connection


@cache
def _parser() -> duckdb.DuckDBPyConnection:
    return connect()


def _parser_says(function: str, text: str) -> str:
    cursor = _parser().cursor()  # any thread may ask
    cursor.execute(f"SET max_expression_depth = {MAX_DEPTH}")
    ((found,),) = cursor.execute(f"SELECT {function}(?)", [text]).fetchall()
    return str(found)


@cache
def _plain_functions() -> frozenset[str]:
    rows = (
        _parser()
        .execute("""
        SELECT function_name FROM duckdb_functions()
        GROUP BY function_name HAVING bool_and(function_type = 'scalar' AND stability = 'CONSISTENT')""")
        .fetchall()
    )
    return frozenset(name for (name,) in rows if not name.startswith("__internal")) - _UNSTABLE
