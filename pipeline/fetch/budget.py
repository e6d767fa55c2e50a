"""The bytes of all bodies in memory: beyond the budget further reading waits, but for the eldest reader."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections import OrderedDict


class ByteBudget:
    """Counts the bytes of bodies, from when they are read until whoever asked for them has let go of them.

    The eldest of the bodies being read never waits, so there is always one that gets on: no deadlock, whatever
    callers keep. So max_bytes and one body are held at most. Belongs to one event loop.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._readers: OrderedDict[Share, None] = OrderedDict()
        self._waiting: set[asyncio.Future[None]] = set()

    def share(self) -> Share:
        """What one body takes, nothing yet."""
        return Share(self)


class Share:
    """The bytes of one body."""

    __slots__ = ("_budget", "_num_bytes")

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._num_bytes = 0

    def begin(self) -> None:
        """The body is about to be read."""
        self._budget._readers[self] = None

    async def take(self, num_bytes: int) -> None:
        """Count further bytes, when the budget allows."""
        budget = self._budget
        while budget.num_bytes + num_bytes > budget.max_bytes and next(iter(budget._readers)) is not self:
            turn = budget._loop.create_future()
            budget._waiting.add(turn)
            try:
                await turn
            finally:
                budget._waiting.discard(turn)
        budget.num_bytes += num_bytes
        self._num_bytes += num_bytes

    def end(self) -> None:
        """The body is complete, and still held: the next one is the eldest."""
        self._budget._readers.pop(self, None)
        self._wake()

    def give_back(self) -> None:
        """The bytes are no longer held."""
        self._budget.num_bytes -= self._num_bytes
        self._num_bytes = 0
        self.end()

    def give_back_with(self, holder: object) -> None:
        """Give back when `holder`, which holds the bytes, is gone."""
        self.end()
        if self._num_bytes:
            weakref.finalize(holder, self._give_back_from_anywhere).atexit = False

    def _give_back_from_anywhere(self) -> None:
        if threading.get_ident() == self._budget._thread:
            self.give_back()
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the budget with it
                self._budget._loop.call_soon_threadsafe(self.give_back)

    def _wake(self) -> None:
        for turn in self._budget._waiting:
            if not turn.done():
                turn.set_result(None)
