"""Counts conserve, marks come back as they went in, and nothing but the clock differs between equal runs."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.ledger import ConservationError, Counts, DoneMark, Ledger
from infra.storage import Committed, Storage

reasons = st.dictionaries(st.text(min_size=1, max_size=12), st.integers(0, 10**9), max_size=5)


@st.composite
def counts(draw: st.DrawFn) -> Counts:
    """Counts that conserve."""
    dropped = draw(reasons)
    rows_out = draw(st.integers(0, 10**12))
    return Counts(rows_out + sum(dropped.values()), rows_out, dropped, draw(reasons))


marks = st.builds(
    DoneMark,
    step=st.text(min_size=1),
    job=st.text(min_size=1),
    fingerprint=st.text("0123456789abcdef", min_size=32, max_size=32),
    counts=counts(),
    files=st.lists(
        st.builds(Committed, st.text(min_size=1), st.integers(0, 2**50), st.text("0123456789abcdef", min_size=32)),
        max_size=4, unique_by=lambda file: file.name,
    ).map(tuple),
    clock=st.dictionaries(st.text(), st.floats(allow_nan=False), max_size=3),
)  # fmt: skip


@given(st.lists(counts(), max_size=6))
def test_a_sum_of_counts_that_conserve_conserves(parts: list[Counts]) -> None:
    total = sum(parts, Counts())
    total.check("sum")
    assert total.rows_in == sum(part.rows_in for part in parts)
    assert total.num_dropped == sum(part.num_dropped for part in parts)


@given(counts(), counts())
def test_addition_does_not_care_for_the_order(left: Counts, right: Counts) -> None:
    assert json.dumps((left + right).as_json()) == json.dumps((right + left).as_json())


@given(counts(), st.integers(-5, 5).filter(bool))
def test_a_lost_or_invented_row_is_told_with_its_place(good: Counts, error: int) -> None:
    bad = Counts(good.rows_in + error, good.rows_out, good.dropped)
    with pytest.raises(ConservationError, match="download 00007"):
        bad.check("download 00007")


@given(counts())
def test_counts_survive_json(value: Counts) -> None:
    assert Counts.from_json(json.loads(json.dumps(value.as_json()))) == value


@given(marks)
def test_done_marks_survive_json(mark: DoneMark) -> None:
    assert DoneMark.from_json(json.loads(json.dumps(mark.as_json()))) == mark


def test_marks_and_plans_are_found_again(place: str) -> None:
    ledger = Ledger(Storage(place))
    assert ledger.steps() == []
    assert ledger.plan("toy") is None
    assert ledger.done("toy") == {}
    assert ledger.quarantined("toy") == {}
    ledger.write_plan("toy", "f" * 32, ["00001", "00000"], settings={"word": "ü"})
    made = [
        DoneMark("toy", job, "f" * 32, Counts(2, 1, {"bad": 1}), (Committed("x", 1, "00"),), {}) for job in ("b", "a")
    ]
    for mark in made:
        ledger.mark_done(mark)
    assert ledger.steps() == ["toy"]
    assert ledger.plan("toy") == {
        "step": "toy", "fingerprint": "f" * 32, "jobs": ["00001", "00000"], "settings": {"word": "ü"},
    }  # fmt: skip
    assert list(ledger.done("toy").items()) == [("a", made[1]), ("b", made[0])]


def test_a_finished_job_is_no_longer_quarantined(place: str) -> None:
    ledger = Ledger(Storage(place))
    ledger.quarantine("toy", "a", "Traceback …\nValueError: no \ud800 text", 3)
    assert ledger.quarantined("toy")["a"]["attempts"] == 3
    assert ledger.quarantined("toy")["a"]["error"].startswith("Traceback …\nValueError")
    ledger.mark_done(DoneMark("toy", "a", "", Counts(), (), {}))
    assert ledger.quarantined("toy") == {}
    assert list(ledger.done("toy")) == ["a"]
