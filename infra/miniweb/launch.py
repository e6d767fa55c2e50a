"""Runs the web: in this process until a signal, or in a child process for as long as a block of code runs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import Field

import infra
from infra.errors import PairmillError
from infra.recipe import Config

Listening = TypeVar("Listening")

READY_WITHIN_S = 30.0
PARENT_CHECK_S = 0.3
OUTLIVES_S = 5.0  # longer than workers of a killed run live on


class MiniwebConfig(Config):
    """The small web that is served on loopback. The same values give the same pages and images, byte for byte."""

    pages: int = Field(120, ge=1, description="Content pages; homes, lists and ill pages come on top.")
    seed: int = Field(0, description="Seed of everything that is drawn and said.")
    port: int = Field(
        8970, ge=0, le=65535, description="HTTP port on 127.0.0.1, part of every url; 0 takes a free one."
    )
    dns_port: int = Field(8953, ge=0, le=65535, description="Port of the name server on 127.0.0.1; 0 takes a free one.")


@dataclass(frozen=True, slots=True)
class RunningWeb:
    """Where a running web is reached."""

    port: int
    dns: str  # host:port of the name server
    seeds: tuple[str, ...]
    sitemaps: tuple[str, ...]


class MiniwebError(PairmillError):
    """The small web cannot be served; the message says the mend."""


@contextlib.contextmanager
def running(config: MiniwebConfig) -> Iterator[RunningWeb]:
    """Serve the web from a child process while the block runs. Raises MiniwebError if it does not come up.

    A process of its own, so that server and client do not share an interpreter lock. It ends with the block; and when
    this process dies, some seconds later: as the real web does, it serves workers that outlive the run they belong to,
    which would otherwise write refused connections down as what became of their rows.
    """
    with tempfile.TemporaryDirectory(prefix="miniweb-") as folder:
        ready, log = Path(folder, "ready.json"), Path(folder, "log")
        options = (f"--{name.replace('_', '-')}={value}" for name, value in config.model_dump().items())
        command = [sys.executable, "-m", "infra.miniweb", "serve", *options, f"--ready-file={ready}"]
        command.append(f"--parent={os.getpid()}")
        root = Path(infra.__file__).parents[1]
        with log.open("wb") as output:
            # In a group of its own: Ctrl-C is for the run, which ends the web when its workers have gone.
            child = subprocess.Popen(
                command, cwd=root, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0
            )
        try:
            _await(ready, child, log)
            values = json.loads(ready.read_text(encoding="utf-8"))
            yield RunningWeb(values["port"], values["dns"], tuple(values["seeds"]), tuple(values["sitemaps"]))
        finally:
            _stop(child)


async def serve(config: MiniwebConfig, on_ready: Callable[[RunningWeb], None], parent: int | None = None) -> None:
    """Serve until SIGTERM, SIGINT, or, if given, until process `parent` has been gone for OUTLIVES_S.

    With a parent, a port that is taken is waited for so long: the web of a killed run may still be there.
    """
    # Heavy parts are loaded by the server alone, not by every client that imports this module.
    from infra.miniweb.dns import NameServer
    from infra.miniweb.plan import plan_site
    from infra.miniweb.server import MAX_HEAD_BYTES, WebServer

    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    patience_s = 0.0 if parent is None else OUTLIVES_S + 2 * PARENT_CHECK_S

    def listen() -> Awaitable[asyncio.Server]:
        return asyncio.start_server(lambda r, w: web.handle(r, w), "127.0.0.1", config.port,
                                    limit=MAX_HEAD_BYTES, backlog=1024, start_serving=False)  # fmt: skip

    with _free_or_mend("HTTP", "--port", config.port):
        server = await _once_free(listen, patience_s)  # before it is planned: urls hold the port
    port = server.sockets[0].getsockname()[1]
    site = plan_site(config.pages, config.seed, port)
    web = WebServer(site)
    hosts = frozenset(site.hosts | {"closed.miniweb.test"})

    def listen_to_names() -> Awaitable[tuple[asyncio.DatagramTransport, NameServer]]:
        return loop.create_datagram_endpoint(lambda: NameServer(hosts), ("127.0.0.1", config.dns_port))

    with _free_or_mend("DNS", "--dns-port", config.dns_port):
        transport, _ = await _once_free(listen_to_names, patience_s)
    dns_port = transport.get_extra_info("sockname")[1]
    await server.start_serving()
    on_ready(RunningWeb(port, f"127.0.0.1:{dns_port}", tuple(site.seeds), tuple(site.sitemaps)))
    while not stopped.is_set() and (parent is None or os.getppid() == parent):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopped.wait(), PARENT_CHECK_S if parent else None)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stopped.wait(), OUTLIVES_S)
    transport.close()
    server.close()


async def _once_free(listen: Callable[[], Awaitable[Listening]], patience_s: float) -> Listening:
    """What listens on a port, as soon as nobody else does."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return await listen()
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise
        await asyncio.sleep(PARENT_CHECK_S)


@contextlib.contextmanager
def _free_or_mend(what: str, option: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise MiniwebError(
            f"miniweb: {what} port {port} on 127.0.0.1 is taken or forbidden; stop what listens there, or choose "
            f"another with {option} (0 takes any free one; urls hold the HTTP port, so a resumed run needs the same)"
        ) from None


def _await(ready: Path, child: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while not ready.exists():
        if child.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(encoding="utf-8", errors="replace").strip()
            last = said.splitlines()[-1] if said else "nothing was said"
            raise MiniwebError(last if last.startswith("miniweb:") else f"miniweb: did not start: {last}")
        time.sleep(0.02)


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(timeout=3)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
