"""Politeness towards one host: how many requests at once, how far apart, and when it has asked us to wait."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable

from pipeline.fetch.errors import FetchError

MAX_GATES = 65_536
SILENT_REQUESTS = 5


class Gate:
    """One host's door. Requests enter in the order of their coming.

    A host is silent when it has answered nothing (no status at all) for `silent_after_s`, over SILENT_REQUESTS or
    more requests. Its requests are then tried once instead of several times, until it answers again. Each is still
    tried, so nothing is lost on a host that can answer.
    """

    __slots__ = ("_waiting", "delay_s", "failing_since", "held_until", "next_start", "num_active", "num_failures")

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s
        self.num_active = 0
        self.next_start = 0.0
        self.held_until = 0.0
        self.num_failures = 0
        self.failing_since = 0.0
        self._waiting: deque[asyncio.Future[None]] | None = None

    async def enter(self, max_active: int, patience_s: float, now: Callable[[], float]) -> float:
        """Wait for the turn, and as long as the host has asked for. Returns the seconds waited for the latter.

        Every enter that returns wants a leave. Raises FetchError rate_limited, at once, where the host asked for more
        than patience_s.
        """
        if self.num_active >= max_active or self._waiting:
            await self._queue(max_active)
        else:
            self.num_active += 1
        try:
            return await self._wait_for_start(patience_s, now)
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Let the next one in."""
        self.num_active -= 1
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                # The place is handed over, so that nobody who comes meanwhile takes it.
                self.num_active += 1
                turn.set_result(None)
                return

    def hold(self, until: float) -> None:
        """The host asked for a pause: nobody starts before `until` (the loop's time)."""
        self.held_until = max(self.held_until, until)

    def note_answer(self) -> None:
        """The host has answered, whatever it was."""
        self.num_failures = 0

    def note_failure(self, now: float) -> None:
        """The host could not be reached, or said nothing."""
        if self.num_failures == 0:
            self.failing_since = now
        self.num_failures += 1

    def is_silent(self, now: float, silent_after_s: float) -> bool:
        """Is another attempt most likely in vain?"""
        return self.num_failures >= SILENT_REQUESTS and now - self.failing_since > silent_after_s

    @property
    def is_idle(self) -> bool:
        """Does nobody stand at the gate?"""
        return self.num_active == 0 and not self._waiting

    async def _queue(self, max_active: int) -> None:
        if self._waiting is None:
            self._waiting = deque()
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.leave()  # the place was ours already
            raise

    async def _wait_for_start(self, patience_s: float, now: Callable[[], float]) -> float:
        waited_s = 0.0
        while True:
            while (pause_s := self.held_until - now()) > 0:
                if waited_s + pause_s > patience_s:
                    raise FetchError("rate_limited", "the host asks for a pause beyond the total deadline")
                await asyncio.sleep(pause_s)
                waited_s += pause_s
            if not self.delay_s:
                return waited_s
            start = max(now(), self.next_start)
            self.next_start = start + self.delay_s
            if (pause_s := start - now()) > 0:
                await asyncio.sleep(pause_s)
            if self.held_until <= now():
                return waited_s


class Gates:
    """The gates of all hosts; those that nobody has used for longest are forgotten beyond MAX_GATES."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._gates: OrderedDict[str, Gate] = OrderedDict()

    def of(self, host: str) -> Gate:
        """The gate of a host, made when first asked for. host: host[:port], lower case."""
        gate = self._gates.get(host)
        if gate is None:
            gate = self._gates[host] = Gate(self._delay_s)
            self._forget()
        else:
            self._gates.move_to_end(host)
        return gate

    def _forget(self) -> None:
        while len(self._gates) > MAX_GATES:
            host, gate = next(iter(self._gates.items()))
            if not gate.is_idle:
                return
            del self._gates[host]
