"""What the page counts is what a plain loop finds, whatever the rules and whatever is missing."""

from __future__ import annotations

import math
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infra.dataset import Dataset
from infra.errors import UsageError
from pipeline.explore.axis import make_axis
from pipeline.explore.counts import Explorer
from pipeline.explore.load import Loaded, load
from pipeline.explore.rules import Asked, Column, Range, Share, Values

COLUMNS = (
    Column("text", "words", "whole", "c0"),
    Column("clip", "clip_score", "number", "c1"),
    Column("language", "language", "category", "c2", values=("en", "fr", "d'e")),
    Column("text", "is_name", "flag", "c3", values=("false", "true")),
)
TYPES = {"c0": "INTEGER", "c1": "FLOAT", "c2": "ENUM('en', 'fr', 'd''e')", "c3": "BOOLEAN"}


def as_float32(number: float) -> float:
    """The number as a column of 32-bit floats holds it."""
    return float(pa.scalar(number, pa.float32()).as_py())


scores = st.one_of(st.sampled_from([0.1, 0.28, 0.3, -1.0]), st.floats(-1, 1, width=32)).map(as_float32)  # with ties
rows = st.lists(
    st.tuples(
        st.none() | st.integers(-3, 9),
        st.none() | scores,
        st.none() | st.sampled_from(COLUMNS[2].values),
        st.none() | st.booleans(),
    ),
    max_size=40,
)
cuts = (
    st.none()
    | st.sampled_from([0.1, 0.28, 0.3])
    | st.floats(-4, 10).map(
        lambda cut: round(cut, 9)  # of more than 38 digits DuckDB makes a double
    )
)
fractions = st.sampled_from([0.001, 0.1, 0.3, 0.5, 0.999, 1.0])
ranges = st.builds(Range, kind=st.just("range"), column=st.sampled_from([0, 1]), low=cuts, high=cuts)
shares = st.builds(Share, kind=st.just("top"), column=st.sampled_from([0, 1]), fraction=fractions,
                   of=st.sampled_from(["all", "survivors"]))  # fmt: skip
values = st.one_of(
    st.builds(Values, kind=st.just("values"), column=st.just(column), drop=st.booleans(),
              values=st.lists(st.integers(0, number - 1), max_size=3, unique=True).map(tuple))
    for column, number in ((2, 3), (3, 2))
)  # fmt: skip
asked_rules = st.lists(st.one_of(ranges, shares, values), max_size=5)


def in_memory(table: list[tuple[Any, ...]]) -> Explorer:
    """An explorer of rows that were never on disk."""
    connection = duckdb.connect()
    named = ", ".join(f"{name} {kind}" for name, kind in TYPES.items())
    connection.execute(f"CREATE TABLE rows (mix UBIGINT, shard UINTEGER, uid BLOB, source VARCHAR, n INTEGER, {named})")
    kinds = (pa.int32(), pa.float32(), pa.string(), pa.bool_())
    drawn = pa.table({name: pa.array([row[at] for row in table], kinds[at]) for at, name in enumerate(TYPES)})
    connection.register("drawn", drawn)
    connection.execute("INSERT INTO rows BY NAME SELECT *, 0 AS mix, 0 AS shard, 'web' AS source, 0 AS n FROM drawn")
    return Explorer(Loaded(connection, None, ["00000"], (), COLUMNS, len(table), len(table), {}))  # type: ignore[arg-type]


def passes(rule: Asked, row: tuple[Any, ...], table: list[tuple[Any, ...]]) -> bool | None:
    """A slow reading of one rule: None where the value is missing. table: the rows a share is of."""
    value = row[rule.column]
    if value is None:
        return None
    if isinstance(rule, Range):
        return (rule.low is None or value >= as_held(rule, rule.low)) and (
            rule.high is None or value <= as_held(rule, rule.high)
        )
    if isinstance(rule, Values):
        texts = [COLUMNS[rule.column].values[code] for code in rule.values]
        return ((str(value).lower() if isinstance(value, bool) else value) in texts) != rule.drop
    held = sorted((other[rule.column] for other in table if other[rule.column] is not None), reverse=True)
    place = int(len(held) * rule.fraction)
    return place >= len(held) or value >= held[place]


