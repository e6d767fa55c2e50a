"""Bounds on what a server may send, where aiohttp has none: the head as a whole, what follows an answer, idle sockets.

aiohttp limits each header line and their number, not their sum; it queues what comes on an idle connection; its limit
of connections does not count idle ones. And an answer that runs on beyond its announced length succeeds or fails with
the packets' timing. All four are settled in the protocol class, which the connector lets us replace (`_factory`).
"""

from __future__ import annotations

import functools
import resource
import ssl
from collections import OrderedDict
from functools import lru_cache
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

from infra.errors import UsageError
from pipeline.fetch.addresses import AddressGuard
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.names import Names

IDLE_S = 15.0
OTHER_FILES = 256  # what else a worker has open


class HeadTooLargeError(aiohttp.ClientError):
    """The head of an answer exceeds its cap."""


class BodyTooLargeError(aiohttp.ClientError):
    """More bytes came on the wire than any body within the cap needs."""


class BodyBrokenError(aiohttp.ClientError):
    """The framing of the body is not HTTP."""


class Connections:
    """The open connections of a fetcher. Idle ones are closed when a new one would exceed max_open."""

    def __init__(self, max_open: int, max_head_bytes: int) -> None:
        self.max_open = max_open
        self.max_head_bytes = max_head_bytes
        self._open: set[BoundedHandler] = set()
        self._idle: OrderedDict[BoundedHandler, None] = OrderedDict()

    def opened(self, handler: BoundedHandler) -> None:
        """A new connection: make room for it."""
        self._open.add(handler)
        while len(self._open) > self.max_open and self._idle:
            oldest, _ = self._idle.popitem(last=False)
            self._open.discard(oldest)
            oldest.abort()

    def closed(self, handler: BoundedHandler) -> None:
        """A connection is gone."""
        self._open.discard(handler)
        self._idle.pop(handler, None)

    def note_idle(self, handler: BoundedHandler, is_idle: bool) -> None:
        """A connection waits for its next request, or has got one."""
        if is_idle:
            self._idle[handler] = None
        else:
            self._idle.pop(handler, None)


class BoundedHandler(ResponseHandler):
    """aiohttp's client protocol, one answer at a time and each within bounds."""

    def __init__(self, connections: Connections, loop: Any) -> None:
        super().__init__(loop)
        self.max_body_bytes = 0  # on the wire, framing included; 0 until the answer's head is known
        self.lost_by: BaseException | None = None
        self._connections = connections
        self._in_head = False
        self._num_head_bytes = 0
        self._num_body_bytes = 0
        self._seam = b""  # the head's last two bytes so far

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._connections.opened(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost_by = exc
        self._connections.closed(self)
        super().connection_lost(exc)

    # A polite close of TLS waits up to 30 s for the server's part in it.
    def close(self) -> None:
        self.abort()

    def set_response_params(self, **params: Any) -> None:
        """A new request begins."""
        self._in_head = True
        self._num_head_bytes = self._num_body_bytes = self.max_body_bytes = 0
        self._seam = b""
        self._connections.note_idle(self, False)
        super().set_response_params(**params)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """The parser has read a head; 1xx ones are followed by another."""
        if data[0].code >= 200 or data[0].code == 101:
            self._in_head = False
        super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        while self._in_head and data and self._exception is None:
            data = self._receive_head(data)
        if not data or self._exception is not None or self.transport is None:
            # Nothing left; or the resumption of a paused parser, which brings no bytes.
            if not data and self._exception is None and not self._in_head:
                super().data_received(data)
            return
        if self._is_answered():
            self.abort()  # nobody asked for more
            return
        self._num_body_bytes += len(data)
        if self.max_body_bytes and self._num_body_bytes > self.max_body_bytes:
            self._refuse(BodyTooLargeError("more bytes on the wire than the cap allows"))
            return
        super().data_received(data)
        self._after_body_bytes()

    def _receive_head(self, data: bytes) -> bytes:
        """Feed the head only, so that what is wrong behind it cannot undo it. Returns what follows it."""
        end = _end_of_head(self._seam, data)
        head, rest = data[:end], data[end:]
        self._seam = b"" if rest else (self._seam + head)[-2:]
        self._num_head_bytes += len(head)
        if self._num_head_bytes > self._connections.max_head_bytes:
            self._refuse(HeadTooLargeError(f"more than {self._connections.max_head_bytes} bytes of headers"))
            return b""
        super().data_received(head)
        if not rest and not self._in_head:
            self._after_body_bytes()
        return rest

    def _after_body_bytes(self) -> None:
        payload = self._payload
        if payload is not None and self._exception is not None and not payload.is_eof():
            # The parser gave up in mid-body and tells only who waits for a head.
            payload.set_exception(BodyBrokenError(getattr(self._exception, "message", "")))
        elif self._is_answered():
            self._connections.note_idle(self, True)

    def _is_answered(self) -> bool:
        return not self._in_head and (self._payload is None or self._payload.is_eof())

    def _refuse(self, error: aiohttp.ClientError) -> None:
        payload = self._payload
        if payload is not None and not payload.is_eof():
            payload.set_exception(error)
        self.set_exception(error)
        if self.transport is not None:
            self.transport.abort()


def _end_of_head(seam: bytes, data: bytes) -> int:
    """Where in `data` the blank line ends; len(data) if it does not. seam: the two bytes before."""
    text = seam + data
    ends = [at + len(mark) for mark in (b"\n\r\n", b"\n\n") if (at := text.find(mark)) >= 0]
    return min(ends) - len(seam) if ends else len(data)


def open_session(config: FetchConfig, names: Names, guard: AddressGuard) -> aiohttp.ClientSession:
    """A session that obeys the bounds of `config`: no cookies, no proxies, no redirects or encodings of its own.

    Raises UsageError where this machine does not allow so many open connections.
    """
    _allow_files(config.connections + OTHER_FILES)
    connector = aiohttp.TCPConnector(
        limit=0,  # the fetcher counts, before the deadline of an attempt begins
        resolver=names,
        use_dns_cache=False,
        ssl=tls_context(config.ca_file),
        keepalive_timeout=IDLE_S,
        socket_factory=guard.open_socket,
    )
    connections = Connections(config.connections, config.max_header_bytes)
    connector._factory = functools.partial(BoundedHandler, connections, connector._loop)  # type: ignore[assignment]
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=None, sock_read=None),
        trust_env=False,
        auto_decompress=False,
        # The sum is bounded above; these must not strike before it.
        max_line_size=config.max_header_bytes,
        max_field_size=config.max_header_bytes,
        max_headers=config.max_header_bytes // 4,  # no header is shorter: a:CRLF
    )


def _allow_files(num_files: int) -> None:
    """Raise the process's limit of open files. Beyond it every further connection would fail, and seem the host's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != soft < num_files:
        if resource.RLIM_INFINITY != hard < num_files:
            raise UsageError(
                f"--connections {num_files - OTHER_FILES}: this machine allows a process {hard} open files; "
                f"give at most {max(1, hard - OTHER_FILES)}, or raise `ulimit -n`"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (num_files, hard))


@lru_cache
def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """The TLS settings of this process: to build them costs 20 ms, so once."""
    context = ssl.create_default_context()
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context
