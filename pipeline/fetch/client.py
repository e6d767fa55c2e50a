"""The fetcher: one GET with every bound, its redirects by hand, its second attempts, its politeness."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import http_exceptions
from multidict import CIMultiDictProxy
from yarl import URL

from pipeline.fetch.body import ACCEPTED, Body
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.errors import FetchError
from pipeline.fetch.guard import BlockedAddressError, Guard
from pipeline.fetch.hosts import Gate, Gates
from pipeline.fetch.names import Names, NoAddressError
from pipeline.fetch.urls import parse_url

MAX_HEADERS = 128
MAX_BACKOFF_S = 30.0
REDIRECTS = {301, 302, 303, 307, 308}
LIMITED = {429, 503}  # statuses that may come with Retry-After
READ_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer: the url that gave it in the end, its status, its headers, its body with content encodings undone."""

    url: str
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes


class Fetcher:
    """Keeps connections, the TLS context, names and hosts' gates; one for each event loop. Use as `async with`."""

    def __init__(self, config: FetchConfig) -> None:
        self._config = config
        self._guard = Guard(config.allow_network)
        self._gates = Gates(config.per_host, config.delay_s)

    async def __aenter__(self) -> Self:
        config = self._config
        self._connections = asyncio.Semaphore(config.connections)
        connector = aiohttp.TCPConnector(
            resolver=Names(config, self._guard),
            use_dns_cache=False,  # Names has its own, failures included
            limit=0,  # counted here, where a waiting request costs no deadline
            ssl=_tls_context(config.ca_file),
            socket_factory=self._open_socket,
            happy_eyeballs_delay=None,
            keepalive_timeout=15,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": config.user_agent, "Accept-Encoding": ACCEPTED},
            timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None),
            auto_decompress=False,
            read_bufsize=READ_BYTES,
            max_line_size=config.max_header_bytes,
            max_field_size=config.max_header_bytes,
            max_headers=MAX_HEADERS,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    def set_delay(self, host: str, delay_s: float) -> None:
        """The pause that a host asks for, by its host[:port]."""
        self._gates.set_delay(host, delay_s)

    async def get(
        self, url: str, *, max_bytes: int | None = None, accept: str = "image/*,*/*;q=0.5", follow: bool = True
    ) -> Fetched:
        """GET a url. With `follow` off, a redirect is an answer. Raises FetchError, and nothing else.

        max_bytes: cap of the decoded body, else the configured one.
        """
        request = _Request(max_bytes or self._config.max_bytes, accept, follow)
        left_s = self._config.total_timeout_s
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._attempt(url, request)
            except FetchError as error:
                left_s -= request.take_spent_s()
                wait_s = self._wait_s(error, attempt, left_s)
                if wait_s is None:
                    raise
                left_s -= wait_s
                await asyncio.sleep(wait_s)

    def _wait_s(self, error: FetchError, attempt: int, left_s: float) -> float | None:
        """Seconds until the next attempt, or None for none. Raises FetchError rate_limited where it lies too far."""
        if not error.may_pass:
            return None
        if error.status in LIMITED:
            asked_s = _retry_after_s(error.headers)
            if asked_s is not None and asked_s > left_s:
                raise FetchError("rate_limited", "Retry-After lies beyond the total deadline", error.status) from None
            if asked_s is not None and attempt < self._config.attempts:
                return asked_s
        if attempt >= self._config.attempts or left_s <= 0:
            if error.status == 429:
                raise FetchError("rate_limited", "still limited after the last attempt", error.status) from None
            return None
        # Jitter, so that what failed together does not come back together.
        wait_s = min(self._config.backoff_s * 2 ** (attempt - 1), MAX_BACKOFF_S) * random.uniform(0.5, 1.0)
        return wait_s if wait_s < left_s else None

    async def _attempt(self, url: str, request: _Request) -> Fetched:
        """One attempt: the url and its redirects, under one deadline that waiting for a host does not use up."""
        deadline_s = self._config.timeout_s
        seen = {url}
        for _ in range(self._config.max_redirects + 1):
            target = parse_url(url, self._guard)
            gate = self._gates.of(target.host_port)
            gate.num_users += 1
            try:
                async with gate.enter(), self._connections:
                    got, took_s = await self._exchange(target.url, request, deadline_s, gate)
            finally:
                gate.num_users -= 1
            if got.status not in REDIRECTS or not request.follow:
                return got
            deadline_s -= took_s
            location = got.headers.get("Location")
            if not location:
                raise FetchError("bad_redirect", "no Location", got.status)
            url = parse_url(location, self._guard, base=target.url).text
            if url in seen:
                raise FetchError("too_many_redirects", "a loop", got.status)
            seen.add(url)
        raise FetchError("too_many_redirects", f"more than {self._config.max_redirects}", got.status)

    async def _exchange(self, url: URL, request: _Request, deadline_s: float, gate: Gate) -> tuple[Fetched, float]:
        """One request and its answer within `deadline_s`; seconds taken. A status that is no success raises."""
        now = asyncio.get_running_loop().time
        started = now()
        try:
            async with asyncio.timeout(max(deadline_s, 0.0)):
                got = await self._ask(url, request)
        except TimeoutError:
            raise FetchError("timeout", "the deadline of the attempt passed") from None
        finally:
            request.spent_s += now() - started
        if got.status != 200 and got.status not in REDIRECTS:
            error = FetchError(f"http_{got.status}", None, got.status)
            error.headers = got.headers
            if got.status in LIMITED:
                asked_s = _retry_after_s(got.headers)
                if asked_s is not None and asked_s <= self._config.total_timeout_s:
                    gate.closed_until = max(gate.closed_until, now() + asked_s)  # the whole host waits
            raise error
        return got, now() - started

    async def _ask(self, url: URL, request: _Request) -> Fetched:
        try:
            async with self._session.get(url, headers={"Accept": request.accept}, allow_redirects=False) as response:
                try:
                    body = await _read(response, request.max_bytes) if response.status == 200 else b""
                except BaseException:
                    response.close()  # the rest of the body is not worth reading
                    raise
                if response.status != 200:
                    response.close()
                return Fetched(str(url), response.status, response.headers, body)
        except FetchError:
            raise
        except (TimeoutError, asyncio.CancelledError):
            raise
        except Exception as error:
            raise _translate(error) from None

    def _open_socket(self, place: tuple[Any, ...]) -> Any:
        import socket

        family, kind, protocol, _, address = place
        # The last word: this is the address that packets will go to, whatever was resolved before.
        self._guard.check(address[0])
        return socket.socket(family, kind, protocol)


