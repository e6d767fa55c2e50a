"""A hostile web server on loopback: one path per ill, each with the reasons that a download of it may end with.

Raw sockets, so that an answer can be as wrong as it likes. It lives on 127.0.0.77, which a client is told to allow
(ALLOW): every other loopback address is then as forbidden as in the wild. A canary on 127.0.0.1 counts who connects
all the same. A name server of its own answers for *.test.

    with hostile_server() as server:
        server.url("drip"), ILLS["drip"]
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trustme

from tests.servers import hostile_bodies as bodies
from tests.servers.hostile_names import HostileNames

HOST = "127.0.0.77"
CANARY = "127.0.0.1"
ALLOW = f"{HOST}/32"

OK = "ok"
ILLS: dict[str, frozenset[str]] = {}

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
Ill = Callable[["HostileServer", Writer], Awaitable[None]]
_ANSWERS: dict[str, Ill] = {}


@dataclass
class HostileServer:
    """Where each ill lies, how often each was asked for, and how often the canary's address was connected to."""

    port: int = 0
    tls_port: int = 0
    closed_port: int = 0
    dns: str = ""
    ca_file: str = ""
    requests: Counter[str] = field(default_factory=Counter)
    num_canary: int = 0

    @property
    def base(self) -> str:
        """Scheme, host and port of the plain server."""
        return f"http://{HOST}:{self.port}"

    def url(self, ill: str) -> str:
        """Where an ill is met."""
        if ill in _ELSEWHERE:
            return _ELSEWHERE[ill].format(host=HOST, port=self.port, tls_port=self.tls_port, closed=self.closed_port)
        return f"{self.base}/{ill}"


# Ills that are met by a url of their own.
_ELSEWHERE: dict[str, str] = {}


def _elsewhere(name: str, url: str, *reasons: str) -> None:
    _ELSEWHERE[name] = url
    ILLS[name] = frozenset(reasons)


_elsewhere("refused", "http://{host}:{closed}/", "connect")
_elsewhere("no_such_name", "http://nowhere.test:{port}/fine", "dns")
_elsewhere("name_server_fails", "http://servfail.test:{port}/fine", "dns")
_elsewhere("name_server_silent", "http://silent.test:{port}/fine", "dns")
_elsewhere("name_server_lies", "http://garbage.test:{port}/fine", "dns")
_elsewhere("name_without_address", "http://empty.test:{port}/fine", "dns")
_elsewhere("name_of_loopback", "http://loopback.test:{port}/fine", "blocked_address")
_elsewhere("name_of_metadata", "http://metadata.test:{port}/fine", "blocked_address")
_elsewhere("name_of_mapped_loopback", "http://mapped.test:{port}/fine", "blocked_address")
_elsewhere("name_of_both", "http://both.test:{port}/fine", OK, "blocked_address")
_elsewhere("tls_on_plain_port", "https://{host}:{port}/fine", "tls")
_elsewhere("tls_wrong_certificate", "https://{host}:{tls_port}/fine", "tls")
_elsewhere("plain_on_tls_port", "http://{host}:{tls_port}/fine", "bad_response", "reset")
_elsewhere("literal_loopback", "http://127.0.0.1:{port}/fine", "blocked_address")
_elsewhere("literal_hexadecimal", "http://0x7f000001:{port}/fine", "blocked_address")
_elsewhere("literal_zero", "http://0.0.0.0:{port}/fine", "blocked_address")
_elsewhere("literal_ipv6_loopback", "http://[::1]:{port}/fine", "blocked_address")
_elsewhere("mail_port", "http://{host}:25/", "blocked_port")
_elsewhere("file_url", "file:///etc/hostname", "blocked_scheme")
_elsewhere("bad_url", "http://exa mple:99999999/", "bad_url")


def _ill(*reasons: str) -> Callable[[Ill], Ill]:
    def enter(answer: Ill) -> Ill:
        name = answer.__name__.lstrip("_")
        ILLS[name] = frozenset(reasons)
        _ANSWERS[name] = answer
        return answer

    return enter


