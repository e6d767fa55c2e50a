"""A name server on loopback: the web's hosts are 127.0.0.1, every other name does not exist."""

from __future__ import annotations

import asyncio

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

TTL_S = 60


class NameServer(asyncio.DatagramProtocol):
    """Answers A with 127.0.0.1 for the given hosts, other types of theirs with nothing, other names with NXDOMAIN."""

    def __init__(self, hosts: frozenset[str]) -> None:
        self._hosts = hosts
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        """Keep the socket to answer through."""
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        """Answer one query; what is no query is ignored, as name servers do."""
        try:
            answer = answer_query(data, self._hosts)
        except dns.exception.DNSException:
            return
        assert self._transport is not None
        self._transport.sendto(answer, address)


def answer_query(data: bytes, hosts: frozenset[str]) -> bytes:
    """The wire form of the answer to one query. Raises DNSException for what is no query."""
    query = dns.message.from_wire(data)
    response = dns.message.make_response(query, recursion_available=True)
    response.flags |= dns.flags.AA
    for question in query.question:
        if question.name.to_text(omit_final_dot=True).lower() not in hosts:
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif question.rdtype == dns.rdatatype.A:
            # The name as it was asked, capitals and all: resolvers compare them.
            response.answer.append(dns.rrset.from_text(question.name, TTL_S, "IN", "A", "127.0.0.1"))
    return response.to_wire()
