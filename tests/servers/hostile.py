"""The hostile web on loopback: a server with a path for each ill, a name server with bad manners, and a canary.

    with serve_hostile() as web:
        web.url("drip"), ILLS["drip"].reason

The server lives on 127.0.0.77, which a client is told to allow (ALLOW): every other loopback address is then as
forbidden as in the wild. A canary on 127.0.0.1, same port, counts who connects all the same. `web.dns` answers for
*.test. All of it runs in a thread of the test's own process.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field

import trustme

from tests.servers.hostile_ills import ILLS, Ill
from tests.servers.hostile_names import HostileNames

__all__ = ["ALLOW", "CANARY", "HOST", "ILLS", "HostileWeb", "Ill", "serve_hostile"]

HOST = "127.0.0.77"
CANARY = "127.0.0.1"
ALLOW = f"{HOST}/32"


@dataclass
class HostileWeb:
    """Where it listens, how often each path was asked for, and how often the canary was connected to."""

    port: int = 0
    tls_port: int = 0
    closed_port: int = 0
    dns: str = ""
    ca_file: str = ""
    requests: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    num_canary: int = 0

    def url(self, ill: str) -> str:
        """Where an ill is met."""
        elsewhere = ILLS[ill].url
        if elsewhere is None:
            return f"http://{HOST}:{self.port}/{ill}"
        return elsewhere.format(host=HOST, port=self.port, tls_port=self.tls_port, closed=self.closed_port)


@contextmanager
def serve_hostile() -> Iterator[HostileWeb]:
    """Serve every ill until the block ends."""
    web, authority = HostileWeb(), trustme.CA()
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # torn connections are the point
    is_up, stop = threading.Event(), asyncio.Event()

    async def main() -> None:
        async with AsyncExitStack() as stack:
            await _start(web, authority, stack)
            is_up.set()
            await stop.wait()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),), daemon=True)
    thread.start()
    assert is_up.wait(10), "the hostile server does not start: are loopback addresses beyond 127.0.0.1 there?"
    try:
        with authority.cert_pem.tempfile() as ca_file:
            web.ca_file = ca_file
            yield web
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


async def _start(web: HostileWeb, authority: trustme.CA, stack: AsyncExitStack) -> None:
    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        web.connections += 1
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while not writer.is_closing():
                first = await reader.readexactly(1)
                if first == b"\x16":  # a TLS handshake on the plain port
                    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    break
                path = (first + await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1].decode("latin-1")
                name = path.lstrip("/").partition("?")[0]
                web.requests[name] += 1
                serve = ILLS[name if name in ILLS else "not_found"].serve
                assert serve is not None
                await serve(writer, web.requests[name])
        writer.close()

    async def sing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        web.num_canary += 1
        writer.close()

    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("www.fine.test").configure_cert(tls)
    plain = await stack.enter_async_context(await asyncio.start_server(converse, HOST, 0, backlog=1024))
    secure = await stack.enter_async_context(await asyncio.start_server(converse, HOST, 0, backlog=1024, ssl=tls))
    web.port, web.tls_port = (server.sockets[0].getsockname()[1] for server in (plain, secure))
    await stack.enter_async_context(await asyncio.start_server(sing, CANARY, web.port))
    with socket.socket() as unused:
        unused.bind((HOST, 0))
        web.closed_port = unused.getsockname()[1]
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: HostileNames(HOST, CANARY), local_addr=(HOST, 0))
    stack.callback(transport.close)
    web.dns = "{}:{}".format(*transport.get_extra_info("sockname"))
