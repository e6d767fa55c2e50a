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
        await share.take(num_bytes)
        await asyncio.sleep(0)
    share.end()


@given(
    max_bytes=st.integers(1, 100),
    bodies=st.lists(st.lists(st.integers(0, 40), max_size=5), min_size=1, max_size=12),
    are_kept=st.booleans(),
)
@settings(deadline=None)
def test_all_bodies_are_read_whatever_the_budget_and_whatever_callers_keep(max_bytes, bodies, are_kept) -> None:
    async def main() -> None:
        budget = ByteBudget(max_bytes)
        shares = [budget.share() for _ in bodies]

        async def visit(share: Share, pieces: list[int]) -> None:
            await read(share, pieces)
            if not are_kept:
                share.give_back()

        await asyncio.wait_for(asyncio.gather(*map(visit, shares, bodies)), 5)
        assert budget.num_bytes == (sum(map(sum, bodies)) if are_kept else 0)

    asyncio.run(main())


def test_a_second_body_waits_until_the_first_is_let_go() -> None:
    async def main() -> None:
        budget = ByteBudget(100)
        first, second = budget.share(), budget.share()
        first.begin()
        await first.take(90)
        task = asyncio.create_task(read(second, [20]))
        await asyncio.sleep(0.01)
        assert not task.done()
        await first.take(90)  # the eldest may
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
        await first.take(10)
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
        await share.take(7)
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
