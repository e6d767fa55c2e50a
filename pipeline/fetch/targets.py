"""What a url or a redirect asks for: one normal form for the guard, the gates and the wire."""

from __future__ import annotations

import re
from urllib.parse import quote

from yarl import URL

from pipeline.fetch.errors import FetchError
from pipeline.urls import Resolver

# The fetch standard's "bad ports": other protocols listen there, and a GET with a chosen path may speak to them.
_BAD_PORTS = """
    0-1 7 9 11 13 15 17 19-23 25 37 42-43 53 69 77 79 87 95 101-104 109-111 113 115 117 119 123 135 137 139 143 161 179
    389 427 465 512-515 526 530-532 540 548 554 556 563 587 601 636 989-990 993 995 1719-1720 1723 2049 3659 4045 4190
    5060-5061 6000 6566 6665-6669 6679 6697 10080
"""
BAD_PORTS = frozenset(
    port
    for first, _, last in (word.partition("-") for word in _BAD_PORTS.split())
    for port in range(int(first), int(last or first) + 1)
)

_SCHEME = re.compile(r"[\x00-\x20]*([A-Za-z][A-Za-z0-9+.\-]*):(?!\d+(?:/|$))")
_ASCII = "".join(map(chr, range(0x21, 0x7F)))
_absolute = Resolver("")


def parse_target(url: str) -> URL:
    """The url in normal form, as a browser reads it. Raises FetchError: bad_url, blocked_scheme, blocked_port."""
    return _checked(_absolute(url), url, "bad_url")


def redirect_target(base: URL, location: str | None) -> URL:
    """Where a Location header leads. Raises FetchError: bad_redirect, blocked_scheme, blocked_port."""
    if not location:
        raise FetchError("bad_redirect", "no Location")
    if not location.isascii():
        # Raw bytes of no declared charset: encoded one by one, as they came.
        location = quote(location.encode("utf-8", "surrogateescape"), safe=_ASCII + " ")
    return _checked(Resolver(str(base))(location), location, "bad_redirect")


def _checked(url: str | None, text: str, reason: str) -> URL:
    if url is None:
        scheme = _SCHEME.match(text)
        if scheme and scheme[1].lower() not in ("http", "https"):
            raise FetchError("blocked_scheme", f"{scheme[1].lower()}: is not fetched")
        raise FetchError(reason, "not a valid http(s) address")
    target = URL(url, encoded=True)
    if target.port in BAD_PORTS:
        raise FetchError("blocked_port", f"port {target.port} is never asked")
    return target
