"""Manners of the hostile server: what it does on a connection once a request has come. Raw bytes, no HTTP library."""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from collections.abc import Awaitable, Callable

from tests.servers.hostile_bodies import JPEG

Writer = asyncio.StreamWriter
Serve = Callable[[Writer, int], Awaitable[None]]
"""Given the connection and how often this path was asked for, this time included."""


def head(status: str = "200 OK", **headers: object) -> bytes:
    """The head of an answer; underscores in names become hyphens."""
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def whole(body: bytes = JPEG, status: str = "200 OK", **headers: object) -> bytes:
    """A well-formed answer."""
    return head(status, **{"Content_Type": "image/jpeg", **headers, "Content_Length": len(body)}) + body


def chunked(*chunks: bytes) -> bytes:
    """A well-formed answer in chunks."""
    framed = [b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b"")]
    return head(Transfer_Encoding="chunked") + b"".join(framed)


def says(data: bytes | Callable[[], bytes], *, closes: bool = False) -> Serve:
    """Send these bytes; made at the first request where they are costly."""

    async def serve(writer: Writer, nth: int) -> None:
        writer.write(data if isinstance(data, bytes) else data())
        await writer.drain()
        if closes:
            writer.close()

    return serve


def coded(body: bytes | Callable[[], bytes], encoding: str) -> Serve:
    """A body with a Content-Encoding."""
    return says(lambda: whole(body if isinstance(body, bytes) else body(), Content_Encoding=encoding))


def redirects(location: str) -> Serve:
    """302; `{nth}` in the location counts the requests."""

    async def serve(writer: Writer, nth: int) -> None:
        host, port = writer.get_extra_info("sockname")
        writer.write(whole(b"", "302 Found", Location=location.format(host=host, port=port, nth=nth)))

    return serve


def repeats(start: bytes, piece: bytes, *, pause_s: float = 0.0, times: int | None = None) -> Serve:
    """Send `start`, then `piece` again and again."""

    async def serve(writer: Writer, nth: int) -> None:
        writer.write(start)
        for _ in itertools.count() if times is None else range(times):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return serve


def resets(start: bytes) -> Serve:
    """Send `start`, then break the connection off as a crashed host does (RST instead of FIN)."""

    async def serve(writer: Writer, nth: int) -> None:
        writer.write(start)
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return serve


def late(serve: Serve, pause_s: float) -> Serve:
    """Wait before the answer."""

    async def serve_late(writer: Writer, nth: int) -> None:
        await asyncio.sleep(pause_s)
        await serve(writer, nth)

    return serve_late


def in_turn(*manners: Serve) -> Serve:
    """The first for the first request, and so on, round and round."""

    async def serve(writer: Writer, nth: int) -> None:
        await manners[(nth - 1) % len(manners)](writer, nth)

    return serve


async def says_nothing(writer: Writer, nth: int) -> None:
    """Accept, and never answer."""
    await asyncio.sleep(3600)
