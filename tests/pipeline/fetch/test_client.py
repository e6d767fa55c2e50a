"""The fetcher's manners and bounds over several requests: deadlines, shared pauses, closed hosts, memory, order."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pipeline.fetch.client import Fetched, Fetcher
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.errors import FetchError
from pipeline.fetch.gates import REFUSALS_THAT_CLOSE

Answer = Callable[[str, int], Awaitable[bytes]]  # path, how often it was asked for before → bytes to send


class Server:
    """A web server on the test's own loop. `starts`: when each request came, in order."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.asked: Counter[str] = Counter()
        self.starts: list[float] = []
        self.num_active = self.most_active = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                path = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1].decode()
                self.starts.append(time.monotonic())
                self.asked[path] += 1
                self.num_active += 1
                self.most_active = max(self.most_active, self.num_active)
                try:
                    data = await self._answer(path, self.asked[path] - 1)
                finally:
                    self.num_active -= 1
                writer.write(data)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            writer.close()


def response(body: bytes = b"", status: str = "200 OK", **headers: object) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def with_server(answer: Answer, main: Callable[[Fetcher, str, Server], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        server = Server(answer)
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        base = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        values = {"allow_network": ("127.0.0.0/8",), "timeout_s": 1.0, "total_timeout_s": 3.0, "backoff_s": 0.05}
        async with listening, Fetcher(FetchConfig(**{**values, **options})) as fetcher:
            await asyncio.wait_for(main(fetcher, base, server), 20)

    asyncio.run(run())


async def outcome(fetcher: Fetcher, url: str, **options: Any) -> str:
    try:
        got = await fetcher.get(url, **options)
    except FetchError as error:
        return error.reason
    assert isinstance(got, Fetched)
    return "ok"


def test_one_deadline_covers_an_attempt_with_its_redirects() -> None:
    async def answer(path: str, nth: int) -> bytes:
        await asyncio.sleep(0.4)
        return response(status="302 Found", Location=f"{path}x")

    async def main(fetcher: Fetcher, base: str, server: Server) -> None:
        started = time.monotonic()
        assert await outcome(fetcher, base + "/") == "timeout"
        assert time.monotonic() - started < 2.3  # five redirects would take 2.4

    with_server(answer, main, attempts=1)


def test_one_deadline_covers_all_attempts() -> None:
    async def answer(path: str, nth: int) -> bytes:
        await asyncio.sleep(0.3)
        raise ConnectionResetError

    async def main(fetcher: Fetcher, base: str, server: Server) -> None:
        started = time.monotonic()
        assert await outcome(fetcher, base + "/") in ("reset", "timeout")
        assert 0.7 < time.monotonic() - started < 3.0
        assert 3 <= sum(server.asked.values()) <= 5

    with_server(answer, main, attempts=99, timeout_s=0.6, total_timeout_s=1.3)


def test_a_stalled_host_costs_two_deadlines() -> None:
    async def answer(path: str, nth: int) -> bytes:
        await asyncio.sleep(30)
        return b""

    async def main(fetcher: Fetcher, base: str, server: Server) -> None:
        assert await outcome(fetcher, base + "/") == "timeout"
        assert sum(server.asked.values()) == 2

    with_server(answer, main, attempts=99, timeout_s=0.2)


def test_waiting_for_a_turn_uses_up_no_deadline() -> None:
    async def answer(path: str, nth: int) -> bytes:
        await asyncio.sleep(0.15)
        return response(b"x")

    async def main(fetcher: Fetcher, base: str, server: Server) -> None:
        outcomes = await asyncio.gather(*(outcome(fetcher, f"{base}/{number}") for number in range(10)))
        assert set(outcomes) == {"ok"}
        assert server.most_active == 1

    with_server(answer, main, per_host=1, timeout_s=0.5, total_timeout_s=0.5)


def test_never_more_connections_than_allowed() -> None:
    async def answer(path: str, nth: int) -> bytes:
        await asyncio.sleep(0.01)
        return response(b"x")

    async def main(fetcher: Fetcher, base: str, server: Server) -> None:
        await asyncio.gather(*(outcome(fetcher, f"{base}/{number}") for number in range(30)))
        assert server.most_active == 3

    with_server(answer, main, connections=3, per_host=30)


def test_a_short_retry_after_is_waited_for_by_the_whole_host_at_no_cost_to_the_others() -> None:
    async def answer(path: str, nth: int) -> bytes:
        if path == "/limited" and nth == 0:
            return response(status="429 Slow", Retry_After=1)
        return response(b"x")

    async def main(fetcher: Fetcher, base: str, server: Server) -> None:
        first = asyncio.create_task(outcome(fetcher, base + "/limited"))
        await asyncio.sleep(0.1)
        others = [outcome(fetcher, f"{base}/{number}") for number in range(5)]
        assert set(await asyncio.gather(first, *others)) == {"ok"}
        assert server.starts[1] - server.starts[0] > 0.95

    with_server(answer, main, timeout_s=0.5, total_timeout_s=1.5)


def test_a_long_retry_after_of_one_url_is_that_urls_own() -> None:
    async def answer(path: str, nth: int) -> bytes:
        return response(status="503 Later", Retry_After=3600) if path == "/limited" else response(b"x")

    async def main(fetcher: Fetcher, base: str, server: Server) -> None:
        assert await outcome(fetcher, base + "/limited") == "rate_limited"
        assert await outcome(fetcher, base + "/other") == "ok"
        assert server.asked["/limited"] == 1

    with_server(answer, main)


def test_a_host_that_refuses_everything_is_soon_left_alone_and_all_its_urls_fail_alike() -> None:
    async def answer(path: str, nth: int) -> bytes:
        return response(status="429 Slow", Retry_After=3600)

    async def main(fetcher: Fetcher, base: str, server: Server) -> None:
        async def failure(number: int) -> tuple[str, str, int | None]:
            with pytest.raises(FetchError) as caught:
                await fetcher.get(f"{base}/{number}")
            return caught.value.reason, caught.value.detail, caught.value.status

        failures = await asyncio.gather(*(failure(number) for number in range(200)))
        assert len(set(failures)) == 1
        assert failures[0][0] == "rate_limited"
        assert sum(server.asked.values()) < REFUSALS_THAT_CLOSE + 2

    with_server(answer, main, per_host=2)


def test_a_hosts_own_delay_is_kept() -> None:
    async def answer(path: str, nth: int) -> bytes:
        return response(b"x")

    async def main(fetcher: Fetcher, base: str, server: Server) -> None:
        fetcher.set_delay(base.removeprefix("http://"), 0.1)
        await asyncio.gather(*(outcome(fetcher, f"{base}/{number}") for number in range(4)))
        assert server.starts[-1] - server.starts[0] > 0.29

    with_server(answer, main)


def test_bodies_in_flight_stay_within_the_budget_and_all_arrive() -> None:
    async def answer(path: str, nth: int) -> bytes:
        return response(bytes(4 << 20))

    async def main(fetcher: Fetcher, base: str, server: Server) -> None:
        most = 0

        async def visit(number: int) -> int:
            nonlocal most
            got = await fetcher.get(f"{base}/{number}")
            most = max(most, fetcher._budget.num_bytes)
            await asyncio.sleep(0.01)
            return len(got.body)

        assert await asyncio.gather(*map(visit, range(24))) == [4 << 20] * 24
        assert 8 << 20 <= most <= 16 << 20
        assert fetcher._budget.num_bytes == 0

    with_server(answer, main, per_host=24, max_bytes_in_flight=12 << 20, timeout_s=10, total_timeout_s=10)


def test_a_wait_for_memory_uses_up_no_deadline() -> None:
    async def answer(path: str, nth: int) -> bytes:
        return response(bytes(2 << 20))

    async def main(fetcher: Fetcher, base: str, server: Server) -> None:
        async def visit(number: int) -> None:
            got = await fetcher.get(f"{base}/{number}")
            await asyncio.sleep(0.3)  # a slow reader of what was fetched
            del got

        await asyncio.gather(*map(visit, range(8)))
        assert sum(server.asked.values()) == 8

    with_server(answer, main, max_bytes_in_flight=2 << 20, timeout_s=0.8, total_timeout_s=4)


def test_a_caller_that_keeps_more_than_the_budget_is_told_so_and_does_not_hang() -> None:
    async def answer(path: str, nth: int) -> bytes:
        return response(bytes(1 << 20))

    async def main(fetcher: Fetcher, base: str, server: Server) -> None:
        kept = [await fetcher.get(f"{base}/{number}") for number in range(2)]
        assert await outcome(fetcher, f"{base}/2") == "timeout"
        kept.clear()
        assert await outcome(fetcher, f"{base}/2") == "ok"

    with_server(answer, main, max_bytes_in_flight=2 << 20, timeout_s=0.3, total_timeout_s=0.6, attempts=1)


def test_a_cancelled_fetch_is_cancelled_and_leaves_nothing_behind() -> None:
    async def answer(path: str, nth: int) -> bytes:
        await asyncio.sleep(0.2 if path == "/slow" else 0)
        return response(b"x")

    async def main(fetcher: Fetcher, base: str, server: Server) -> None:
        task = asyncio.create_task(fetcher.get(base + "/slow"))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await outcome(fetcher, base + "/quick") == "ok"
        assert fetcher._budget.num_bytes == 0

    with_server(answer, main, per_host=1, connections=1)


def test_a_redirect_is_an_answer_where_it_is_not_followed() -> None:
    async def answer(path: str, nth: int) -> bytes:
        return response(b"moved", "301 Moved", Location="/there")

    async def main(fetcher: Fetcher, base: str, server: Server) -> None:
        got = await fetcher.get(base + "/", follow=False)
        assert (got.status, got.headers["Location"], got.body) == (301, "/there", b"")

    with_server(answer, main)


def test_the_cap_of_one_call_goes_before_the_configured_one() -> None:
    async def answer(path: str, nth: int) -> bytes:
        return response(bytes(1000))

    async def main(fetcher: Fetcher, base: str, server: Server) -> None:
        assert await outcome(fetcher, base + "/", max_bytes=999) == "too_large"
        assert await outcome(fetcher, base + "/", max_bytes=1000) == "ok"

    with_server(answer, main)


@pytest.mark.parametrize("path", ["/", "/a?b"])
def test_only_what_was_configured_is_said_of_us(path: str) -> None:
    heads: list[bytes] = []

    async def run() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for _ in range(2):
                heads.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(response(b"x", Set_Cookie="a=b"))

        listening = await asyncio.start_server(serve, "127.0.0.1", 0)
        base = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        async with (
            listening,
            Fetcher(FetchConfig(allow_network=("127.0.0.0/8",), user_agent="me/1 (you@a.test)")) as it,
        ):
            for _ in range(2):
                await it.get(base + path, accept="image/png")

    asyncio.run(run())
    for head in heads:
        lines = head.decode().split("\r\n")
        assert lines[0] == f"GET {path} HTTP/1.1"
        fields = dict(line.split(": ", 1) for line in lines[1:] if line)
        assert set(fields) == {"Host", "User-Agent", "Accept", "Accept-Encoding"}
        assert (fields["User-Agent"], fields["Accept"]) == ("me/1 (you@a.test)", "image/png")


WEIRD = ["http://xn--/", "http://a..b/", f"http://{'a' * 64}.test/", "http://_x.test/", "http://-/", "http://*/",
         "http://.../", "http://1.2.3.4.5/", "http://[::]/", "http://[fe80::1]/", "http://x.test:0/", "http://999/",
         "https://xn--/", "http://[fe80::1%25eth0]/", "http://\udcff.test/", "http://10.0.0.1/", ""]  # fmt: skip


def test_weird_hosts_are_fetch_errors() -> None:
    async def main() -> None:
        config = FetchConfig(dns=("127.0.0.1:1",), dns_timeout_s=0.2, timeout_s=0.5, attempts=1)
        async with Fetcher(config) as fetcher:
            reasons = await asyncio.gather(*(outcome(fetcher, url) for url in WEIRD))
        assert set(reasons) <= {"dns", "bad_url", "blocked_address", "blocked_port"}

    asyncio.run(main())
