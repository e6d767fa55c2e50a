"""The address guard: public unicast addresses pass, and what a flag allows; nothing else, in whatever spelling."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.fetch.addresses import AddressGuard, BlockedAddressError, is_public

FORBIDDEN = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.255.254",
    "169.254.169.254", "172.16.0.1", "172.31.255.1", "192.0.0.1", "192.0.2.1", "192.88.99.1", "192.168.1.1",
    "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "::",
    "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1",
    "100::1", "2001:0:4136:e378::1", "2001:db8::1", "2002:7f00:1::", "2002:a00:1::1", "3fff::1", "5f00::1", "fc00::1",
    "fd12:3456::1", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1",
]  # fmt: skip
ALLOWED = [
    "1.1.1.1", "8.8.8.8", "93.184.216.34", "172.15.0.1", "172.32.0.1", "100.63.0.1", "100.128.0.1", "223.255.255.1",
    "2606:4700::1111", "2a00:1450:4001::200e", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1",
]  # fmt: skip


@pytest.mark.parametrize("address", FORBIDDEN)
def test_what_is_not_public_is_refused(address: str) -> None:
    assert not AddressGuard().allows(address)


@pytest.mark.parametrize("address", ALLOWED)
def test_what_is_public_passes(address: str) -> None:
    assert AddressGuard().allows(address)


@pytest.mark.parametrize("text", ["", "localhost", "0x7f000001", "127.1", "1.2.3.4.5", "::g", "1.1.1.1 "])
def test_what_is_no_address_is_refused(text: str) -> None:
    assert not AddressGuard(["0.0.0.0/0", "::/0"]).allows(text)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_judged_alike_in_every_ipv6_dress(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    dresses = [0xFFFF << 32 | number, 0x64FF9B << 96 | number, 0x2002 << 112 | number << 80]
    assert {is_public(ipaddress.IPv6Address(dress)) for dress in dresses} == {is_public(address)}


@given(st.ip_addresses(v=4))
def test_nothing_passes_that_the_standard_library_calls_not_global(address: ipaddress.IPv4Address) -> None:
    if is_public(address):
        assert address.is_global
        assert not address.is_multicast


def test_an_allowed_network_opens_itself_only() -> None:
    guard = AddressGuard(["127.0.0.77/32", "fd00::/8"])
    assert guard.allows("127.0.0.77")
    assert guard.allows("::ffff:127.0.0.77")
    assert guard.allows("fd00::1")
    assert not guard.allows("127.0.0.1")
    assert not guard.allows("fe80::1")


def test_a_socket_is_opened_for_allowed_addresses_only() -> None:
    guard = AddressGuard()
    with guard.open_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("1.1.1.1", 80))) as opened:
        assert opened.family == socket.AF_INET
    with pytest.raises(BlockedAddressError):
        guard.open_socket((socket.AF_INET6, socket.SOCK_STREAM, 0, "", ("::1", 80, 0, 0)))
