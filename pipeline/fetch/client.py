"""The fetcher: a url to its body or to one reason, within bounds of time, bytes and addresses, politely."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Self, cast

from aiohttp import ClientResponse
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from pipeline.fetch.addresses import AddressGuard
from pipeline.fetch.budget import ByteBudget, Share
from pipeline.fetch.coding import ACCEPT_ENCODING, CodingError, decoder
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.errors import FetchError
from pipeline.fetch.failures import explain_failure
from pipeline.fetch.gates import Gate, Gates
from pipeline.fetch.names import TROUBLE, Names
from pipeline.fetch.targets import parse_target, redirect_target
from pipeline.fetch.wire import BoundedHandler, open_session

# Each costs a whole deadline, and stalled hosts set the pace of a shard of many hosts.
TIMEOUT_ATTEMPTS = 2
REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Fetched:
    """An answer. url: where it came from, after redirects. body: with its content encodings undone.

    While an answer is kept, its body counts as one in flight.
    """

    url: str
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes = field(repr=False)  # megabytes of a stranger's: not for a log
    num_redirects: int
    num_attempts: int


class Fetcher:
    """Fetches urls, many at once, with shared connections, names and manners. Belongs to one event loop.

        async with Fetcher(config) as fetcher:
            got = await fetcher.get("https://example.org/a.jpg")

    On a cluster all of it holds for each worker: connections, per-host limits, delays, the pauses that hosts ask for.
    rng: chance for the spread of back-off pauses.
    """

    def __init__(self, config: FetchConfig, rng: random.Random | None = None) -> None:
        self.config = config
        self._rng = rng or random.Random()
        self._gates = Gates(config.delay_s)
        self._headers: dict[str, CIMultiDict[str]] = {}

    async def __aenter__(self) -> Self:
        config = self.config
        self._now = asyncio.get_running_loop().time
        self._budget = ByteBudget(config.max_bytes_in_flight)
        self._slots = asyncio.Semaphore(config.connections)
        self._names = Names(config.dns, timeout_s=config.dns_timeout_s, concurrency=config.dns_concurrency)
        self._session = open_session(config, self._names, AddressGuard(config.allow_network))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()
        await self._names.close()

    def set_delay(self, host: str, delay_s: float) -> None:
        """Pause between the starts of requests to this host[:port], such as its robots.txt asks for."""
        self._gates.of(host.lower()).delay_s = delay_s

    async def get(
        self, url: str, *, max_bytes: int | None = None, accept: str = "image/*,*/*;q=0.5", follow: bool = True
    ) -> Fetched:
        """GET a url; only status 200 is a success, with or without a body. Raises FetchError, nothing else.

        max_bytes: cap on the body, encoded and decoded; None: the configuration's. follow: with False a redirect is
        an answer too, its status and headers, without a body.
        """
        limit = self.config.max_bytes if max_bytes is None else max_bytes
        visit = _Visit(limit, accept, follow, self.config.total_timeout_s, self._budget.share())
        try:
            target = parse_target(url)
            while True:
                visit.num_attempts += 1
                try:
                    got = await self._attempt(target, visit)
                    visit.share.give_back_with(got)
                    return got
                except FetchError as error:
                    pause_s = self._pause_s(error, visit)
                visit.patience_s -= pause_s
                await asyncio.sleep(pause_s)
        except BaseException as error:
            visit.share.give_back()
            if isinstance(error, FetchError):
                error.num_attempts = max(1, visit.num_attempts)
            raise

    async def _attempt(self, target: URL, visit: _Visit) -> Fetched:
        """A url and its redirects, under one deadline, which waiting for a turn does not use up."""
        visit.left_s = self.config.timeout_s
        seen = {target}
        while True:
            gate = visit.gate = self._gates.of(target.raw_authority)
            answer = await self._in_turn(target, gate, visit)
            if answer.status == 200 or not visit.follow:
                num_redirects = len(seen) - 1
                return Fetched(
                    str(target), answer.status, answer.headers, answer.body, num_redirects, visit.num_attempts
                )
            target = redirect_target(target, answer.headers.get("Location"))
            if target in seen or len(seen) > self.config.max_redirects:
                what = "a circle" if target in seen else f"more than {self.config.max_redirects}"
                raise FetchError("too_many_redirects", what, status=answer.status, headers=answer.headers)
            seen.add(target)

    async def _in_turn(self, target: URL, gate: Gate, visit: _Visit) -> _Answer:
        """One request, when its host and our connections allow it. Raises FetchError."""
        await gate.enter(self.config.per_host, self._now)
        try:
            async with self._slots:
                start = self._now()
                try:
                    answer = await self._request(target, visit)
                    gate.note_answer()
                    return answer
                except FetchError as error:
                    if error.status is None:
                        gate.note_failure(self._now())
                    else:
                        gate.note_answer(is_refusal=error.status in (429, 503))
                    raise
                finally:
                    spent_s = self._now() - start - visit.take_waited_s()
                    visit.left_s -= spent_s
                    visit.patience_s -= spent_s
        finally:
            gate.leave()

    async def _request(self, target: URL, visit: _Visit) -> _Answer:
        """One request and its answer: 200 or a redirect. Raises FetchError."""
        handler: BoundedHandler | None = None
        try:
            async with asyncio.timeout(min(visit.left_s, visit.patience_s)) as visit.deadline:
                headers = self._request_headers(visit.accept)
                response = await self._session.get(target, headers=headers, allow_redirects=False)
                try:
                    connection = response.connection
                    if connection is not None:
                        handler = cast(BoundedHandler, connection.protocol)
                        handler.max_body_bytes = 2 * visit.limit + self.config.max_header_bytes
                    return await self._take(response, visit)
                except BaseException:
                    response.close()
                    raise
        except FetchError:
            visit.share.give_back()
            raise
        except TimeoutError as error:
            visit.share.give_back()
            if handler is None and self._names.is_waiting_for(target.raw_host or ""):
                raise FetchError("dns", TROUBLE) from error
            raise FetchError("timeout", "the deadline passed before the answer was complete") from error
        except Exception as error:
            visit.share.give_back()
            raise explain_failure(error, handler) from error

    async def _take(self, response: ClientResponse, visit: _Visit) -> _Answer:
        status = response.status
        if status == 200:
            return _Answer(status, response.headers, await self._read_body(response, visit))
        # A short page that came with its head leaves the connection open. No other is worth waiting for.
        response.release()
        if status in REDIRECTS:
            return _Answer(status, response.headers, b"")
        raise FetchError(f"http_{status}", response.reason or "", status=status, headers=response.headers)

    async def _read_body(self, response: ClientResponse, visit: _Visit) -> bytes:
        headers, limit, share = response.headers, visit.limit, visit.share
        if (response.content_length or 0) > limit:
            raise _too_large(response, limit)
        pieces: list[bytes] = []
        num_coded_bytes = num_bytes = 0
        share.begin()
        try:
            undo = decoder(headers["Content-Encoding"]) if "Content-Encoding" in headers else None
            while data := await response.content.readany():
                num_coded_bytes += len(data)
                for piece in (data,) if undo is None else undo.feed(data):
                    num_bytes += len(piece)
                    if max(num_coded_bytes, num_bytes) > limit:
                        raise _too_large(response, limit)
                    if not share.take(len(piece)):
                        await self._wait_for_memory(visit, len(piece))
                    pieces.append(piece)
            if undo is not None:
                undo.finish()
        except CodingError as error:
            raise FetchError("bad_encoding", str(error), status=response.status, headers=headers) from None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _wait_for_memory(self, visit: _Visit, num_bytes: int) -> None:
        """That our memory is full is not the host's fault: the attempt's deadline stands still, for a time."""
        began, deadline = self._now(), visit.deadline
        assert deadline is not None
        left_s = (deadline.when() or began) - began
        deadline.reschedule(began + self.config.total_timeout_s)
        await visit.share.wait_and_take(num_bytes)
        deadline.reschedule(self._now() + left_s)
        visit.waited_s += self._now() - began

    def _pause_s(self, error: FetchError, visit: _Visit) -> float:
        """How long to wait before another attempt. Raises the failure where there is to be none."""
        gate = visit.gate
        if not error.may_retry or gate is None:
            raise error
        asked_s = _retry_after_s(error) if error.status in (429, 503) else None
        if asked_s is not None and asked_s > visit.patience_s:
            raise self._refused(error, gate, asked_s)
        pause_s = self.config.backoff_s * 2 ** (visit.num_attempts - 1) * self._rng.uniform(0.5, 1.5)
        pause_s = max(pause_s, error.wait_s, asked_s or 0.0)
        if error.status == 429 or asked_s is not None:
            gate.hold(self._now() + pause_s)  # every request to this host waits
        attempts = self.config.attempts
        if error.reason == "timeout":
            attempts = min(attempts, TIMEOUT_ATTEMPTS)
        is_last = visit.num_attempts >= attempts or pause_s >= visit.patience_s
        if is_last and error.status == 429:
            raise self._refused(error, gate, pause_s)
        if is_last or gate.is_silent(self._now(), self.config.total_timeout_s):
            raise error
        return pause_s

    def _refused(self, error: FetchError, gate: Gate, asked_s: float) -> FetchError:
        refusal = FetchError(
            "rate_limited", "the host asks to come back later", status=error.status, headers=error.headers
        )
        gate.note_refusal(refusal, self._now() + asked_s)
        return refusal

    def _request_headers(self, accept: str) -> CIMultiDict[str]:
        headers = self._headers.get(accept)
        if headers is None:
            headers = CIMultiDict(
                {"User-Agent": self.config.user_agent, "Accept": accept, "Accept-Encoding": ACCEPT_ENCODING}
            )
            self._headers[accept] = headers
        return headers


@dataclass(slots=True)
class _Visit:
    """One call of get: what it wants, and what is left of its time. left_s: of the attempt; patience_s: of all.

    deadline: of the request under way. share: its part of the byte budget.
    """

    limit: int
    accept: str
    follow: bool
    patience_s: float
    share: Share
    left_s: float = 0.0
    num_attempts: int = 0
    gate: Gate | None = None
    deadline: asyncio.Timeout | None = None
    waited_s: float = 0.0

    def take_waited_s(self) -> float:
        """Seconds that reading has waited for memory since last asked."""
        waited_s, self.waited_s = self.waited_s, 0.0
        return waited_s


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes


def _too_large(response: ClientResponse, limit: int) -> FetchError:
    return FetchError("too_large", f"more than {limit} bytes", status=response.status, headers=response.headers)


def _retry_after_s(error: FetchError) -> float | None:
    """Seconds of a Retry-After header: a number or a date. None: there is none, or it cannot be read."""
    text = (error.headers.get("Retry-After") or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:12])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
