"""The hostile web: whatever a server does, a fetch ends in time, within its bytes, with its one reason."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest

from infra.reasons import REASONS
from pipeline.fetch.client import Fetched, Fetcher
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.errors import FetchError
from tests.servers.hostile import ALLOW, ILLS, HostileWeb, serve_hostile
from tests.servers.memory import forget_peak, peak_mib

TIMEOUT_S = 1.0


@pytest.fixture(scope="module")
def web() -> Iterator[HostileWeb]:
    with serve_hostile() as web:
        yield web


def quick(web: HostileWeb, **changes: Any) -> FetchConfig:
    values = {"timeout_s": TIMEOUT_S, "dns_timeout_s": 0.5, "attempts": 1, "max_bytes": 4 << 20, "backoff_s": 0.05}
    return FetchConfig(allow_network=(ALLOW,), dns=(web.dns,), ca_file=web.ca_file, **{**values, **changes})


async def outcome(fetcher: Fetcher, url: str) -> Fetched | FetchError:
    try:
        return await fetcher.get(url)
    except FetchError as error:
        return error


def fetch(urls: list[str], config: FetchConfig) -> list[Fetched | FetchError]:
    async def main() -> list[Fetched | FetchError]:
        async with Fetcher(config) as fetcher:
            return await asyncio.gather(*(outcome(fetcher, url) for url in urls))

    return asyncio.run(main())


def reason_of(got: Fetched | FetchError) -> str:
    return got.reason if isinstance(got, FetchError) else "ok"


@pytest.mark.parametrize("name", ILLS)
def test_an_ill_ends_in_time_with_its_reason(web: HostileWeb, name: str, caplog: pytest.LogCaptureFixture) -> None:
    ill = ILLS[name]
    web.requests.clear()
    forget_peak()
    started, peak = time.monotonic(), peak_mib()
    with caplog.at_level(logging.INFO):
        got = fetch([web.url(name)], quick(web))[0]
    assert reason_of(got) == ill.reason, got
    assert time.monotonic() - started < TIMEOUT_S + 2.0  # on an idle machine 0.1 beyond the deadline
    # The bombs hold 1 GiB, the floods are endless; the server and its bombs are in this process too.
    assert peak_mib() - peak < 48
    assert got.num_attempts == 1
    if isinstance(got, Fetched):
        assert ill.body is None or got.body == ill.body
        # asyncio writes out what a program has come to, at its end: with the body, that was 30 MiB of letters.
        assert len(repr(got)) < 2_000
    else:
        assert got.reason in REASONS or got.reason.startswith("http_")
    assert web.num_canary == 0
    assert sum(web.requests.values()) <= 7
    # Nothing that aiohttp or asyncio leave behind unheard.
    assert [record for record in caplog.records if not record.name.startswith("pairmill")] == []


def test_all_ills_at_once_do_not_disturb_each_other(web: HostileWeb) -> None:
    web.requests.clear()
    # Limits shut the whole host; rubbish from the only name server costs every question under way a try.
    names = [name for name, ill in ILLS.items() if ill.reason != "rate_limited" and name != "name_server_lies"]
    forget_peak()
    started, peak = time.monotonic(), peak_mib()
    # One slow machine serves and reads all the floods: hence the long deadlines.
    config = quick(web, timeout_s=6.0, dns_timeout_s=3.0, per_host=256)
    got = fetch([web.url(name) for name in names], config)
    assert {name: reason_of(one) for name, one in zip(names, got, strict=True)} == {
        name: "too_many_redirects" if name == "slow_redirects" else ILLS[name].reason for name in names
    }
    assert time.monotonic() - started < 16.0
    assert peak_mib() - peak < 256
    assert web.num_canary == 0


@pytest.mark.parametrize("name", [name for name, ill in ILLS.items() if ill.final])
def test_what_passes_is_got_at_a_later_attempt(web: HostileWeb, name: str) -> None:
    web.requests.clear()
    got = fetch([web.url(name)], quick(web, attempts=3))[0]
    assert reason_of(got) == ILLS[name].final, got
    assert got.num_attempts == 2


@pytest.mark.parametrize("name", ["not_found", "to_loopback", "loop", "not_gzip", "bad_chunks", "announced_huge"])
def test_what_does_not_pass_is_asked_for_once(web: HostileWeb, name: str) -> None:
    web.requests.clear()
    got = fetch([web.url(name)], quick(web, attempts=3))[0]
    assert (reason_of(got), got.num_attempts) == (ILLS[name].reason, 1)
    assert web.requests[name] == 1


def test_the_same_ill_has_the_same_detail_every_time(web: HostileWeb) -> None:
    """Details are stored with the rows, and a rerun is to give the same bytes."""
    unsure = ("ok", "timeout", "dns", "rate_limited")
    names = [name for name, ill in ILLS.items() if ill.reason not in unsure and not ill.final]

    def details() -> list[str]:
        return [str(got) for got in fetch([web.url(name) for name in names], quick(web, timeout_s=5.0))]

    first = details()
    assert details() == first
    assert not any(str(port) in detail for port in (web.port, web.tls_port) for detail in first)


def test_a_name_that_turns_to_loopback_between_two_lookups_is_refused(web: HostileWeb) -> None:
    async def main() -> tuple[Fetched | FetchError, Fetched | FetchError]:
        url = f"http://a.rebind.test:{web.port}/right"
        async with Fetcher(quick(web)) as fetcher:
            first = await outcome(fetcher, url)
        async with Fetcher(quick(web)) as fetcher:  # asks again, and gets the canary's address
            return first, await outcome(fetcher, url)

    first, second = asyncio.run(main())
    assert (reason_of(first), reason_of(second)) == ("ok", "blocked_address")
    assert web.num_canary == 0


def test_an_address_is_judged_where_it_is_used(web: HostileWeb) -> None:
    """One lookup for judgement and connection: the name that changes with each question is asked once."""
    got = fetch([f"http://b.rebind.test:{web.port}/right"], quick(web))[0]
    assert reason_of(got) == "ok"
    assert web.num_canary == 0