def _canned(name: str, data: bytes, *reasons: str) -> None:
    """An ill that is a fixed answer, after which the server closes."""

    async def answer(server: HostileServer, writer: Writer) -> None:
        writer.write(data)
        await writer.drain()

    ILLS[name] = frozenset(reasons)
    _ANSWERS[name] = answer


def _redirect(name: str, location: str, *reasons: str) -> None:
    async def answer(server: HostileServer, writer: Writer) -> None:
        target = location.format(host=HOST, port=server.port)
        writer.write(f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()

    ILLS[name] = frozenset(reasons)
    _ANSWERS[name] = answer


def _response(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body) if length is None else length}", "", ""]
    return "\r\n".join(lines).encode() + body


JPEG, JPEG_HEADER = bodies.jpeg(), "Content-Type: image/jpeg"

# Odd, and right all the same.
_canned("fine", _response(JPEG, JPEG_HEADER), OK)
_canned("http_1_0", b"HTTP/1.0 200 OK\r\nContent-Type: image/jpeg\r\n\r\n" + JPEG, OK)
_canned("no_reason_phrase", b"HTTP/1.1 200\r\nContent-Length: %d\r\n\r\n" % len(JPEG) + JPEG, OK)
_canned("bare_newlines", b"HTTP/1.1 200 OK\nContent-Length: %d\n\n" % len(JPEG) + JPEG, OK, "bad_response")
_canned("header_bytes", _response(JPEG, "X-Odd: \u00e9\u00ff"), OK)
for _name, _coded in bodies.encoded(JPEG).items():
    _canned(_name, _response(_coded, f"Content-Encoding: {_name.partition('_')[2].replace('_', ', ')}"), OK)
_canned("deflate_without_header", _response(bodies.raw_deflate(JPEG), "Content-Encoding: deflate"), OK)
_canned("gzip_members", _response(bodies.gzip_members(JPEG), "Content-Encoding: gzip"), OK)
_canned("early_hint", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + _response(JPEG), OK)
_canned("chunked", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + bodies.chunked(JPEG), OK)
_redirect("redirect", "fine", OK)

# Statuses.
_canned("status_204", b"HTTP/1.1 204 No Content\r\n\r\n", "http_204")
_canned("status_206", _response(JPEG[:100], "Content-Range: bytes 0-99/1000", status="206 Partial"), "http_206")
_canned("status_304", b"HTTP/1.1 304 Not Modified\r\n\r\n", "http_304")
_canned("status_404", _response(b"gone", status="404 Not Found"), "http_404")
_canned("status_500", _response(b"oh", status="500 Oh"), "http_500")
_canned("status_600", _response(JPEG, status="600 What"), "http_600", "bad_response")
_canned("switching", b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x05hello",
        "bad_response", "http_101")  # fmt: skip
_canned("not_modified_with_body", _response(JPEG, status="304 Not Modified"), "http_304")

# Bodies.
_canned("empty", _response(b""), "empty")
_canned("html", _response(b"<!doctype html><p>Not found</p>", JPEG_HEADER), "not_image")
_canned("too_many_pixels", _response(bodies.png_of_zeros(30_000), "Content-Type: image/png"), "too_many_pixels")
_canned("announces_too_much", _response(JPEG, length=10**12), "too_large")
_canned("shorter_than_announced", _response(JPEG[:300], length=len(JPEG)), "wrong_length")
_canned("longer_than_announced", _response(JPEG + b"HTTP/1.1 200 OK\r\n\r\n" * 9, length=len(JPEG)), OK)
_canned("half_chunk", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + bodies.chunked(JPEG)[:200],
        "reset", "wrong_length")  # fmt: skip
