"""Ten thousand host names, many of them dead or stalled: share of the fetchable fetched, and names per second.

    python -m benchmarks.names [--names 10000] [--timeout 5] [--lost 0] [--connections N]

A name server on loopback answers after 20 to 200 ms; 30 % of the names do not exist, 10 % belong to hosts that accept
and never answer, the rest have one small image each. All are 127.0.0.1, served by one process beside this one.
--lost: share of the questions to the name server that get no answer. Deadlines are 5 s here for both (both default to
10 s), to keep it under two minutes; stalled hosts set the walls, so these would double.

Ours: the fetcher that the downloader uses, once with the peer's number of connections and its one attempt, once with
three attempts, as by default. The peer: img2dataset's own `download_image_with_retry` in a pool of its default 256
threads, no retries, as its downloader calls it. Python's getaddrinfo cannot be given a name server's port, so for the
peer it is REPLACED here by a blocking question (IPv4 only, 5 s, asked twice, as glibc does) to the same name server.
That is kinder than the real one, which asks for IPv6 as well.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import os
import random
import socket
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool
from typing import Any
from unittest.mock import patch

from pipeline.fetch.client import Fetcher
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.errors import FetchError

IMAGE = b"\xff\xd8\xff" + bytes(2_000)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(IMAGE) + IMAGE
SHARES = {"dead": 0.3, "stalled": 0.1}
DELAY_S = (0.02, 0.2)
PEER_THREADS = 256


@dataclass(frozen=True)
class Run:
    """What a client made of all names: outcomes, seconds of wall and of CPU (all threads of this process)."""

    outcomes: Counter[str]
    wall_s: float
    cpu_s: float


class NameServer(asyncio.DatagramProtocol):
    """Slow, and right. lost: share of questions that get no answer."""

    def __init__(self, lost: float) -> None:
        self._lost = lost
        self._chance = random.Random(0)
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: Any) -> None:
        """Keep the socket to answer through."""
        self._transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        """Answer later; names tell what they are."""
        if self._chance.random() < self._lost:
            return
        end = data.index(0, 12) + 5
        question, is_ipv4 = data[12:end], data[end - 4 : end - 2] == b"\0\1"
        is_dead = question[1:5] == b"dead"
        num_answers = int(is_ipv4 and not is_dead)
        head = data[:2] + struct.pack(">HHHHH", 0x8183 if is_dead else 0x8180, 1, num_answers, 0, 0)
        # The name is a pointer to the question: A, IN, an hour, four bytes.
        record = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 3600, 4) + bytes([127, 0, 0, 1])
        shortest, longest = DELAY_S
        delay_s = shortest + (longest - shortest) * (zlib.crc32(question) % 1000) / 1000
        self._loop.call_later(delay_s, self._transport.sendto, head + question + record * num_answers, address)


class WebServer(asyncio.Protocol):
    """One small image for every host that is not stalled."""

    def connection_made(self, transport: Any) -> None:
        """Keep the connection."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """A request comes in one piece here."""
        if b"\r\nHost: stalled" not in data:
            self._transport.write(ANSWER)


def _serve(lost: float, pipe: Any) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        names, _ = await loop.create_datagram_endpoint(lambda: NameServer(lost), local_addr=("127.0.0.1", 0))
        names.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        web = await loop.create_server(WebServer, "127.0.0.1", 0, backlog=4096)
        pipe.send((names.get_extra_info("sockname")[1], web.sockets[0].getsockname()[1]))
        await asyncio.Event().wait()

    asyncio.run(main())


@contextmanager
def servers(lost: float) -> Iterator[tuple[int, int]]:
    """Both servers in a process of their own. Yields the ports of names and web."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(lost, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.kill()
        process.join()


def make_urls(num_names: int, port: int) -> list[str]:
    """A url on each host, kinds mixed."""
    rng = random.Random(0)
    kinds = rng.choices(["live", *SHARES], [1 - sum(SHARES.values()), *SHARES.values()], k=num_names)
    return [f"http://{kind}-{at}.example:{port}/{at}.jpg" for at, kind in enumerate(kinds)]


