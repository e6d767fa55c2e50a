"""Which addresses may be connected to. Decided on the address itself, at the moment of connecting."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class BlockedAddressError(OSError):
    """The address is not for us."""


class Guard:
    """Public addresses pass; loopback, private, link-local, multicast and reserved ones only where a network is allowed."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._allowed = tuple(ipaddress.ip_network(text, strict=False) for text in allowed)
        self.permits = lru_cache(maxsize=65_536)(self._permits)

    def check(self, address: str) -> None:
        """Raise BlockedAddressError unless the address may be connected to."""
        if not self.permits(address):
            raise BlockedAddressError(f"{address} is not a public address")

    def _permits(self, text: str) -> bool:
        address: Address = ipaddress.ip_address(text.partition("%")[0])
        # An IPv6 address may carry an IPv4 one that the packets reach in the end.
        return all(self._is_public(inner) or self._is_allowed(inner) for inner in (address, *_carried(address)))

    def _is_allowed(self, address: Address) -> bool:
        return any(address.version == network.version and address in network for network in self._allowed)

    @staticmethod
    def _is_public(address: Address) -> bool:
        if isinstance(address, ipaddress.IPv6Address) and (address.ipv4_mapped or address in NAT64):
            return True  # the carried address decides
        return address.is_global and not address.is_multicast and not address.is_reserved


def _carried(address: Address) -> list[Address]:
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found = [address.ipv4_mapped, address.sixtofour, address.teredo[1] if address.teredo else None]
    if address in NAT64:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [inner for inner in found if inner is not None]
