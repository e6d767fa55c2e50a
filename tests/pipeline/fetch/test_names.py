"""Names: one question for all who ask at once, answers and refusals kept, the number of names and the time bounded."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from pipeline.fetch import names as module
from pipeline.fetch.names import NameLookupError, Names


class NameServer(asyncio.DatagramProtocol):
    """Answers by the first label: ok, none (NODATA), gone (NXDOMAIN), ill (SERVFAIL), mute, slow, six (AAAA only)."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.num_active = self.most_active = 0
        self.is_ill = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        self.asked[f"{name} {dns.rdatatype.to_text(question.rdtype)}"] += 1
        answer = dns.message.make_response(query, recursion_available=True)
        kind = name.partition(".")[0].partition("-")[0]
        if kind == "mute":
            return
        if kind == "gone":
            answer.set_rcode(dns.rcode.NXDOMAIN)
        elif kind == "ill" and self.is_ill:
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif kind == "six" and question.rdtype == dns.rdatatype.AAAA:
            answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", "AAAA", "2001:db8::1"))
        elif kind not in ("none", "six") and question.rdtype == dns.rdatatype.A:
            answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", "A", "192.0.2.1", "192.0.2.2"))
        self.num_active += 1
        self.most_active = max(self.most_active, self.num_active)
        loop = asyncio.get_running_loop()
        loop.call_later(0.05 if kind == "slow" else 0, self._send, answer.to_wire(), address)

    def _send(self, data: bytes, address: tuple[str, int]) -> None:
        self.num_active -= 1
        self.transport.sendto(data, address)


def with_server(main: Callable[[Names, NameServer], Awaitable[None]], **options: float) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        transport, server = await loop.create_datagram_endpoint(NameServer, local_addr=("127.0.0.1", 0))
        host, port = transport.get_extra_info("sockname")
        names = Names([f"{host}:{port}"], **{"timeout_s": 2.0, **options})
        try:
            await asyncio.wait_for(main(names, server), 10)
        finally:
            await names.close()
            transport.close()

    asyncio.run(run())


async def failure(names: Names, host: str) -> NameLookupError:
    with pytest.raises(NameLookupError) as caught:
        await names.resolve(host)
    return caught.value


def test_many_who_ask_at_once_share_one_question_and_later_ones_its_answer() -> None:
    async def main(names: Names, server: NameServer) -> None:
        answers = await asyncio.gather(*(names.resolve("slow.test", 80) for _ in range(50)))
        assert all({row["host"] for row in answer} == {"192.0.2.1", "192.0.2.2"} for answer in answers)
        await names.resolve("slow.test", 443)
        assert server.asked == {"slow.test A": 1}

    with_server(main)


def test_one_who_gives_up_leaves_the_question_to_the_others() -> None:
    async def main(names: Names, server: NameServer) -> None:
        first = asyncio.create_task(names.resolve("slow.test"))
        second = asyncio.create_task(names.resolve("slow.test"))
        await asyncio.sleep(0.01)
        assert names.is_waiting_for("slow.test")
        first.cancel()
        assert len(await second) == 2
        assert not names.is_waiting_for("slow.test")

    with_server(main)


@pytest.mark.parametrize("host", ["gone.test", "none.test"])
def test_that_there_is_no_such_name_is_final_and_kept(host: str) -> None:
    async def main(names: Names, server: NameServer) -> None:
        for _ in range(3):
            error = await failure(names, host)
            assert error.is_final
        assert max(server.asked.values()) == 1

    with_server(main)


def test_trouble_may_pass_is_kept_for_a_moment_and_asked_again_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TROUBLE_TTL_S", 0.2)

    async def main(names: Names, server: NameServer) -> None:
        error = await failure(names, "ill.test")
        num_asked = server.asked["ill.test A"]
        assert not error.is_final
        assert str(await failure(names, "ill.test")) == str(error) == module.TROUBLE
        assert server.asked["ill.test A"] == num_asked
        server.is_ill = False
        await asyncio.sleep(error.wait_s + 0.01)
        assert len(await names.resolve("ill.test")) == 2

    with_server(main)


def test_a_server_that_never_answers_costs_the_timeout_and_no_more() -> None:
    async def main(names: Names, server: NameServer) -> None:
        started = time.monotonic()
        errors = await asyncio.gather(*(failure(names, f"mute-{number}.test") for number in range(20)))
        assert time.monotonic() - started < 3.0  # one after the other they would take 10
        assert not any(error.is_final for error in errors)

    with_server(main, timeout_s=0.5)


def test_a_name_without_ipv4_is_asked_for_ipv6() -> None:
    async def main(names: Names, server: NameServer) -> None:
        assert [row["host"] for row in await names.resolve("six.test")] == ["2001:db8::1"]
        await names.resolve("ok.test")
        assert set(server.asked) == {"six.test A", "six.test AAAA", "ok.test A"}

    with_server(main)


def test_no_more_questions_at_once_than_allowed() -> None:
    async def main(names: Names, server: NameServer) -> None:
        await asyncio.gather(*(names.resolve(f"slow-{number}.test") for number in range(20)))
        assert server.most_active <= 5

    with_server(main, concurrency=5)


def test_old_answers_are_forgotten_beyond_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CACHED_NAMES", 10)

    async def main(names: Names, server: NameServer) -> None:
        for number in range(20):
            await names.resolve(f"ok-{number}.test")
        await asyncio.sleep(0.2)  # c-ares forgets in a thread of its own
        await names.resolve("ok-19.test")
        await names.resolve("ok-0.test")
        assert (server.asked["ok-19.test A"], server.asked["ok-0.test A"]) == (1, 2)

    with_server(main)


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".test", "xn--", "\u00e4.test", " ", "*"])
def test_what_is_no_name_is_a_lookup_error(host: str) -> None:
    async def main(names: Names, server: NameServer) -> None:
        try:
            await names.resolve(host)
        except NameLookupError:
            return

    with_server(main)


def test_closing_gives_up_what_is_under_way() -> None:
    async def main(names: Names, server: NameServer) -> None:
        task = asyncio.create_task(names.resolve("mute.test"))
        await asyncio.sleep(0.01)
        await names.close()
        with pytest.raises(asyncio.CancelledError):
            await task

    with_server(main)
