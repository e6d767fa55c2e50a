"""Serves the planned web over HTTP/1.1: virtual hosts by Host header, keep-alive, and every ill of the wire.

Responses are bytes that we put together ourselves: a server library would refuse to send most of these. Images are
drawn at their first request and kept in a bounded cache. What fails once is remembered for each url until the end.
"""

from __future__ import annotations

import asyncio
import gzip
import socket
import struct
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TypeAlias

from infra.miniweb.pictures import Picture, encode
from infra.miniweb.site import Answer, Site

CACHE_BYTES = 64 << 20
MAX_HEAD_BYTES = 64 << 10
ENDLESS_BYTES = 4 << 30  # where "endless" ends after all
DRIP_PAUSE_S = 0.25
_NOTHING = Answer(b"no such page\n", "text/plain", 404)
_ELSEWHERE = Answer(b"no such host\n", "text/plain", 421)
_REFUSED = Answer(b"GET or HEAD\n", "text/plain", 405)


class WebServer:
    """Answers requests for one planned site."""

    def __init__(self, site: Site) -> None:
        self._answers = site.answers
        self._hosts = site.hosts
        self._asked: Counter[str] = Counter()
        self._cache: OrderedDict[Picture, bytes] = OrderedDict()
        self._cached_bytes = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until either side has had enough."""
        try:
            while await self._serve_one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client left: it is free to
        finally:
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request, _, fields = head.partition("\r\n")
        method, target, version = [*request.split(" "), "", ""][:3]
        headers = _headers(fields)
        answer = self._answer(method, headers.get("host", ""), target)
        body = self._body(answer)
        start = _response_head(answer, len(body))
        if method == "HEAD":
            writer.write(start + b"\r\n")
            return True
        stays = await MANNERS[answer.manner](reader, writer, start, body)
        await writer.drain()
        return stays and version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"

    def _answer(self, method: str, host: str, target: str) -> Answer:
        if method not in ("GET", "HEAD"):
            return _REFUSED
        name = host.rpartition(":")[0] if ":" in host else host
        if name.lower() not in self._hosts:
            return _ELSEWHERE
        key = name.lower() + target
        answer = self._answers.get(key, _NOTHING)
        if answer.first is not None:
            self._asked[key] += method == "GET"
            if self._asked[key] == 1:
                return answer.first
        return answer

    def _body(self, answer: Answer) -> bytes:
        body = answer.body if isinstance(answer.body, bytes) else self._encoded(answer.body)
        if answer.wrap == "gzip":
            return gzip.compress(body, 1, mtime=0)
        return body[: len(body) // 2] if answer.wrap == "half" else body

    def _encoded(self, picture: Picture) -> bytes:
        if picture in self._cache:
            self._cache.move_to_end(picture)
            return self._cache[picture]
        data = encode(picture)
        self._cache[picture] = data
        self._cached_bytes += len(data)
        while self._cached_bytes > CACHE_BYTES:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= len(dropped)
        return data


def _headers(text: str) -> dict[str, str]:
    """Names in lower case; of a repeated one the last."""
    pairs = (line.partition(":") for line in text.split("\r\n"))
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _response_head(answer: Answer, num_bytes: int) -> bytes:
    """Status line and headers but for the empty line that ends them. No Date: the same request gives the same bytes."""
    version = "HTTP/1.0" if answer.manner == "until_close" else "HTTP/1.1"
    lines = [f"{version} {answer.status} {HTTPStatus(answer.status).phrase}", f"Content-Type: {answer.media_type}"]
    lines += [f"{name}: {value}" for name, value in answer.headers]
    if answer.manner == "declared_endless":
        lines.append(f"Content-Length: {ENDLESS_BYTES}")
    elif answer.manner in ("chunked", "endless"):
        lines.append("Transfer-Encoding: chunked")
    elif answer.manner == "drip":
        lines.append(f"Content-Length: {1 << 20}")
    elif answer.manner != "until_close":
        lines.append(f"Content-Length: {num_bytes}")
    return ("\r\n".join(lines) + "\r\n").encode("latin-1")


Reader: TypeAlias = asyncio.StreamReader
Writer: TypeAlias = asyncio.StreamWriter


async def _plain(reader: Reader, writer: Writer, head: bytes, body: bytes) -> bool:
    writer.write(head + b"\r\n" + body)
    return True


async def _until_close(reader: Reader, writer: Writer, head: bytes, body: bytes) -> bool:
    writer.write(head + b"\r\n" + body)
    return False


async def _chunked(reader: Reader, writer: Writer, head: bytes, body: bytes) -> bool:
    chunks = [body[at : at + 4096] for at in range(0, len(body), 4096)]
    writer.write(head + b"\r\n" + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n")
    return True


async def _short(reader: Reader, writer: Writer, head: bytes, body: bytes) -> bool:
    """Half of what was announced, then a clean end."""
    writer.write(head + b"\r\n" + body[: len(body) // 2])
    return False


async def _reset(reader: Reader, writer: Writer, head: bytes, body: bytes) -> bool:
    """Half of the body, then a reset: a socket that does not linger sends RST when it closes."""
    writer.write(head + b"\r\n" + body[: len(body) // 2])
    await writer.drain()
    await asyncio.sleep(0.05)  # a reset overtakes what the client has not yet read
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


async def _stall(reader: Reader, writer: Writer, head: bytes, body: bytes) -> bool:
    await reader.read()  # ends when the client gives up
    return False


async def _stall_body(reader: Reader, writer: Writer, head: bytes, body: bytes) -> bool:
    writer.write(head + b"\r\n" + body[: len(body) // 2])
    await reader.read()
    return False


async def _drip(reader: Reader, writer: Writer, head: bytes, body: bytes) -> bool:
    writer.write(head + b"\r\n")
    for value in body * ((1 << 20) // len(body)):
        writer.write(bytes((value,)))
        await writer.drain()
        await asyncio.sleep(DRIP_PAUSE_S)
    return False


async def _endless(reader: Reader, writer: Writer, head: bytes, body: bytes) -> bool:
    block = bytes(1 << 18)
    framed = b"%x\r\n%b\r\n" % (len(block), block)
    writer.write(head + b"\r\n" + b"%x\r\n%b\r\n" % (len(body), body))
    for _ in range(ENDLESS_BYTES // len(block)):
        writer.write(framed)
        await writer.drain()
    return False


async def _declared_endless(reader: Reader, writer: Writer, head: bytes, body: bytes) -> bool:
    block = bytes(1 << 18)
    writer.write(head + b"\r\n" + body)
    for _ in range(ENDLESS_BYTES // len(block)):
        writer.write(block)
        await writer.drain()
    return False


# How an answer goes out; each returns whether the connection may serve another request.
MANNERS: dict[str, Callable[[Reader, Writer, bytes, bytes], Awaitable[bool]]] = {
    "plain": _plain,
    "until_close": _until_close,
    "chunked": _chunked,
    "short": _short,
    "reset": _reset,
    "stall": _stall,
    "stall_body": _stall_body,
    "drip": _drip,
    "endless": _endless,
    "declared_endless": _declared_endless,
}
