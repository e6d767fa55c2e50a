"""The bytes of all bodies in memory: beyond the budget further reading waits."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections import OrderedDict


class ByteBudget:
    """Counts the bytes of bodies, from when they are read until whoever asked for them has let go of them.

    At most max_bytes and one body are held. Half-read bodies never wait for each other for good: the eldest goes on
    when no complete one is left to be let go of. Whoever keeps complete ones for good, and asks for more than the
    budget, waits for himself. Belongs to one event loop.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._num_kept = 0  # of complete bodies
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

    def take(self, num_bytes: int) -> bool:
        """Count further bytes, if the budget allows."""
        budget = self._budget
        if budget.num_bytes + num_bytes > budget.max_bytes:
            is_eldest = next(iter(budget._readers)) is self
            if not is_eldest or budget._num_kept:
                return False
        budget.num_bytes += num_bytes
        self._num_bytes += num_bytes
        return True

    async def wait_and_take(self, num_bytes: int) -> None:
        """Count further bytes, when the budget allows."""
        waiting = self._budget._waiting
        while not self.take(num_bytes):
            turn = self._budget._loop.create_future()
            waiting.add(turn)
            try:
                await turn
            finally:
                waiting.discard(turn)

    def give_back(self) -> None:
        """The body was given up."""
        self._budget.num_bytes -= self._num_bytes
        self._num_bytes = 0
        self._end()

    def give_back_with(self, holder: object) -> None:
        """The body is complete. Its bytes come back when `holder`, which has them, is gone."""
        if self._num_bytes:
            self._budget._num_kept += self._num_bytes
            weakref.finalize(holder, self._let_go_from_anywhere).atexit = False
        self._end()

    def _let_go_from_anywhere(self) -> None:
        if threading.get_ident() == self._budget._thread:
            self._let_go()
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the budget with it
                self._budget._loop.call_soon_threadsafe(self._let_go)

    def _let_go(self) -> None:
        self._budget._num_kept -= self._num_bytes
        self.give_back()

    def _end(self) -> None:
        self._budget._readers.pop(self, None)
        for turn in self._budget._waiting:
            if not turn.done():
                turn.set_result(None)
