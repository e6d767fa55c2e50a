"""One row at a time: what a rule says of a value, of a missing one, and of one that cannot be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from filters.joined import Group
from filters.listed import lists_of
from filters.rules import parse_rule
from filters.verdicts import Decided, Judge
from tests.filters.small_datasets import caption_scores, uid_of, web

INF, NAN = float("inf"), float("nan")


def reasons_of(rules: list[dict[str, Any]], threshold: float | None = None, **columns: Any) -> list[str | None]:
    """Judge a group of one shard whose rows are each of an image of their own."""
    arrays = {name: pa.chunked_array([pa.array(values)]) for name, values in columns.items()}
    number = len(next(iter(arrays.values())))
    keys = caption_scores(web(uid_of(at) for at in range(number))).select(["uid", "source", "n"])
    group = Group({"00000": number}, arrays, {}, lambda: keys)
    judge = Judge([parse_rule(rule, "test") for rule in rules], dict.fromkeys(range(len(rules)), Decided(threshold)))
    judged = judge.judge(group)
    return [None if code == 0 else judged.reasons[code - 1] for code in judged.codes]


def where(condition: str, **columns: Any) -> list[str | None]:
    """Judge by one condition; its reason is "fell"."""
    return reasons_of([{"where": condition, "reason": "fell"}], **columns)


def test_a_row_falls_by_the_first_rule_that_it_fails() -> None:
    rules = [{"where": "a > 1", "reason": "one"}, {"where": "b > 1", "reason": "two"}]
    found = reasons_of(rules, a=[2, 0, 2, 0, None, 2], b=[2, 2, 0, 0, 0, None])
    assert found == [None, "one", "two", "one", "no_a", "no_b"]


@pytest.mark.parametrize("missing", [None, NAN])
def test_a_missing_value_is_a_reason_of_its_own_however_the_condition_is_turned(missing: float | None) -> None:
    values = pa.array([missing, 1.0], pa.float32())
    assert where("x > 0", x=values) == ["no_x", None]
    assert where("not (x > 2)", x=values) == ["no_x", None]
    assert where("x <> 7", x=values) == ["no_x", None]
    assert where("x is null", x=values) == [None, "fell"]
    assert where("coalesce(x, 5) > 2", x=values) == [None, "fell"]


def test_a_condition_that_holds_without_the_missing_value_keeps_the_row() -> None:
    columns = {"x": [None, None, 1], "y": [5, 0, 0]}
    assert where("x > 0 or y > 1", **columns) == [None, "no_x", None]
    assert where("x > 0 and y > 1", **columns) == ["no_x", "fell", "fell"]


def test_the_first_missing_column_of_the_condition_is_the_one_that_is_named() -> None:
    assert where("y + x > 0", x=pa.array([None], pa.int32()), y=pa.array([None], pa.int32())) == ["no_y"]


@pytest.mark.parametrize(
    "condition",
    ["a / b > 1", "a / b < 1", "a % b = 0", "sqrt(-a) > 1", "ln(b) < 0", "CAST(text AS INTEGER) > 0",
     "CAST(a AS TINYINT) * CAST(100 AS TINYINT) > 0 and b > 0", "not (a / b > 1)"],
)  # fmt: skip
def test_what_cannot_be_told_of_a_row_drops_the_row_and_not_the_run(condition: str) -> None:
    assert where(condition, a=[120], b=[0], text=["many"]) == ["fell"]


def test_not_a_number_is_never_above_a_threshold() -> None:
    assert where("a / b > 1", a=[0.0, 1.0, 4.0], b=[0.0, 0.0, 2.0]) == ["fell", "fell", None]


@pytest.mark.parametrize(
    ("threshold", "wanted"),
    [(INF, ["below_top_x", "below_top_x", None, "no_x"]), (-INF, [None, None, None, "no_x"]),
     (0.0, ["below_top_x", None, None, "no_x"]), (-0.0, ["below_top_x", None, None, "no_x"]),
     (None, [None, None, None, "no_x"])],
)  # fmt: skip
def test_every_number_can_be_a_threshold(threshold: float | None, wanted: list[str | None]) -> None:
    assert reasons_of([{"top": "x", "count": 1}], threshold, x=[-INF, 0.0, INF, NAN]) == wanted


@pytest.mark.parametrize("least", [INF, -INF, 0.5])
def test_every_number_can_be_the_least_score_of_a_best_caption(least: float) -> None:
    found = reasons_of([{"best_caption": "x", "at_least": least}], x=[-INF, 0.5, INF, None])
    assert found == [None if value >= least else "not_best_caption" for value in (-INF, 0.5, INF)] + ["no_x"]


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
@pytest.mark.parametrize("least", [0.28, 0.7])  # of 32 bits the first is a little above, the second a little below
def test_a_score_is_compared_with_a_number_as_it_was_written(kind: pa.DataType, least: float) -> None:
    scores = pa.array([least, least - 1e-6], kind)
    assert where(f"x >= {least}", x=scores) == [None, "fell"]
    assert reasons_of([{"best_caption": "x", "at_least": least}], x=scores) == [None, "not_best_caption"]


def test_a_time_is_told_in_the_same_zone_wherever_it_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    moment = pa.array([0], pa.timestamp("us", "UTC"))
    assert where("hour(t) = 0", t=moment) == [None]


def test_bytes_are_hex_digits_to_conditions() -> None:
    assert where("sha = '00ff'", sha=pa.array([b"\x00\xff", b"\xff\x00"])) == [None, "fell"]


def test_verdicts_are_in_the_order_of_the_rows_though_a_list_is_looked_up_in_parallel(tmp_path: Path) -> None:
    (tmp_path / "kinds.txt").write_text("png\n")
    rule = parse_rule({"in": str(tmp_path / "kinds.txt"), "by": "kind"}, "test")
    rng = np.random.default_rng(0)
    parts = [rng.choice(["png", "jpg"], 50_000) for _ in range(6)]
    columns = {"kind": pa.chunked_array([pa.array(part) for part in parts])}
    group = Group({"00000": 300_000}, columns, {}, lambda: pa.table({}))
    kept = Judge([rule], lists=lists_of([rule])).judge(group).kept
    assert (kept == (np.concatenate(parts) == "png")).all()