def as_held(rule: Range, cut: float) -> float:
    """A cut as it is compared: as a float of 32 bits with a column of them."""
    return as_float32(cut) if rule.column == 1 else cut


def is_open(rule: Asked) -> bool:
    if isinstance(rule, Range):
        return rule.low is None and rule.high is None
    return isinstance(rule, Values) and not rule.values


@settings(max_examples=60)
@given(rows, asked_rules)
@example([(1, as_float32(0.28), "en", True)], [Range(kind="range", column=1, low=0.28, high=0.28)])
def test_every_row_has_one_fate_and_the_effects_are_those_of_a_plain_loop(table, asked):
    explorer = in_memory(table)
    found = explorer.count(asked)
    effects = explorer.effects(asked)
    left = list(range(len(table)))
    verdicts: dict[int, list[bool | None]] = {}
    for at, rule in enumerate(asked):
        if is_open(rule):
            assert found["rules"][at] is None
            continue
        pool = table if getattr(rule, "of", "all") == "all" else [table[row] for row in left]
        verdicts[at] = [passes(rule, row, pool) for row in table]
        fallen = [row for row in left if not verdicts[at][row]]
        missing = sum(verdicts[at][row] is None for row in fallen)
        told = found["rules"][at]
        assert (told["dropped"], told["missing"]) == (len(fallen), missing)
        left = [row for row in left if verdicts[at][row]]
    assert found["kept"] == len(left)
    assert found["total"] == len(table) == found["kept"] + sum(rule["dropped"] for rule in found["rules"] if rule)
    for at, own in verdicts.items():
        others = [all(verdict[row] for key, verdict in verdicts.items() if key != at) for row in range(len(table))]
        assert effects[at]["fails"] == sum(not verdict for verdict in own)
        assert effects[at]["only"] == sum(not verdict and other for verdict, other in zip(own, others, strict=True))
        held = sum(row[asked[at].column] is not None and other for row, other in zip(table, others, strict=True))
        assert sum(effects[at]["bins"]) == held


@settings(max_examples=200)
@given(st.lists(st.integers(-1000, 100_000), min_size=2, max_size=30, unique=True))
def test_whole_numbers_have_bins_and_steps_of_their_own(numbers):
    numbers.sort()
    axis = make_axis(numbers[0], numbers[0], numbers[-1], numbers[-1], True)
    assert axis.num_bins <= 64
    assert axis.low == numbers[0]
    assert axis.low + axis.num_bins * axis.width > numbers[-1] == axis.high


@settings(max_examples=200)
@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_a_slider_over_fractions_holds_all_and_steps_by_a_power_of_ten(low, span):
    high = low + span
    axis = make_axis(low, low, high, high, False)
    slack = 1e-9 * max(abs(low), abs(high))
    assert axis.low <= low + slack
    assert axis.high >= high - slack
    assert math.isclose(math.log10(axis.step), round(math.log10(axis.step)), abs_tol=1e-9)
    assert 90 <= (axis.high - axis.low) / axis.step <= 1100


def test_a_long_tail_does_not_squeeze_the_rest():
    axis = make_axis(0, 1, 50, 100_000, True)
    assert (axis.low, axis.high) == (0, 50)


@pytest.mark.parametrize(
    "rule",
    [
        Range(kind="range", column=99, low=1),
        Range(kind="range", column=2, low=1),
        Values(kind="values", column=0, values=(0,)),
        Values(kind="values", column=2, values=(3,)),
        Share(kind="top", column=3, fraction=0.5, of="all"),
    ],
)
def test_a_column_or_value_outside_the_lists_is_refused(rule):
    with pytest.raises(UsageError):
        in_memory([(1, 0.5, "en", True)]).count([rule])


def test_a_dataset_is_the_same_dataset_after_exploring(scored):
    before = scored.dataset.storage.stamps()
    Explorer(load(Dataset(scored.storage.url))).count([])
    assert scored.dataset.storage.stamps() == before
