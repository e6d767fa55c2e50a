"""The byte budget: never exceeded but by the eldest, always moving, given back when nobody holds the body."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.fetch.budget import ByteBudget, Share


class Holder:
    """Something that can be let go of."""


async def read(share: Share, pieces: list[int]) -> None:
    share.begin()
    for num_bytes in pieces:
        await share.wait_and_take(num_bytes)
        await asyncio.sleep(0)


@given(
    max_bytes=st.integers(1, 100),
    bodies=st.lists(st.lists(st.integers(0, 40), max_size=5), min_size=1, max_size=12),
    are_given_up=st.booleans(),
)
@settings(deadline=None)
def test_all_bodies_are_read_within_the_budget_and_one_body(max_bytes, bodies, are_given_up) -> None:
    async def main() -> None:
        budget, most = ByteBudget(max_bytes), 0

        async def visit(pieces: list[int]) -> None:
            nonlocal most
            share, holder = budget.share(), Holder()
            await read(share, pieces)
            most = max(most, budget.num_bytes)
            if are_given_up:
                share.give_back()
            else:
                share.give_back_with(holder)
                await asyncio.sleep(0)

        await asyncio.wait_for(asyncio.gather(*map(visit, bodies)), 5)
        assert most <= max_bytes + max(map(sum, bodies))
        assert budget.num_bytes == budget._num_kept == 0

    asyncio.run(main())


def test_a_second_body_waits_until_the_first_is_let_go() -> None:
    async def main() -> None:
        budget = ByteBudget(100)
        first, second = budget.share(), budget.share()
        first.begin()
        assert first.take(90)
        task = asyncio.create_task(read(second, [20]))
        await asyncio.sleep(0.01)
        assert not task.done()
        assert first.take(90)  # the eldest may
        assert budget.num_bytes == 180
        first.give_back()
        await asyncio.wait_for(task, 1)
        assert budget.num_bytes == 20

    asyncio.run(main())


def test_a_waiting_body_keeps_its_deadline() -> None:
    async def main() -> None:
        budget = ByteBudget(10)
        first, second = budget.share(), budget.share()
        first.begin()
        assert first.take(10)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read(second, [1]), 0.05)
        second.give_back()
        assert budget.num_bytes == 10

    asyncio.run(main())


@pytest.mark.parametrize("in_thread", [False, True])
def test_bytes_come_back_when_their_holder_is_gone(in_thread: bool) -> None:
    async def main() -> None:
        budget = ByteBudget(10)
        share, holder = budget.share(), [Holder()]
        share.begin()
        assert share.take(7)
        share.give_back_with(holder[0])
        assert budget.num_bytes == 7
        if in_thread:
            thread = threading.Thread(target=holder.clear)
            thread.start()
            thread.join()
        else:
            holder.clear()
        gc.collect()
        await asyncio.sleep(0.01)
        assert budget.num_bytes == 0

    asyncio.run(main())