_canned(
    "chunked_garbage", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnot a size\r\n" + JPEG, "bad_response"
)
_canned("chunk_of_2_to_the_80", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"F" * 20 + b"\r\n",
        "bad_response")  # fmt: skip
_canned("two_lengths", _response(JPEG, "Content-Length: 10"), "bad_response")
_canned("negative_length", _response(JPEG, length=-1), "bad_response")
_canned("gzip_broken", _response(bodies.damaged_gzip(JPEG), "Content-Encoding: gzip"), "bad_encoding")
_canned("gzip_cut", _response(bodies.encoded(JPEG)["coded_gzip"][:-20], "Content-Encoding: gzip"), "bad_encoding")
_canned("gzip_in_name_only", _response(JPEG, "Content-Encoding: gzip"), "bad_encoding")
_canned("encoded_ten_times", _response(JPEG, "Content-Encoding: " + ", ".join(["gzip"] * 10)), "bad_encoding")
_canned("encoding_unknown", _response(JPEG, "Content-Encoding: zstd"), "bad_encoding")
_canned("gzip_bomb", _response(bodies.gzip_bomb(), "Content-Encoding: gzip"), "too_large")
_canned("gzip_bomb_of_members", _response(bodies.gzip_bomb_of_members(), "Content-Encoding: gzip"), "too_large")
_canned("gzip_bomb_in_gzip", _response(bodies.nested_bomb(), "Content-Encoding: gzip, gzip"), "too_large")
_canned("brotli_bomb", _response(bodies.brotli_bomb(), "Content-Encoding: br"), "too_large")

# Heads.
_canned("not_http", b"220 mail.example ESMTP\r\n" * 3, "bad_response")
_canned("no_head", JPEG, "bad_response")
_canned("head_cut", b"HTTP/1.1 200 OK\r\nContent-Ty", "reset", "bad_response")
_canned("nothing", b"", "reset")
_canned("header_of_10_mb", _response(JPEG, "X-Long: " + "x" * 10_000_000), "headers_too_large")
_canned("headers_of_10_mb", _response(JPEG, *(f"X-{number}: {'y' * 90}" for number in range(100_000))),
        "headers_too_large")  # fmt: skip
_canned("status_line_of_10_mb", _response(JPEG, status="200 " + "O" * 10_000_000), "headers_too_large")
_canned("header_with_nul", _response(JPEG, "X-Odd: a\x00b"), "bad_response")

# Redirects.
_redirect("redirect_to_itself", "/redirect_to_itself", "too_many_redirects")
_redirect("redirect_ping", "/redirect_pong", "too_many_redirects")
_redirect("redirect_pong", "/redirect_ping", "too_many_redirects")
_redirect("redirect_to_loopback", "http://127.0.0.1:{port}/fine", "blocked_address")
_redirect("redirect_to_hexadecimal", "http://0x7f000001:{port}/fine", "blocked_address")
_redirect("redirect_to_one_number", "http://2130706433:{port}/fine", "blocked_address")
_redirect("redirect_to_short_form", "http://127.1:{port}/fine", "blocked_address")
_redirect("redirect_to_zero", "http://0.0.0.0:{port}/fine", "blocked_address")
_redirect("redirect_to_ipv6_loopback", "http://[::1]:{port}/fine", "blocked_address")
_redirect("redirect_to_mapped", "http://[::ffff:127.0.0.1]:{port}/fine", "blocked_address")
_redirect("redirect_to_nat64", "http://[64:ff9b::7f00:1]:{port}/fine", "blocked_address")
_redirect("redirect_to_6to4", "http://[2002:7f00:1::]:{port}/fine", "blocked_address")
_redirect("redirect_to_metadata", "http://169.254.169.254/latest/meta-data/", "blocked_address")
_redirect("redirect_to_private", "http://10.0.0.1/", "blocked_address")
_redirect("redirect_to_shared", "http://100.64.0.1/", "blocked_address")
_redirect("redirect_to_name_of_loopback", "http://loopback.test:{port}/fine", "blocked_address")
_redirect("redirect_to_file", "file:///etc/passwd", "blocked_scheme")
_redirect("redirect_to_ftp", "ftp://{host}/a.jpg", "blocked_scheme")
_redirect("redirect_to_mail_port", "http://{host}:25/", "blocked_port")
_redirect("redirect_to_rubbish", "http://[nonsense/", "bad_redirect")
_redirect("redirect_with_password", "http://me:secret@{host}:{port}/fine", "bad_redirect")
_canned("redirect_without_target", _response(b"", status="302 Found"), "bad_redirect")
_canned("redirect_with_body", _response(b"x", "Location: /fine", status="302 Found", length=10**12), OK)

