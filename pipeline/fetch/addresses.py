"""The address guard: a socket is opened to public addresses only, and to the networks that the user allows.

It stands where sockets are made, behind names, redirects and number tricks, so a name whose answer changes between two
lookups cannot pass it.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# IANA's special-purpose registries, written out: what `is_global` says differs between patch releases of Python.
_SPECIAL = [
    ipaddress.ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        *("2001::/23", "2001:db8::/32", "3fff::/20"),
    )
]
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # loopback, link-local, private and multicast lie outside of it
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address


class BlockedAddressError(OSError):
    """The address is not public. `address`: which."""

    def __init__(self, address: str) -> None:
        # One text for all addresses: where a name has several, the connector keeps the type only if the texts agree.
        super().__init__("address not allowed")
        self.address = address


class AddressGuard:
    """Decides on addresses. allowed: CIDR networks that pass although they are not public."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._allowed = [ipaddress.ip_network(text, strict=False) for text in allowed]

    def allows(self, text: str) -> bool:
        """May this address be connected to? False for what is no address."""
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return False
        inner = _inner_ipv4(address)
        return any(inner in network or address in network for network in self._allowed) or is_public(inner)

    def open_socket(self, addr_info: tuple[Any, ...]) -> socket.socket:
        """A TCP socket for this row of getaddrinfo, not yet connected. Raises BlockedAddressError."""
        family, kind, protocol, _, address = addr_info
        if not self.allows(address[0]):
            raise BlockedAddressError(address[0])
        return socket.socket(family, kind, protocol)


def is_public(address: Address) -> bool:
    """Is it a public unicast address: not private, loopback, link-local, shared, multicast, reserved or unspecified?"""
    inner = _inner_ipv4(address)
    if isinstance(inner, ipaddress.IPv6Address) and inner not in _GLOBAL_UNICAST:
        return False
    return not any(inner in network for network in _SPECIAL)


def _inner_ipv4(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for (mapped, 6to4, NAT64), else the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address