def measure(fetch_all: Callable[[], Counter[str]]) -> Run:
    """Run it once."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    outcomes = fetch_all()
    return Run(outcomes, time.perf_counter() - wall_s, time.process_time() - cpu_s)


def ours(urls: list[str], config: FetchConfig) -> Counter[str]:
    """The fetcher, with as many waiting as the downloader lets wait."""

    async def main() -> Counter[str]:
        outcomes: Counter[str] = Counter()
        queue = iter(urls)

        async def work() -> None:
            for url in queue:
                try:
                    await fetcher.get(url)
                    outcomes["ok"] += 1
                except FetchError as error:
                    outcomes[error.reason] += 1

        async with Fetcher(config) as fetcher:
            await asyncio.gather(*(work() for _ in range(4 * config.connections)))
        return outcomes

    return asyncio.run(main())


def theirs(urls: list[str], dns_port: int, timeout_s: float) -> Counter[str]:
    """img2dataset's function in its thread pool, with names looked up at our name server."""
    from img2dataset.downloader import download_image_with_retry

    fetch = partial(
        download_image_with_retry,
        timeout=timeout_s,
        retries=0,
        user_agent_token=None,
        disallowed_header_directives=None,
    )
    with patch("socket.getaddrinfo", partial(blocking_lookup, dns_port)), ThreadPool(PEER_THREADS) as pool:
        results = pool.imap_unordered(fetch, enumerate(urls))
        return Counter("ok" if error is None else str(error)[:60] for _, _, error in results)


def blocking_lookup(dns_port: int, host: str, port: int, *_: Any, **__: Any) -> list[Any]:
    """getaddrinfo of one IPv4 name, over a socket of its own."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in host.split(".")) + b"\0"
    number = random.randrange(65_536)
    query = struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 0) + labels + b"\0\1\0\1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.settimeout(5.0)
        for _ in range(2):
            asked.sendto(query, ("127.0.0.1", dns_port))
            try:
                answer = asked.recv(512)
            except TimeoutError:
                continue
            if answer[7]:
                return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (socket.inet_ntoa(answer[-4:]), port))]
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


def main() -> None:
    """Print one row for each client."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", type=int, default=10_000)
    parser.add_argument("--timeout", type=float, default=5.0, help="deadline of one attempt, for both")
    parser.add_argument("--connections", type=int, default=FetchConfig().connections, help="of our last row")
    parser.add_argument("--lost", type=float, default=0.0, help="share of questions to the name server that get lost")
    options = parser.parse_args()
    logging.disable()
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # img2dataset imports it, and it would ask the network
    with servers(options.lost) as (dns_port, web_port):
        urls = make_urls(options.names, web_port)
        num_fetchable = sum("live-" in url for url in urls)
        base = FetchConfig(
            dns=(f"127.0.0.1:{dns_port}",),
            allow_network=("127.0.0.0/8",),
            timeout_s=options.timeout,
            total_timeout_s=3600,
        )
        same_terms = base.model_copy(update={"connections": PEER_THREADS, "attempts": 1})
        default = base.model_copy(update={"connections": options.connections})
        clients: dict[str, Callable[[], Counter[str]]] = {
            f"img2dataset's urllib, {PEER_THREADS} threads": partial(theirs, urls, dns_port, options.timeout),
            f"pairmill on the same terms, {PEER_THREADS} connections": partial(ours, urls, same_terms),
            f"pairmill, {default.connections} connections, {default.attempts} attempts": partial(ours, urls, default),
        }
        print(
            f"{len(urls)} names, {num_fetchable} fetchable, {SHARES}, answers in {DELAY_S} s, {options.lost:.0%} lost"
        )
        print("urllib asks the same name server through a patched getaddrinfo: it can be given no port of its own")
        print(f"{'':58}{'fetched':>9}{'names/s':>9}{'wall s':>8}{'CPU ms/name':>13}  failures")
        for name, client in clients.items():
            run = measure(client)
            failures = {reason: number for reason, number in run.outcomes.most_common() if reason != "ok"}
            share, rate = run.outcomes["ok"] / num_fetchable, len(urls) / run.wall_s
            cpu_ms = 1000 * run.cpu_s / len(urls)
            print(f"{name:58}{share:9.2%}{rate:9.0f}{run.wall_s:8.1f}{cpu_ms:13.2f}  {failures}", flush=True)


if __name__ == "__main__":
    main()
