"""The order's laws: each unit once an epoch, the same for any number of ranks, and known at any place at once."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.order import Order, Units

ORDERS = st.builds(
    Order,
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any).map(np.array),
    seed=st.integers(0, 2**63), lanes=st.sampled_from([1, 2, 3, 4, 12]), window=st.sampled_from([1, 5, 1000]),
)  # fmt: skip


def told(units: Units) -> list[tuple[int, int, int]]:
    return list(zip(units.epochs.tolist(), units.shards.tolist(), units.rows.tolist(), strict=True))


@given(order=ORDERS, num_epochs=st.integers(1, 3))
def test_each_unit_comes_once_an_epoch(order: Order, num_epochs: int) -> None:
    every = {(shard, row) for shard, size in enumerate(order.sizes) for row in range(size)}
    found: Counter[tuple[int, int, int]] = Counter()
    for lane in range(order.lanes):
        found.update(told(order.at(lane, np.arange(-(-num_epochs * order.num_units // order.lanes) + 1))))
    for epoch in range(num_epochs):
        assert {key[1:]: number for key, number in found.items() if key[0] == epoch} == dict.fromkeys(every, 1)


@given(order=ORDERS, data=st.data())
def test_a_global_batch_is_the_same_for_any_number_of_ranks(order: Order, data: st.DataObject) -> None:
    size = order.lanes * data.draw(st.integers(1, 4))
    start = order.lanes * data.draw(st.integers(0, 200))
    whole = told(order.batch(start, size, range(order.lanes)))
    for num_ranks in (n for n in (1, 2, 3, 4, 6, 12) if order.lanes % n == 0):
        mine = order.lanes // num_ranks
        parts = [order.batch(start, size, range(rank * mine, (rank + 1) * mine)) for rank in range(num_ranks)]
        assert [row for part in parts for row in told(part)] == whole


@given(order=ORDERS, data=st.data())
def test_a_place_is_known_without_those_before_it(order: Order, data: st.DataObject) -> None:
    lane, places = data.draw(st.integers(0, order.lanes - 1)), np.arange(120)
    whole = told(order.at(lane, places))
    at = data.draw(st.integers(0, 119))
    assert told(order.at(lane, places[at:])) == whole[at:]
    assert told(order.at(lane, places[at : at + 1])) == whole[at : at + 1]


@given(order=ORDERS)
def test_lanes_go_on_into_the_next_epoch_without_waiting(order: Order) -> None:
    places = np.arange(3 * order.num_units // order.lanes + 2)
    lanes = [order.at(lane, places) for lane in range(order.lanes)]
    for one, other in pairwise(lanes):
        assert (np.abs(one.epochs - other.epochs) <= 1).all()
    for lane in lanes:
        assert (np.diff(lane.epochs) >= 0).all()


def test_each_rank_opens_shards_of_its_own() -> None:
    order = Order(np.array([10] * 40), seed=3, lanes=8, window=10)
    opened = [set(order.batch(0, 400, range(rank * 2, rank * 2 + 2)).shards.tolist()) for rank in range(4)]
    assert [len(shards) for shards in opened] == [10] * 4
    assert len(set.union(*opened)) == 40


def test_windows_bound_how_far_a_unit_moves_and_epochs_differ() -> None:
    order = Order(np.array([1000, 1000]), seed=7, lanes=2, window=100)
    lane = order.at(0, np.arange(2000))
    for first in range(0, 1000, 100):
        rows = np.sort(lane.rows[first : first + 100])
        assert (np.diff(rows) == 1).all()
        assert (lane.rows[first : first + 100] != rows).any()
    first, second = lane.rows[:1000], lane.rows[1000:]
    assert (first != second).any()


def test_another_seed_is_another_order() -> None:
    sizes = np.array([50, 50])
    orders = [told(Order(sizes, seed=seed, lanes=1, window=100).at(0, np.arange(100))) for seed in (1, 2)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_with_replacement_shards_come_by_their_weight() -> None:
    sizes = np.array([100] * 20)
    order = Order(sizes, seed=1, lanes=4, window=50, weights=np.array([3.0] * 10 + [1.0] * 10))
    places = np.arange(50_000)
    shards = np.concatenate([order.at(lane, places).shards for lane in range(4)])
    assert np.mean(shards < 10) == pytest.approx(0.75, abs=0.04)  # 2,000 shards drawn: four deviations of .01


def test_an_epoch_of_fewer_units_than_lanes_goes_round() -> None:
    order = Order(np.array([2]), seed=0, lanes=4, window=8)
    found = Counter(key for lane in range(4) for key in told(order.at(lane, np.arange(3))))
    assert found == Counter({(epoch, 0, row): 1 for epoch in range(6) for row in range(2)})
