"""The hostile web on loopback: one server, a path for each ill, and the reason that a fetch of it must end with.

    with serve_hostile() as web:
        web.url("drip")            # http://127.0.0.1:PORT/drip
        for name, ill in ILLS.items(): ...

Raw sockets, since no HTTP library would send most of it. The server runs in a thread of the test's own process.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
import struct
import threading
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from urllib.parse import quote, unquote

import brotli

JPEG = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 8 + b"\xff\xd9"  # looks like one from outside; it is none
HTML = b"<!doctype html><title>Not found</title><p>This is no image."
MEBIBYTE = bytes(1 << 20)

Writer = asyncio.StreamWriter
Serve = Callable[[Writer], Awaitable[None]]


@dataclass(frozen=True)
class Ill:
    """One ill. reason: how a fetch of it ends; "ok" where its bytes are for the next layer to judge."""

    reason: str
    serve: Serve
    max_requests: int = 1  # for one attempt, redirects included
    body: bytes | None = None  # what is fetched, where that succeeds


@dataclass
class HostileWeb:
    """Where the server listens, and how often each path was asked for."""

    host: str
    port: int
    scheme: str = "http"
    requests: Counter[str] = field(default_factory=Counter)
    heads: list[str] = field(default_factory=list)

    def url(self, path: str, host: str | None = None) -> str:
        """The address of an ill, or of `status/503?Retry_After=1`."""
        return f"{self.scheme}://{host or self.host}:{self.port}/{path}"

    def redirect_to(self, url: str) -> str:
        """An address that redirects to any url."""
        return self.url(f"redirect?to={quote(url, safe='')}")


def head(status: str = "200 OK", **headers: object) -> bytes:
    """The head of an answer; underscores in names become hyphens."""
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def whole(body: bytes, status: str = "200 OK", **headers: object) -> bytes:
    """A well-formed answer."""
    return head(status, **{"Content_Type": "image/jpeg", **headers, "Content_Length": len(body)}) + body


def says(data: bytes, closes: bool = False) -> Serve:
    """Send these bytes."""

    async def serve(writer: Writer) -> None:
        writer.write(data)
        await writer.drain()
        if closes:
            writer.close()

    return serve


def says_lazily(make: Callable[[], bytes]) -> Serve:
    """Send what is made at the first request."""

    async def serve(writer: Writer) -> None:
        await says(make())(writer)

    return serve


def repeats(start: bytes, piece: bytes, pause_s: float = 0.0, times: int | None = None) -> Serve:
    """Send `start`, then `piece` again and again."""

    async def serve(writer: Writer) -> None:
        writer.write(start)
        for _ in itertools.count() if times is None else range(times):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return serve


def resets(start: bytes) -> Serve:
    """Send `start`, then break the connection off as a crashed host does (RST instead of FIN)."""

    async def serve(writer: Writer) -> None:
        writer.write(start)
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return serve


async def says_nothing(writer: Writer) -> None:
    """Accept, and never answer."""
    await asyncio.sleep(3600)


@cache
def zeros_deflated(num_mebibytes: int) -> bytes:
    """A raw deflate stream of zeros, a thousandth of their size, made in no time: blocks repeat after a full flush."""
    stream = zlib.compressobj(9, wbits=-15)
    first = stream.compress(MEBIBYTE) + stream.flush(zlib.Z_FULL_FLUSH)
    block = stream.compress(MEBIBYTE) + stream.flush(zlib.Z_FULL_FLUSH)
    return first + block * (num_mebibytes - 1) + stream.flush()


@cache
def gzip_bomb() -> bytes:
    """1 GiB of zeros as 1 MiB of gzip; its checksum is wrong, and whoever comes that far has lost already."""
    return zlib.compressobj(9, wbits=31).flush()[:10] + zeros_deflated(1024) + bytes(8)


@cache
def nested_bomb() -> bytes:
    """The same, compressed once more: 1 GiB from some kilobytes."""
    return _gzip(gzip_bomb())


@cache
def huge_png(side: int = 30_000) -> bytes:
    """A valid black RGB PNG of 30,000 x 30,000 pixels, 2.6 MB as a file and 2.7 GB decoded."""
    num_bytes = side * (1 + 3 * side)
    stream = zlib.compressobj(9, wbits=-15)
    rest = stream.compress(bytes(num_bytes % len(MEBIBYTE))) + stream.flush()
    blocks = num_bytes // len(MEBIBYTE)
    full = zlib.compressobj(9, wbits=-15)
    full_block = full.compress(MEBIBYTE) + full.flush(zlib.Z_FULL_FLUSH)
    # Adler-32 of n zeros: a stays 1, so b is n.
    data = b"\x78\xda" + full_block * blocks + rest + struct.pack(">I", (num_bytes % 65521) << 16 | 1)
    size = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [_chunk(b"IHDR", size), _chunk(b"IDAT", data), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _gzip(data: bytes) -> bytes:
    stream = zlib.compressobj(6, wbits=31)
    return stream.compress(data) + stream.flush()


def _coded(body: bytes, encoding: str) -> Serve:
    return says(whole(body, Content_Encoding=encoding))


def _chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return head(Transfer_Encoding="chunked") + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + end


_OPEN = head(Content_Type="image/jpeg", Connection="close")
_LONG = head(Content_Type="image/jpeg", Content_Length=100_000)
_CHUNKS = head(Transfer_Encoding="chunked")
_STATUS = b"HTTP/1.1 200 OK\r\n"

ILLS: Mapping[str, Ill] = {
    # Time.
    "silent": Ill("timeout", says_nothing),
    "drip": Ill("timeout", repeats(_LONG, b"x", 0.05)),
    "drip_head": Ill("timeout", repeats(_STATUS, b"x", 0.05)),
    "drip_chunks": Ill("timeout", repeats(_CHUNKS, b"1\r\nx\r\n", 0.05)),
    "drip_interim": Ill("timeout", repeats(b"", head("102 Processing"), 0.05)),
    "stalled_body": Ill("timeout", repeats(_LONG + JPEG, b"", 0.5)),
    # Bytes.
    "endless": Ill("too_large", repeats(_OPEN, MEBIBYTE)),
    "endless_chunks": Ill("too_large", repeats(_CHUNKS, b"100000\r\n" + MEBIBYTE + b"\r\n")),
    "announced_huge": Ill("too_large", repeats(head(Content_Length=10**12), MEBIBYTE)),
    "gzip_bomb": Ill("too_large", says_lazily(lambda: whole(gzip_bomb(), Content_Encoding="gzip"))),
    "nested_bomb": Ill("too_large", says_lazily(lambda: whole(nested_bomb(), Content_Encoding="gzip, gzip"))),
    "deflate_bomb": Ill("too_large", says_lazily(lambda: whole(zeros_deflated(1024), Content_Encoding="deflate"))),
    "brotli_bomb": Ill(
        "too_large", says_lazily(lambda: whole(brotli.compress(bytes(64 << 20), quality=1), Content_Encoding="br"))
    ),
    "big_header": Ill("headers_too_large", repeats(_STATUS + b"X-Filler: ", b"x" * 100_000, times=100)),
    "many_headers": Ill("headers_too_large", repeats(_STATUS, b"X-Filler: %s\r\n" % (b"x" * 50) * 1_000, times=160)),
    "tiny_headers": Ill("headers_too_large", repeats(_STATUS, b"a:\r\n" * 10_000, times=250)),
    "big_status_line": Ill("headers_too_large", repeats(b"HTTP/1.1 200 ", b"x" * 100_000, times=100)),
    "interim_flood": Ill("headers_too_large", repeats(b"", head("102 Processing") * 1_000)),
    "trailer_flood": Ill("bad_response", repeats(_CHUNKS + b"0\r\n", b"X-Trailer: x\r\n" * 10_000)),
    "chunk_extension_flood": Ill("too_large", repeats(_CHUNKS + b"5;", b"x" * 100_000)),
    "tiny_chunks": Ill("too_large", repeats(_CHUNKS, b"1;%s\r\nx\r\n" % (b"x" * 1_000) * 100)),
    "flood_after_answer": Ill("ok", repeats(whole(JPEG), whole(JPEG) * 500), body=JPEG),
    # Framing.
    "short": Ill("wrong_length", says(head(Content_Length=len(JPEG) + 100) + JPEG, closes=True)),
    "long": Ill("ok", says(head(Content_Length=len(JPEG) - 100) + JPEG), body=JPEG[:-100]),
    "negative_length": Ill("bad_response", says(head(Content_Length=-5) + JPEG, closes=True)),
    "two_lengths": Ill(
        "bad_response", says(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n" + JPEG)
    ),
    "length_and_chunks": Ill("bad_response", says(head(Content_Length=5, Transfer_Encoding="chunked") + JPEG)),
    "bad_chunks": Ill("bad_response", says(_CHUNKS + b"5\r\nhello\r\nthis is no chunk\r\n")),
    "cut_chunks": Ill("reset", says(_CHUNKS + b"ffff\r\nhello", closes=True)),
    "reset_in_body": Ill("reset", resets(_LONG + JPEG)),
    "reset_in_head": Ill("reset", resets(_STATUS + b"Content-Ty")),
    "reset_at_once": Ill("reset", resets(b"")),
    "closes_at_once": Ill("reset", says(b"", closes=True)),
    "not_http": Ill("bad_response", says(b"SSH-2.0-OpenSSH_9.2\r\n", closes=True)),
    "noise": Ill("bad_response", says(bytes(range(256)) * 4, closes=True)),
    "nul_in_header": Ill("bad_response", says(b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 1\r\n\r\nx")),
    "http_0_9": Ill("bad_response", says(HTML, closes=True)),
    # Old and odd, but right.
    "ok": Ill("ok", says(whole(JPEG)), body=JPEG),
    "http_1_0": Ill("ok", says(b"HTTP/1.0 200 OK\r\nContent-Type: image/jpeg\r\n\r\n" + JPEG, closes=True), body=JPEG),
    "no_reason": Ill("ok", says(b"HTTP/1.1 200\r\nContent-Length: %d\r\n\r\n" % len(JPEG) + JPEG), body=JPEG),
    "bare_newlines": Ill("ok", says(b"HTTP/1.1 200 OK\nContent-Length: %d\n\n" % len(JPEG) + JPEG), body=JPEG),
    "interim": Ill("ok", says(head("100 Continue") + head("103 Early Hints", Link="</a>") + whole(JPEG)), body=JPEG),
    "chunked": Ill("ok", says(_chunked(JPEG[:1000], JPEG[1000:])), body=JPEG),
    "empty": Ill("ok", says(whole(b"")), body=b""),
    "gzip": Ill("ok", _coded(_gzip(JPEG), "gzip"), body=JPEG),
    "gzip_members": Ill("ok", _coded(_gzip(JPEG[:700]) + _gzip(JPEG[700:]) + b"\0" * 9, "x-gzip"), body=JPEG),
    "deflate": Ill("ok", _coded(zlib.compress(JPEG), "deflate"), body=JPEG),
    "bare_deflate": Ill("ok", _coded(zlib.compress(JPEG)[2:-4], "deflate"), body=JPEG),
    "brotli": Ill("ok", _coded(brotli.compress(JPEG), "br"), body=JPEG),
    "brotli_in_gzip": Ill("ok", _coded(_gzip(brotli.compress(JPEG)), "br, gzip"), body=JPEG),
    "no_encoding": Ill("ok", _coded(JPEG, "none"), body=JPEG),
    # Encodings.
    "not_gzip": Ill("bad_encoding", _coded(JPEG, "gzip")),
    "cut_gzip": Ill("bad_encoding", _coded(_gzip(JPEG)[:-20], "gzip")),
    "cut_brotli": Ill("bad_encoding", _coded(brotli.compress(JPEG)[:-5], "br")),
    "not_deflate": Ill("bad_encoding", _coded(b"\xff" * 500, "deflate")),
    "three_encodings": Ill("bad_encoding", _coded(_gzip(_gzip(_gzip(JPEG))), "gzip, gzip, gzip")),
    "unknown_encoding": Ill("bad_encoding", _coded(JPEG, "zstd")),
    # Statuses.
    "no_content": Ill("http_204", says(head("204 No Content"))),
    "partial": Ill("http_206", says(whole(JPEG, "206 Partial Content", Content_Range="bytes 0-9/99"))),
    "not_modified": Ill("http_304", says(head("304 Not Modified"))),
    "upgrade": Ill("http_101", says(head("101 Switching Protocols", Upgrade="websocket", Connection="Upgrade") + JPEG)),
    "not_found_drip": Ill("http_404", repeats(head("404 Not Found", Content_Length=5_000), b"x", 0.05)),
    "status_999": Ill("http_999", says(whole(HTML, "999 Request denied"))),
    # Redirects.
    "loop": Ill("too_many_redirects", says(whole(b"", "302 Found", Location="/loop"))),
    "loop_of_two": Ill("too_many_redirects", says(whole(b"", "301 Moved", Location="/loop_back")), max_requests=2),
    "loop_back": Ill("too_many_redirects", says(whole(b"", "307 Temporary Redirect", Location="loop_of_two")), 2),
    "no_location": Ill("bad_redirect", says(whole(b"", "302 Found"))),
    "bad_location": Ill("bad_redirect", says(whole(b"", "302 Found", Location="http://[half"))),
    "to_file": Ill("blocked_scheme", says(whole(b"", "302 Found", Location="file:///etc/passwd"))),
    "to_ftp": Ill("blocked_scheme", says(whole(b"", "302 Found", Location="ftp://127.0.0.1/a.jpg"))),
    "to_data": Ill(
        "blocked_scheme", says(whole(b"", "302 Found", Location="data:image/gif;base64,R0lGODlhAQABAAAAACw="))
    ),
    "to_mail_port": Ill("blocked_port", says(whole(b"", "302 Found", Location="http://127.0.0.1:25/"))),
    "to_metadata": Ill("blocked_address", says(whole(b"", "302 Found", Location="http://169.254.169.254/latest/"))),
    "to_private": Ill("blocked_address", says(whole(b"", "302 Found", Location="http://10.0.0.1/secret.jpg"))),
    "to_ipv6_loopback": Ill("blocked_address", says(whole(b"", "302 Found", Location="http://[::1]:8080/"))),
    # For the image layer.
    "html_as_jpeg": Ill("ok", says(whole(HTML)), body=HTML),
    "huge_png": Ill("ok", says_lazily(lambda: whole(huge_png(), Content_Type="image/png"))),
}


@contextmanager
def serve_hostile(host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> Iterator[HostileWeb]:
    """Serve every ill on a free port until the block ends."""
    loop = asyncio.new_event_loop()
    web = HostileWeb(host, 0, "https" if tls else "http")
    started = threading.Event()

    async def main() -> None:
        server = await asyncio.start_server(lambda reader, writer: _converse(web, reader, writer), host, 0, ssl=tls)
        web.port = server.sockets[0].getsockname()[1]
        started.set()
        async with server:
            await stop.wait()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
    thread.start()
    started.wait()
    try:
        yield web
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


async def _converse(web: HostileWeb, reader: asyncio.StreamReader, writer: Writer) -> None:
    with suppress(ConnectionError, asyncio.CancelledError, asyncio.IncompleteReadError):
        async for request in _requests(reader):
            path = request.split(" ", 2)[1].lstrip("/")
            web.requests[path] += 1
            web.heads.append(request)
            await _serve_of(path)(writer)
            if writer.is_closing():
                break
    writer.close()


async def _requests(reader: asyncio.StreamReader) -> AsyncIterator[str]:
    while True:
        yield (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")


def _serve_of(path: str) -> Serve:
    if path.startswith("redirect?to="):
        return says(whole(b"", "302 Found", Location=unquote(path.partition("=")[2])))
    if path.startswith("status/"):
        status, _, headers = path.removeprefix("status/").partition("?")
        fields = dict(pair.split("=", 1) for pair in unquote(headers).split("&") if pair)
        return says(whole(HTML, f"{status} Status", **fields))
    ill = ILLS.get(path.partition("?")[0])
    return ill.serve if ill else says(whole(HTML, "404 Not Found"))
