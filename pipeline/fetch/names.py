"""Host names to addresses: asynchronous, bounded, cached, with negative answers; one lookup for all who ask at once."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import socket
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import aiodns
import pycares
from aiohttp.abc import AbstractResolver, ResolveResult

from infra.log import get_logger

log = get_logger("fetch.names")

MAX_CACHED_NAMES = 100_000
# Shorter times to live are stretched: a page's images ask again within seconds. Longer ones are cut, for moved hosts.
TTL_RANGE_S = (10.0, 3600.0)
NO_SUCH_NAME_TTL_S = 600.0
TROUBLE_TTL_S = 2.0
QUESTIONS = 3  # of one lookup, while its time lasts and the server only stumbles
TROUBLE = "the name servers failed, or did not answer in time"

_NO_SUCH_NAME = frozenset(
    {pycares.errno.ARES_ENOTFOUND, pycares.errno.ARES_ENODATA, pycares.errno.ARES_EBADNAME, pycares.errno.ARES_ENONAME}
)


class NameLookupError(OSError):
    """A name without address. is_final: the name servers say so; else they failed, and may do better later."""

    def __init__(self, message: str, is_final: bool, expires: float) -> None:
        super().__init__(message)
        self.is_final = is_final
        self.expires = expires

    @property
    def wait_s(self) -> float:
        """How long this answer is still given from the cache, in seconds."""
        return max(0.0, self.expires - time.monotonic())


@dataclass(frozen=True, slots=True)
class _Found:
    addresses: tuple[str, ...]
    expires: float  # time.monotonic()


class Names(AbstractResolver):
    """A resolver for aiohttp. Belongs to one event loop.

    IPv4 first, IPv6 only for names that have no other: most names have both, and one question is cheaper than two.
    Search domains are not tried: the web's names are complete, and a dead one would be asked for several times.

    servers: "address[:port]", empty for the system's. timeout_s: for one name, all tries together. concurrency:
    lookups at the same time; further ones wait.
    """

    def __init__(self, servers: Sequence[str] = (), *, timeout_s: float = 5.0, concurrency: int = 128) -> None:
        # c-ares doubles the timeout with each try: three nearly fill timeout_s.
        self._dns = aiodns.DNSResolver(
            nameservers=list(servers) or None,
            timeout=timeout_s / 8,
            tries=3,
            flags=pycares.ARES_FLAG_NOSEARCH,
            lookups="fb",  # /etc/hosts first
        )
        self._timeout_s = timeout_s
        self._turns = asyncio.Semaphore(concurrency)
        self._cache: OrderedDict[str, _Found | NameLookupError] = OrderedDict()
        self._num_lookups = 0
        self._running: dict[str, asyncio.Task[_Found | NameLookupError]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Addresses of a name. Raises NameLookupError."""
        answer = self._cache.get(host)
        if answer is None or answer.expires <= time.monotonic():
            answer = await self._shared_lookup(host)
        if isinstance(answer, NameLookupError):
            raise NameLookupError(str(answer), answer.is_final, answer.expires)
        return [_result(host, address, port) for address in answer.addresses]

    def is_waiting_for(self, host: str) -> bool:
        """Is a lookup of this name under way?"""
        return host in self._running

    async def close(self) -> None:
        """Give up the lookups under way."""
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        await self._dns.close()

    async def _shared_lookup(self, host: str) -> _Found | NameLookupError:
        task = self._running.get(host)
        if task is None:
            task = self._running[host] = asyncio.create_task(self._lookup_and_keep(host))
        # Whoever gives up waiting leaves the lookup to the others, and its answer to the next attempt.
        return await asyncio.shield(task)

    async def _lookup_and_keep(self, host: str) -> _Found | NameLookupError:
        try:
            async with self._turns:
                answer = await self._lookup(host)
        finally:
            del self._running[host]
        self._cache[host] = answer
        self._cache.move_to_end(host)
        if len(self._cache) > MAX_CACHED_NAMES:
            self._cache.popitem(last=False)
        self._num_lookups += 1
        if self._num_lookups % MAX_CACHED_NAMES == 0:
            # c-ares keeps answers too, for up to an hour, however many; only this makes it forget them.
            self._dns._channel.reinit()
        return answer

    async def _lookup(self, host: str) -> _Found | NameLookupError:
        try:
            async with asyncio.timeout(self._timeout_s):
                for _ in range(QUESTIONS - 1):
                    try:
                        return await self._ask(host)
                    except aiodns.error.DNSError as error:
                        if error.args[0] in _NO_SUCH_NAME:
                            raise
                        log.info("host=%s dns_error=%s asking=again", host, error.args)
                    # At another moment for each: a stumbling server fails all questions under way at once.
                    await asyncio.sleep(self._timeout_s * random.uniform(0.02, 0.2))
                return await self._ask(host)
        except TimeoutError:
            return _failure(TROUBLE, is_final=False)
        except aiodns.error.DNSError as error:
            is_final = error.args[0] in _NO_SUCH_NAME
            # Of trouble, what is seen hangs on which server and which try came last: it goes to the log, not the table.
            log.log(logging.DEBUG if is_final else logging.INFO, "host=%s dns_error=%s", host, error.args)
            return _failure(str(error.args[1]) if is_final else TROUBLE, is_final)
        except UnicodeError:
            return _failure("not a host name", is_final=True)

    async def _ask(self, host: str) -> _Found:
        try:
            return await self._ask_for(host, socket.AF_INET)
        except aiodns.error.DNSError as error:
            if error.args[0] != pycares.errno.ARES_ENODATA:
                raise
            return await self._ask_for(host, socket.AF_INET6)

    async def _ask_for(self, host: str, family: socket.AddressFamily) -> _Found:
        result = await self._dns.getaddrinfo(host, family=family, type=socket.SOCK_STREAM)
        addresses = dict.fromkeys(node.addr[0].decode("ascii") for node in result.nodes)
        if not addresses:
            raise aiodns.error.DNSError(pycares.errno.ARES_ENODATA, "no address")
        shortest, longest = TTL_RANGE_S
        ttl_s = min(max(min((node.ttl for node in result.nodes), default=math.inf), shortest), longest)
        return _Found(tuple(addresses), time.monotonic() + ttl_s)


def _failure(message: str, is_final: bool) -> NameLookupError:
    ttl_s = NO_SUCH_NAME_TTL_S if is_final else TROUBLE_TTL_S
    return NameLookupError(message, is_final, time.monotonic() + ttl_s)


def _result(host: str, address: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST)