class _Request:
    """What stays the same over the attempts for one url, and the seconds they have spent on the wire."""

    def __init__(self, max_bytes: int, accept: str, follow: bool) -> None:
        self.max_bytes = max_bytes
        self.accept = accept
        self.follow = follow
        self.spent_s = 0.0

    def take_spent_s(self) -> float:
        spent_s, self.spent_s = self.spent_s, 0.0
        return spent_s


async def _read(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    length = response.headers.get("Content-Length", "")
    encodings = response.headers.get("Content-Encoding", "")
    if length.isdigit() and int(length) > max_bytes:
        raise FetchError("too_large", f"more than {max_bytes} bytes", response.status)
    body = Body(encodings, max_bytes)
    try:
        async for chunk in response.content.iter_any():
            body.feed(chunk)
        return body.finish()
    except FetchError as error:
        error.status = response.status
        raise


def _translate(error: Exception) -> FetchError:
    """An aiohttp or socket error in our words."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    for link in chain:
        if isinstance(link, BlockedAddressError):
            return FetchError("blocked_address", "loopback, private, link-local or reserved")
        if isinstance(link, NoAddressError):
            return FetchError("dns", link.detail)
        if isinstance(link, http_exceptions.LineTooLong):
            return FetchError("headers_too_large", "a header line beyond the cap")
    text = f"{type(error).__name__} {error}"
    if "Too many headers" in text or "Got more than" in text or ("header" in text.lower() and "many" in text.lower()):
        return FetchError("headers_too_large", "more headers than allowed")
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return FetchError("tls", "certificate or handshake")
    if isinstance(error, aiohttp.ClientPayloadError):
        if "ContentLengthError" in text:
            return FetchError("wrong_length", "the body is shorter than its Content-Length")
        return FetchError("reset", "the connection broke in the body")
    if isinstance(error, aiohttp.InvalidURL | ValueError):
        return FetchError("bad_url", "not a url")
    if isinstance(error, aiohttp.ClientResponseError | http_exceptions.HttpProcessingError):
        return FetchError("bad_response", "the answer is not HTTP")
    if isinstance(error, aiohttp.ClientConnectorError):
        return FetchError("connect", "refused or unreachable")
    if isinstance(error, aiohttp.ClientError | OSError):
        return FetchError("reset", "the connection broke")
    return FetchError("bad_response", type(error).__name__)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Retry-After in seconds from now, or None where there is none that can be read."""
    value = (headers.get("Retry-After") or "").strip()
    if value.isdigit() and len(value) < 10:
        return float(value)
    with suppress(ValueError, TypeError, OverflowError):
        import time

        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None


@lru_cache(maxsize=4)
def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    # Built once a process: reading the authorities takes 20 ms, which img2dataset pays for every image.
    context = ssl.create_default_context()
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    return context