# Limits that a server sets.
_canned("limited_for_an_hour", _response(b"", "Retry-After: 3600", status="429 Slow"), "rate_limited")
_canned("unavailable_for_an_hour", _response(b"", "Retry-After: 3600", status="503 Later"), "rate_limited")
_canned("unavailable_till_2200", _response(b"", "Retry-After: Fri, 31 Dec 2200 23:59:59 GMT", status="503 Later"),
        "rate_limited")  # fmt: skip
_canned("limited_for_ever", _response(b"", status="429 Slow"), "http_429", "rate_limited")
_canned("unavailable_till_whenever", _response(b"", "Retry-After: -\x80whenever", status="503 Later"), "http_503")


@_ill("timeout")
async def _silent(server: HostileServer, writer: Writer) -> None:
    await asyncio.sleep(3600)


@_ill("timeout")
async def _slow_head(server: HostileServer, writer: Writer) -> None:
    for byte in _response(JPEG):
        writer.write(bytes([byte]))
        await asyncio.sleep(0.2)


@_ill("timeout")
async def _drip(server: HostileServer, writer: Writer) -> None:
    writer.write(_response(b"", length=1_000_000))
    while True:
        writer.write(b"\xff")
        await _flush(writer)
        await asyncio.sleep(0.05)


@_ill("too_large", "timeout")
async def _endless_body(server: HostileServer, writer: Writer) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    await _pour(writer, b"x" * 65_536)


@_ill("too_large", "timeout")
async def _endless_chunks(server: HostileServer, writer: Writer) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    await _pour(writer, b"8000\r\n" + b"x" * 32_768 + b"\r\n")


@_ill("headers_too_large", "timeout")
async def _endless_head(server: HostileServer, writer: Writer) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    await _pour(writer, b"X-More: of the same\r\n" * 1000)


@_ill("headers_too_large", "bad_response", "timeout")
async def _endless_interim(server: HostileServer, writer: Writer) -> None:
    await _pour(writer, b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)


@_ill("headers_too_large", "bad_response", "timeout")
async def _slow_interim(server: HostileServer, writer: Writer) -> None:
    while True:
        writer.write(b"HTTP/1.1 102 Processing\r\n\r\n")
        await _flush(writer)
        await asyncio.sleep(0.02)


@_ill("headers_too_large", "timeout")
async def _endless_trailer(server: HostileServer, writer: Writer) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n")
    await _pour(writer, b"X-More: of the same\r\n" * 1000)


@_ill("bad_response", "headers_too_large", "timeout", "too_large")
async def _endless_chunk_extension(server: HostileServer, writer: Writer) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;")
    await _pour(writer, b"x" * 65_536)


