"""The hostile web: whatever a server does, a fetch ends in time, within its bytes, with its one reason."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Iterator

import pytest

from pipeline.fetch.client import Fetched, Fetcher
from pipeline.fetch.config import FetchConfig
from pipeline.fetch.errors import FetchError
from tests.servers.hostile import ILLS, HostileWeb, serve_hostile

TIMEOUT_S = 1.0
QUICK = FetchConfig(allow_network=("127.0.0.0/8",), timeout_s=TIMEOUT_S, attempts=1, max_bytes=4 << 20)


@pytest.fixture(scope="module")
def web() -> Iterator[HostileWeb]:
    with serve_hostile() as web:
        yield web


def fetch(url: str, config: FetchConfig = QUICK) -> Fetched | FetchError:
    async def main() -> Fetched | FetchError:
        async with Fetcher(config) as fetcher:
            try:
                return await fetcher.get(url)
            except FetchError as error:
                return error

    return asyncio.run(main())


@pytest.mark.parametrize("name", ILLS)
def test_an_ill_ends_in_time_with_its_reason(web: HostileWeb, name: str) -> None:
    ill = ILLS[name]
    started, peak = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    got = fetch(web.url(name))
    took_s = time.monotonic() - started
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    if ill.reason == "ok":
        assert isinstance(got, Fetched), got
        assert ill.body is None or got.body == ill.body
    else:
        assert isinstance(got, FetchError)
        assert (got.reason, got.num_attempts) == (ill.reason, 1), got
    assert took_s < (1.5 * TIMEOUT_S + 0.5 if ill.reason == "timeout" else 1.0)
    # The bombs hold 1 GiB, the floods are endless; the server's own buffers are in this process too.
    assert grown_mib < 48
