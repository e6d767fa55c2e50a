"""Politeness towards one host: how many requests at once, how far apart, and when it has asked us to wait or to go."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable

from pipeline.fetch.errors import FetchError

MAX_GATES = 65_536
SILENT_REQUESTS = 5
REFUSALS_THAT_CLOSE = 5


class Gate:
    """One host's door. Requests enter in the order of their coming.

    A host is silent when it has answered nothing (no status at all) for `silent_after_s`, over SILENT_REQUESTS or
    more requests. Its requests are then tried once instead of several times, until it answers again. Each is still
    tried, so nothing is lost on a host that can answer.

    A host that asks for a pause gets it: from all requests (`hold`) where a request can outwait the pause, and that
    wait is counted against no other request. Where it cannot, that request fails, `rate_limited`. One such answer
    may mean one url, so it closes nothing: else a row's fate would hang on which row came first. Several in a row
    (REFUSALS_THAT_CLOSE, without any other answer between) mean us: the host is left alone until its time has come,
    and who comes meanwhile fails as if asked, with the same words and status. So in any order a host that refuses
    everything gives the same table, and hears at most that many requests, and those under way, after its first no.
    """

    __slots__ = (
        "_closed_until",
        "_num_refusals",
        "_refusal",
        "_waiting",
        "delay_s",
        "failing_since",
        "held_until",
        "next_start",
        "num_active",
        "num_failures",
    )

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s
        self.num_active = 0
        self.next_start = 0.0
        self.held_until = 0.0
        self.num_failures = 0
        self.failing_since = 0.0
        self._num_refusals = 0
        self._closed_until = 0.0
        self._refusal: FetchError | None = None
        self._waiting: deque[asyncio.Future[None]] | None = None

    async def enter(self, max_active: int, now: Callable[[], float]) -> None:
        """Wait for the turn, and as long as the host has asked for. Every enter that returns wants a leave.

        Raises FetchError rate_limited where the host is closed.
        """
        self._check_open(now)
        if self.num_active >= max_active or self._waiting:
            await self._queue()
        else:
            self.num_active += 1
        try:
            if self.delay_s or self.held_until or self._refusal is not None:
                await self._wait_for_start(now)
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

    def note_answer(self, is_refusal: bool = False) -> None:
        """The host has answered. is_refusal: to say that it limits us."""
        self.num_failures = 0
        if not is_refusal:
            self._num_refusals = 0

    def note_failure(self, now: float) -> None:
        """The host could not be reached, or said nothing."""
        if self.num_failures == 0:
            self.failing_since = now
        self.num_failures += 1

    def note_refusal(self, refusal: FetchError, until: float) -> None:
        """A request failed because the host asked to come back later than it can wait: at `until` (the loop's time)."""
        self._num_refusals += 1
        if self._num_refusals >= REFUSALS_THAT_CLOSE:
            self._refusal = refusal
            self._closed_until = max(self._closed_until, until)

    def is_silent(self, now: float, silent_after_s: float) -> bool:
        """Is another attempt most likely in vain?"""
        return self.num_failures >= SILENT_REQUESTS and now - self.failing_since > silent_after_s

    @property
    def is_idle(self) -> bool:
        """Does nobody stand at the gate?"""
        return self.num_active == 0 and not self._waiting

    async def _queue(self) -> None:
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

    async def _wait_for_start(self, now: Callable[[], float]) -> None:
        while True:
            while (pause_s := self.held_until - now()) > 0:
                self._check_open(now)
                await asyncio.sleep(pause_s)
            self._check_open(now)
            if not self.delay_s:
                return
            start = max(now(), self.next_start)
            self.next_start = start + self.delay_s
            if (pause_s := start - now()) > 0:
                await asyncio.sleep(pause_s)
            if self.held_until <= now():
                return

    def _check_open(self, now: Callable[[], float]) -> None:
        refusal = self._refusal
        if refusal is None:
            return
        if now() < self._closed_until:
            raise FetchError(refusal.reason, refusal.detail, status=refusal.status, headers=refusal.headers)
        self._refusal = None  # one more refusal closes it again: the count stands


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
