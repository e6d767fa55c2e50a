"""The wire: connections are kept and bounded, and what comes of an answer does not hang on how packets are cut."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import UsageError
from pipeline.fetch.client import Fetched, Fetcher
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.errors import FetchError
from pipeline.fetch.wire import BoundedHandler, Connections, tls_context

LOOPBACK = FetchConfig(allow_network=("127.0.0.0/8",), timeout_s=2.0, attempts=1)
BODY = bytes(range(256))
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 256\r\nX-A: b\r\n\r\n"
Answer = Callable[[asyncio.StreamWriter], None]


class Server:
    """Answers every request with what `answer` writes, and counts connections."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.num_connections = 0
        self.num_open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self.num_open += 1
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                self.answer(writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
        finally:
            self.num_open -= 1


@asynccontextmanager
async def serving(answer: Answer, host: str = "127.0.0.1") -> AsyncIterator[tuple[Server, str]]:
    server = Server(answer)
    async with await asyncio.start_server(server.serve, host, 0) as listening:
        yield server, f"http://{host}:{listening.sockets[0].getsockname()[1]}"


def writes(data: bytes) -> Answer:
    return lambda writer: writer.write(data)


def test_one_connection_serves_many_requests() -> None:
    async def main() -> int:
        async with serving(writes(HEAD + BODY)) as (server, url), Fetcher(LOOPBACK) as fetcher:
            for _ in range(5):
                assert (await fetcher.get(url)).body == BODY
            return server.num_connections

    assert asyncio.run(main()) == 1


@pytest.mark.parametrize("status", [b"404 Not Found", b"302 Found\r\nLocation: /a"])
def test_a_short_page_behind_another_status_keeps_the_connection(status: bytes) -> None:
    async def main() -> int:
        answer = writes(b"HTTP/1.1 " + status + b"\r\nContent-Length: 256\r\n\r\n" + BODY)
        async with serving(answer) as (server, url), Fetcher(LOOPBACK) as fetcher:
            for _ in range(5):
                with pytest.raises(FetchError):
                    await fetcher.get(url)
            return server.num_connections

    assert asyncio.run(main()) == 1


def test_idle_connections_give_way_to_new_ones() -> None:
    async def main() -> int:
        async with serving(writes(HEAD + BODY), "0.0.0.0") as (server, url):
            port = url.rpartition(":")[2]
            async with Fetcher(LOOPBACK.model_copy(update={"connections": 4})) as fetcher:
                for host in range(1, 30):
                    await fetcher.get(f"http://127.0.0.{host}:{port}/")
                await asyncio.sleep(0.05)
                assert server.num_connections == 29
                return server.num_open

    assert asyncio.run(main()) <= 4


def test_what_comes_unasked_closes_the_connection_and_harms_nobody() -> None:
    async def main() -> int:
        async with serving(writes(HEAD + BODY + HEAD + b"x" * 256)) as (server, url), Fetcher(LOOPBACK) as fetcher:
            for _ in range(3):
                assert (await fetcher.get(url)).body == BODY
                await asyncio.sleep(0.02)
            return server.num_connections

    assert asyncio.run(main()) == 3


def test_no_more_connections_are_open_than_allowed() -> None:
    most = 0

    def answer(writer: asyncio.StreamWriter) -> None:
        nonlocal most
        most = max(most, server.num_open)
        asyncio.get_running_loop().call_later(0.01, writer.write, HEAD + BODY)

    async def main() -> None:
        nonlocal server
        async with serving(answer, "0.0.0.0") as (server, url):
            port = url.rpartition(":")[2]
            async with Fetcher(LOOPBACK.model_copy(update={"connections": 5})) as fetcher:
                await asyncio.gather(*(fetcher.get(f"http://127.0.0.{at}:{port}/") for at in range(1, 60)))

    server: Server
    asyncio.run(main())
    assert most <= 10  # the server hears of a close a moment later


WIRES = {
    "right": HEAD + BODY,
    "interim": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nA: b\r\n\r\n" + HEAD + BODY,
    "runs on": HEAD + BODY + b"\r\nmore",
    "bare newlines": b"HTTP/1.1 200 OK\nContent-Length: 256\n\n" + BODY,
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100\r\n" + BODY + b"\r\n0\r\n\r\n",
    "broken chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100\r\n" + BODY + b"\r\nrubbish\r\n",
    "no number": b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n" + BODY,
    "no http": b"220 mail.example ESMTP\r\n\r\n",
    "head too large": b"HTTP/1.1 200 OK\r\nX: %s\r\n\r\n" % (b"x" * 2000) + BODY,
    "head at its cap": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: ".ljust(996, b"x") + b"\r\n\r\n",
    "head above its cap": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: ".ljust(997, b"x") + b"\r\n\r\n",
}


class Transport:
    """As much of a transport as the handler touches."""

    def __init__(self) -> None:
        self.is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True

    close = abort

    def is_closing(self) -> bool:
        return self.is_aborted

    def get_extra_info(self, name: str) -> None:
        return None

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


def receive(packets: list[bytes]) -> tuple[object, ...]:
    """What the handler makes of packets: status, body and whether it is complete, or the error."""

    async def main() -> tuple[object, ...]:
        handler = BoundedHandler(Connections(max_open=1, max_head_bytes=1000), asyncio.get_running_loop())
        transport = Transport()
        handler.connection_made(transport)
        handler.set_response_params(read_until_eof=True, auto_decompress=False, max_field_size=1000, max_line_size=1000)
        for packet in packets:
            if not transport.is_aborted:
                handler.data_received(packet)
        try:
            while True:
                message, payload = await handler.read()
                if message.code >= 200:
                    break
            return message.code, await payload.read(), payload.is_eof()
        except Exception as error:
            return (type(error).__name__,)

    return asyncio.run(main())


@pytest.mark.parametrize("name", WIRES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_outcome_does_not_hang_on_how_packets_are_cut(name: str, data: st.DataObject) -> None:
    wire = WIRES[name]
    cuts = sorted(data.draw(st.sets(st.integers(1, len(wire) - 1), max_size=6)))
    packets = [wire[start:end] for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    assert receive(packets) == receive([wire])


def test_a_head_counts_to_its_last_byte() -> None:
    assert receive([WIRES["head at its cap"]])[0] == 200
    assert receive([WIRES["head above its cap"]]) == ("HeadTooLargeError",)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400), st.sampled_from([b"", b"HTTP/1.1 ", b"HTTP/1.1 200 OK\r\n", HEAD[:-2]]))
def test_any_bytes_end_in_an_answer_or_a_fetch_error(noise: bytes, start: bytes) -> None:
    async def main() -> None:
        def answer(writer: asyncio.StreamWriter) -> None:
            writer.write(start + noise)
            writer.close()

        async with serving(answer) as (_, url), Fetcher(LOOPBACK) as fetcher:
            with suppress(FetchError):
                assert isinstance(await fetcher.get(url), Fetched)

    asyncio.run(main())


def test_the_tls_context_is_made_once() -> None:
    assert tls_context(None) is tls_context(None)


def test_more_connections_than_files_is_wrong_usage() -> None:
    async def main() -> None:
        async with Fetcher(FetchConfig(connections=resource.getrlimit(resource.RLIMIT_NOFILE)[1])):
            pass

    with pytest.raises(UsageError, match="ulimit -n"):
        asyncio.run(main())
