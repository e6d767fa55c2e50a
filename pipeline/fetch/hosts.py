"""Politeness: requests to one host at the same time, the pause between them, and waits that the host asked for."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

MAX_IDLE_HOSTS = 50_000


class Gate:
    """One host. Holds at most `places` requests, whose starts lie `delay_s` apart."""

    def __init__(self, places: int, delay_s: float) -> None:
        self.delay_s = delay_s
        self.closed_until = 0.0  # event-loop time; set where the host said Retry-After
        self.num_users = 0
        self._places = asyncio.Semaphore(places)
        self._next_start = 0.0

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[None]:
        """Wait for a place and for the pause, then hold the place."""
        async with self._places:
            now = asyncio.get_running_loop().time()
            start = max(now, self._next_start, self.closed_until)
            self._next_start = start + self.delay_s
            if start > now:
                await asyncio.sleep(start - now)
            yield


class Gates:
    """Gates by host; idle ones are forgotten when there are too many."""

    def __init__(self, places: int, delay_s: float) -> None:
        self._places = places
        self._delay_s = delay_s
        self._gates: OrderedDict[str, Gate] = OrderedDict()

    def of(self, host: str) -> Gate:
        """The host's gate."""
        gate = self._gates.get(host)
        if gate is None:
            gate = self._gates[host] = Gate(self._places, self._delay_s)
            if len(self._gates) > MAX_IDLE_HOSTS:
                self._forget()
        return gate

    def set_delay(self, host: str, delay_s: float) -> None:
        """The pause that a host's robots.txt asks for."""
        self.of(host).delay_s = delay_s

    def _forget(self) -> None:
        now = asyncio.get_running_loop().time()
        idle = [host for host, gate in self._gates.items() if gate.num_users == 0 and gate.closed_until < now]
        for host in idle[: MAX_IDLE_HOSTS // 2]:
            del self._gates[host]
