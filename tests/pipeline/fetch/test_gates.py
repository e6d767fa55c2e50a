"""Politeness: how many at once, how far apart, waits that a host asks for, and hosts that want us gone."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.fetch.errors import FetchError
from pipeline.fetch.gates import MAX_GATES, REFUSALS_THAT_CLOSE, SILENT_REQUESTS, Gate, Gates

REFUSAL = FetchError("rate_limited", "later", status=429)
now = time.monotonic


def on_loop(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(main(), 10)

    asyncio.run(bounded())


@given(places=st.integers(1, 4), cancelled=st.lists(st.booleans(), min_size=1, max_size=20))
@settings(deadline=None, max_examples=50)
def test_never_more_than_its_places_and_a_cancelled_one_leaves_its_place(places, cancelled) -> None:
    async def main() -> None:
        gate, active, most, done = Gate(0.0), 0, 0, 0

        async def request() -> None:
            nonlocal active, most, done
            await gate.enter(places, now)
            try:
                active += 1
                most = max(most, active)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                done += 1
            finally:
                active -= 1
                gate.leave()

        tasks = [asyncio.create_task(request()) for _ in cancelled]
        await asyncio.sleep(0)
        for task, is_cancelled in zip(tasks, cancelled, strict=True):
            if is_cancelled:
                task.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert most <= places
        assert done >= cancelled.count(False)
        assert gate.is_idle

    on_loop(main)


def test_requests_enter_in_the_order_of_their_coming() -> None:
    async def main() -> None:
        gate, order = Gate(0.0), []

        async def request(number: int) -> None:
            await gate.enter(1, now)
            order.append(number)
            await asyncio.sleep(0)
            gate.leave()

        await asyncio.gather(*(request(number) for number in range(20)))
        assert order == list(range(20))

    on_loop(main)


def test_starts_lie_the_delay_apart() -> None:
    async def main() -> None:
        gate, starts = Gate(0.05), []

        async def request() -> None:
            await gate.enter(8, now)
            starts.append(now())
            gate.leave()

        await asyncio.gather(*(request() for _ in range(4)))
        gaps = [after - before for before, after in itertools.pairwise(starts)]
        assert min(gaps) > 0.045

    on_loop(main)


def test_a_pause_that_the_host_asked_for_holds_everybody() -> None:
    async def main() -> None:
        gate = Gate(0.0)
        gate.hold(now() + 0.1)
        started = now()
        await asyncio.gather(*(gate.enter(8, now) for _ in range(3)))
        assert now() - started > 0.095

    on_loop(main)


def test_one_refusal_closes_nothing_and_several_in_a_row_close_until_the_time_asked_for() -> None:
    async def main() -> None:
        gate = Gate(0.0)
        for number in range(REFUSALS_THAT_CLOSE):
            await gate.enter(8, now)
            gate.leave()
            gate.note_answer(is_refusal=True)
            gate.note_refusal(REFUSAL, now() + (1000 if number < REFUSALS_THAT_CLOSE - 1 else 0.1))
        with pytest.raises(FetchError) as caught:
            await gate.enter(8, now)
        assert (caught.value.reason, caught.value.detail, caught.value.status) == ("rate_limited", "later", 429)
        assert gate.is_idle
        await asyncio.sleep(0.1)
        await gate.enter(8, now)
        gate.leave()
        gate.note_refusal(REFUSAL, now() + 1000)
        with pytest.raises(FetchError):
            await gate.enter(8, now)

    on_loop(main)


def test_any_other_answer_between_keeps_a_host_open() -> None:
    async def main() -> None:
        gate = Gate(0.0)
        for number in range(5 * REFUSALS_THAT_CLOSE):
            await gate.enter(8, now)
            gate.leave()
            if number % (REFUSALS_THAT_CLOSE - 1) == 0:
                gate.note_answer()
            else:
                gate.note_answer(is_refusal=True)
                gate.note_refusal(REFUSAL, now() + 1000)

    on_loop(main)


def test_who_waits_when_a_host_closes_is_refused_too() -> None:
    async def main() -> None:
        gate = Gate(0.0)
        await gate.enter(1, now)
        queued = asyncio.create_task(gate.enter(1, now))
        gate.hold(now() + 0.05)
        await asyncio.sleep(0)
        for _ in range(REFUSALS_THAT_CLOSE):
            gate.note_refusal(REFUSAL, now() + 1000)
        gate.leave()
        with pytest.raises(FetchError):
            await queued
        assert gate.is_idle

    on_loop(main)


def test_a_host_is_silent_only_after_several_failures_and_some_time() -> None:
    gate = Gate(0.0)
    for _ in range(SILENT_REQUESTS - 1):
        gate.note_failure(0.0)
    assert not gate.is_silent(1000.0, 60.0)
    gate.note_failure(50.0)
    assert not gate.is_silent(55.0, 60.0)
    assert gate.is_silent(61.0, 60.0)
    gate.note_answer()
    assert not gate.is_silent(1000.0, 60.0)


def test_idle_gates_are_forgotten_and_busy_ones_kept() -> None:
    async def main() -> None:
        gates = Gates(0.0)
        busy = gates.of("busy.test")
        for number in range(10):
            gates.of(f"{number}.test")
        await busy.enter(1, now)
        for number in range(MAX_GATES + 10):
            gates.of(f"more-{number}.test")
        assert gates.of("busy.test") is busy

    on_loop(main)
