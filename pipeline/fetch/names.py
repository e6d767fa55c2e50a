"""Names to addresses: asynchronous, bounded, cached, failures too; one question for all who wait for the same name."""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict
from dataclasses import dataclass

import aiodns
from aiohttp.abc import AbstractResolver, ResolveResult

from pipeline.fetch.config import FetchConfig
from pipeline.fetch.guard import BlockedAddressError, Guard

MIN_TTL_S, MAX_TTL_S = 30.0, 600.0
NOT_FOUND_TTL_S = 300.0  # the name server said that there is no such name
FAILED_TTL_S = 5.0  # it did not answer, or failed: soon worth another question
MAX_NAMES = 100_000
NOT_FOUND = {aiodns.error.ARES_ENOTFOUND, aiodns.error.ARES_ENODATA, aiodns.error.ARES_EBADNAME}


class NoAddressError(OSError):
    """The name has no address; `detail` says why, without clocks."""

    def __init__(self, detail: str, may_pass: bool) -> None:
        super().__init__(detail)
        self.detail = detail
        self.may_pass = may_pass


@dataclass(frozen=True, slots=True)
class _Answer:
    expires: float
    addresses: tuple[tuple[int, str], ...] = ()
    error: NoAddressError | None = None


class Names(AbstractResolver):
    """aiohttp's resolver, over c-ares."""

    def __init__(self, config: FetchConfig, guard: Guard) -> None:
        self._config = config
        self._guard = guard
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._asked: dict[str, asyncio.Task[_Answer]] = {}
        self._places = asyncio.Semaphore(config.dns_concurrency)
        self._resolver = aiodns.DNSResolver(list(config.dns) or None, timeout=config.dns_timeout_s / 2, tries=2)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Permitted addresses of a name. Raises NoAddressError, or BlockedAddressError where none is permitted."""
        answer = self._answers.get(host)
        if answer is None or answer.expires < asyncio.get_running_loop().time():
            answer = await self._ask_once(host)
        if answer.error is not None:
            raise answer.error
        permitted = [(kind, address) for kind, address in answer.addresses if self._guard.permits(address)]
        if not permitted:
            raise BlockedAddressError("every address of the name is loopback, private or reserved")
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=flags)
            for kind, address in permitted
        ]

    async def close(self) -> None:
        """Give up the questions still open."""
        for task in self._asked.values():
            task.cancel()
        await self._resolver.close()

    async def _ask_once(self, host: str) -> _Answer:
        task = self._asked.get(host)
        if task is None:
            task = asyncio.create_task(self._ask(host))
            self._asked[host] = task
            task.add_done_callback(lambda _: self._asked.pop(host, None))
        # One who stops waiting must not take the answer from the others.
        return await asyncio.shield(task)

    async def _ask(self, host: str) -> _Answer:
        now = asyncio.get_running_loop().time
        async with self._places:
            try:
                async with asyncio.timeout(self._config.dns_timeout_s):
                    addresses, ttl_s = await self._query(host)
                answer = _Answer(now() + min(max(ttl_s, MIN_TTL_S), MAX_TTL_S), addresses)
            except aiodns.error.DNSError as error:
                found = error.args[0] not in NOT_FOUND
                detail = "the name server failed" if found else "no such name"
                ttl_s = FAILED_TTL_S if found else NOT_FOUND_TTL_S
                answer = _Answer(now() + ttl_s, error=NoAddressError(detail, may_pass=found))
            except TimeoutError:
                answer = _Answer(
                    now() + FAILED_TTL_S, error=NoAddressError("the name server did not answer", may_pass=True)
                )
        self._answers[host] = answer
        self._answers.move_to_end(host)
        if len(self._answers) > MAX_NAMES:
            self._answers.popitem(last=False)
        return answer

    async def _query(self, host: str) -> tuple[tuple[tuple[int, str], ...], float]:
        try:
            found = await self._resolver.getaddrinfo(host, family=socket.AF_INET, type=socket.SOCK_STREAM)
        except aiodns.error.DNSError as error:
            if error.args[0] != aiodns.error.ARES_ENODATA:
                raise
            # IPv6 only where there is no IPv4: one question less for nearly every name.
            found = await self._resolver.getaddrinfo(host, family=socket.AF_INET6, type=socket.SOCK_STREAM)
        addresses = tuple((node.family, node.addr[0].decode("ascii")) for node in found.nodes)
        return addresses, float(min((node.ttl for node in found.nodes), default=0))
