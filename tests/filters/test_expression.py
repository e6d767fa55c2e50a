"""An expression says the same of a row wherever and whenever it is asked; what could not is refused when it is read."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filters.expression import MAX_DEPTH, Cut, Expression, connect
from infra.errors import RecipeError
from tests.servers.commands import CHECKOUT


def cuts(text: str) -> list[tuple[str, str, Any]]:
    return [(cut.column, cut.op, cut.value) for cut in Expression(text, "test").cuts]


@pytest.mark.parametrize(
    "text",
    [
        # more, or other, than one expression
        "", " ", "a >", "(a > 2", "a > 2)", "a > 2, b > 1", "a > 2; select 1", "a > 2; DROP TABLE rows", "a > 2 AS b",
        "a > 0x10", "a > 2 /*", "'a' 'b' = a", "a := 2", "a > 2 INTO b",
        # a query's clauses
        "a > 2 FROM rows", "a > 2 WHERE false", "a > 2 GROUP BY a", "a > 2 HAVING true", "a > 2 QUALIFY true",
        "a > 2 ORDER BY 1", "a > 2 LIMIT 0", "DISTINCT a > 2", "a > 2 USING SAMPLE 10%", "a > 2 UNION SELECT true",
        # other rows
        "(SELECT 1) > a", "a IN (SELECT 1)", "a IN (FROM rows)", "EXISTS (SELECT 1)", "a = ANY ([1, 2])",
        "count(*) > 2",
        "sum(a) > 2", "max(a) > 2", "any_value(a) > 2", "row_number() OVER () > 2", "sum(a) OVER () > 2",
        "lag(a) OVER () > a", "unnest([a]) > 2", "grouping(a) > 2",
        # not by name
        "*", "a.*", "COLUMNS(*) > 2", "COLUMNS(c -> c LIKE 'w%') > 2", "*COLUMNS(*)", "#1 > 2", "$1 > 2", "$a > 2",
        "? > 2",
        # a language of its own
        "[x FOR x IN [a]] = []", "list_filter([a], x -> x > 2) = []", "list_filter([a], lambda x: x > 2) = []",
        "a COLLATE nocase = 'a'",
        # the clock and chance
        "now() > a", "today() > a", "get_current_timestamp() > a", "transaction_timestamp() > a", "age(a) > b",
        "current_localtimestamp() > a", "current_localtime() > a", "random() > a", "uuid() > a",
        "gen_random_uuid() > a",
        "setseed(.5) > a", "nextval('s') > a", "txid_current() > a",
        # files, settings, the version
        "read_text('/etc/passwd') > a", "read_csv('x.csv') > a", "glob('*') > a", "getenv('HOME') > a", "version() > a",
        "current_setting('threads') > a", "getvariable('v') > a", "current_database() = a", "current_schema() = a",
        "in_search_path('a', a)", "pg_typeof(a) = 'b'", "query('SELECT 1')", "query_table('rows')", "write_log(a)",
        "json_serialize_plan(a) = 'b'", "hash(a) % 2 = 0", "pragma_version() > a", "error('stop') > a",
        "sleep_ms(1000) > a",
        "__internal_barrier(a) > 2",
        # macros, and functions that are called in another way
        "list_sum([a]) > 2", "nullif(a, 2) > 2", "a.lower() = 'b'", "main.lower(a) = 'b'", "system.main.lower(a) = 'b'",
        "lower(DISTINCT a) = 'b'", "lower(a ORDER BY a) = 'b'", "lower(a) FILTER (WHERE b > 2) = 'b'",
        "lower(a) OVER () = 'b'", "no_such_function(a) > 2",
        # what is no text
        "a = '\0'", "a = 'b\0c'", "a = '\ud800'",
    ],
)  # fmt: skip
def test_what_is_no_expression_over_one_row_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="test: "):
        Expression(text, "test")


@pytest.mark.parametrize(
    "text",
    ["a > 2", "a BETWEEN 1 AND 3 AND NOT b", "a IN (1, 2)", "a IS NULL OR b IS DISTINCT FROM 'x'", "coalesce(a, 2) > 2",
     "CASE WHEN a > 2 THEN b ELSE true END", "TRY_CAST(a AS DOUBLE) > 2", "lower(a) LIKE '%x%'", "a SIMILAR TO 'x.*'",
     "regexp_matches(a, '^x')", "greatest(a, b) / least(a, b) <= 3", "length(a) > 2 -- short", "a /* words */ > 2 ;",
     "{'x': a}.x > 2", "[a, b][1] > 2", "a[1:2] = 'xy'", "date_part('year', CAST(a AS DATE)) > 2020", "md5(a) < '8'"],
)  # fmt: skip
def test_plain_expressions_pass_and_say_what_they_say_in_sql(text: str) -> None:
    expression = Expression(text, "test")
    assert set(expression.columns) <= {"a", "b"}
    values = "SELECT 5 AS a, true AS b UNION ALL SELECT 0, false UNION ALL SELECT NULL, NULL"
    for kind in ("INTEGER", "VARCHAR", "DOUBLE"):
        rows = f"(SELECT CAST(a AS {kind}) AS a, b, a AS x1, b AS x2 FROM ({values}))"
        renamed = expression.sql({"a": "a", "b": "b"})
        assert _answer(f"({text}\n)".replace(";", ""), rows) == _answer(renamed, rows)


def _answer(sql: str, rows: str) -> Any:
    try:
        return connect().execute(f"SELECT ({sql}) FROM {rows}").fetchall()
    except duckdb.Error as error:
        return type(error)


@pytest.mark.parametrize(
    ("text", "columns"),
    [("words > 2", ("words",)), ("text.words > 2 and words < 5", ("text.words", "words")), ('"words" > 2', ("words",)),
     ("b > a and a > 1", ("b", "a")), ("case when c then b else a end", ("c", "b", "a")), ("1 = 1", ()),
     ("coalesce(b, lower(a)) = 'x' and a = 'y'", ("b", "a")), ("caption = 'a.b'", ("caption",))],
)  # fmt: skip
def test_columns_are_told_in_the_order_of_the_text(text: str, columns: tuple[str, ...]) -> None:
    assert Expression(text, "test").columns == columns


def test_columns_take_other_names_and_nothing_else_does() -> None:
    sql = Expression("text.words > 2 and words <> 'words' and lower(\"words\") = 'text.words'", "test").sql(
        {"text.words": "c0", "words": "c1"}
    )
    assert sql == "((c0 > 2) AND (c1 != 'words') AND (lower(c1) = 'text.words'))"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("words > 2", [("words", ">", 2)]), ("2 < words", [("words", ">", 2)]), ("-1 <= words", [("words", ">=", -1)]),
     ("clip >= 0.28 and text.words > 2", [("clip", ">=", 0.28), ("text.words", ">", 2)]),
     ("language = 'en'", [("language", "=", "en")]),
     ("words between 1 and 3", [("words", ">=", 1), ("words", "<=", 3)]),
     ("a > 1 and (b > 1 and c < 1e-3)", [("a", ">", 1), ("b", ">", 1), ("c", "<", 0.001)])],
)  # fmt: skip
def test_plain_comparisons_that_must_hold_are_cuts(text: str, wanted: list[tuple[str, str, Any]]) -> None:
    assert cuts(text) == wanted


@pytest.mark.parametrize(
    "text",
    ["a > 1 or b > 1", "not (a > 1)", "a not between 1 and 3", "a + 1 > 2", "a > b", "a is null", "a in (1, 2)",
     "a > NULL", "coalesce(a, 1) > 2", "a >= 2.7::INTEGER", "a > DATE '2020-01-01'", "case when a > 1 then true end",
     "a > 1e400"],
)  # fmt: skip
def test_other_conditions_have_no_cut(text: str) -> None:
    assert cuts(text) == []


def test_a_cut_is_what_its_comparison_says() -> None:
    assert Expression("words > 2", "test").cuts == [Cut("words", ">", 2)]


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 1_000, 20_000])
@pytest.mark.parametrize(
    ("head", "tail"), [("abs(", ")"), ("(", ")"), ("not ", ""), ("1 + ", ""), ("case when true then ", " end")]
)
def test_what_is_nested_too_deep_is_refused_and_breaks_nothing(head: str, tail: str, depth: int) -> None:
    with pytest.raises(RecipeError):
        Expression(f"{head * depth} a > 1 {tail * depth}", "test")


def test_an_expression_as_deep_as_may_be_and_one_of_many_terms_pass() -> None:
    deep = MAX_DEPTH - 5
    assert Expression(f"{'abs(' * deep}a{')' * deep} > 1", "test").columns == ("a",)
    many = " or ".join(f"a = {number}" for number in range(5_000))
    assert Expression(many, "test").sql({"a": "c"}).count("c = ") == 5_000


def test_no_function_passes_that_duckdb_calls_changing_or_that_sees_more_than_a_row() -> None:
    rows = connect().execute("SELECT function_name, function_type, stability FROM duckdb_functions()").fetchall()
    kinds: dict[str, set[tuple[str, str]]] = {}
    for name, kind, stability in rows:
        kinds.setdefault(name, set()).add((kind, stability))
    refused = [name for name, found in kinds.items() if found != {("scalar", "CONSISTENT")} and name.isidentifier()]
    assert len(refused) > 100
    for name in refused:
        with pytest.raises(RecipeError):
            Expression(f"{name}(a) > 1", "test")


TEXTS = st.text(st.sampled_from("ab12.,;()[]{}'\"-+*/<>=!%$#?:@\\\n _\0é😀") | st.characters(), max_size=30)
WORDS = st.lists(
    st.sampled_from(["a", "b", "1", "'x'", "(", ")", ",", "select", "from", "and", "or", "not", "case", "when", "then",
                     "end", "is", "null", "in", "between", ">", "=", "::", ".", "*", "over", "cast", "as", "lower",
                     "--"]),
    max_size=10,
).map(" ".join)  # fmt: skip


@settings(max_examples=200)
@given(text=TEXTS | WORDS)
def test_whatever_is_written_is_either_refused_or_an_expression(text: str) -> None:
    try:
        expression = Expression(text, "test")
    except RecipeError:
        return
    sql = expression.sql({name: f"c{at}" for at, name in enumerate(expression.columns)})
    assert Expression(sql, "again").columns == tuple(f"c{at}" for at in range(len(expression.columns)))


def test_expressions_are_parsed_in_any_thread() -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: Expression(f"a > {number}", "test").cuts[0].value, range(100)))
    assert found == list(range(100))


def test_an_expression_is_judged_in_the_same_way_whatever_the_machine_is_set_to() -> None:
    code = (
        "from filters.expression import connect\n"
        "print(connect().execute(\"SELECT hour(to_timestamp(0)), 1 / 0, '1970-01-01'::TIMESTAMPTZ = to_timestamp(0)\")"
        ".fetchall())"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, env={"TZ": "Asia/Tokyo"}, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "[(0, None, True)]"
