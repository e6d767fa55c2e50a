"""A name server with bad manners, on loopback: rebinding, silence, failure, rubbish, names of forbidden addresses."""

from __future__ import annotations

import asyncio
from collections import Counter

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

_ADDRESSES = {
    "loopback.test": ("127.0.0.1",),
    "metadata.test": ("169.254.169.254",),
    "mapped.test": ("::ffff:127.0.0.1",),
}


class HostileNames(asyncio.DatagramProtocol):
    """Answers for .test. `host` is where the server is, `canary` where nobody may connect.

    NAME.rebind.test is `host` when first asked for and `canary` ever after; NAME.fine.test is always `host`.
    """

    def __init__(self, host: str, canary: str) -> None:
        self._host, self._canary = host, canary
        self._asked: Counter[str] = Counter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the socket to answer through."""
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        """Answer one query, or not."""
        try:
            query = dns.message.from_wire(data)
        except dns.exception.DNSException:
            return
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        if name == "silent.test":
            return
        if name == "garbage.test":
            self._transport.sendto(data[:2] + b"\xff" * 30, address)
            return
        response = dns.message.make_response(query, recursion_available=True)
        response.flags |= dns.flags.AA
        if name == "servfail.test":
            response.set_rcode(dns.rcode.SERVFAIL)
        elif name != "empty.test":
            self._answer(response, question, name)
        self._transport.sendto(response.to_wire(), address)

    def _answer(self, response: dns.message.Message, question: dns.rrset.RRset, name: str) -> None:
        if name.endswith("fine.test"):
            addresses: tuple[str, ...] = (self._host,)
        elif name == "both.test":
            addresses = (self._canary, self._host)
        elif name.endswith(".rebind.test"):
            self._asked[name] += 1
            addresses = (self._host if self._asked[name] == 1 else self._canary,)
        else:
            addresses = _ADDRESSES.get(name, ())
        if not addresses:
            response.set_rcode(dns.rcode.NXDOMAIN)
        kinds = {dns.rdatatype.A: ".", dns.rdatatype.AAAA: ":"}
        wanted = [text for text in addresses if (":" if ":" in text else ".") == kinds.get(question.rdtype)]
        if wanted:
            response.answer.append(
                dns.rrset.from_text(question.name, 0, "IN", dns.rdatatype.to_text(question.rdtype), *wanted)
            )
