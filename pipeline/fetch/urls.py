"""A url ready to be asked for: cleaned as a browser does, http or https, its literal address permitted."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from yarl import URL

from pipeline.crawl.urls import clean_url
from pipeline.fetch.errors import FetchError
from pipeline.fetch.guard import Guard

_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.\-]*):")


@dataclass(frozen=True, slots=True)
class Target:
    """A url as text and as aiohttp takes it, and the host[:port] whose politeness holds."""

    text: str
    url: URL
    host_port: str


def parse_url(reference: str, guard: Guard, base: URL | None = None) -> Target:
    """Read a url, against the url that redirected here. Raises FetchError bad_url, blocked_scheme, blocked_address."""
    scheme = _SCHEME.match(reference)
    if scheme and scheme[1].lower() not in ("http", "https"):
        raise FetchError("blocked_scheme", scheme[1].lower()[:20])
    text = clean_url(reference, str(base) if base is not None else reference)
    if text is None:
        raise FetchError("bad_url", "not a url")
    parts = urlsplit(text)
    host = parts.hostname or ""
    try:
        # A literal address asks no name server, so it is judged here; the socket's is judged again.
        literal = str(ipaddress.ip_address(host))
    except ValueError:
        literal = None
    if literal is not None and not guard.permits(literal):
        raise FetchError("blocked_address", "loopback, private, link-local or reserved")
    try:
        return Target(text, URL(text, encoded=True), parts.netloc)
    except ValueError:
        raise FetchError("bad_url", "not a url") from None