@_ill("too_large", "timeout", "bad_encoding")
async def _endless_nothing(server: HostileServer, writer: Writer) -> None:
    """Empty gzip members for ever: bytes arrive, and none comes out."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n")
    await _pour(writer, bodies.EMPTY_GZIP * 3000)


@_ill("reset")
async def _reset_at_once(server: HostileServer, writer: Writer) -> None:
    _reset(writer)


@_ill("reset")
async def _reset_in_body(server: HostileServer, writer: Writer) -> None:
    writer.write(_response(JPEG[:300], length=len(JPEG)))
    await writer.drain()
    await asyncio.sleep(0.05)
    _reset(writer)


@_ill("timeout", "too_many_redirects")
async def _slow_redirects(server: HostileServer, writer: Writer) -> None:
    """Each hop is in time; all of them together are not."""
    await asyncio.sleep(0.4)
    number = server.requests["slow_redirects"]
    writer.write(_response(b"", f"Location: /slow_redirects?{number}", status="302 Found"))


@_ill("too_many_redirects")
async def _redirect_for_ever(server: HostileServer, writer: Writer) -> None:
    number = server.requests["redirect_for_ever"]
    writer.write(_response(b"", f"Location: /redirect_for_ever?{number}", status="302 Found"))


@_ill(OK)
async def _limited_for_a_moment(server: HostileServer, writer: Writer) -> None:
    is_first = server.requests["limited_for_a_moment"] % 2 == 1
    writer.write(_response(b"", "Retry-After: 1", status="429 Slow") if is_first else _response(JPEG))


@_ill(OK)
async def _broken_every_second_time(server: HostileServer, writer: Writer) -> None:
    if server.requests["broken_every_second_time"] % 2 == 1:
        _reset(writer)
    else:
        writer.write(_response(JPEG))


def _reset(writer: Writer) -> None:
    """Close by RST, as a dying server does."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _flush(writer: Writer) -> None:
    await writer.drain()
    if writer.is_closing():
        raise ConnectionResetError


async def _pour(writer: Writer, data: bytes) -> None:
    while True:
        writer.write(data)
        await _flush(writer)
        await asyncio.sleep(0)


@contextmanager
def hostile_server() -> Iterator[HostileServer]:
    """Serve every ill from a thread until the block ends."""
    server = HostileServer()
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # torn connections are the point
    authority = trustme.CA()
    stop = asyncio.Event()
    is_up = threading.Event()

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            await _start(server, authority, stack)
            is_up.set()
            await stop.wait()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),), daemon=True)
    thread.start()
    try:
        with authority.cert_pem.tempfile() as ca_file:
            assert is_up.wait(10), "the hostile server does not start: are loopback addresses beyond 127.0.0.1 there?"
            server.ca_file = ca_file
            yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


async def _start(server: HostileServer, authority: trustme.CA, stack: contextlib.AsyncExitStack) -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            head = await reader.readuntil(b"\r\n\r\n")
            target = head.split(b" ", 2)[1].decode("latin-1")
            name = target.lstrip("/").partition("?")[0]
            server.requests[name] += 1
            await _ANSWERS.get(name, _ANSWERS["status_404"])(server, writer)
            await writer.drain()
        # With unread bytes of a pipelined request a close would become a reset.
        with contextlib.suppress(OSError):
            writer.close()

    async def sing(reader: Reader, writer: Writer) -> None:
        server.num_canary += 1
        writer.close()

    def listen(*words: object, **options: object) -> Awaitable[asyncio.Server]:
        return stack.enter_async_context(_serving(*words, **options))

    server.port = (await listen(serve, HOST)).sockets[0].getsockname()[1]
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("somebody-else.test").configure_cert(context)
    server.tls_port = (await listen(serve, HOST, ssl=context)).sockets[0].getsockname()[1]
    await listen(sing, CANARY, port=server.port)
    with socket.socket() as unused:
        unused.bind((HOST, 0))
        server.closed_port = unused.getsockname()[1]
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: HostileNames(HOST, CANARY), local_addr=(HOST, 0))
    stack.callback(transport.close)
    server.dns = "{}:{}".format(*transport.get_extra_info("sockname"))


@contextlib.asynccontextmanager
async def _serving(serve: Callable[[Reader, Writer], Awaitable[None]], host: str, port: int = 0, **options: object):
    server = await asyncio.start_server(serve, host, port, backlog=1024, limit=1 << 16, **options)
    try:
        yield server
    finally:
        server.close()
