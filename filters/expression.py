"""A rule's SQL expression: which columns it reads, where it cuts them, and that it does nothing else.

DuckDB parses it. Only operators, casts, CASE and plain scalar functions pass: no sub-query, no aggregate, nothing that
reads a file, a setting, the clock or chance. So an expression says the same of a row wherever and whenever it is asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import duckdb

from infra.errors import RecipeError

_ALLOWED = frozenset(
    ["COLUMN_REF", "CONSTANT", "COMPARISON", "CONJUNCTION", "OPERATOR", "BETWEEN", "CASE", "CAST", "FUNCTION", "TYPE"]
)
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
        ((sql,),) = _parser().cursor().execute("SELECT json_deserialize_sql(?)", [json.dumps(tree)]).fetchall()
        return str(sql).removeprefix("SELECT ")


@cache
def _parse(text: str, where: str) -> dict[str, Any]:
    ((found,),) = _parser().cursor().execute("SELECT json_serialize_sql(?)", [f"SELECT {text}"]).fetchall()
    tree: dict[str, Any] = json.loads(found)
    if tree["error"]:
        raise RecipeError(f"{where}: {text!r} is no SQL expression: {tree['error_message']}")
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
        if node["class"] not in _ALLOWED:
            what = node["class"].lower().replace("_", " ")
            raise RecipeError(f"{where}: {text!r}: a {what} cannot stand in a rule, which judges one row at a time")
        if node["class"] == "FUNCTION" and node["function_name"] not in _plain_functions():
            raise RecipeError(
                f"{where}: {text!r}: {node['function_name']}() is not a function of the row alone, or unknown"
            )


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
    while value["class"] == "CAST":
        value = value["child"]
    if column["class"] != "COLUMN_REF" or value["class"] != "CONSTANT":
        return
    literal = value["literal"]
    try:
        told = {"STRING": str, "INTEGER": int}.get(literal["kind"], float)(literal["text"])
    except ValueError:
        return
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


def connect() -> duckdb.DuckDBPyConnection:
    """A DuckDB in which expressions say the same on every machine. What arithmetic cannot tell is NULL, not a NaN.

    A NaN would be above every number, so that 0 / 0 > 3 would keep a row.
    """
    connection = duckdb.connect(config={"enable_external_access": "false"})
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET ieee_floating_point_ops = false")  # an error, which TRY turns into NULL
    connection.execute("SET error_on_division_by_zero = false")
    return connection


@cache
def _parser() -> duckdb.DuckDBPyConnection:
    return connect()


@cache
def _plain_functions() -> frozenset[str]:
    rows = (
        _parser()
        .execute("""
        SELECT function_name FROM duckdb_functions()
        GROUP BY function_name HAVING bool_and(function_type = 'scalar' AND stability = 'CONSISTENT')""")
        .fetchall()
    )
    return frozenset(name for (name,) in rows)
